"""Harvested rows are what hooks see, whoever computes them and however often they were interrupted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sparsefleet.storage import NotFound, StoreConflict, open_dataset
from sparsefleet.workers import HarvestJob, JobError, run
from sparsefleet.workers.activations import hosts
from sparsefleet.workers.activations.harvesting import Harvester, read
from sparsefleet.workers.activations.windows import cut

CPU = torch.device("cpu")


def harvest(model: Path | str, texts: Path, out: Path, **more: Any) -> list[Any]:
    """The data sets of a harvest."""
    values = {
        "model": str(model),
        "texts": [str(texts)],
        "out": str(out),
        "context": 16,
        "skip": 1,
        "dtype": "float32",
        "batch": 4,
    }
    *_, last = run("harvest", HarvestJob.parse({**values, **more}))
    assert last.kind == "done"
    return [open_dataset(uri) for uri in last.result["outs"]]


def rows_of(data: Any) -> dict[tuple[int, int], dict[str, np.ndarray]]:
    """Every row's arrays by (document, position)."""
    arrays = {name: data.read(0, data.rows, name) for name in data.arrays}
    keys = list(zip(arrays["document"].tolist(), arrays["position"].tolist()))
    assert len(set(keys)) == data.rows, "a token was written twice"
    return {key: {name: array[i] for name, array in arrays.items()} for i, key in enumerate(keys)}


def documents_of(model: Path, texts: Path) -> list[list[int]]:
    from sparsefleet.storage.texts import find_texts, read_documents

    tokenizer = hosts.load_tokenizer(model)
    found = read_documents(find_texts([str(texts)]))
    return [tokenizer(d.text, add_special_tokens=False)["input_ids"] for d in found]


