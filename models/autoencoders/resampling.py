"""Resampling (Bricken et al. 2023, "Towards monosemanticity", appendix): dead latents begin anew along rows that are
badly reconstructed.

Which rows serve is drawn with probabilities in proportion to the square of their losses (at most 1), by adding up: a
survey gives Σ loss² over all rows of the update, so that every row can decide for itself, by a random number of its
place, whether it is drawn. Drawn rows add themselves into slots; a slot that counts one row holds exactly that row. The
outcome does not depend on the number of workers. Chance leaves some latents without a row now and then.

Shapes: n rows, D dimensions in, E out, H latents, S slots.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import Params, Stats
from ..truncated.draws import Draws
from .names import DEAD, SILENT
from .start import unit_rows

DRAWN, SLOTS = 2, 3
"""Rows drawn, and slots, for each dead latent: so that 2 exp(-2/3) = 1.03 slots hold one row."""
ROWS_PER_LATENT = 4
"""At most one of so many rows is looked for, or badly reconstructed ones would not suffice."""
SHARE = 0.2
"""Norm of a resampled encoder row over the mean norm of those of living latents."""


@dataclass(frozen=True, slots=True)
class SquaredLosses(Stats):
    """What the chance of a row needs to know of all others."""

    total: Tensor
    """Sum of the squares of the rows' losses, float64."""
    rows: Tensor
    """Number of rows, float64."""


def dead_latents(params: Params) -> Tensor:
    """[H] bool: those that have not fired for long enough."""
    return params[SILENT] >= params[DEAD]


def wanted_rows(params: Params, rows: int) -> int:
    """For how many latents rows are looked for among `rows` of them."""
    return min(int(dead_latents(params).sum()), rows // ROWS_PER_LATENT)


def draw_rows(columns: Tensor, losses: Tensor, total: float, wanted: int, draws: Draws) -> Tensor:
    """A batch's part of the slots, [S, C + 1]: sums of rows, and how many; the last is the sum of all rows.

    Args:
        columns: [n, C] what is to be known of a row.
        losses: [n]
        total: Σ loss² over all rows of the update.
        wanted: how many rows are looked for.
        draws: the random numbers of these rows.
    """
    chance, place = draws.uniform(2).unbind(1)
    drawn = chance * total < DRAWN * wanted * losses.double().square()
    rows = torch.nn.functional.pad(columns, (0, 1), value=1.0)
    slots = rows.new_zeros(SLOTS * wanted + 1, rows.shape[1])
    slots.index_add_(0, (place[drawn] * SLOTS * wanted).long(), rows[drawn])
    slots[-1] = rows.sum(0)
    return slots


def resampled(params: Params, slots: Tensor, moments: Iterable[str], *, centre: bool) -> tuple[Params, Tensor]:
    """`params` with dead latents begun anew, and which these are [m]; those that no row was found for stay as they are.

    A row with target t and input x gives the atom t / |t|, and an encoder row along x with `SHARE` of the mean norm of
    those of living latents; the bias is 0, and so are all moments. With `centre` the mean input is subtracted from x,
    and by the bias.

    Args:
        params: after Adam's step.
        slots: [S, C + 1] the sum of all that `draw_rows` gave; the columns are the target and the input, which may be
            the same columns, both scaled.
        moments: names of the parameters that are moments, [H, …] each.
        centre: whether inputs are as they come, as those of transcoders are.
    """
    wide, tall = params["W_dec"].shape[1], params["W_enc"].shape[1]
    rows = slots[:-1][slots[:-1, -1] == 1][:, :-1]
    targets, inputs = rows[:, :wide], rows[:, -tall:]
    middle = slots[-1, :-1][-tall:] / slots[-1, -1] if centre else torch.zeros_like(params["W_enc"][0])
    inputs = inputs - middle
    usable = (targets != 0).any(1) & (inputs != 0).any(1)
    dead = dead_latents(params)
    places = dead.nonzero().flatten()[: int(usable.sum())]
    targets, inputs = targets[usable][: len(places)], inputs[usable][: len(places)]
    living = torch.linalg.vector_norm(params["W_enc"][~dead], dim=1)
    norm = SHARE * (float(living.mean()) if len(living) else 1.0)
    encoder = norm * unit_rows(inputs)
    values = {
        "W_dec": unit_rows(targets),
        "W_enc": encoder,
        "b_enc": -(encoder @ middle),
        SILENT: params[SILENT].new_zeros(len(places)),
    }
    new = {name: params[name].index_copy(0, places, value) for name, value in values.items()}
    new |= {name: params[name].index_fill(0, places, 0.0) for name in moments}
    return params | new, places
