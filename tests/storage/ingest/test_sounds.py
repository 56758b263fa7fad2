"""Windows of sounds: where they begin, what is left out, and everything that is no .wav."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile
from sparsefleet.storage import BadData, NotFound, StoreConflict
from sparsefleet.storage.datasets import Dataset
from sparsefleet.storage.ingest import SoundsSource, ingest
from sparsefleet.storage.ingest.sounds import read_sounds

RATE = 8000


def save(path: Path, signal: np.ndarray, rate: int = RATE) -> str:
    wavfile.write(path, rate, signal)
    return str(path)


def tone(seconds: float = 0.2, hertz: float = 440.0, rate: int = RATE) -> np.ndarray:
    return np.round(10_000 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.int16)


def job(tmp_path: Path, *sources: str, **more: Any) -> SoundsSource:
    given: dict[str, Any] = {"sources": list(sources), "out": str(tmp_path / "s.zarr"), "window": 40, "hop": 20}
    return SoundsSource(**(given | {"shuffle": False, "dc": False} | more))


def everything(found: Dataset) -> np.ndarray:
    return found.read(0, found.rows)


def test_windows_begin_every_hop_and_end_with_their_sound(tmp_path):
    a, b = tone(0.05), tone(0.03, 700)
    found = ingest(job(tmp_path, save(tmp_path / "a.wav", a), save(tmp_path / "b.wav", b)))
    slow = [x[i : i + 40] / 32768 for x in (a, b) for i in range(0, len(x) - 39, 20)]
    np.testing.assert_allclose(everything(found), np.array(slow), atol=1e-6)
    assert found.attributes["rate"] == RATE
    assert found.verify() == []


def test_silence_is_left_out(tmp_path):
    signal = np.concatenate([np.zeros(400, np.int16), tone(0.05), np.zeros(400, np.int16)])
    found = ingest(job(tmp_path, save(tmp_path / "a.wav", signal)))
    assert found.rows < 30
    assert everything(found).std(axis=1).min() >= 0.002
    with pytest.raises(BadData, match="min_std"):
        ingest(job(tmp_path, save(tmp_path / "z.wav", np.zeros(400, np.int16)), overwrite=True))


def test_mixed_windows_are_the_same_windows(tmp_path):
    path = save(tmp_path / "a.wav", tone(0.5))
    plain = everything(ingest(job(tmp_path, path)))
    mixed = everything(ingest(job(tmp_path, path, shuffle=True, out=str(tmp_path / "m.zarr"))))
    again = everything(ingest(job(tmp_path, path, shuffle=True, out=str(tmp_path / "n.zarr"))))
    assert not np.array_equal(plain, mixed)
    np.testing.assert_array_equal(mixed, again)
    np.testing.assert_array_equal(plain[np.lexsort(plain.T)], mixed[np.lexsort(mixed.T)])


def test_mean_and_contrast_go(tmp_path):
    signal = tone(0.3) + np.int16(3000)
    found = everything(ingest(job(tmp_path, save(tmp_path / "a.wav", signal), dc=True, contrast=True)))
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=1), 1, atol=0.01)


@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "f4"])
def test_every_kind_of_sample_is_scaled(tmp_path, kind):
    wave = np.sin(np.arange(2000) / 5) / 2
    stored = {"u1": 128 + 127 * wave, "i2": 32767 * wave, "i4": (2**31 - 1) * wave, "f4": wave}[kind].astype(kind)
    stereo = np.stack([stored, stored], 1)
    found = everything(ingest(job(tmp_path, save(tmp_path / "a.wav", stereo), hop=40)))
    np.testing.assert_allclose(found, wave.reshape(-1, 40), atol=0.02 if kind == "u1" else 1e-4)


def test_sounds_are_brought_to_one_rate(tmp_path):
    paths = [save(tmp_path / "a.wav", tone()), save(tmp_path / "b.wav", tone(rate=16000), 16000)]
    with pytest.raises(BadData, match="--rate 8000"):
        ingest(job(tmp_path, *paths))
    found = ingest(job(tmp_path, *paths, rate=8000, hop=40))
    half = len(everything(found)) // 2
    np.testing.assert_allclose(everything(found)[5 : half - 5], everything(found)[half + 5 : -5], atol=0.02)


def test_what_is_no_sound_is_refused(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(BadData, match="cannot be read"):
        ingest(job(tmp_path, str(tmp_path / "text.wav")))
    with pytest.raises(BadData, match="is empty"):
        ingest(job(tmp_path, str(tmp_path / "empty.wav")))
    with pytest.raises(NotFound):
        ingest(job(tmp_path, str(tmp_path / "none.wav")))
    with pytest.raises(BadData, match="longest"):
        ingest(job(tmp_path, save(tmp_path / "a.wav", tone(0.001))))
    nan = np.full(100, np.nan, np.float32)
    with pytest.raises(BadData, match="NaN"):
        ingest(job(tmp_path, save(tmp_path / "n.wav", nan)))


def test_every_damaged_file_is_refused_or_read(tmp_path):
    whole = Path(save(tmp_path / "a.wav", np.stack([tone(0.01), tone(0.01)], 1))).read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:n] for n in range(len(whole))]
    for at in range(44):  # the header
        for value in {0, 1, 3, 255, int(rng.integers(256))}:
            damaged.append(whole[:at] + bytes([value]) + whole[at + 1 :])
    path, refused = tmp_path / "damaged.wav", list[str]()
    for content in damaged:
        path.write_bytes(content)
        try:
            (_, rate, signal), *_ = read_sounds([path], None, lambda done, total, what: None)
        except BadData as error:
            refused.append(str(error))
        else:
            assert rate > 0
            assert np.isfinite(signal).all()
    assert len(refused) > 44
    assert all(str(path) in said and "\n" not in said for said in refused)


def test_a_finished_data_set_is_kept(tmp_path):
    path = save(tmp_path / "a.wav", tone())
    ingest(job(tmp_path, path))
    with pytest.raises(StoreConflict):
        ingest(job(tmp_path, path))
