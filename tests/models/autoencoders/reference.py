"""The TopK autoencoder written down densely, for autograd: what the fast one must agree with."""

from __future__ import annotations

import torch
from sparsefleet.models import Params, Probe
from sparsefleet.models.autoencoders.autoencoder import WEIGHTS
from sparsefleet.models.autoencoders.names import DEAD, RESIDUAL, SILENT
from sparsefleet.models.autoencoders.topk import TopK
from torch import Tensor


def keep_largest(u: Tensor, k: int) -> Tensor:
    """relu(u) [n, H] with all but the k largest entries of a row set to zero."""
    chosen = u.topk(k, dim=1)
    return torch.zeros_like(u).scatter(1, chosen.indices, chosen.values.relu())


def loss_sums(model: TopK, weights: Params, state: Params, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(summed loss with AuxK, summed squared error, codes [n, H]) of scaled rows x under `weights`; which latents are
    dead and the normaliser of AuxK come from `state`."""
    u = (x - weights["b_dec"]) @ weights["W_enc"].T + weights["b_enc"]
    z = keep_largest(u, model.k)
    error = x - z @ weights["W_dec"] - weights["b_dec"]
    squared = error.square().sum()
    dead = (state[SILENT] >= state[DEAD]).nonzero().flatten()
    if dead.numel() == 0 or state[RESIDUAL] <= 0:
        return squared, squared, z
    aux_k = model.aux_k or min(512, x.shape[1] // 2)
    z_dead = keep_largest(u[:, dead], min(aux_k, dead.numel()))
    left = (error.detach() - z_dead @ weights["W_dec"][dead]).square().sum()
    factor = min(dead.numel() / aux_k, 1) / state[RESIDUAL]
    return squared + model.aux_coefficient * factor * left, squared, z


def leaves(params: Params) -> Params:
    """Copies of the weights that autograd tracks."""
    return {name: params[name].clone().requires_grad_(True) for name in WEIGHTS}


def make_probe(x: Tensor) -> Probe:
    """What a model sees of the rows x before it starts."""
    x = x.double()
    return Probe(rows=x.shape[0], mean=x.mean(0), variance=x.var(0, unbiased=False), sample=x[:2000])


def sparse_rows(rows: int, atoms: Tensor, active: int, noise: float, seed: int) -> Tensor:
    """Rows that mix `active` of the unit atoms [H, D] with weights in [0.5, 1.5], float64."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, atoms.shape[0], generator=generator).topk(active, dim=1).indices
    weights = 0.5 + torch.rand(rows, active, generator=generator, dtype=torch.float64)
    codes = torch.zeros(rows, atoms.shape[0], dtype=torch.float64).scatter(1, chosen, weights)
    return codes @ atoms + noise * torch.randn(rows, atoms.shape[1], generator=generator, dtype=torch.float64)


def unit_atoms(atoms: int, dim: int, seed: int) -> Tensor:
    """Random unit rows [H, D], float64."""
    drawn = torch.randn(atoms, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)
