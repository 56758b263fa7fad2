"""Denoising a picture with a dictionary of patches (Elad, Aharon, IEEE TIP 15, 2006).

Every overlapping patch is coded, without its mean, by orthogonal matching pursuit until its error is what the noise
explains, (gain σ)² per pixel; the picture is the average of the coded patches and a little of the noisy picture.

Shapes: picture [h, w], patches of p × p pixels, H atoms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ModelError
from ..pursuit import batch_omp, reconstruct

GAIN = 1.15
BLOCK = 65536


def denoise(picture: Tensor, atoms: Tensor, sigma: float, *, gain: float = GAIN, anchor: float = 30.0) -> Tensor:
    """The picture without its noise.

    Args:
        picture: [h, w], float32 or float64, with white noise.
        atoms: [H, p²], the patches' pixels row by row; the constant patch need not be among them.
        sigma: Standard deviation of the noise, in the units of the picture.
        gain: Of the error allowed per pixel, in units of σ.
        anchor: The noisy picture counts `anchor` / (σ in 8-bit grey levels) patches; σ must be given in such levels
            for the usual 30.

    Returns:
        [h, w].

    Raises:
        ModelError: a picture in colour or of whole numbers, or smaller than a patch; atoms that are no square patches;
            σ not above 0.
    """
    if picture.ndim != 2 or not picture.is_floating_point():
        raise ModelError(f"a picture {tuple(picture.shape)} of {picture.dtype}: give grey values [h, w] as floats")
    if atoms.ndim != 2:
        raise ModelError(f"atoms {tuple(atoms.shape)} must be a matrix, one patch per row")
    side = round(atoms.shape[1] ** 0.5)
    if side * side != atoms.shape[1]:
        raise ModelError(f"atoms of {atoms.shape[1]} pixels are no square patches")
    if min(picture.shape) < side:
        raise ModelError(f"a picture of {tuple(picture.shape)} pixels holds no patch of {side}×{side}")
    if not sigma > 0:
        raise ModelError(f"sigma={sigma} must be above 0")
    windows = picture.unfold(0, side, 1).unfold(1, side, 1)
    rows = windows.reshape(-1, side * side)
    allowed = (gain * sigma) ** 2 * side * side
    dictionary = atoms.to(picture.dtype).T.contiguous()
    coded = torch.cat([_coded(part, dictionary, allowed) for part in rows.split(BLOCK)])
    folded = torch.nn.functional.fold(
        torch.cat([coded.T[None], torch.ones_like(coded.T[None])]), tuple(picture.shape), side
    )
    weight = anchor / sigma
    return (folded[0, 0] + weight * picture) / (folded[1, 0] + weight)


def psnr(picture: Tensor, truth: Tensor, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(10 * torch.log10(peak**2 / (picture - truth).double().square().mean()))


def _coded(rows: Tensor, dictionary: Tensor, allowed: float) -> Tensor:
    mean = rows.mean(1, keepdim=True)
    most = max(1, min(dictionary.shape[0] // 2, dictionary.shape[1]))
    found = batch_omp(rows - mean, dictionary, nonzeros=most, error=allowed)
    return reconstruct(dictionary, found.codes) + mean
