"""`sparsefleet denoise`: noise goes, holes are filled, and what cannot be done is one line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sparsefleet.pipelines import denoise, learn
from sparsefleet.pipelines.commands import resume
from sparsefleet.pipelines.denoising import DenoiseJob
from sparsefleet.storage import ArtifactStore, ImagesSource
from sparsefleet.storage.ingest import ingest
from sparsefleet.workers import JobError, LearnJob


def save(path, pixels):
    Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A picture of stripes, the same with noise, a mask, and a dictionary of patches of the noisy one."""
    folder = tmp_path_factory.mktemp("photo")
    y, x = np.mgrid[:48, :64]
    clean = 0.5 + 0.3 * np.sign(np.sin(x / 2.5 + y / 4))
    rng = np.random.default_rng(0)
    noisy = clean + 0.1 * rng.normal(size=clean.shape)
    save(folder / "clean.png", clean)
    save(folder / "noisy.png", noisy)
    save(folder / "mask.png", (rng.random(clean.shape) < 0.6).astype(float))
    source = {"sources": [str(folder / "noisy.png")], "out": f"{folder}/p.zarr", "patch": 6, "rows": 1500}
    ingest(ImagesSource.model_validate(source | {"whiten": "none", "min_std": 0}))
    settings = {"h_prime": 6, "gamma": 3, "start": "data"}
    job = {"data": f"{folder}/p.zarr", "store": f"{folder}/store", "model": "gsc", "atoms": 24, "passes": 15}
    learn(LearnJob.parse(job | {"settings": settings, "name": "stripes"}))
    return folder


def job_in(place, out, **more):
    common = {"store": f"{place}/store", "dictionary": "stripes", "out": str(out), "truth": f"{place}/clean.png"}
    return DenoiseJob.parse(common | {"data": f"{place}/noisy.png"} | more)


def test_noise_goes(place, tmp_path):
    result = denoise(job_in(place, tmp_path / "out.png"))
    assert result.metrics["psnr"] > result.metrics["psnr_before"] + 4
    written = np.asarray(Image.open(tmp_path / "out.png"), float) / 255
    clean = np.asarray(Image.open(place / "clean.png"), float) / 255
    assert -10 * math.log10(np.mean((written - clean) ** 2)) == pytest.approx(result.metrics["psnr"], abs=0.05)
    assert result.patches == 43 * 59
    assert result.figures["before_after.png"].startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"], "patches or codes were left behind"


def test_holes_are_filled_and_known_pixels_can_stay(place, tmp_path):
    filled = denoise(job_in(place, tmp_path / "a.png", data=f"{place}/clean.png", mask=f"{place}/mask.png"))
    assert filled.metrics["psnr"] > filled.metrics["psnr_before"] + 4
    assert filled.metrics["missing_share"] == pytest.approx(0.4, abs=0.03)
    more = {"mask": f"{place}/mask.png", "keep_known": True, "sigma": 3.0, "adaptive": 1, "stride": 2}
    denoise(job_in(place, tmp_path / "b.png", data=f"{place}/clean.png", **more))
    seen = np.asarray(Image.open(place / "mask.png")) > 127
    kept, clean = np.asarray(Image.open(tmp_path / "b.png")), np.asarray(Image.open(place / "clean.png"))
    assert (kept[seen] == clean[seen]).all()


def test_the_command_says_how_close_it_came(sparsefleet, place):
    common = ["denoise", place / "noisy.png", "--dictionary", "stripes", "--store", place / "store", "--out", "o.png"]
    said = sparsefleet(*common, "--truth", place / "clean.png", "--stride", "3")
    assert said.code == 0, said.err
    assert "psnr" in said.out
    assert sparsefleet(*common).code == 2
    again = sparsefleet(*common, "--overwrite", "--stride", "6", "--json")
    assert again.code == 0, again.err
    assert again.json["patches"] == 8 * 11


def test_equal_pictures_have_no_error(place, tmp_path):
    nothing = save(tmp_path / "white.png", np.ones((48, 64)))
    result = denoise(job_in(place, tmp_path / "o.png", data=f"{place}/clean.png", mask=nothing, keep_known=True))
    assert result.metrics["psnr_before"] == result.metrics["psnr"] == math.inf


