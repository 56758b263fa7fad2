"""`artifacts export/import --format`: folders of other programs, as a user meets them."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from sparsefleet.pipelines.commands.artifacts import command
from sparsefleet.pipelines.exchange import export_folder, import_folder
from sparsefleet.pipelines.learning import learn
from sparsefleet.storage import ArtifactStore, StorageError, create_dataset
from sparsefleet.workers import EncodeJob, JobError, LearnJob
from sparsefleet.workers.start import load_dictionary


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A store with an autoencoder and another dictionary, and the data."""
    folder = tmp_path_factory.mktemp("exchange")
    rng = np.random.default_rng(0)
    x = ((rng.random((400, 20)) < 0.1) @ rng.normal(size=(20, 8)) * 5).astype(np.float32)
    uri = str(folder / "data.zarr")
    writer = create_dataset(
        uri, rows=400, arrays={"data": ((8,), "float32")}, shard_rows=200, chunk_rows=50, attributes={}
    )
    for shard in writer.shards():
        writer.write(shard, data=x[shard.slice])
    writer.finish()
    store = str(folder / "store")
    common = {"data": uri, "store": store, "passes": 1, "threads": 1, "batch_rows": 100}
    learn(LearnJob.parse({**common, "name": "sae", "model": "topk", "atoms": 24, "settings": {"k": 3}}))
    small = {"h_prime": 3, "gamma": 2}
    learn(LearnJob.parse({**common, "name": "causes", "model": "bsc", "atoms": 6, "settings": small}))
    return store, x


def codes(store, name, x):
    import torch
    from sparsefleet.models import Batch

    found = load_dictionary(EncodeJob.parse({"data": "x", "out": "y", "store": store, "dictionary": name}))
    return found.model.encode(found.params, Batch(torch.from_numpy(x))).dense(found.model.atoms)


@pytest.mark.parametrize("kind", ["saelens", "sparsify"])
def test_export_then_import_gives_the_same_codes(published, tmp_path, kind):
    pytest.importorskip("safetensors")
    store, x = published
    out = str(tmp_path / "out")
    arguments = ["export", "sae", "--store", store, "--format", kind, "--out", out, "--json"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and len(json.loads(done.stdout)["files"]) == 2
    arguments = ["import", out, "--format", kind, "--name", f"from-{kind}", "--store", store]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and f"from-{kind}@" in done.output
    np.testing.assert_allclose(codes(store, f"from-{kind}", x), codes(store, "sae", x), rtol=1e-4, atol=1e-5)
    card = ArtifactStore(store).card(f"from-{kind}")
    assert card["imported"]["format"] == kind and card["job"]["model"] == "topk"


def test_nothing_is_overwritten_unasked(published, tmp_path):
    pytest.importorskip("safetensors")
    store, _ = published
    export_folder(store, "sae", tmp_path, "saelens")
    with pytest.raises(StorageError, match="exists: give another --out"):
        export_folder(store, "sae", tmp_path, "saelens")
    export_folder(store, "sae", tmp_path, "saelens", overwrite=True)


def test_other_models_are_refused(published, tmp_path):
    store, _ = published
    with pytest.raises(JobError, match="causes@1 is a bsc: saelens holds autoencoders only"):
        export_folder(store, "causes", tmp_path, "saelens")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"cfg\.json cannot be read"),
        ({"cfg.json": b"[1]"}, r"sae\.safetensors cannot be read|holds a list"),
        ({"cfg.json": b"{", "sae.safetensors": b""}, "is not JSON"),
        ({"cfg.json": b"{}", "sae.safetensors": b"nonsense"}, "is no safetensors file"),
    ],
)
def test_damaged_folders_are_named(published, tmp_path, content, message):
    pytest.importorskip("safetensors")
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(StorageError, match=message):
        import_folder(tmp_path, format="sparsify", store=published[0], name="broken")
