"""Networks that complete sentences like "When Ann and Bob went home, Bob gave a book to" with the name of the indirect
object (Wang et al. 2023), and where one row of activations of each prompt is read and replaced.

A prompt has three attributes: the indirect object's name (IO), the subject's (S), and which of the two comes first
(Pos: 0 ABB, the indirect object; 1 BAB, the subject). Values [n, 3] int64 hold them in this order; names are numbered.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

IO, S, POS = 0, 1, 2


class Host(Protocol):
    """A network, cut at one place."""

    names: int
    """How many there are."""

    def rows(self, values: Tensor) -> Tensor:
        """Activations [n, D] of the prompts with these attributes."""
        ...

    def scores(self, values: Tensor, rows: Tensor) -> Tensor:
        """Logits [n, names] of the next token, with these activations in the place of the prompts' own."""
        ...


def draw(count: int, names: int, generator: torch.Generator) -> Tensor:
    """Values [count, 3] of random prompts; the two names differ."""
    io = torch.randint(names, (count,), generator=generator)
    s = (io + torch.randint(1, names, (count,), generator=generator)) % names
    return torch.stack([io, s, torch.randint(2, (count,), generator=generator)], dim=1)


def counterfactual(values: Tensor, attribute: int, names: int, generator: torch.Generator) -> Tensor:
    """The same prompts with one attribute changed; a new name is neither of the two of the prompt."""
    new = values.clone()
    if attribute == POS:
        new[:, POS] = 1 - new[:, POS]
        return new
    low, high = values[:, :2].min(1).values, values[:, :2].max(1).values
    drawn = torch.randint(names - 2, (len(values),), generator=generator)
    drawn = drawn + (drawn >= low)
    new[:, attribute] = drawn + (drawn >= high)
    return new


class Block(nn.Module):
    """Causal self-attention of 4 heads and an MLP, each with a residual and a norm before it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        x = x + self.attention(y, y, y, attn_mask=later, need_weights=False)[0]
        return x + self.mlp(self.between(x))


class Toy(nn.Module):
    """Three blocks of 64 dimensions that learn to complete `BOS N1 AND N2 WENT S GAVE TO` with IO, from random prompts;
    cut after the second block, at the last position."""

    def __init__(self, seed: int, *, names: int = 24, dim: int = 64, steps: int = 600) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.names = names
        self.tokens, self.places = nn.Embedding(names + 5, dim), nn.Parameter(0.02 * torch.randn(8, dim))
        self.blocks = nn.ModuleList(Block(dim) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, names, bias=False)
        optimiser = torch.optim.AdamW(self.parameters(), lr=2e-3)
        slope = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.1)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            values = draw(256, names, generator)
            loss = nn.functional.cross_entropy(self._end(self._half(values)), values[:, IO])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            slope.step()
        self.requires_grad_(False)

    def _half(self, values: Tensor) -> Tensor:
        io, s, pos = values.T
        first, second = torch.where(pos == 0, io, s), torch.where(pos == 0, s, io)
        bos, conjunction, went, gave, to = (torch.full_like(io, self.names + i) for i in range(5))
        x = self.tokens(torch.stack([bos, first, conjunction, second, went, s, gave, to], dim=1)) + self.places
        return self.blocks[1](self.blocks[0](x))

    def _end(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks[2](x)[:, -1]))

    def rows(self, values: Tensor) -> Tensor:
        """As `Host.rows`."""
        return self._half(values)[:, -1]

    def scores(self, values: Tensor, rows: Tensor) -> Tensor:
        """As `Host.scores`."""
        x = self._half(values)
        return self._end(torch.cat([x[:, :-1], rows.to(x.dtype)[:, None]], dim=1))
