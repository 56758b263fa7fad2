"""A sequential recommender, SASRec (Kang & McAuley 2018): causal attention over what a user chose; the next item is the
one whose embedding has the largest inner product with what comes out at the last position.

Shapes: B windows of L items, padded at their beginning with item number I; D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SASRec(nn.Module):
    """One layer of causal self-attention and a small MLP, each with a residual and a norm before it."""

    def __init__(self, items: int, dim: int, history: int, *, heads: int = 1, dropout: float = 0.2) -> None:
        super().__init__()
        self.history, self.padding = history, items
        self.items = nn.Embedding(items + 1, dim)
        self.places = nn.Parameter(0.02 * torch.randn(history, dim))
        nn.init.normal_(self.items.weight, std=0.02)
        self.before, self.between, self.after = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, windows: Tensor) -> Tensor:
        """Representations [B, L, D] of what was chosen up to each position of windows [B, L]."""
        length = windows.shape[1]
        x = self.dropout(self.items(windows) * self.items.embedding_dim**0.5 + self.places[-length:])
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        # A padded position attends to itself alone: a row without any entry would be NaN.
        mask = (later | (windows == self.padding)[:, None, :]) & ~torch.eye(length, dtype=torch.bool)
        mask = mask.repeat_interleave(self.attention.num_heads, 0)
        y = self.before(x)
        x = x + self.dropout(self.attention(y, y, y, attn_mask=mask, need_weights=False)[0])
        return self.after(x + self.dropout(self.mlp(self.between(x))))

    def embeddings(self) -> Tensor:
        """[I, D] of the items."""
        return self.items.weight[: self.padding]


def windows_of(sequence: Tensor, history: int, padding: int) -> Tensor:
    """[length, history] What was chosen up to each place of a sequence, the last `history` items of it."""
    return nn.functional.pad(sequence, (history - 1, 0), value=padding).unfold(0, history, 1)


def train(
    sequences: list[Tensor], items: int, *, dim: int, steps: int, rate: float, seed: int, history: int, dropout: float
) -> SASRec:
    """A recommender that has learned, in `steps` batches of 128 windows, to predict the next item at every position
    (cross-entropy over all items)."""
    torch.manual_seed(seed)
    model = SASRec(items, dim, history, dropout=dropout)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-6)
    slope = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    padded = [nn.functional.pad(s, (history - 1, 0), value=items) for s in sequences]
    # Long sequences are drawn more often.
    lengths = torch.tensor([float(len(s)) for s in sequences])
    for _ in range(steps):
        drawn = torch.multinomial(lengths, 128, replacement=True).tolist()
        starts = [int(torch.randint(max(1, len(padded[u]) - history), ())) for u in drawn]
        batch = torch.stack([padded[u][s : s + history + 1] for u, s in zip(drawn, starts, strict=True)])
        scores = model(batch[:, :-1]) @ model.embeddings().T
        targets = batch[:, 1:].masked_fill(batch[:, :-1] == items, items)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=items)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        slope.step()
    return model.eval()


@torch.no_grad()
def representations(model: SASRec, sequences: list[Tensor]) -> Tensor:
    """[all places, D] What the recommender knows after every item of every sequence, sequence by sequence, each of
    norm sqrt(D): recommendations depend on the direction alone."""
    found: list[Tensor] = []
    for sequence in sequences:
        for windows in windows_of(sequence, model.history, model.padding).split(1024):
            found.append(model(windows)[:, -1])
    h = torch.cat(found)
    return nn.functional.normalize(h, dim=1) * h.shape[1] ** 0.5
