"""Patches of photographs: the real ones that scikit-learn ships, and everything that is no photograph."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from sparsefleet.storage import BadData, NotFound, StorageError, StoreConflict
from sparsefleet.storage.datasets import Dataset, open_dataset, open_writer
from sparsefleet.storage.ingest import ImagesSource, ingest
from sparsefleet.storage.ingest import images as module


def job(tmp_path: Path, **more: Any) -> ImagesSource:
    given: dict[str, Any] = {"sources": ["sklearn:photos"], "out": str(tmp_path / "p.zarr"), "patch": 8, "rows": 2000}
    return ImagesSource(**(given | more))


def everything(found: Dataset) -> np.ndarray:
    return found.read(0, found.rows)


def save(path: Path, pixels: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return str(path)


def noise(height: int = 40, width: int = 50, *more: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *more), dtype=np.uint8)


@pytest.mark.parametrize("patch", [12, 16])
def test_photographs_are_white_and_sparse(tmp_path: Path, patch: int) -> None:
    found = ingest(job(tmp_path, patch=patch, rows=10_000))
    x = everything(found)
    assert x.shape == (10_000, patch**2)
    assert found.patch_shape == (patch, patch)
    assert found.verify() == []
    whiten, unwhiten, mean = (found.side(name) for name in ("whiten", "unwhiten", "mean"))
    assert whiten is not None
    assert unwhiten is not None
    assert mean is not None
    kept = np.linalg.matrix_rank(whiten)
    assert 0.8 * patch**2 < kept < 0.95 * patch**2
    np.testing.assert_allclose(x.var(axis=0).sum() / kept, 1, rtol=1e-3)
    # Heavy tails are what sparse coding lives on: a Gaussian has kurtosis 3.
    assert np.mean((x / x.std(axis=0)) ** 4) > 5
    # No direction is amplified beyond the others, and none of the strong ones is lost.
    variances = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1][:kept]
    assert variances[0] < 2.5
    assert np.median(variances) > 0.5
    # The way back gives patches of the photographs: without their mean, in [-1, 1], and 99 % of their variance.
    back = x @ unwhiten + mean
    assert np.abs(back.mean(axis=1)).max() < 0.05
    assert np.abs(back).max() < 1.1
    atoms = found.to_pixels(np.eye(patch**2)[:, :5])
    np.testing.assert_allclose(atoms, unwhiten.T[:, :5])


def test_pca_has_as_many_dimensions_as_kept(tmp_path: Path) -> None:
    found = ingest(job(tmp_path, whiten="pca", keep=0.9, epsilon=0))
    assert found.dim < 40
    np.testing.assert_allclose(np.cov(everything(found).T), np.eye(found.dim), atol=1e-4)
    assert found.to_pixels(np.eye(found.dim)).shape == (64, found.dim)


def test_patches_are_cut_from_the_photograph(tmp_path: Path) -> None:
    pixels = noise()
    out = job(tmp_path, sources=[save(tmp_path / "n.png", pixels)], whiten="none", dc=False, rows=300, patch=5)
    grey = pixels.astype(np.float32) / 255
    windows = np.lib.stride_tricks.sliding_window_view(grey, (5, 5)).reshape(-1, 25)
    for row in everything(ingest(out)):
        assert np.abs(windows - row).max(axis=1).min() < 1e-6


def test_photographs_count_by_their_area(tmp_path: Path) -> None:
    small, large = noise(30, 30) // 4, noise(60, 90) // 4 + 128
    save(tmp_path / "in" / "small.png", small)
    save(tmp_path / "in" / "deep" / "large.PNG", large)
    found = ingest(job(tmp_path, sources=[str(tmp_path / "in")], whiten="none", dc=False, patch=4, rows=4000))
    share = (everything(found).mean(axis=1) > 0.45).mean()
    np.testing.assert_allclose(share, 57 * 87 / (57 * 87 + 27 * 27), atol=0.02)
    assert [source["name"] for source in found.attributes["sources"]] == ["large.PNG", "small.png"]


def test_colour_dc_and_contrast(tmp_path: Path) -> None:
    source = [save(tmp_path / "c.png", noise(40, 50, 3))]
    plain = ingest(job(tmp_path, sources=source, color=True, whiten="none", dc=False, out=str(tmp_path / "a.zarr")))
    assert (plain.dim, plain.patch_shape) == (192, (8, 8, 3))
    centred = ingest(job(tmp_path, sources=source, color=True, whiten="none", out=str(tmp_path / "b.zarr")))
    raw = everything(plain)
    np.testing.assert_allclose(everything(centred), raw - raw.mean(axis=1, keepdims=True), atol=1e-6)
    even = ingest(job(tmp_path, sources=source, whiten="none", contrast=True, out=str(tmp_path / "c.zarr")))
    np.testing.assert_allclose(everything(even).std(axis=1), 1, atol=0.01)


def test_flat_patches_are_drawn_again(tmp_path: Path) -> None:
    pixels = np.full((60, 60), 128, np.uint8)
    pixels[:20, :20] = noise(20, 20)
    found = ingest(job(tmp_path, sources=[save(tmp_path / "f.png", pixels)], whiten="none", min_std=0.05, rows=500))
    assert everything(found).std(axis=1).min() >= 0.05


def test_the_prefilter_has_no_dc_and_peak_one(tmp_path: Path) -> None:
    dot = np.zeros((21, 21), np.float32)
    dot[10, 10] = 1
    answer = module.difference_of_gaussians(dot, Path("dot"))
    assert answer.shape == (13, 13)
    np.testing.assert_allclose(answer[6, 6], 1, rtol=1e-6)
    np.testing.assert_allclose(answer.sum(), 0, atol=1e-5)


def test_the_prefilter_spreads_the_variance(tmp_path: Path) -> None:
    def strong(**more: Any) -> int:
        """How many directions hold 95 % of the variance."""
        x = everything(ingest(job(tmp_path, patch=16, rows=4000, whiten="none", overwrite=True, **more)))
        share = np.cumsum(np.linalg.eigvalsh(np.cov(x.T))[::-1])
        return int((share < 0.95 * share[-1]).sum()) + 1

    assert strong(dc=False, min_std=0) < 40 < strong(prefilter="dog")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "LA", "1", "I;16"])
def test_every_kind_of_image_is_read(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    path = tmp_path / f"x.{suffix}"
    if mode == "I;16":
        Image.fromarray(noise().astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(noise(40, 50, 3)).convert(mode).save(path)
    for color in (False, True):
        photo = module.read_photo(path, color=color, prefilter=False)
        assert photo.pixels.shape == ((40, 50, 3) if color else (40, 50))
        assert photo.pixels.dtype == np.float32
        assert photo.pixels.min() >= 0
        assert 0.5 < photo.pixels.max() <= 1


def test_the_same_job_gives_the_same_patches_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        ingest(job(tmp_path, out=str(tmp_path / name), seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    np.testing.assert_array_equal(everything(first), everything(again))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert np.abs(everything(first) - everything(other)).max() > 1


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_ingest_continues_to_the_same_data_set(tmp_path: Path, failure: type[BaseException]) -> None:
    work = job(tmp_path, rows=1000, shard_rows=64)

    def stop(done: int, total: int, what: str) -> None:
        if what == "writing shards" and done == 5:
            raise failure

    with pytest.raises(failure):
        ingest(work, stop)
    with pytest.raises(StorageError, match="unfinished"):
        open_dataset(work.out)
    done = {s.index for s in open_writer(work.out).shards()} - {s.index for s in open_writer(work.out).missing()}
    assert 5 <= len(done) < 16
    with pytest.raises(StoreConflict, match="another recipe"):
        ingest(work.model_copy(update={"seed": 5}))
    seen: list[tuple[int, int, str]] = []
    found = ingest(work, lambda *now: seen.append(now))
    assert seen[-1] == (16, 16, "writing shards")
    assert not any(what == "learning the covariance" for _, _, what in seen)
    undisturbed = ingest(work.model_copy(update={"out": str(tmp_path / "u.zarr")}))
    np.testing.assert_array_equal(everything(found), everything(undisturbed))
    np.testing.assert_array_equal(found.side("whiten"), undisturbed.side("whiten"))
    assert found.fingerprint == undisturbed.fingerprint


def test_photographs_beyond_the_memory_budget_lie_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = everything(ingest(job(tmp_path, out=str(tmp_path / "a.zarr"))))
    monkeypatch.setattr(module, "MEMORY", 0)
    np.testing.assert_array_equal(everything(ingest(job(tmp_path, out=str(tmp_path / "b.zarr")))), held)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


def bad_sources(folder: Path) -> dict[str, tuple[str, str]]:
    (folder / "empty").mkdir()
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "nothing.png").touch()
    good = Path(save(folder / "good.png", noise())).read_bytes()
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    save(folder / "tiny.png", noise(6, 6))
    save(folder / "blank.png", np.full((40, 40), 77, np.uint8))
    return {
        "missing": (str(folder / "none.jpg"), "none.jpg: no such file"),
        "pattern": (str(folder / "*.bmp"), "no such file, folder or pattern"),
        "folder": (str(folder / "empty"), "empty has no images"),
        "text": (str(folder / "text.jpg"), "text.jpg is not an image"),
        "nothing": (str(folder / "nothing.png"), "nothing.png is empty"),
        "cut": (str(folder / "cut.png"), "cut.png cannot be read as an image"),
        "tiny": (str(folder / "tiny.png"), "tiny.png has 6×6 pixels: a patch of 8×8 does not fit"),
        "blank": (str(folder / "blank.png"), "nearly blank: lower min_std"),
        "sklearn": ("sklearn:mars.jpg", "choose one of sklearn:photos, sklearn:china.jpg, sklearn:flower.jpg"),
        "remote": ("s3://bucket/x.jpg", "read from files on this machine"),
    }


@pytest.mark.parametrize(
    "case", ["missing", "pattern", "folder", "text", "nothing", "cut", "tiny", "blank", "sklearn", "remote"]
)
def test_what_is_no_photograph_is_refused_and_nothing_is_left(tmp_path: Path, case: str) -> None:
    (tmp_path / "in").mkdir()
    source, message = bad_sources(tmp_path / "in")[case]
    sources = [source] if case == "blank" else ["sklearn:china.jpg", source]
    with pytest.raises(StorageError) as caught:
        ingest(job(tmp_path, sources=sources))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_taken_place_is_refused_before_any_work(tmp_path: Path) -> None:
    work = job(tmp_path, whiten="none", rows=100)
    ingest(work)
    with pytest.raises(StoreConflict, match="--overwrite"):
        ingest(work)
    ingest(work.model_copy(update={"overwrite": True, "rows": 50}))
    assert open_dataset(work.out).rows == 50
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"Not a directory|file"):
        ingest(job(tmp_path, out=str(tmp_path / "file" / "p.zarr")))


@pytest.mark.parametrize(
    "wrong", [{"patch": 1}, {"rows": 0}, {"keep": 0}, {"whiten": "yes"}, {"sources": []}, {"x": 1}]
)
def test_settings_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        job(tmp_path, **wrong)


def test_each_image_is_taken_once(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise())
    assert len(module.find_images([path, str(tmp_path), str(tmp_path / "*.png")])) == 1
    with pytest.raises(NotFound):
        module.find_images([str(tmp_path / "b*.png")])
    with pytest.raises(BadData):
        module.find_images([""])


def test_patches_go_to_s3(tmp_path: Path, s3_bucket: str) -> None:
    found = ingest(job(tmp_path, out=f"{s3_bucket}/patches.zarr", rows=500))
    here = ingest(job(tmp_path, rows=500))
    np.testing.assert_array_equal(everything(found), everything(here))
    assert found.fingerprint == here.fingerprint
