"""Dictionaries computed from attributes: each function beside its slow and obvious twin."""

import pytest
import torch
from sparsefleet.models import ModelError
from sparsefleet.models.autoencoders.supervised import (
    greedy_edit,
    least_squares_codes,
    mean_codes,
    share_kept,
    value_scores,
)
from torch import Tensor


@pytest.fixture
def study() -> tuple[Tensor, Tensor]:
    """Rows [200, 7] that add up an atom of each of two attributes, and noise; the values [200, 2]."""
    generator = torch.Generator().manual_seed(1)
    values = torch.stack([torch.randint(n, (200,), generator=generator) for n in (5, 3)], dim=1)
    atoms = [torch.randn(n, 7, generator=generator, dtype=torch.float64) for n in (5, 3)]
    noise = 0.01 * torch.randn(200, 7, generator=generator, dtype=torch.float64)
    return 2 + atoms[0][values[:, 0]] + atoms[1][values[:, 1]] + noise, values


def test_mean_codes_are_conditional_means(study: tuple[Tensor, Tensor]) -> None:
    rows, values = study
    made = mean_codes(rows, values)
    for a in range(2):
        for value, atom in enumerate(made.atoms[a]):
            torch.testing.assert_close(atom, rows[values[:, a] == value].mean(0) - rows.mean(0))


def test_least_squares_explain_everything_but_the_noise(study: tuple[Tensor, Tensor]) -> None:
    rows, values = study
    made = least_squares_codes(rows, values)
    hot = torch.cat([torch.nn.functional.one_hot(c).double() for c in values.T], dim=1)
    design = torch.cat([torch.ones(200, 1, dtype=torch.float64), hot], dim=1)
    slow = design @ torch.linalg.lstsq(design, rows, driver="gelsd").solution
    torch.testing.assert_close(made.reconstruct(values), slow)
    for atoms in made.atoms:
        torch.testing.assert_close(atoms.mean(0), torch.zeros(7, dtype=torch.float64))


def test_a_value_that_does_not_occur_has_no_atom(study: tuple[Tensor, Tensor]) -> None:
    rows, values = study
    values = values + (values[:, :1] >= 2)  # no 2 in the first column
    for made in (mean_codes(rows, values), least_squares_codes(rows, values)):
        assert made.atoms[0].shape == (6, 7)
        assert not made.atoms[0][2].any()


def test_an_edit_exchanges_one_value_and_keeps_the_rest(study: tuple[Tensor, Tensor]) -> None:
    rows, values = study
    made = least_squares_codes(rows, values)
    new = values.clone()
    new[:, 0] = (new[:, 0] + 1) % 5
    edited = made.edited(rows, values, new)
    torch.testing.assert_close(edited - made.reconstruct(new), rows - made.reconstruct(values))
    torch.testing.assert_close(made.edited(edited, new, values), rows)


def slow_greedy(row: Tensor, target: Tensor, clean: Tensor, other: Tensor, atoms: Tensor, exchanges: int) -> Tensor:
    used: set[int] = set()
    for _ in range(exchanges):
        moved = {j: row + (other[j] - clean[j]) * atoms[:, j] for j in range(len(clean)) if j not in used}
        if not moved:
            break
        best = min(moved, key=lambda j: float((target - moved[j]).square().sum()))
        if (target - moved[best]).square().sum() >= (target - row).square().sum():
            break
        row = moved[best]
        used.add(best)
    return row


@pytest.mark.parametrize("exchanges", [0, 1, 3, 50])
def test_the_greedy_edit_takes_what_a_search_takes(exchanges: int) -> None:
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    rows, target, atoms = draw(20, 6), draw(20, 6), draw(6, 12)
    clean, other = (draw(20, 12).clamp(min=0) for _ in range(2))
    fast = greedy_edit(rows, target, clean, other, atoms, exchanges)
    for n in range(20):
        torch.testing.assert_close(fast[n], slow_greedy(rows[n], target[n], clean[n], other[n], atoms, exchanges))


def test_share_kept() -> None:
    clean, without = torch.tensor([4.0, 6.0]), torch.tensor([1.0, 1.0])
    assert float(share_kept(clean, clean, without)) == 1
    assert float(share_kept(without, clean, without)) == 0
    assert float(share_kept(torch.tensor([3.0, 3.0]), clean, without)) == 0.5


def test_scores_of_values() -> None:
    active = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    found = value_scores(active, torch.tensor([0, 0, 1, 1]), 3)
    assert found.tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]]


def test_what_does_not_fit_is_named(study: tuple[Tensor, Tensor]) -> None:
    rows, values = study
    with pytest.raises(ModelError, match=r"\(199, 2\)"):
        mean_codes(rows, values[1:])
    with pytest.raises(ModelError, match="-1"):
        least_squares_codes(rows, values - 1)
    with pytest.raises(ModelError, match="exchanges=-1"):
        greedy_edit(rows, rows, rows, rows, rows.T @ rows, -1)
