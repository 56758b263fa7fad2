"""`artifacts export/import --format`: folders of other programs, as a user meets them."""

import hashlib
import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save
from sparsefleet.pipelines.commands.artifacts import command
from sparsefleet.pipelines.exchange import export_folder
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


def test_the_command_offers_every_format():
    from sparsefleet.models.autoencoders.exchange import FORMATS as foreign
    from sparsefleet.storage.artifacts.export import FORMATS

    options = {p.name: p for p in command.commands["export"].params}
    assert list(options["kind"].type.choices) == [*FORMATS, *foreign]


@pytest.mark.parametrize("kind", ["saelens", "sparsify"])
def test_export_then_import_gives_the_same_codes(published, tmp_path, kind):
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
    store, _ = published
    export_folder(store, "sae", tmp_path, "saelens")
    with pytest.raises(StorageError, match=r"cfg\.json exists: give another path or pass --overwrite"):
        export_folder(store, "sae", tmp_path, "saelens")
    export_folder(store, "sae", tmp_path, "saelens", overwrite=True)


def test_other_models_are_refused(published, tmp_path):
    store, _ = published
    with pytest.raises(JobError, match="causes@1 is a bsc: saelens holds autoencoders only"):
        export_folder(store, "causes", tmp_path, "saelens")


SPARSIFY = {"activation": "topk", "num_latents": 4, "k": 2, "d_in": 3}
SAELENS = {"architecture": "topk", "k": 2, "apply_b_dec_to_input": True}


def tensors(kind, **other):
    """The content of a safetensors file of 4 latents and 3 dimensions, some tensors exchanged."""
    encoder = {"encoder.weight": np.ones((4, 3)), "encoder.bias": np.zeros(4)}
    if kind == "saelens":
        encoder = {"W_enc": np.ones((3, 4)), "b_enc": np.zeros(4)}
    found = {**encoder, "W_dec": np.ones((4, 3)), "b_dec": np.zeros(3), **other}
    return save({name: np.asarray(a, np.complex64 if np.iscomplexobj(a) else np.float32) for name, a in found.items()})


@pytest.mark.parametrize(
    ("kind", "config", "content", "message"),
    [
        ("sparsify", None, None, "cfg.json cannot be read"),
        ("sparsify", [1], None, "holds a list"),
        ("sparsify", b"{", None, "is not JSON"),
        ("saelens", b"[" * 200_000, None, "is not JSON"),
        ("sparsify", SPARSIFY, None, "sae.safetensors cannot be read"),
        ("sparsify", SPARSIFY, b"nonsense", "is no safetensors file"),
        ("sparsify", {**SPARSIFY, "signed": True}, {}, "signed=true cannot be imported"),
        ("sparsify", {**SPARSIFY, "k": True}, {}, "k=True in the configuration"),
        ("sparsify", SPARSIFY, {"W_dec": np.ones(4)}, "W_dec' has shape [4], not [4, 3]"),
        ("sparsify", SPARSIFY, {"b_dec": np.ones(())}, "b_dec' has shape [], not [3]"),
        ("saelens", {**SAELENS, "architecture": "standard", "activation_fn_str": "topk"}, {}, "SAELens 6 first"),
        ("saelens", {**SAELENS, "finetuning_scaling_factor": True}, {}, "SAELens 6 first"),
        ("saelens", {**SAELENS, "architecture": "transcoder"}, {}, "apply_b_dec_to_input=true"),
        ("saelens", SAELENS, {"W_enc": np.ones((0, 10))}, "W_enc' has shape [0, 10], not [D, H]"),
        ("saelens", SAELENS, {"W_enc": np.ones(4)}, "W_enc' has shape [4], not [D, H]"),
        ("saelens", SAELENS, {"W_enc": np.ones((3, 4)) * 1j}, "W_enc' holds torch.complex64"),
        ("saelens", SAELENS, {"b_enc": np.full(4, np.nan)}, "b_enc' holds NaN or infinite values"),
    ],
)
def test_folders_that_cannot_be_imported_are_named_in_one_line(sparsefleet, tmp_path, kind, config, content, message):
    folder = tmp_path / "theirs"
    folder.mkdir()
    if config is not None:
        (folder / "cfg.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
    if content is not None:
        file = folder / ("sae.safetensors" if kind == "sparsify" else "sae_weights.safetensors")
        file.write_bytes(content if isinstance(content, bytes) else tensors(kind, **content))
    store = tmp_path / "store"
    done = sparsefleet("artifacts", "import", folder, "--format", kind, "--name", "broken", "--store", store)
    assert done.code == 2 and not done.out
    assert message in done.err and len(done.err.splitlines()) == 1
    assert not store.exists() or ArtifactStore(str(store), create=False).names() == []


@pytest.mark.parametrize("more", [(), ("--format", "prosper", "--model", "bsc")])
def test_a_folder_is_no_result_of_prosper(sparsefleet, tmp_path, more):
    done = sparsefleet("artifacts", "import", tmp_path, "--name", "x", *more)
    assert done.code == 2 and "is a folder: say --format saelens or sparsify" in done.err


def test_versions_are_told_alike_by_import_and_list(sparsefleet, tmp_path):
    (tmp_path / "cfg.json").write_text(json.dumps(SPARSIFY))
    (tmp_path / "sae.safetensors").write_bytes(tensors("sparsify"))
    store = ("--store", tmp_path / "store", "--json")
    made = sparsefleet("artifacts", "import", tmp_path, "--format", "sparsify", "--name", "x", *store)
    assert [made.json] == sparsefleet("artifacts", "list", *store).json
    card = ArtifactStore(str(tmp_path / "store")).card("x")
    assert card["imported"]["sha256"] == hashlib.sha256((tmp_path / "sae.safetensors").read_bytes()).hexdigest()
