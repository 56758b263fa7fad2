"""The report of `interpret`: one HTML file that opens offline, without scripts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

from ..models.autoencoders.measures import Evaluation
from ..models.autoencoders.probing import SPARSITIES, Probed
from ..storage import Dataset
from .examples import Example
from .interpret_sections import probing_section, steering_section
from .steering import Steering

BINS = np.arange(-10, 0.01, 0.25)
"""Edges of the histogram, log10 of the share of rows."""
MEANING = {
    "fvu": "fraction of variance unexplained",
    "explained_variance": "1 - fvu",
    "normalized_mse": "mean of |x - x'|² / |x|²",
    "shrinkage": "Σ⟨x, x'⟩ / Σ|x|²",
    "bias": "Σ|x'|² / Σ⟨x, x'⟩, 1 for an unbiased reconstruction",
    "l0": "active latents a row",
    "l1": "Σ|code| a row",
    "dead_fraction": "latents that never fire in these rows",
    "dense_fraction": "latents that fire in more than a tenth of the rows",
    "bidirectional_fraction": "of those that fire, with at least a tenth of their firings of the rarer sign",
    "truth_recovered": "share of the features that made the data with an atom of |cosine| above 0.9",
    "truth_atoms_per_direction": "… such atoms per feature",
    "truth_mean_max": "… mean of the best |cosine|",
    "truth_mean_cosine": "… with a latent of its own for every feature",
    "truth_support_f1": "how well that latent tells where the feature is active (F1, mean over features)",
    "ce_recovered_zero": "loss recovered: 1 - damage / damage of zeros in their place",
    "ce_recovered_mean": "loss recovered: 1 - damage / damage of the mean in their place",
    "ce_clean": "cross-entropy of the next token, nats: the network itself",
    "ce_reconstruction": "… with reconstructions in the activations' place",
    "ce_zero": "… with zeros",
    "ce_mean": "… with their mean",
    **{f"probe_latents_{m}": f"accuracy of probes for classes of texts, m = {m} latents" for m in SPARSITIES},
    **{f"probe_raw_{m}": f"… m = {m} dimensions of the rows" for m in SPARSITIES},
    "probe_raw_all": "… all dimensions",
    "probe_majority": "… the larger side",
    "probe_sinks": "rows left out of them: more than ten times as long as the median",
    "steer_kl": "change of the next token's distribution by adding a latent, nats",
    "steer_push": "rise of the logits of the tokens that it names",
    "steer_kl_random": "the same by adding a random direction as long",
    "steer_push_random": "… and for the tokens that this one names",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
table { border-collapse: collapse; } td { padding: .15rem .9rem .15rem 0; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.m, .note { color: #5c6675; }
th { padding: .15rem .9rem .15rem 0; text-align: left; font-weight: 600; } th.g { text-align: center; }
.wide { overflow-x: auto; }
code { font-size: 13px; white-space: pre-wrap; } td code { background: #f1f3f6; border-radius: 3px; padding: 0 .25rem; }
p.x { margin: .15rem 0; white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace;
  font-size: 13px; } p.x b { color: #5c6675; font-weight: normal; } u { text-decoration-thickness: 2px; }
svg { max-width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: #5c6675; }
"""


@dataclass(frozen=True)
class Page:
    """What a report shows."""

    dictionary: str
    data: Dataset
    metrics: Mapping[str, float]
    sums: Evaluation
    examples: Mapping[int, list[Example]]
    spell: Callable[[int], str]
    """A token's text."""
    probed: list[Probed] = field(default_factory=list[Probed])
    """By class of texts; empty where there are no labels."""
    steered: Steering | None = None
    note: str = ""
    """What to keep in mind about the rows."""


