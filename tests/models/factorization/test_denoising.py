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
    # Every patch counts its mean at each of its pixels: at those inside, the mean of nine means.
    means = torch.nn.functional.avg_pool2d(picture[None], 3, stride=1)
    expected = torch.nn.functional.avg_pool2d(means, 3, stride=1)[0]
    torch.testing.assert_close(flat[2:-2, 2:-2], expected)
    torch.testing.assert_close(flat[0], means[0, 0, 0].expand(30))


@pytest.mark.parametrize(("atoms", "pixels"), [(1, 36), (3, 1)])
def test_few_or_tiny_atoms_do_without_a_warning(atoms, pixels, recwarn):
    rows = torch.randn(atoms, pixels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert denoise(stripes(), rows, 5.0).isfinite().all()
    assert not recwarn.list


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (torch.ones(40, 30, 3), r"\(40, 30, 3\)"),
        (torch.ones(40, 30, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_pictures_are_grey_and_float(picture, words):
    with pytest.raises(ModelError, match=words):
        denoise(picture, torch.ones(3, 9), 5.0)


@pytest.mark.parametrize(
    ("atoms", "sigma", "words"),
    [
        ((9,), 1.0, "must be a matrix"),
        ((3, 8), 1.0, "no square"),
        ((3, 1600), 1.0, "no patch of 40×40"),
        ((3, 9), 0.0, "sigma=0.0"),
    ],
)
def test_what_cannot_be_is_refused(atoms, sigma, words):
    with pytest.raises(ModelError, match=words):
        denoise(stripes(), torch.ones(*atoms, dtype=torch.float64), sigma)