def hidden(model: Path, ids: list[int]) -> tuple[torch.Tensor, ...]:
    """The hidden states of one sequence alone, as the network itself gives them."""
    network = hosts.load_network(model, CPU)
    with torch.no_grad():
        return network(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states


def test_residuals_are_the_hidden_states(llama, texts, tmp_path):
    first, second = harvest(llama, texts, tmp_path / "a.zarr", layers="0,1", site="residual")
    assert first.uri.endswith("a-residual-0.zarr") and second.attributes["layer"] == 1
    documents = documents_of(llama, texts)
    found = [rows_of(first), rows_of(second)]
    for number, ids in enumerate(documents):
        assert {p for d, p in found[0] if d == number} == set(range(1, len(ids)))
        for start in range(0, len(ids) - 1, 15):
            states = hidden(llama, ids[start : start + 16])
            for at in range(start + 1, min(start + 16, len(ids))):
                for layer in (0, 1):
                    row = found[layer][number, at]
                    np.testing.assert_allclose(row["data"], states[layer + 1][0, at - start], rtol=1e-4, atol=1e-5)
                    assert row["token"] == ids[at]


def test_rows_equal_hooks_of_the_same_batches_to_the_bit(llama, texts, tmp_path):
    """Attention, MLP, neurons, heads and what the MLP reads, against plain forward hooks."""
    sites = {
        "attention": ("self_attn.o_proj", False), "heads": ("self_attn.o_proj", True), "mlp": ("mlp.down_proj", False),
        "neurons": ("mlp.down_proj", True), "mlp_input": ("mlp.gate_proj", True), "residual": ("", False),
    }  # fmt: skip
    found = harvest(llama, texts, tmp_path / "a.zarr", layers=[2], site=list(sites), batch=10_000, tokens=100)
    network = hosts.load_network(llama, CPU)
    job = HarvestJob.parse(
        {"model": str(llama), "texts": [str(texts)], "out": "x", "context": 16, "skip": 1, "tokens": 100}
    )
    windows = read(job).windows
    assert windows.rows == found[0].rows == 100
    for data, (name, (path, inside)) in zip(found, sites.items()):
        assert data.attributes["site"] == name
        rows = rows_of(data)
        module = network.get_submodule("model.layers.2" + (f".{path}" if path else ""))
        for shard in data.shards():
            seen = []
            keep = lambda m, args, out, seen=seen, inside=inside: seen.append(args[0] if inside else out)  # noqa: E731
            handle = module.register_forward_hook(keep)
            inputs = windows.batch(windows.among(shard.start, shard.stop))
            with torch.no_grad():
                hosts.feed(network, inputs, CPU)
            handle.remove()
            flat = seen[0].flatten(0, 1)[inputs.rows]
            skip = shard.start - int(windows.row_begins[windows.among(shard.start, shard.stop).start])
            documents, positions = windows.documents(windows.places(shard.start, shard.stop))
            for i, key in enumerate(zip(documents.tolist(), positions.tolist())):
                np.testing.assert_array_equal(rows[key]["data"], flat[skip + i])


def test_gradients_are_those_of_the_summed_loss(llama, texts, tmp_path):
    (data,) = harvest(llama, texts, tmp_path / "a.zarr", layers="1", gradients=True)
    rows = rows_of(data)
    network = hosts.load_network(llama, CPU)
    for number, ids in enumerate(documents_of(llama, texts)):
        window = ids[:16]
        if len(window) < 2:
            continue
        captured: list[torch.Tensor] = []

        def keep(module: Any, args: Any, out: torch.Tensor, captured: list[torch.Tensor] = captured) -> None:
            out.retain_grad()
            captured.append(out)

        handle = network.get_submodule("model.layers.1").register_forward_hook(keep)
        logits = network(input_ids=torch.tensor([window])).logits[0]
        handle.remove()
        following = ids[1 : len(window) + 1]
        loss = torch.nn.functional.cross_entropy(logits[: len(following)], torch.tensor(following), reduction="sum")
        loss.backward()
        gradient = captured[0].grad[0]
        for at in range(1, len(window)):
            np.testing.assert_allclose(rows[number, at]["gradients"], gradient[at], rtol=1e-3, atol=1e-6)
    assert data.read(0, 1, "gradients").dtype == np.float32
    assert np.abs(data.read(0, data.rows, "gradients")).max() > 1e-4


def test_a_transcoder_gets_inputs_and_outputs_of_the_same_tokens(llama, texts, tmp_path):
    (data,) = harvest(llama, texts, tmp_path / "a.zarr", layers="1", site="mlp_input", target="mlp")
    network: Any = hosts.load_network(llama, CPU)
    x = torch.from_numpy(data.read(0, data.rows))
    with torch.no_grad():
        expected = network.model.layers[1].mlp(x)
    np.testing.assert_allclose(data.read(0, data.rows, "outputs"), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_keeps_its_own_tokens_out(bert, texts, tmp_path):
    (data,) = harvest(bert, texts, tmp_path / "a.zarr", layers="1", site="attention", skip=None)
    documents = documents_of(bert, texts)
    assert data.rows == sum(map(len, documents)) and data.dim == 12
    assert data.attributes["added_tokens"] == [[1], [2]] and data.attributes["skip"] == 0
    rows = rows_of(data)
    with pytest.raises(JobError, match="does not predict next tokens"):
        harvest(bert, texts, tmp_path / "b.zarr", gradients=True)
    network: Any = hosts.load_network(bert, CPU)
    seen: list[torch.Tensor] = []
    network.encoder.layer[1].attention.output.dense.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        network(input_ids=torch.tensor([[1, *documents[2], 2]]))
    for at in range(len(documents[2])):
        np.testing.assert_allclose(rows[2, at]["data"], seen[0][0, at + 1], rtol=1e-4, atol=1e-5)


def test_shards_that_are_done_stay_done(llama, texts, tmp_path, monkeypatch):
    whole = harvest(llama, texts, tmp_path / "whole.zarr", layers="0,2", gradients=True, batch=2)
    values = {"model": str(llama), "texts": [str(texts)], "out": str(tmp_path / "cut.zarr"), "context": 16, "skip": 1}
    job = HarvestJob.parse({**values, "dtype": "float32", "batch": 2, "layers": "0,2", "gradients": True})
    filled: list[int] = []
    real = Harvester.fill

    def fill(self: Harvester, writers: Any, shard: Any) -> Any:
        filled.append(shard.index)
        if len(filled) == 3:
            raise KeyboardInterrupt
        return real(self, writers, shard)

    monkeypatch.setattr(Harvester, "fill", fill)
    with pytest.raises(KeyboardInterrupt):
        list(run("harvest", job))
    with pytest.raises(StoreConflict, match="another recipe"):
        list(run("harvest", job.model_copy(update={"seed": 1})))
    *_, last = run("harvest", job)
    assert filled[3:] == filled[2:3] + list(range(3, len(whole[0].shards())))
    for data, uri in zip(whole, last.result["outs"]):
        again = open_dataset(uri)
        assert again.fingerprint == data.fingerprint and not again.verify()
        for name in data.arrays:
            np.testing.assert_array_equal(again.read(0, again.rows, name), data.read(0, data.rows, name))
    with pytest.raises(StoreConflict, match="finished"):
        list(run("harvest", job))
    list(run("harvest", job.model_copy(update={"overwrite": True})))


def test_files_that_tokens_leaves_out_are_counted(llama, texts, tmp_path):
    # Of 60, 1, 7 and 40 tokens in files, then lines of 33, 5 and 21 in one.
    for tokens, wanted in {30: 4, 60: 4, 61: 3, 100: 1, 110: 0, 167: 0, 1000: 0}.items():
        values = {"model": str(llama), "texts": [str(texts)], "out": str(tmp_path / f"{tokens}.zarr"), "context": 16}
        *_, last = run("harvest", HarvestJob.parse({**values, "skip": 0, "tokens": tokens}))
        assert (last.metrics["rows"], last.metrics["files_left_out"]) == (min(tokens, 167), wanted), tokens


def test_an_input_is_called_as_the_user_does(bert, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "find_input", lambda name: bert)
    (data,) = harvest("input:minilm", texts, tmp_path / "a.zarr", layers="1")
    assert data.attributes["row"] == "the residual stream after layer 1 of input:minilm, one token a row"
    assert data.attributes["model"]["name"] == "input:minilm"
    with pytest.raises(JobError, match=r"^gradients: input:minilm does not predict next tokens"):
        harvest("input:minilm", texts, tmp_path / "b.zarr", gradients=True)
    (other,) = harvest(bert, texts, tmp_path / "c.zarr", layers="1")
    assert other.attributes["model"] == {**data.attributes["model"], "name": bert.name}
    assert f"of {bert.name}, one token" in other.attributes["row"]


def test_a_models_fingerprint_is_that_of_its_files(bert, llama):
    assert hosts.fingerprint(bert, "input:minilm") == {**hosts.fingerprint(bert), "name": "input:minilm"}
    assert hosts.fingerprint(bert)["name"] == bert.name
    assert hosts.fingerprint(bert)["files"] != hosts.fingerprint(llama)["files"]


@pytest.mark.e2e
@pytest.mark.parametrize("engine", ["mpi", "ray"])
def test_the_engine_does_not_matter(llama, texts, tmp_path, engine):
    alone = harvest(llama, texts, tmp_path / "a.zarr", layers="0,1", gradients=True, threads=1)
    more = {"engine": engine, "workers": 2, "threads": 1}
    others = harvest(llama, texts, tmp_path / "b.zarr", layers="0,1", gradients=True, **more)
    for data, other in zip(alone, others):
        assert data.fingerprint == other.fingerprint
        for name in data.arrays:
            np.testing.assert_array_equal(data.read(0, data.rows, name), other.read(0, other.rows, name))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"layers": "7"}, "layers=7: LlamaForCausalLM has 3 layers, 0 to 2"),
        ({"layers": "x"}, "layers='x': write them as 5,11 or 0-29"),
        ({"site": "residul"}, "site='residul': choose of residual, mlp"),
        ({"site": "model.layers.{}.mlpp"}, "did you mean 'model.layers"),
        ({"context": 128}, "context=128: .* reads at most 64 tokens at once"),
        ({"skip": 16}, "skip=16: a context has 16 tokens"),
        ({"site": "model.rotary_emb"}, "a row a token"),
        ({"model": "no/such/folder"}, "no/such/folder' is no folder or .gguf file .*nothing is fetched"),
        ({"model": "input:gpt5"}, "no such input; choose of smollm2, minilm"),
        ({"texts": []}, "texts"),
        ({"texts": ["no-such.txt"]}, "no-such.txt"),
    ],
)
def test_errors_say_what_to_do(llama, texts, tmp_path, given, words):
    values = {"model": str(llama), "texts": [str(texts)], "out": str(tmp_path / "a.zarr"), "context": 16}
    with pytest.raises((JobError, NotFound), match=words) as found:
        list(run("harvest", HarvestJob.parse({**values, **given})))
    assert "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


