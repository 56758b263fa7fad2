"""Supervised and learned dictionaries of a network that names indirect objects, on three axes.

    python benchmarks/ioi.py [--seeds 0 1 2]

A small transformer learns to complete "When A and B went home, B gave a book to" with A (benchmarks/hosts/naming.py).
Its activations after the second of three blocks, at the last token of 20,000 prompts, are described by dictionaries
that are computed from the prompts' attributes (IO, S, Pos; means, and least squares), and by `topk` with 256 latents,
k = 6. 1,000 other prompts judge (Makelov, Lange, Nanda 2024):

- approximation: of the difference between the logits of IO and S, the share that reconstructions keep (sufficiency) and
  the share that goes with them (necessity), over the mean activation; R².
- control: one attribute is changed by an edit of the activation. Truth is the activation of the prompt with the other
  attribute. Stated is how often the edited and the true run name the same person, without any edit, with the edit of
  the supervised dictionaries, and with m exchanges of latents; where truth changes fewer than 20 % of the names, how
  far the difference of logits moves, as a share of how far it should.
- interpretability: latents whose activity predicts a value of an attribute with F1 of at least 0.8.

The command fails where a relation does not hold.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from hosts.naming import IO, POS, Host, S, Toy, counterfactual, draw
from sparsefleet.models import Batch, Probe, Stage, make_model
from sparsefleet.models.autoencoders.supervised import (
    greedy_edit,
    least_squares_codes,
    mean_codes,
    share_kept,
    value_scores,
)
from torch import Tensor

LATENTS, K, STEPS, BATCH = 256, 6, 3000, 512
EXCHANGES = (1, 2, 4, 6)
ATTRIBUTES = {"IO": IO, "S": S, "Pos": POS}


class Autoencoder:
    """`topk`, learned in memory from rows scaled to a mean square of 1 a dimension."""

    def __init__(self, rows: Tensor, seed: int) -> None:
        self.scale = float(rows.square().mean().sqrt())
        x = rows.float() / self.scale
        settings = {"atoms": LATENTS, "k": K, "learning_rate": 2e-3, "dead_tokens": 20 * BATCH}
        self.model = make_model("topk", settings)
        wide = x[:8192].double()
        generator = torch.Generator().manual_seed(seed)
        self.params = self.model.init(Probe(len(x), wide.mean(0), wide.var(0), wide), generator)
        for step in range(STEPS):
            stage = Stage(step=step, steps=STEPS, rows=len(x))
            batch = Batch(x[torch.randint(len(x), (BATCH,), generator=generator)])
            self.params = self.model.update(self.params, self.model.statistics(self.params, batch, stage), stage)

    @property
    def atoms(self) -> Tensor:
        """[D, H] in the units of the rows."""
        return self.model.dictionary(self.params).double() * self.scale

    def codes(self, rows: Tensor) -> Tensor:
        """[n, H]."""
        return self.model.encode(self.params, Batch(rows.float() / self.scale)).dense(LATENTS).double()

    def reconstruct(self, rows: Tensor) -> Tensor:
        """[n, D]."""
        codes = self.model.encode(self.params, Batch(rows.float() / self.scale))
        return self.model.reconstruct(self.params, codes).double() * self.scale


def difference(scores: Tensor, values: Tensor) -> Tensor:
    """Logit of IO less that of S, [n]."""
    return (scores.gather(1, values[:, [IO]]) - scores.gather(1, values[:, [S]]))[:, 0]


def approximation(
    host: Host, values: Tensor, rows: Tensor, rebuilt: Tensor, mean: Tensor
) -> tuple[float, float, float]:
    """Sufficiency, necessity and R²."""

    def with_rows(x: Tensor) -> Tensor:
        return difference(host.scores(values, x), values)

    clean, without = with_rows(rows), with_rows(mean.expand_as(rows))
    kept = share_kept(with_rows(rebuilt), clean, without)
    lost = 1 - share_kept(with_rows(rows - rebuilt + mean), clean, without)
    r2 = 1 - (rows - rebuilt).square().sum() / (rows - rows.mean(0)).square().sum()
    return float(kept), float(lost), float(r2)


def control(
    host: Host, values: Tensor, attribute: int, edits: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]], seed: int
) -> tuple[bool, dict[str, float]]:
    """Whether names are compared (else differences of logits), and what each edit reaches."""
    new = counterfactual(values, attribute, host.names, torch.Generator().manual_seed(seed))
    rows, target = host.rows(values).double(), host.rows(new).double()
    clean, truth = host.scores(values, rows), host.scores(values, target)
    named = bool((clean.argmax(1) != truth.argmax(1)).double().mean() >= 0.2)

    def reached(scores: Tensor) -> float:
        if named:
            return float((scores.argmax(1) == truth.argmax(1)).double().mean())
        moved, wanted = (difference(x, values) - difference(clean, values) for x in (scores, truth))
        return float((moved * wanted).sum() / wanted.square().sum())

    found = {"no edit": reached(clean)}
    for name, edit in edits.items():
        found[name] = reached(host.scores(values, edit(rows, target, new)))
    return named, found


def measured(host: Host, seed: int) -> dict[str, float]:
    """All numbers of one network, by name."""
    generator = torch.Generator().manual_seed(1000 + seed)
    values, judged = draw(20_000, host.names, generator), draw(1000, host.names, generator)
    x, rows = host.rows(values).double(), host.rows(judged).double()
    means, squares, learned = mean_codes(x, values), least_squares_codes(x, values), Autoencoder(x, seed)
    found = {"accuracy": float((host.scores(judged, rows).argmax(1) == judged[:, IO]).double().mean())}
    rebuilt = {
        "means": means.reconstruct(judged),
        "squares": squares.reconstruct(judged),
        "topk": learned.reconstruct(rows),
    }
    for name, other in rebuilt.items():
        kept, lost, r2 = approximation(host, judged, rows, other, x.mean(0))
        found |= {f"{name}: sufficiency": kept, f"{name}: necessity": lost, f"{name}: R2": r2}

    def exchanged(m: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda old, target, _: greedy_edit(
            old, target, learned.codes(old), learned.codes(target), learned.atoms, m
        )

    edits: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "means": lambda old, _, new: means.edited(old, judged, new),
        "squares": lambda old, _, new: squares.edited(old, judged, new),
        **{f"{m} latents": exchanged(m) for m in EXCHANGES},
    }
    active = learned.codes(x[:5000]) > 0
    for name, attribute in ATTRIBUTES.items():
        named, reached = control(host, judged, attribute, edits, seed)
        found |= {f"{name} {'names' if named else 'logits'}: {what}": v for what, v in reached.items()}
        size = 2 if attribute == POS else host.names
        best = value_scores(active, values[:5000, attribute], size).max(1).values
        found[f"{name}: latents with F1 of 0.8"] = float((best >= 0.8).sum())
    found["latents that fire"] = float(active.any(0).sum())
    return found


def failures(row: dict[str, float]) -> list[str]:
    """Relations that do not hold."""
    steps = [row.get(f"IO names: {m} latents", 0.0) for m in EXCHANGES]
    supervised = max(row.get(f"IO names: {kind}", 0.0) for kind in ("means", "squares"))
    relations = {
        "accuracy is at least 0.99": row["accuracy"] >= 0.99,
        "means keep 0.9 to 1.15": all(0.9 <= row[f"means: {w}"] <= 1.15 for w in ("sufficiency", "necessity")),
        "a supervised edit of IO reaches 0.98": supervised >= 0.98,
        "more exchanged latents reach more": steps == sorted(steps),
        "one or two latents reach less than it": max(steps[:2]) < supervised,
        "ten latents answer to a name": row["IO: latents with F1 of 0.8"] >= 10,
        "none answers to the order": row["Pos: latents with F1 of 0.8"] == 0,
    }
    return [what for what, holds in relations.items() if not holds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [measured(Toy(seed), seed) for seed in options.seeds]
    for name in dict.fromkeys(key for seed in seeds for key in seed):
        values = [seed[name] for seed in seeds if name in seed]
        print(f"{name:36} {statistics.mean(values):8.3f} ({min(values):.3f} to {max(values):.3f})", flush=True)
    missed = [f"seed {seed}: {what}" for seed, row in zip(options.seeds, seeds, strict=True) for what in failures(row)]
    if missed:
        raise SystemExit("does not hold: " + "; ".join(missed))


if __name__ == "__main__":
    main()
