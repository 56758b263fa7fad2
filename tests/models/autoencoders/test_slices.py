"""Latents dealt to peers: what they learn together is what one worker learns alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsefleet.models import Batch, ModelError, Params, make_model
from sparsefleet.models.autoencoders.autoencoder import Autoencoder
from sparsefleet.models.autoencoders.names import DEAD, RESIDUAL, SILENT
from sparsefleet.models.autoencoders.selection import elected, largest
from sparsefleet.models.autoencoders.start import BLOCK, random_rows
from sparsefleet.models.peers import Share
from sparsefleet.models.truncated.bsc import BSC

from .peers import Peer, together
from .test_family import ATOMS, STAGE, data, make, moved, probe

SHARED = ["topk", "abstopk", "groupmax", "batchtopk", "batchabstopk", "matryoshka"]
each = pytest.mark.parametrize("name", SHARED)


@settings(max_examples=150)
@given(
    peers=st.integers(1, 5), share=st.integers(1, 40), rows=st.integers(1, 4), signed=st.booleans(),
    ties=st.booleans(), seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_the_elected_are_the_largest_of_all(peers, share, rows, signed, ties, seed, data):
    k = data.draw(st.integers(1, peers * share))
    u = torch.randn(rows, peers * share, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u = (2 * u).round() if ties else u
    indices, values = largest(u.clone(), k, signed=signed)
    wanted = torch.zeros_like(u).scatter_(1, indices, values)

    def work(peer: Peer) -> torch.Tensor:
        mine = u[:, peer.rank * share : (peer.rank + 1) * share].clone()
        at, offered = largest(mine.clone(), min(k, share), signed=signed)
        return torch.zeros_like(mine).scatter_(1, at, elected(peer, offered, k, signed=signed))

    found, sent = together(peers, work)
    assert torch.equal(torch.cat(found, 1), wanted)
    assert len(sent) == (peers > 1)


@pytest.mark.parametrize("shape", [(1, 3), (64, 5), (2 * BLOCK + 17, 3), (BLOCK, 2)])
@pytest.mark.parametrize("peers", [1, 3])
def test_slices_start_as_the_whole_does(shape, peers):
    draw = lambda *held: random_rows(*shape, torch.Generator().manual_seed(2), *held)  # noqa: E731
    edges = [shape[0] * i // peers for i in range(peers + 1)]
    parts = [draw(slice(a, b)) for a, b in pairwise(edges)]
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    assert torch.equal(torch.cat(parts), draw())
    torch.testing.assert_close(draw(), drawn / drawn.norm(dim=1, keepdim=True))


def whole(parts: list[Params], model: Autoencoder) -> Params:
    """The parameters of all peers as one worker has them; the others must be the same bits everywhere."""
    for part in parts[1:]:
        assert all(torch.equal(part[n], parts[0][n]) for n in part if n not in model.per_atom)
    return {n: torch.cat([p[n] for p in parts]) if n in model.per_atom else parts[0][n] for n in parts[0]}


def run(model: Autoencoder, params: Params, raw: torch.Tensor, comm: Peer | None = None) -> tuple[Params, list[dict]]:
    """Four updates on 100 rows each, as the learning loop makes them."""
    history = []
    for i in range(4):
        batch, stage = Batch(raw[100 * i : 100 * (i + 1)]), STAGE
        for _ in range(model.surveys_at(stage)):
            found = model.survey(params, batch, stage)
            counts = found.flatten() if comm is None else comm.allreduce(found.flatten())
            stage = model.refine(params, found.unflatten(counts), stage)
        stats = model.statistics(params, batch, stage)
        history.append(model.metrics(params, stats))
        params = model.update(params, stats, stage)
    return params, history


@each
@pytest.mark.parametrize("peers", [2, 4])
@pytest.mark.parametrize("dead", [0, 3, 20])
def test_peers_learn_what_one_learns(twin, name, peers, dead):
    target = "outputs" if peers == 4 else None
    model = make(name, target=target, aux_k=5, dead_tokens=250, clip=0.5)
    raw = data(model)
    start = moved(model, raw, dead)
    alone, history = run(model, start, raw)

    def work(peer: Peer) -> tuple[Params, list[dict]]:
        sliced = model.sliced(peer)
        held = slice(sliced.first, sliced.first + sliced.held)
        mine = {n: p[held].clone() if n in model.per_atom else p.clone() for n, p in start.items()}
        return run(sliced, mine, raw, peer)

    found, _ = together(peers, work)
    after = whole([params for params, _ in found], model)
    assert after.keys() == alone.keys()
    for key, value in alone.items():
        torch.testing.assert_close(after[key], value, rtol=1e-10, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")
    for one, other in zip(history, found[0][1], strict=True):
        assert one == pytest.approx(other, rel=1e-10)
    assert all(h == found[0][1] for _, h in found)
    assert dead == 0 or any(h["aux_loss"] > 0 for h in history)


@each
def test_start_values_are_slices_of_the_whole(name):
    model = make(name)
    raw = data(model)
    begin = lambda m: m.init(probe(m, raw), torch.Generator().manual_seed(1))  # noqa: E731
    parts = [begin(model.sliced(Share(rank, 2))) for rank in range(2)]
    alone, found = begin(model), whole(parts, model)
    assert all(torch.equal(found[n], alone[n]) for n in alone)
    assert {n for n in alone if alone[n].shape[:1] == (ATOMS,)} == set(model.per_atom)


@pytest.mark.parametrize(
    ("name", "aux", "messages"),
    [("topk", 0, ["gather", "sum"]), ("topk", 1, ["gather", "gather", "sum", "gather", "sum"]),
     ("batchtopk", 0, ["sum"]), ("matryoshka", 0, ["sum"]), ("groupmax", 0, ["sum"])],
)  # fmt: skip
def test_messages_of_a_batch(name, aux, messages):
    model = make(name, aux_coefficient=float(aux), aux_k=5)
    raw = data(model, 50)
    start = moved(model, raw, 6)

    def work(peer: Peer) -> None:
        sliced = model.sliced(peer)
        held = slice(sliced.first, sliced.first + sliced.held)
        mine = {n: p[held] if n in model.per_atom else p for n, p in start.items()}
        stage = STAGE.with_values(threshold=0.5) if "batch" in name or name == "matryoshka" else STAGE
        stats = sliced.statistics(mine, Batch(raw), stage)
        sliced.metrics(mine, stats)
        sliced.update(mine, stats, stage)

    _, sent = together(2, work)
    each_update = ["gather", "sum", "sum"] if aux else ["sum", "sum"]
    assert [call for call, _ in sent] == [*messages, *each_update]


def test_no_rows_need_no_reconstruction():
    model = make("topk")
    start = moved(model, data(model, 50), 6)
    found, sent = together(2, lambda peer: model.sliced(peer).statistics(start, Batch(torch.empty(0, 12)), STAGE))
    assert all(float(stats.rows) == 0 for stats in found)
    assert sent == [("gather", 1)]


@pytest.mark.parametrize("name", ["gsae", "relu", "gated", "jumprelu"])
def test_models_that_need_all_atoms_say_so(name):
    with pytest.raises(ModelError, match=f"atom_groups=2: {name} needs all atoms on every worker"):
        make(name).sliced(Share(0, 2))
    own = type("Own", (BSC,), {"__module__": "mine"})
    with pytest.raises(ModelError, match="atom_groups=2: mine:Own needs all atoms"):
        own(atoms=4).sliced(Share(0, 2))
    with pytest.raises(ModelError, match="atom_groups=2: bsc needs all atoms"):
        make_model("bsc", {"atoms": 4}).sliced(Share(0, 2))


def test_atoms_that_cannot_be_dealt_are_refused():
    with pytest.raises(ModelError, match="atom_groups=3 do not divide atoms=64"):
        make("topk").sliced(Share(0, 3))
    with pytest.raises(ModelError, match="atom_groups=8 do not divide the k=4 groups"):
        make("groupmax").sliced(Share(0, 8))


@each
def test_a_share_needs_less_memory(name):
    model = make_model(name, {"atoms": 2**16, "dtype": "float32"})
    assert isinstance(model, Autoencoder)
    shares = [model.sliced(Share(0, peers)).memory(256, 512) for peers in (1, 2, 4)]
    assert shares[1] < 0.6 * shares[0] and shares[2] < 0.6 * shares[1]
    assert model.peer_bytes(256, 512) == 0 < model.sliced(Share(0, 2)).peer_bytes(256, 512)


def test_the_model_itself_stays_whole():
    model = make("topk")
    sliced = model.sliced(Share(1, 4))
    assert (model.held, model.first) == (ATOMS, 0)
    assert (sliced.held, sliced.first) == (ATOMS // 4, ATOMS // 4)
    assert model == sliced and model.describe() == sliced.describe() and model.peak == sliced.peak
    for name in (SILENT, DEAD, RESIDUAL):
        assert (name in model.per_atom) == (name == SILENT)
