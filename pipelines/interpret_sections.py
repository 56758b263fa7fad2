"""Sections of the report of `interpret`: what probes tell of labelled texts, and what steering does."""

from __future__ import annotations

from collections.abc import Callable, Collection
from html import escape

import numpy as np

from ..models.autoencoders.probing import SPARSITIES, Probed
from .steering import Steering

LATENTS, RAW, GREY = "#c8742c", "#3c78c8", "#8a93a0"


def probing_section(found: list[Probed], shown: Collection[int]) -> str:
    """Accuracies by class and by m; latents that are `shown` below are links."""
    head = "".join(f"<th class=n>m = {m}</th>" for m in SPARSITIES)
    lines = "".join(_probed(one, shown) for one in found)
    return (
        f"<h2>What few latents tell about classes of texts</h2>\n<p class=note>Codes are averaged over passages "
        f"as long as a context: {found[0].learned:,} to learn from, {found[0].tested:,} of other documents to test. "
        "The m latents that "
        "differ most between a class and all others are the input of a logistic regression. Beside it: the same with "
        "the m dimensions of the rows that differ most, with all of them, and always naming the larger side.</p>\n"
        f"{_plot(found)}\n<div class=wide><table><tr><th></th><th class=g colspan={len(SPARSITIES)}>latents</th>"
        f"<th class=g colspan={len(SPARSITIES)}>dimensions</th><th></th><th></th><th></th></tr>\n"
        f"<tr><th>class</th>{head}{head}<th class=n>all dimensions</th><th class=n>larger side</th>"
        f"<th>latents, the best first</th></tr>\n{lines}</table></div>\n"
    )


def steering_section(found: Steering, spell: Callable[[int], str]) -> str:
    """Latent by latent, those that change the next token most first."""
    kl, tokens = found.latents.divergence, found.latents.tokens
    says = lambda i: (  # noqa: E731
        f"<td class=n>{float(tokens.push[i]):+.3g}</td><td>{_tokens(tokens.named[i].tolist(), spell)}</td>"
        if tokens
        else ""
    )
    lines = "".join(
        f'<tr><td><a href="#latent-{found.atoms[i]}">{_signed(found.signs[i], found.atoms[i])}</a></td>'
        f"<td class=n>{float(kl[i]):.3g}</td>{says(i)}</tr>\n"
        for i in np.argsort(-kl.numpy(), kind="stable").tolist()
    )
    pushed = found.random.tokens
    control = f"<td class=n>{float(pushed.push.mean()):+.3g}</td><td class=m>each names its own</td>" if pushed else ""
    explained = (
        "Push: by how much the logits of the ten tokens on the right rise, which are those that the direction itself, "
        "or what the layer's output projection makes of it, names in the last linear layer. "
        if tokens
        else "What a direction adds to the residual stream is not known at this site, so that it names no tokens. "
    )
    n = len(found.random.divergence)
    spread = f"{float(found.random.divergence.min()):.3g} to {float(found.random.divergence.max()):.3g}"
    return (
        f"<h2>What latents do to the next token</h2>\n<p class=note>A latent's direction, {found.size:.3g} long (half "
        f"the mean norm of a row), is added at the last token of {found.contexts} contexts. KL: of the next token's "
        f"distribution without it from the one with it, in nats. {explained}A minus before a latent:"
        " it is below 0 more often than above and was added with that sign. "
        f"{n} random directions have KLs from {spread}.</p>\n"
        "<div class=wide><table><tr><th>latent</th><th class=n>KL</th>"
        f"{'<th class=n>push</th><th>tokens it names</th>' if tokens else ''}"
        f"</tr>\n{lines}<tr><td class=m>mean of {n} random directions</td>"
        f"<td class=n>{float(found.random.divergence.mean()):.3g}</td>{control}</tr></table></div>\n"
    )


def _probed(one: Probed, shown: Collection[int]) -> str:
    values = [*(one.latents[m] for m in SPARSITIES), *(one.raw[m] for m in SPARSITIES), one.full, one.majority]
    cells = "".join(f"<td class=n>{value:.1%}</td>" for value in values)
    links = " ".join(f'<a href="#latent-{a}">{a}</a>' if a in shown else str(a) for a in one.best)
    return f"<tr><td>{escape(one.label)}</td>{cells}<td>{links}</td></tr>\n"


def _plot(found: list[Probed]) -> str:
    """Mean accuracy over classes by m, as SVG: two lines, and levels for all dimensions and for the larger side."""
    mean = lambda values: float(np.mean(values))  # noqa: E731
    latents = [mean([p.latents[m] for p in found]) for m in SPARSITIES]
    raw = [mean([p.raw[m] for p in found]) for m in SPARSITIES]
    full, side = mean([p.full for p in found]), mean([p.majority for p in found])
    low = np.floor(min(*latents, *raw, full, side) * 10 - 1e-9) / 10
    width, height = 420, 180
    y = lambda value: height * (1 - (value - low) / (1 - low)) if low < 1 else 0.0  # noqa: E731
    x = lambda m: 40 + (m - SPARSITIES[0]) / (SPARSITIES[-1] - SPARSITIES[0]) * (width - 60)  # noqa: E731

    def line(values: list[float], color: str) -> str:
        points = " ".join(f"{x(m):.1f},{y(v):.1f}" for m, v in zip(SPARSITIES, values))
        dots = "".join(
            f'<circle cx="{x(m):.1f}" cy="{y(v):.1f}" r="3.5" fill="{color}"><title>m = {m}: {v:.1%}</title></circle>'
            for m, v in zip(SPARSITIES, values)
        )
        return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>{dots}'

    def level(value: float, dash: str) -> str:
        return (
            f'<line x1="40" x2="{width - 20}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="{GREY}" '
            f'stroke-dasharray="{dash}"/>'
        )

    grid = "".join(
        f'<line x1="40" x2="{width - 20}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#e6e9ee"/>'
        f'<text x="34" y="{y(v) + 4:.1f}" text-anchor="end">{v:.0%}</text>'
        for v in np.arange(low, 1.001, 0.1)
    )
    marks = "".join(f'<text x="{x(m):.1f}" y="{height + 17}" text-anchor="middle">m = {m}</text>' for m in SPARSITIES)
    legend = "".join(
        f'<line x1="{width}" x2="{width + 24}" y1="{at}" y2="{at}" stroke="{color}" stroke-width="2" '
        f'stroke-dasharray="{dash}"/><text x="{width + 30}" y="{at + 4}">{text}</text>'
        for at, color, dash, text in (
            (20, LATENTS, "none", "m latents"),
            (42, RAW, "none", "m dimensions"),
            (64, GREY, "6 3", "all dimensions"),
            (86, GREY, "1 3", "larger side"),
        )
    )
    return (
        f'<svg viewBox="0 -10 {width + 130} {height + 32}" width="{width + 130}" role="img" aria-label="accuracy by m">'
        f"{grid}{level(full, '6 3')}{level(side, '1 3')}{line(raw, RAW)}{line(latents, LATENTS)}{marks}{legend}</svg>\n"
        "<p class=note>Share of passages named rightly, mean over the rows of the table.</p>"
    )


def _signed(sign: int, atom: int) -> str:
    return f"−{atom}" if sign < 0 else str(atom)


def _tokens(named: list[int], spell: Callable[[int], str]) -> str:
    texts = (spell(token).replace("\n", "⏎").replace("\t", "⇥") for token in named)
    return " ".join(f"<code>{escape(text)}</code>" for text in texts)
