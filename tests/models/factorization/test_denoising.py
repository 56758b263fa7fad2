"""Denoising a picture with a dictionary of patches."""

import pytest
import torch
from sparsefleet.models import ModelError
from sparsefleet.models.factorization.denoising import denoise, psnr


def stripes():
    return 128 + 80 * torch.sin(torch.arange(40, dtype=torch.float64) / 3)[:, None].expand(40, 30)


def test_atoms_of_the_picture_take_the_noise():
    truth = stripes()
    atoms = truth.unfold(0, 6, 1).unfold(1, 6, 1).reshape(-1, 36)
    atoms = torch.nn.functional.normalize(atoms - atoms.mean(1, keepdim=True), dim=1)[::7]
    noisy = truth + 20 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert psnr(denoise(noisy, atoms, 20.0), truth) > psnr(noisy, truth) + 6


def test_without_atoms_that_fit_each_patch_is_its_mean():
    picture = stripes()
    flat = denoise(picture, torch.zeros(4, 9, dtype=torch.float64) + 1, 200.0, anchor=0.0)
    assert flat.shape == picture.shape and float(flat.std()) < float(picture.std())


@pytest.mark.parametrize(
    ("atoms", "sigma", "words"),
    [((3, 8), 1.0, "no square"), ((3, 1600), 1.0, "no patch of 40×40"), ((3, 9), 0.0, "sigma=0.0")],
)
def test_what_cannot_be_is_refused(atoms, sigma, words):
    with pytest.raises(ModelError, match=words):
        denoise(stripes(), torch.ones(*atoms, dtype=torch.float64), sigma)
