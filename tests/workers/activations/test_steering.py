"""Steering against the whole network with a plain hook, one direction and one context at a time."""

import pytest
import torch
from sparsefleet.workers import JobError
from sparsefleet.workers.activations import hosts, steering
from sparsefleet.workers.activations.steering import images, named_tokens, steer
from sparsefleet.workers.activations.taps import Tap

CPU = torch.device("cpu")
CONTEXTS = [torch.tensor(ids) for ids in ([3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 13, 14, 15, 16, 17, 3, 5])]


@pytest.fixture(scope="module")
def network(llama):
    return hosts.load_network(llama, CPU).double()


def directions(n=6, dim=16):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def plain(network, module, contexts, directions, size, *, reads, out=None):
    """KL and push by their definitions; `out`: what takes the directions into the residual stream."""
    divergence, push = torch.zeros(len(directions)), torch.zeros(len(directions))
    weight = network.lm_head.weight.double()
    for i, d in enumerate(directions):
        unit = d / d.norm()
        seen = unit if out is None else out @ unit
        named = (weight @ seen[: weight.shape[1]]).sort(descending=True).indices[:10]
        for ids in contexts:

            def change(x, unit=unit):
                return torch.cat([x[:, :-1], x[:, -1:] + size * unit], 1)

            with torch.no_grad():
                clean = network(ids[None], use_cache=False).logits[0, -1]
                at = network.get_submodule(module)
                handle = (
                    at.register_forward_pre_hook(lambda _, args, change=change: (change(args[0]), *args[1:])) if reads
                    else at.register_forward_hook(lambda _, args, out, change=change: change(out))
                )  # fmt: skip
                changed = network(ids[None], use_cache=False).logits[0, -1]
                handle.remove()
            p, q = clean.softmax(0), changed.softmax(0)
            divergence[i] += sum(p[v] * (p[v] / q[v]).log() for v in range(len(p))) / len(contexts)
            rise = (changed - changed.mean()) - (clean - clean.mean())
            push[i] += rise[named].mean() / len(contexts)
    return divergence, push


@pytest.mark.parametrize("module", ["model.layers.1", "model.layers.0.mlp", "model.layers.2:input"])
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("at_once", [4, 64])
def test_what_a_direction_does_is_what_a_plain_hook_does(network, monkeypatch, module, cache, at_once):
    monkeypatch.setattr(network.config, "use_cache", cache)
    monkeypatch.setattr(steering, "AT_ONCE", at_once)
    tap = Tap.parse(module)
    found = steer(network, tap, CONTEXTS, directions(), 2.5)
    divergence, push = plain(network, tap.module, CONTEXTS, directions(), 2.5, reads=tap.side == "input")
    torch.testing.assert_close(found.divergence.float(), divergence, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.tokens.push.float(), push, rtol=1e-4, atol=1e-6)
    assert (found.divergence > 0).all()
    assert not network.lm_head._forward_pre_hooks and not network.get_submodule(tap.module)._forward_hooks


def test_only_the_direction_counts_and_nothing_is_done_by_nothing(network):
    tap = Tap("model.layers.1")
    one, other = (steer(network, tap, CONTEXTS, d, 1.0) for d in (directions(), 7 * directions()))
    torch.testing.assert_close(one.divergence, other.divergence)
    still = steer(network, tap, CONTEXTS, directions(), 0.0)
    assert still.divergence.max() < 1e-12 and still.tokens.push.abs().max() < 1e-12


def test_a_direction_names_the_tokens_that_it_points_to(network):
    weight = network.lm_head.weight.detach()
    found = named_tokens(network, weight[[5, 9]])
    assert found.shape == (2, 10)
    for row, d in zip(found, weight[[5, 9]]):
        assert row.tolist() == sorted(range(len(weight)), key=lambda v: -float(weight[v] @ d))[:10]


def test_at_the_last_layer_a_latent_pushes_its_own_tokens(network):
    found = steer(network, Tap("model.layers.2"), CONTEXTS, network.lm_head.weight.detach()[3:9], 5.0)
    assert (found.tokens.push > 0).all()


@pytest.mark.parametrize(("module", "dim"), [("mlp.down_proj", 24), ("self_attn.o_proj", 16)])
def test_neurons_and_heads_name_tokens_by_what_their_layer_makes_of_them(network, module, dim):
    path = f"model.layers.1.{module}"
    found = steer(network, Tap(path, "input"), CONTEXTS, directions(dim=dim), 2.5)
    out = network.get_submodule(path).weight.detach()
    divergence, push = plain(network, path, CONTEXTS, directions(dim=dim), 2.5, reads=True, out=out)
    torch.testing.assert_close(found.divergence.float(), divergence, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.tokens.push.float(), push, rtol=1e-4, atol=1e-6)


def test_a_projection_with_a_bias_makes_the_same_image(network):
    tap, weight = Tap("1.mlp.c_proj", "input"), torch.randn(24, 16, dtype=torch.float64)
    transformers = pytest.importorskip("transformers")
    project = transformers.pytorch_utils.Conv1D(16, 24).double()
    project.weight.data, project.bias.data = weight, torch.randn(16, dtype=torch.float64)
    around = torch.nn.ModuleDict({"1": torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"c_proj": project})})})
    around.get_output_embeddings = lambda: network.lm_head
    torch.testing.assert_close(images(around, tap, directions(dim=24)), directions(dim=24) @ weight)


@pytest.mark.parametrize(
    ("module", "dim"),
    [
        ("model.layers.1.mlp.act_fn", 24),
        ("model.layers.1.mlp.gate_proj:input", 16),
        ("model.layers.1.mlp:input", 16),
        ("model.layers.1.self_attn.q_proj", 16),
    ],
)
def test_without_an_image_only_the_divergence_is_stated(network, module, dim):
    found = steer(network, Tap.parse(module), CONTEXTS, directions(dim=dim), 2.5)
    assert found.tokens is None and found.part(slice(2)).tokens is None and (found.divergence > 0).all()


def test_a_network_without_a_list_of_layers_has_no_images_and_is_not_refused(network):
    around = torch.nn.ModuleDict({"only": torch.nn.Linear(16, 16)})
    around.get_output_embeddings = lambda: network.lm_head
    assert images(around, Tap("only"), directions()) is None


def test_what_cannot_be_steered_is_refused(network, bert):
    with pytest.raises(JobError, match="is 0, so that it has no direction"):
        steer(network, Tap("model.layers.1"), CONTEXTS, torch.zeros(1, 16, dtype=torch.float64), 1.0)
    with pytest.raises(JobError, match="no linear layer that gives logits"):
        named_tokens(hosts.load_network(bert, CPU), directions(dim=12))
