"""One photograph mended by spike-and-slab sparse coding learned on that damaged photograph alone.

`china.jpg` of scikit-learn in grey: with Gaussian noise of 25 grey values, or with half of its pixels missing. Random
patches of the damaged photograph are ingested, gsc is learned on them from the cosine basis, and `denoise` encodes all
overlapping patches. Beside it stands the cosine basis itself: coefficients below a threshold are set to 0 and overlaps
averaged (the best of several thresholds, chosen by the truth); for missing pixels the known ones are put back each
round.

    python benchmarks/denoising.py [--patch 6] [--rows 8000] [--passes 8] [--candidates 8] [--active 5] [--stride 2]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.fft import dctn, idctn
from sparsefleet.models.factorization import denoising
from sparsefleet.pipelines import denoise, learn
from sparsefleet.pipelines.denoising import DenoiseJob
from sparsefleet.storage import ArraysSource
from sparsefleet.storage.ingest import ingest
from sparsefleet.storage.ingest.images import find_images, read_photo
from sparsefleet.workers import LearnJob

PHOTO = "sklearn:china.jpg"
SIGMA = 25 / 255


def psnr(found: np.ndarray, truth: np.ndarray) -> float:
    """In dB, of values in [0, 1]."""
    return denoising.psnr(torch.from_numpy(found), torch.from_numpy(truth), 1.0)


def cosine_atoms(size: int) -> np.ndarray:
    """[D, D] the orthonormal cosine basis of patches, the constant first."""
    return np.stack([idctn(e.reshape(size, size), norm="ortho").ravel() for e in np.eye(size**2)], 1)


def thresholded(photo: np.ndarray, threshold: float, size: int = 8) -> np.ndarray:
    """Mean over all overlapping patches without their small cosine coefficients."""
    windows = np.lib.stride_tricks.sliding_window_view(photo.astype(np.float32), (size, size))
    found = dctn(windows, axes=(2, 3), norm="ortho")
    keep = np.abs(found) > threshold
    keep[..., 0, 0] = True
    patches = idctn(found * keep, axes=(2, 3), norm="ortho")
    total, count = np.zeros(photo.shape, photo.dtype), np.zeros(photo.shape, photo.dtype)
    for i in range(size):
        for j in range(size):
            place = (slice(i, i + len(windows)), slice(j, j + windows.shape[1]))
            total[place] += patches[:, :, i, j]
            count[place] += 1
    return total / count


def filled(photo: np.ndarray, seen: np.ndarray, last: float, rounds: int = 10) -> np.ndarray:
    """Missing pixels by thresholds that fall from 1 to `last`, the known pixels put back after each."""
    out = np.where(seen, photo, photo[seen].mean())
    for threshold in np.geomspace(1.0, last, rounds):
        out = np.where(seen, photo, thresholded(out, threshold))
    return out


def mended(folder: Path, clean: Path, damaged: np.ndarray, options: argparse.Namespace, sigma: float | None) -> float:
    """PSNR of the photograph that `denoise` gives back from `damaged` (NaN: missing)."""
    size, rng = options.patch, np.random.default_rng(1)
    windows = np.lib.stride_tricks.sliding_window_view(damaged, (size, size))
    places = (rng.integers(n, size=options.rows) for n in windows.shape[:2])
    rows = windows[tuple(places)]
    rows = rows[~np.isnan(rows).all((1, 2))].astype(np.float32)
    np.save(folder / "patches.npy", rows)
    missing = bool(np.isnan(damaged).any())
    ingest(
        ArraysSource(sources=[str(folder / "patches.npy")], out=str(folder / "p.zarr"), missing=missing, overwrite=True)
    )
    weights, atoms = cosine_atoms(size), size**2
    level = np.nanmean(rows, axis=(1, 2)) * size
    mu, psi, pi = np.zeros(atoms), np.full(atoms, 0.25**2), np.full(atoms, 0.1)
    mu[0], psi[0], pi[0] = level.mean(), level.var(), 1 - 1e-4
    noise = np.array(sigma or 0.03)
    np.savez(folder / "start.npz", W=weights, mu=mu, psi=psi, pi=pi, sigma=noise)
    settings = {"h_prime": options.candidates, "gamma": options.active, "missing": missing}
    settings |= {"fixed": ["sigma"]} if sigma else {}
    job = {"data": str(folder / "p.zarr"), "store": str(folder / "store"), "model": "gsc", "atoms": atoms}
    job |= {"settings": settings, "init": str(folder / "start.npz"), "passes": options.passes, "threads": 1}
    learned = learn(LearnJob.parse(job | {"schedule": {"T": [[0, 1], [1, 1]]}}))
    Image.fromarray(np.nan_to_num(damaged).astype(np.float32)).save(folder / "damaged.tif")
    Image.fromarray(((~np.isnan(damaged)) * 255).astype(np.uint8)).save(folder / "mask.png")
    more = {"mask": str(folder / "mask.png"), "keep_known": True} if missing else {}
    places_of = {"data": str(folder / "damaged.tif"), "truth": str(clean), "out": str(folder / "out.png")}
    common = {
        "store": str(folder / "store"),
        "dictionary": learned.ref,
        "overwrite": True,
        "threads": 1,
        "stride": options.stride,
    }
    result = denoise(DenoiseJob.parse(places_of | common | more))
    print(f"  learned: {learned.fit.metrics}, {learned.fit.seconds:.0f} s; {result.patches} patches, {result.metrics}")
    return result.metrics["psnr"]


def main() -> None:
    """Both experiments, printed as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("patch", 6), ("rows", 8000), ("passes", 8), ("candidates", 8), ("active", 5), ("stride", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clean_file = find_images([PHOTO])[0]
    clean = read_photo(clean_file, color=False, prefilter=False).pixels.astype(np.float64)
    rng, begun = np.random.default_rng(0), time.process_time()
    noisy, seen = clean + SIGMA * rng.normal(size=clean.shape), rng.random(clean.shape) < 0.5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = mended(folder, clean_file, noisy, options, SIGMA)
        best = max(psnr(thresholded(noisy, t * SIGMA).clip(0, 1), clean) for t in (1.8, 2.1, 2.4, 2.7))
        print(f"noise of 25: {psnr(noisy, clean):.2f} dB, cosine thresholds {best:.2f}, gsc {ours:.2f}")
        holes = np.where(seen, clean, np.nan)
        ours = mended(folder, clean_file, holes, options, None)
        mean = psnr(np.where(seen, clean, clean[seen].mean()), clean)
        best = max(psnr(filled(clean, seen, last).clip(0, 1), clean) for last in (0.05,))
        print(f"half missing: {mean:.2f} dB, cosine thresholds {best:.2f}, gsc {ours:.2f}")
    print(f"{time.process_time() - begun:.0f} s of one core")


if __name__ == "__main__":
    main()