def page(shown: Page) -> str:
    """The whole file."""
    fired = (shown.sums.positive + shown.sums.negative).cpu().numpy()
    rows = float(shown.sums.rows)
    about = str(shown.data.attributes.get("row", "rows"))
    order = sorted(shown.examples, key=lambda atom: (-fired[atom], atom))
    sections = "".join(_latent(shown, atom, fired, rows) for atom in order)
    note = f"<p><b>Note:</b> {escape(shown.note)}.</p>\n" if shown.note else ""
    more = probing_section(shown.probed, set(shown.examples)) if shown.probed else ""
    more += steering_section(shown.steered, shown.spell) if shown.steered else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(shown.dictionary)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(shown.dictionary)}</h1>\n<p>{len(fired):,} latents, judged by {rows:,.0f} rows of "
        f"<code>{escape(shown.data.uri)}</code>: {escape(about)}.</p>\n{note}"
        f"<h2>Numbers</h2>\n{metrics_table(shown.metrics)}\n"
        f"<h2>How often latents fire</h2>\n{histogram(fired / rows)}\n{more}"
        f"<h2>What latents answer to</h2>\n<p class=note>{len(order)} of them, from frequent to rare, each with "
        "the rows on which it is strongest. Tokens are shaded by its value there (orange above 0, blue below), the row "
        f"itself is underlined.</p>\n{sections}</body></html>\n"
    )


def metrics_table(metrics: Mapping[str, float]) -> str:
    """Name, value and meaning of each."""
    cells = (
        f"<tr><td>{escape(name)}</td><td class=n>{metrics[name]:.5g}</td>"
        f"<td class=m>{escape(MEANING.get(name, ''))}</td></tr>"
        for name in [*(n for n in MEANING if n in metrics), *(n for n in metrics if n not in MEANING)]
    )
    return f"<table>{''.join(cells)}</table>"


def histogram(density: NDArray[np.floating]) -> str:
    """Latents by log10 of the share of rows [H] in which they fire, as SVG; dead ones are counted beside it."""
    alive = density > 0
    counts, _ = np.histogram(np.log10(density[alive]), bins=BINS)
    used = np.flatnonzero(counts)
    if not len(used):
        return "<p>No latent fires.</p>"
    low = int(used[0])
    counts, edges = counts[low:], BINS[low:]
    width, height, wide = 620, 170, 620 / len(counts)
    bars = "".join(
        f'<rect x="{i * wide:.1f}" y="{height - c / counts.max() * height:.1f}" width="{wide - 1:.1f}" '
        f'height="{c / counts.max() * height:.1f}" fill="#c8742c"><title>10^{edges[i]:g} to 10^{edges[i + 1]:g}: '
        f"{c} latents</title></rect>"
        for i, c in enumerate(counts)
    )
    labels = "".join(
        f'<text x="{(e - edges[0]) / 0.25 * wide:.1f}" y="{height + 15}" text-anchor="middle">10^{e:g}</text>'
        for e in edges
        if math.isclose(e, round(float(e)))
    )
    return (
        f'<svg viewBox="-20 -16 {width + 40} {height + 40}" width="{width + 40}" role="img" '
        f'aria-label="latents by density"><text x="0" y="-4">{counts.max()} latents</text>{bars}{labels}</svg>\n'
        f"<p class=note>Share of rows in which a latent fires; {int((~alive).sum()):,} never do.</p>"
    )


def _latent(shown: Page, atom: int, fired: NDArray[np.floating], rows: float) -> str:
    examples = shown.examples[atom]
    share, positive = fired[atom] / rows, float(shown.sums.positive[atom]) / fired[atom]
    size = float(shown.sums.magnitude[atom]) / fired[atom]
    signs = "" if positive in (0.0, 1.0) else f", {positive:.0%} of them above 0"
    largest = max(abs(e.value) for e in examples)
    lines = "".join(_example(shown, e, largest) for e in examples)
    return (
        f'<h3 id="latent-{atom}">Latent {atom}</h3><p class=note>fires in {share:.3%} of the rows{signs}; '
        f"{size:.3g} on average, at most {largest:.3g}</p>\n{lines}"
    )


def _example(shown: Page, example: Example, largest: float) -> str:
    if not example.context:
        return f"<p class=x><b>{example.value:8.3g}</b>  row {example.row:,}</p>\n"
    words: list[str] = []
    for token in example.context:
        text = escape(shown.spell(token.token).replace("\n", "⏎"))
        if token.value:
            rgb = "240,140,40" if token.value > 0 else "60,130,220"
            shade = f"rgba({rgb},{0.15 + 0.75 * min(1.0, abs(token.value) / largest):.2f})"
            text = f'<span style="background:{shade}" title="{token.value:.3g}">{text}</span>'
        words.append(f"<u>{text}</u>" if token.centre else text)
    return f"<p class=x><b>{example.value:8.3g}</b>  {''.join(words)}</p>\n"