BAD = {
    "no photo": ({"data": "none.png"}, "none.png"),
    "two photos": ({"data": "sklearn:photos"}, "names 2 photographs"),
    "no png": ({"out": "o.jpg"}, "ends in .png"),
    "no folder": ({"out": "nowhere/o.png"}, "no folder"),
    "other size": ({"truth": "small.png"}, "pixels, the photograph"),
    "mask of all": ({"mask": "black.png"}, "leaves no pixel"),
    "keep without mask": ({"keep_known": True}, "--mask"),
    "too small": ({"data": "small.png", "truth": None}, "smaller than a patch"),
    "sigma": ({"sigma": 0}, "sigma=0"),
    "gaps": ({"stride": 7}, "stride=7 would leave gaps"),
    "folder": ({"out": "full.png", "overwrite": True}, "is a folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_written(place, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save("small.png", np.zeros((5, 5)))
    save("black.png", np.zeros((48, 64)))
    (tmp_path / "full.png").mkdir()
    before = set(tmp_path.iterdir())
    more, words = BAD[name]
    with pytest.raises((JobError, ValueError, LookupError), match=words):
        denoise(job_in(place, **({"out": "o.png"} | more)))
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("given", [{"sigma": 25.0}, {"mask": "mask.png"}])
def test_a_dictionary_without_noise_is_refused_in_the_users_words(place, tmp_path, given):
    job = {"data": f"{place}/p.zarr", "store": f"{tmp_path}/store", "model": "ksvd", "atoms": 24, "passes": 1}
    learn(LearnJob.parse(job | {"settings": {"nonzeros": 2}, "name": "k"}))
    given = {name: f"{place}/{value}" if name == "mask" else value for name, value in given.items()}
    about = {"data": f"{place}/noisy.png", "store": f"{tmp_path}/store", "dictionary": "k", "out": f"{tmp_path}/o.png"}
    which = next(iter(given))
    with pytest.raises(JobError, match=rf"{which}=.*: k@1 is of model 'ksvd', which has no noise .* leave {which} out"):
        denoise(DenoiseJob.parse(about | given))


def test_a_picture_that_cannot_be_written_leaves_the_old_one(place, tmp_path, monkeypatch):
    out = tmp_path / "o.png"
    out.write_bytes(b"old")
    real = Path.write_bytes

    def full_disk(path, content):
        real(path, content[:10])
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match="No space"):
            denoise(job_in(place, out, overwrite=True, stride=6))
    assert out.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["o.png"]


def test_other_data_at_the_dictionarys_address_is_refused(place, tmp_path):
    store = ArtifactStore(f"{place}/store")
    found = store.load("stripes")
    own = {"store": f"{tmp_path}/store", "dictionary": "d"}
    for data, words in [
        ({**found.card["data"], "fingerprint": "0" * 64}, "learned on other data"),
        ({**found.card["data"], "uri": ""}, "no data set on its card"),
        (None, "no data set on its card"),
    ]:
        ArtifactStore(own["store"]).publish("d", arrays=found.arrays, card={"job": found.card["job"], "data": data})
        with pytest.raises(JobError, match=words) as caught:
            denoise(job_in(place, tmp_path / "o.png", **own))
        assert "\n" not in str(caught.value)


def test_a_run_that_did_not_finish_is_resumed(place, tmp_path, capsys):
    values = job_in(place, tmp_path / "o.png", stride=6).to_dict()
    resume._continue("denoise", values, False, True)  # pyright: ignore[reportPrivateUsage]
    assert json.loads(capsys.readouterr().out)["out"] == str(tmp_path / "o.png")
    assert (tmp_path / "o.png").exists()


def test_a_dictionary_whose_data_is_gone_cannot_say_how_patches_are_made(place, tmp_path):
    (place / "p.zarr").rename(place / "moved.zarr")
    try:
        with pytest.raises(JobError, match="is gone"):
            denoise(job_in(place, tmp_path / "o.png"))
    finally:
        (place / "moved.zarr").rename(place / "p.zarr")
