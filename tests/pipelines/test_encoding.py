"""`sparsefleet encode`: what it writes beside the codes, and what it says about it."""

import numpy as np
import pytest
import torch
from sparsefleet.models import OUTPUTS, Batch, Wanted
from sparsefleet.pipelines import encode
from sparsefleet.storage import ArraysSource, create_dataset, open_dataset
from sparsefleet.storage.ingest import ingest
from sparsefleet.workers import EncodeJob, JobError
from sparsefleet.workers.start import load_dictionary

ARRAYS = {
    "indices", "values", "marginal_indices", "marginals", "map_indices", "map_values", "top_indices", "top_values",
    "top_probabilities", "reconstruction", "log_likelihood", "entropy", "gamma", "h_prime",
}  # fmt: skip


@pytest.fixture
def job(bars, store, tmp_path):
    def make(**more):
        given = {"data": bars, "store": store, "dictionary": "bars@2", "out": str(tmp_path / "codes.zarr"), **more}
        return EncodeJob.parse(given)

    return make


def dense(indices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[n, H] with the values where they belong."""
    found = np.zeros((len(indices), indices.max() + 1))
    np.add.at(found, (np.arange(len(indices))[:, None], np.maximum(indices, 0)), np.where(indices < 0, 0, values))
    return found


def test_all_outputs_are_arrays_of_the_data_set_of_codes(job, bars):
    asked = job(outputs=[",".join(OUTPUTS)], top_states=3, adaptive=1, batch_rows=77)
    result = encode(asked)
    codes, data = open_dataset(result.out), open_dataset(bars)
    assert set(codes.arrays) == ARRAYS
    assert codes.verify() == []
    found = load_dictionary(asked.model_copy(update={"dictionary": result.dictionary}))
    x = torch.from_numpy(data.read(0, data.rows)).to(found.model.torch_dtype)
    expected = found.model.infer(found.params, Batch(x), Wanted(tuple(OUTPUTS), 3, 1))
    # Entries that are equal but for rounding may change places, which differs from processor to processor.
    sorted_by = {"indices": "values", "marginal_indices": "marginals"}
    for name in codes.arrays:
        got, wanted = codes.read(0, codes.rows, name), expected[name].numpy()
        if name in sorted_by:
            values = codes.read(0, codes.rows, sorted_by[name]), expected[sorted_by[name]].numpy()
            got, wanted = (dense(*pair) for pair in zip((got, wanted), values))
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    mean = float(expected["log_likelihood"].mean())
    assert result.fit.metrics["training_log_likelihood"] == pytest.approx(mean, rel=1e-6)
    assert "log_likelihood" not in result.fit.metrics


def test_codes_alone_stay_as_they_were(job):
    codes = open_dataset(encode(job()).out)
    assert codes.arrays == ("indices", "values")
    assert "outputs" not in codes.attributes


def test_rows_that_were_not_learned_on_are_predicted(job, bars, tmp_path):
    held_out = str(tmp_path / "new.zarr")
    rows = open_dataset(bars).read(0, 50)
    writer = create_dataset(
        held_out, rows=50, arrays={"data": ((16,), "float32")}, shard_rows=25, chunk_rows=25, attributes={"new": 1}
    )
    for shard in writer.shards():
        writer.write(shard, data=rows[shard.slice])
    writer.finish()
    metrics = encode(job(data=held_out, outputs=["log_likelihood", "entropy"])).fit.metrics
    assert {"log_likelihood", "entropy"} <= metrics.keys()
    assert "training_log_likelihood" not in metrics


def test_an_interrupted_encoding_says_the_mean_over_all_rows(job, monkeypatch):
    from sparsefleet.workers import encoding

    asked, real = job(outputs=["log_likelihood"]), encoding.ShardEncoder.encode_shard

    def fails_at_the_third(self, writer, shard):
        if shard.index == 2:
            raise KeyboardInterrupt
        return real(self, writer, shard)

    with monkeypatch.context() as patch:
        patch.setattr(encoding.ShardEncoder, "encode_shard", fails_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            encode(asked)
    result = encode(asked)
    whole = open_dataset(result.out).read(0, result.rows, "log_likelihood")
    assert result.fit.metrics["training_log_likelihood"] == pytest.approx(float(whole.mean()))


def test_the_command_prints_the_mean(sparsefleet, bars, store):
    common = ["encode", "--data", bars, "--store", store, "--dictionary", "bars", "--out", "c.zarr"]
    said = sparsefleet(*common, "--outputs", "log_likelihood,map", "--outputs", "entropy")
    assert said.code == 0, said.err
    assert "training_log_likelihood" in said.out
    assert set(open_dataset("c.zarr").arrays) >= {"map_indices", "log_likelihood", "entropy"}
    tried = sparsefleet(*common, "--outputs", "top_states", "--top-states", "2", "--dry-run")
    assert tried.code == 0, tried.err
    assert "top_indices [600, 2, 5]" in tried.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--outputs", "margnals"], "did you mean 'marginals'"),
        (["--top-states", "0"], "top_states=0"),
        (["--adaptive", "60"], "states per point"),
    ],
)
def test_what_cannot_be_given_is_refused_in_one_line(sparsefleet, bars, tmp_path, args, words):
    from sparsefleet.pipelines import learn
    from sparsefleet.workers import LearnJob

    store = str(tmp_path / "wide")
    settings = {"h_prime": 20, "gamma": 2}
    learn(LearnJob.parse({"data": bars, "store": store, "atoms": 60, "passes": 1, "settings": settings}))
    said = sparsefleet(
        "encode", "--data", bars, "--store", store, "--dictionary", "dictionary", "--out", "c.zarr", *args
    )
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert words in said.err


def test_a_model_without_a_posterior_gives_codes_and_reconstruction(sparsefleet, bars, tmp_path):
    from sparsefleet.pipelines import learn
    from sparsefleet.workers import LearnJob

    store = str(tmp_path / "sae")
    job = {"data": bars, "store": store, "model": "topk", "atoms": 16, "passes": 2, "settings": {"k": 2}}
    learn(LearnJob.parse(job))
    common = ["encode", "--data", bars, "--store", store, "--dictionary", "dictionary", "--out"]
    refused = sparsefleet(*common, "a.zarr", "--outputs", "map")
    assert refused.code == 2
    assert "TopK has no posterior" in refused.err
    done = sparsefleet(*common, "b.zarr", "--outputs", "reconstruction")
    assert done.code == 0, done.err
    rebuilt, data = open_dataset("b.zarr").read(0, 600, "reconstruction"), open_dataset(bars).read(0, 600)
    assert ((rebuilt - data) ** 2).mean() < data.var()


def test_advice_on_missing_values_can_be_followed(sparsefleet, bars, tmp_path):
    x = open_dataset(bars).read(0, 60)
    x[::3, 2] = np.nan
    np.save(tmp_path / "holes.npy", x)
    ingest(ArraysSource(sources=[str(tmp_path / "holes.npy")], out=str(tmp_path / "holes.zarr"), missing=True))
    said = sparsefleet("learn", "--data", "holes.zarr", "--model", "noisyor", "--atoms", 6, "--name", "n")
    assert said.code == 2 and "which noisyor counts as errors: bsc, tsc, dsc, gsc, mca and mmca accept" in said.err
    said = sparsefleet(
        "learn",
        "--data",
        "holes.zarr",
        "--model",
        "noisyor",
        "--atoms",
        6,
        "--set",
        "model.missing=true",
        "--name",
        "n",
    )
    assert said.code == 2 and "missing=True: noisyor needs complete rows" in said.err
    np.savez(tmp_path / "d.npz", W=np.eye(16))
    said = sparsefleet("encode", "--data", "holes.zarr", "--dictionary", "d.npz", "--coder", "omp", "--out", "c.zarr")
    assert said.code == 2 and "which a coder counts as errors" in said.err


def test_missing_values_are_learned_around_and_filled(sparsefleet, bars, tmp_path):
    rows = open_dataset(bars).read(0, 600)
    holes = np.random.default_rng(0).random(rows.shape) < 0.3
    np.save(tmp_path / "holes.npy", np.where(holes, np.nan, rows).reshape(600, 4, 4))
    done = sparsefleet("ingest", "arrays", "holes.npy", "--missing", "--out", "holes.zarr")
    assert done.code == 0, done.err
    learn = ["learn", "--data", "holes.zarr", "--atoms", "8", "--passes", "40", "--store", "s", "--name", "d"]
    refused = sparsefleet(*learn)
    assert refused.code == 2
    assert "has missing values" in refused.err
    assert refused.err.count("\n") == 1
    done = sparsefleet(*learn, "--set", "model.missing=true")
    assert done.code == 0, done.err
    encode = ["encode", "--data", "holes.zarr", "--store", "s", "--outputs", "reconstruction,log_likelihood"]
    done = sparsefleet(*encode, "--dictionary", "d", "--out", "filled.zarr")
    assert done.code == 0, done.err
    filled = open_dataset("filled.zarr").read(0, 600, "reconstruction")
    mean = np.where(holes, np.nanmean(np.where(holes, np.nan, rows), 0), rows)
    assert np.mean((filled - rows)[holes] ** 2) < 0.3 * np.mean((mean - rows)[holes] ** 2)


def test_a_dictionary_of_complete_rows_fills_holes_when_asked_to(job, bars, tmp_path):
    rows = open_dataset(bars).read(0, 100)
    rows[:, 5] = np.nan
    uri = str(tmp_path / "holes.zarr")
    layout = {"data": ((16,), "float32")}
    writer = create_dataset(uri, rows=100, arrays=layout, shard_rows=50, chunk_rows=50, attributes={}, missing=True)
    for shard in writer.shards():
        writer.write(shard, data=rows[shard.slice])
    writer.finish()
    with pytest.raises(JobError, match="--missing"):
        encode(job(data=uri, outputs=["reconstruction"]))
    result = encode(job(data=uri, outputs=["reconstruction"], missing=True))
    assert np.isfinite(open_dataset(result.out).read(0, 100, "reconstruction")).all()


def test_another_noise_can_be_assumed(job):
    asked = job(outputs=["entropy"])
    found = load_dictionary(asked.model_copy(update={"sigma": 7.5}))
    assert float(found.params["sigma"]) == 7.5
    learned = encode(asked).fit.metrics["entropy"]
    noisy = encode(job(outputs=["entropy"], sigma=2.0, overwrite=True)).fit.metrics["entropy"]
    assert noisy > learned
