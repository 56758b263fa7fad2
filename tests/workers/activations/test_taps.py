"""Taps on any torch module: what passes is recorded as it was, gradients are autograd's."""

import pytest
import torch
from sparsefleet.workers import JobError
from sparsefleet.workers.activations import Tap, record
from torch import nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> tuple[torch.Tensor, str]:
        return x + scale * self.down(self.act(self.up(x))), "beside"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.unused = nn.Linear(4, 4)
        self.runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x, _ = block(x=x, scale=2.0)
        self.runs += 1
        return x


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


def test_what_passes_is_what_the_modules_give(net):
    taps = [Tap("blocks.0"), Tap("blocks.0.up"), Tap("blocks.0.down", "input"), Tap("blocks.1", "input")]
    found = record(net, taps, lambda: net(X)).activations
    first = net.blocks[0]
    up = X @ first.up.weight.T + first.up.bias
    torch.testing.assert_close(found[taps[1]], up)  # before the ReLU, which works in place
    torch.testing.assert_close(found[taps[2]], up.clamp(min=0))
    torch.testing.assert_close(found[taps[0]], X + 2 * first.down(up.clamp(min=0)))
    torch.testing.assert_close(found[taps[3]], found[taps[0]])
    assert net.runs == 0, "the rest need not be computed"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_gradients_are_those_of_autograd(net):
    taps = [Tap("blocks.0.up"), Tap("blocks.0"), Tap("blocks.1", "input"), Tap("blocks.1.down", "input")]
    found = record(net, taps, lambda: net(X), lambda out: out.square().sum())
    first, second = net.blocks
    up = (X @ first.up.weight.T + first.up.bias).detach().requires_grad_()
    middle = X + 2 * first.down(up.clamp(min=0))
    middle.retain_grad()
    neurons = second.up(middle).clamp(min=0)
    neurons.retain_grad()
    (middle + 2 * second.down(neurons)).square().sum().backward()
    for tap, expected in zip(taps, (up.grad, middle.grad, middle.grad, neurons.grad)):
        torch.testing.assert_close(found.gradients[tap], expected)


def test_parameters_are_left_alone(net):
    net.unused.weight.requires_grad_(False)
    before = {n: p.requires_grad for n, p in net.named_parameters()}
    record(net, [Tap("blocks.0")], lambda: net(X), lambda out: out.sum())
    assert before == {n: p.requires_grad for n, p in net.named_parameters()}
    assert all(p.grad is None for p in net.parameters())


def test_a_loss_that_does_not_depend_on_it_has_gradient_zero(net):
    found = record(
        net, [Tap("blocks.1")], lambda: (net(X), torch.ones(1, requires_grad=True))[1], lambda out: out.sum()
    )
    assert not found.gradients[Tap("blocks.1")].any()


def test_a_side_is_input_or_output():
    with pytest.raises(JobError, match=r"'blocks.0': its side is input or output, not 'outptu'"):
        Tap("blocks.0", "outptu")  # pyright: ignore[reportArgumentType]


def test_a_loss_is_one_number(net):
    with pytest.raises(JobError, match=r"loss: gives \(3, 4\), but gradients are of one number; sum it"):
        record(net, [Tap("blocks.0")], lambda: net(X), lambda out: out)
    one = record(net, [Tap("blocks.0")], lambda: net(X), lambda out: out.sum()[None]).gradients[Tap("blocks.0")]
    assert one.shape == X.shape


def test_errors_name_the_module(net):
    with pytest.raises(JobError, match=r"'blocks.3': Net has no such module; did you mean 'blocks\.\d'"):
        record(net, [Tap("blocks.3")], lambda: net(X))
    with pytest.raises(JobError, match="unused: this module was not called"):
        record(net, [Tap("unused")], lambda: net(X))
    embedding = nn.Embedding(3, 2)
    with pytest.raises(JobError, match="0:input: no real tensor passes there"):
        record(nn.Sequential(embedding), [Tap("0", "input")], lambda: nn.Sequential(embedding)(torch.tensor([1])))
    with pytest.raises(JobError, match="after the colon stands input or output, not 'in'"):
        Tap.parse("a.b:in")
    assert Tap.parse("a.b:output") == Tap("a.b") and Tap.parse("a:input") == Tap("a", "input")
