"""The distributed threshold equals a sort."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sparsefleet.models import Stage
from sparsefleet.models.truncated.cut import ROUNDS, histogram, kept, narrow, order_key

SCORES = arrays(np.float32, st.integers(1, 200), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@settings(deadline=None)
@given(scores=SCORES, share=st.floats(0, 1), parts=st.integers(1, 4))
def test_keeps_the_best_and_only_ties_more(scores, share, parts):
    keep = max(1, int(share * len(scores)))
    pieces = [torch.from_numpy(p.copy()) for p in np.array_split(scores, parts)]
    stage = Stage(step=0, steps=1)
    for _ in ROUNDS:
        found = histogram(pieces[0], stage)
        for piece in pieces[1:]:
            found = found + histogram(piece, stage)
        stage = narrow(found, stage, keep)
    mask = torch.cat([kept(p, stage) for p in pieces]).numpy()
    threshold = np.sort(scores)[-keep]
    # Adding 0 makes -0 equal to 0, which compare alike but differ in their bits.
    assert mask.sum() >= keep or (scores == threshold).sum() > 1
    assert (scores[mask] >= threshold).all()
    assert (scores[~mask] <= threshold).all()


@given(a=st.floats(allow_nan=False, width=32), b=st.floats(allow_nan=False, width=32))
def test_keys_order_like_numbers(a, b):
    key = order_key(torch.tensor([a, b]))
    if a != b:
        assert bool(key[0] < key[1]) == (a < b)


def test_nothing_is_cut_without_a_survey():
    assert bool(kept(torch.randn(5), Stage(step=0, steps=1)).all())