def test_nan_in_the_network_is_named(llama, texts, tmp_path, monkeypatch):
    real = hosts.load_network

    def broken(*args: Any) -> Any:
        network: Any = real(*args)
        with torch.no_grad():
            network.model.layers[1].mlp.down_proj.weight[0] = 1e30
        return network

    monkeypatch.setattr(hosts, "load_network", broken)
    with pytest.raises(JobError, match=r"data of residual-1: activations of token \d+ of document 0 .*--dtype float32"):
        harvest(llama, texts, tmp_path / "a.zarr", layers="1", dtype="float16")


def test_windows_cover_every_token_once():
    from sparsefleet.workers.activations.windows import Context

    documents = [np.arange(n, dtype=np.int32) for n in (0, 1, 2, 9, 10, 11, 30)]
    for skip in (0, 1, 3):
        windows = cut(iter(documents), Context(6, skip, (7,), ()))
        assert windows.rows == sum(max(0, len(d) - skip) for d in documents)
        found = windows.documents(windows.places(0, windows.rows))
        expected = [(i, p) for i, d in enumerate(documents) for p in range(skip, len(d))]
        assert list(zip(found[0].tolist(), found[1].tolist())) == expected
        for limit in (1, 5, 6, 17):
            some = cut(iter(documents), Context(6, skip, (7,), ()), limit)
            assert some.rows == limit
            np.testing.assert_array_equal(some.places(0, limit), windows.places(0, windows.rows)[:limit])
