"""Photographs to patches and back: nothing is lost, whatever was done to the patches."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sparsefleet.storage import BadData, ImagesSource, create_dataset, open_dataset
from sparsefleet.storage.ingest import ingest
from sparsefleet.storage.patches import Preparation, cut_photo, merge_photo


def plain(size, *, color=False, dc=False, contrast=False):
    shape = (size, size, 3) if color else (size, size)
    return Preparation(shape, dc, contrast, None, None, None)


def rebuilt(patches, folder, rows=None):
    """A data set whose reconstruction is the rows themselves."""
    layout: Any = {"data": ((1,), "float32"), "reconstruction": ((patches.dim,), "float32")}
    writer = create_dataset(
        f"{folder}/rebuilt.zarr",
        rows=patches.rows,
        arrays=layout,
        shard_rows=patches.shard_rows,
        chunk_rows=patches.chunk_rows,
        attributes={},
        overwrite=True,
    )
    for shard in writer.shards():
        block = np.nan_to_num(patches.read(shard.start, shard.stop), nan=0.5)
        writer.write(shard, data=np.zeros((len(shard), 1), np.float32), reconstruction=block)
    return writer.finish()


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(4, 23),
    width=st.integers(4, 23),
    size=st.integers(2, 4),
    stride=st.integers(1, 6),
    color=st.booleans(),
    dc=st.booleans(),
    contrast=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_photo_comes_back_from_its_patches(tmp_path_factory, height, width, size, stride, color, dc, contrast, seed):
    folder = tmp_path_factory.mktemp("patches")
    shape = (height, width, 3) if color else (height, width)
    pixels = np.random.default_rng(seed).random(shape).astype(np.float32)
    prepared = plain(size, color=color, dc=dc, contrast=contrast)
    patches = cut_photo(pixels, f"{folder}/patches.zarr", prepared, stride=stride)
    covered = np.zeros((height, width), bool)
    for y in {*range(0, height - size + 1, stride), height - size}:
        for x in {*range(0, width - size + 1, stride), width - size}:
            covered[y : y + size, x : x + size] = True
    again, empty = merge_photo(patches, rebuilt(patches, folder), prepared, shape)
    assert empty == (~covered).sum()
    np.testing.assert_allclose(again[covered], pixels[covered], atol=1e-5)
    assert covered.all() or stride > size
    if stride == 1:
        assert patches.rows == (height - size + 1) * (width - size + 1)


def test_missing_pixels_stay_missing_and_empty_patches_are_left_out(tmp_path):
    pixels = np.random.default_rng(0).random((20, 20)).astype(np.float32)
    pixels[2:12, 3:14] = np.nan
    prepared = plain(4, dc=True)
    patches = cut_photo(pixels, f"{tmp_path}/patches.zarr", prepared, stride=1)
    assert patches.missing
    assert patches.rows == 17 * 17 - 7 * 8
    rows = patches.read(0, patches.rows)
    assert not np.isnan(rows).all(1).any()
    np.testing.assert_allclose(np.nanmean(rows, 1), 0, atol=1e-6)
    again, empty = merge_photo(patches, rebuilt(patches, tmp_path), prepared, pixels.shape)
    assert empty == 4 * 5
    assert np.isfinite(again).all()
    with pytest.raises(BadData, match="no pixel is left"):
        cut_photo(np.full((9, 9), np.nan, np.float32), f"{tmp_path}/none.zarr", prepared, stride=1)


def test_a_photo_smaller_than_a_patch_is_refused(tmp_path):
    with pytest.raises(BadData, match="does not fit"):
        cut_photo(np.zeros((9, 3), np.float32), f"{tmp_path}/p.zarr", plain(4), stride=1)


@pytest.mark.parametrize(
    "recipe",
    [{"whiten": "none"}, {"whiten": "none", "dc": False, "contrast": True}, {"whiten": "zca", "keep": 1, "epsilon": 0}],
    ids=["dc", "contrast", "zca"],
)
def test_rows_are_prepared_as_the_ingest_does(tmp_path, recipe):
    pixels = (np.random.default_rng(1).random((40, 40)) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    job = {"sources": [str(tmp_path / "photo.png")], "out": f"{tmp_path}/data.zarr", "patch": 5, "rows": 400}
    data = ingest(ImagesSource.model_validate(job | recipe))
    prepared = Preparation.of(open_dataset(data.uri))
    grey = (pixels / np.float32(255)).astype(np.float32)
    patches = cut_photo(grey, f"{tmp_path}/patches.zarr", prepared, stride=1)
    ingested, cut = data.read(0, data.rows), patches.read(0, patches.rows)
    distance = np.abs(ingested[:, None] - cut[None]).max(2).min(1)
    assert distance.max() < 1e-3
    again, _ = merge_photo(patches, rebuilt(patches, tmp_path), prepared, grey.shape)
    np.testing.assert_allclose(again, grey, atol=1e-3)


def test_filtered_photographs_and_plain_vectors_are_refused(tmp_path):
    layout = {"data": ((16,), "float32")}
    for attributes, words in (
        ({"row": "vectors"}, "no square patches"),
        ({"patch_shape": [2, 8]}, "no square patches"),
        ({"patch_shape": [4, 4], "recipe": {"kind": "images", "prefilter": "dog"}}, "prefilter=dog"),
    ):
        uri = f"{tmp_path}/x.zarr"
        writer = create_dataset(
            uri, rows=2, arrays=layout, shard_rows=2, chunk_rows=2, attributes=attributes, overwrite=True
        )
        for shard in writer.shards():
            writer.write(shard, data=np.zeros((2, 16), np.float32))
        with pytest.raises(BadData, match=words):
            Preparation.of(writer.finish())
