"""Every variant written down densely, for autograd: what the fast ones must agree with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sparsefleet.models import Params
from sparsefleet.models.autoencoders.autoencoder import WEIGHTS, Autoencoder
from sparsefleet.models.autoencoders.names import DEAD, RESIDUAL, SILENT
from torch import Tensor


def largest(u: Tensor, k: int) -> Tensor:
    """[n, H] bool: the k largest entries of each row."""
    return torch.zeros_like(u, dtype=torch.bool).scatter(1, u.topk(k, dim=1).indices, True)


def largest_of_all(u: Tensor, k: int) -> Tensor:
    """[n, H] bool: the k n largest entries of all rows."""
    best = u.flatten().topk(k * len(u)).indices
    return torch.zeros(u.numel(), dtype=torch.bool).index_fill(0, best, True).view(u.shape)


class Jump(torch.autograd.Function):
    """u where u > θ, with the straight-through derivative by θ."""

    @staticmethod
    def forward(ctx, u, theta, width):
        ctx.save_for_backward(u, theta)
        ctx.width = width
        return u * (u > theta)

    @staticmethod
    def backward(ctx, upstream):
        u, theta = ctx.saved_tensors
        near = ((u - theta).abs() / ctx.width < 0.5).to(u.dtype)
        return upstream * (u > theta), (-theta / ctx.width * near * upstream).sum(0), None


class Step(torch.autograd.Function):
    """[u > θ], with the straight-through derivative by θ."""

    @staticmethod
    def forward(ctx, u, theta, width):
        ctx.save_for_backward(u, theta)
        ctx.width = width
        return (u > theta).to(u.dtype)

    @staticmethod
    def backward(ctx, upstream):
        u, theta = ctx.saved_tensors
        near = ((u - theta).abs() / ctx.width < 0.5).to(u.dtype)
        return None, (-near / ctx.width * upstream).sum(0), None


def codes(model: Autoencoder, name: str, w: Params, params: Params, u: Tensor, raw: Tensor) -> Tensor:
    """[n, H], from the definitions in the papers."""
    with torch.no_grad():
        if name == "gsae":
            gradient = raw[:, -w["W_dec"].shape[1] :] * params["gradient_scale"]
            effect = (gradient @ w["W_dec"].T).abs() * w["W_dec"].shape[1] ** 0.5
            chosen = largest(u.relu() * (1 + model.beta * effect), model.k)
        elif name == "groupmax":
            grouped = u.view(len(u), model.k, -1)
            chosen = largest(grouped.flatten(0, 1), 1).view(u.shape)
        elif name in ("batchtopk", "matryoshka"):
            chosen = largest_of_all(u.relu(), model.k)
        elif name == "batchabstopk":
            chosen = largest_of_all(u.abs(), model.k)
        elif name in ("topk", "abstopk"):
            chosen = largest(u.abs() if name == "abstopk" else u, model.k)
    match name:
        case "abstopk" | "batchabstopk":
            return u * chosen
        case "relu":
            return u.relu()
        case "gated":
            size = w["r_mag"].exp() * (u - w["b_enc"]) + w["b_mag"]
            return (u > 0) * size.relu()
        case "jumprelu":
            return Jump.apply(u, w["threshold"], model.bandwidth)
        case _:
            return u.relu() * chosen


def loss(model: Autoencoder, name: str, w: Params, params: Params, raw: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """(mean loss over rows, codes [n, H]) of the rows `raw` with all their columns; `weight` of the penalty."""
    dim, out = w["W_enc"].shape[1], w["W_dec"].shape[1]
    x = raw[:, :dim] * params["scale"]
    y = x if model.target is None else raw[:, dim : dim + out] * params["target_scale"]
    inputs = x - w["b_dec"] if model.target is None else x
    u = inputs @ w["W_enc"].T + w["b_enc"]
    z = codes(model, name, w, params, u, raw)
    error = z @ w["W_dec"] + w["b_dec"] - y
    total = error.square().sum()
    if name == "matryoshka":
        prefixes = [z[:, :stop] @ w["W_dec"][:stop] + w["b_dec"] - y for _, stop in model.bands()]
        total = sum(e.square().sum() for e in prefixes) / len(prefixes)
    if name == "relu":
        total = total + weight * z.sum()
    if name == "gated":
        gate = u.relu()
        again = gate @ w["W_dec"].detach() + w["b_dec"].detach() - y
        # y is the row itself: what the encoder subtracts is part of the gate and stays.
        total = total + weight * gate.sum() + again.square().sum()
    if name == "jumprelu":
        active = Step.apply(u, w["threshold"], model.bandwidth)
        if model.penalty == "step":
            total = total + weight * active.sum()
        else:
            total = total + weight * len(raw) * (active.sum(1).mean() / model.l0 - 1) ** 2
    dead = (params[SILENT] >= params[DEAD]).nonzero().flatten()
    if len(dead) and params[RESIDUAL] > 0 and model.aux_coefficient:
        aux_k = model.aux_k or min(512, out // 2)
        v = u[:, dead]
        keep = largest(v.abs() if model.signed else v, min(aux_k, len(dead)))
        z_dead = v * keep if model.signed else v.relu() * keep
        left = (-error.detach() - z_dead @ w["W_dec"][dead]).square().sum()
        total = total + model.aux_coefficient * min(len(dead) / aux_k, 1) / params[RESIDUAL] * left
    return total / len(raw), z.detach()


def weights(model: Autoencoder, params: Params) -> Params:
    """Copies of the weights that autograd tracks."""
    return {name: params[name].clone().requires_grad_(True) for name in (*WEIGHTS, *model.own)}


def own_loop(model: Autoencoder, name: str, start: Params, batches: list[Tensor], rate: Callable[[int], float]):
    """Losses of training by torch's Adam on the dense loss, with what the updates do around it."""
    state, w = dict(start), weights(model, start)
    adam = torch.optim.Adam(w.values(), lr=1.0, betas=model.betas, eps=model.eps)
    seen = []
    for step, raw in enumerate(batches):
        value, z = loss(model, name, w, state, raw, penalty_weight(model, step, len(batches)))
        adam.param_groups[0]["lr"] = rate(step)
        adam.zero_grad()
        value.backward()
        with torch.no_grad():
            scale = state["scale"] if model.target is None else state["target_scale"]
            dim, out = w["W_enc"].shape[1], w["W_dec"].shape[1]
            y = raw[:, :dim] if model.target is None else raw[:, dim : dim + out]
            error = y * scale - z @ w["W_dec"] - w["b_dec"]
            seen.append(float(error.square().sum(1).mean() / scale**2))
            state[RESIDUAL] = error.var(0, unbiased=False).sum()
            state[SILENT] = torch.where((z != 0).any(0), 0, state[SILENT] + len(raw))
            state[DEAD] = torch.tensor(model.dead_tokens)
            atoms, gradient = w["W_dec"], w["W_dec"].grad
            gradient -= (gradient * atoms).sum(1, keepdim=True) * atoms
            if model.clip is not None:
                torch.nn.utils.clip_grad_norm_(w.values(), model.clip)
            adam.step()
            atoms /= atoms.norm(dim=1, keepdim=True)
            if name == "jumprelu":
                w["threshold"].clamp_(min=0)
    return seen


def penalty_weight(model: Autoencoder, step: int, steps: int) -> float:
    """Of a penalty that rises during the first twentieth."""
    return getattr(model, "sparsity", 0.0) * min(1.0, (step + 1) / max(1.0, 0.05 * steps))
