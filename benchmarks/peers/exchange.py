"""SAELens and sparsify themselves load what we export, give the same codes, and save what we import.

    PEERS/bin/python benchmarks/peers/exchange.py [--write tests/models/autoencoders/foreign]

PEERS is the environment that `sparse_autoencoders.py` describes. Prints a line for every autoencoder: the largest
differences between the library's codes and rows and ours, exported and imported again. Ends with status 1 if one is
above 1e-4. With --write the folders that the libraries saved are kept, with some rows, their codes and their
reconstructions as the library gives them: what the tests read, which so need neither library.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sparsefleet.models import Batch, Probe, make_model
from sparsefleet.models.autoencoders.autoencoder import WEIGHTS, Autoencoder
from sparsefleet.models.autoencoders.exchange import FORMATS, Config, Tensors
from torch import Tensor

ATOMS, DIM, OUT, ROWS = 64, 12, 9, 8
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "saelens-topk": ("topk", {"k": 3}),
    "saelens-abstopk": ("abstopk", {"k": 3}),
    "saelens-relu": ("relu", {}),
    "saelens-gated": ("gated", {}),
    "saelens-jumprelu": ("jumprelu", {}),
    "saelens-batchtopk": ("batchtopk", {"k": 3}),
    "saelens-matryoshka": ("matryoshka", {"k": 3}),
    "saelens-gsae": ("gsae", {"k": 3}),
    "saelens-transcoder": ("relu", {"target": "outputs"}),
    "saelens-jumprelu_transcoder": ("jumprelu", {"target": "outputs"}),
    "sparsify-topk": ("topk", {"k": 3}),
    "sparsify-groupmax": ("groupmax", {"k": 4}),
    "sparsify-transcoder": ("topk", {"k": 3, "target": "flipped"}),
}
"""Name of the folder, which begins with the library -> (model here, settings)."""
STORED = [name for name in CASES if name not in ("saelens-matryoshka", "saelens-gsae")]
"""The others leave as the same architectures."""
Codes = tuple[Tensor, Tensor]
"""[n, H] and the rows that they stand for."""


def learned(name: str, settings: dict[str, Any]) -> tuple[Autoencoder, dict[str, Tensor], Tensor]:
    """A model, parameters off their start, and rows, scaled by another number than 1."""
    model = make_model(name, {"atoms": ATOMS, **settings})
    assert isinstance(model, Autoencoder)
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    x = 3 * draw(400, DIM) * (torch.rand(400, DIM, generator=generator) < 0.3) + 0.5
    parts = {"data": x, "outputs": (x @ draw(DIM, OUT)).tanh(), "flipped": x.flip(1), "gradients": draw(400, DIM)}
    columns = [parts[array] for array in model.arrays]
    sample = torch.cat(columns, dim=1).double()
    widths = tuple(part.shape[1] for part in columns)
    params = model.init(Probe(len(x), sample.mean(0), sample.var(0), sample, widths), generator)
    for key in (*WEIGHTS, *model.own):
        params[key] = params[key] + (0.02 if key == "threshold" else 0.1) * draw(*params[key].shape)
    params["W_dec"] = torch.nn.functional.normalize(params["W_dec"], dim=1)
    if "threshold" in params and params["threshold"].ndim == 0:
        params["threshold"] = torch.tensor(0.8).double()
    return model, params, x[:ROWS]


def through_sae_lens(sent: Path, x: Tensor, back: Path) -> Codes:
    """What SAELens makes of the folder `sent`; it saves that to `back`."""
    from sae_lens import SAE

    theirs = SAE.load_from_disk(sent)
    z = theirs.encode(x)
    z = z.to_dense() if z.is_sparse else z
    theirs.save_model(back)
    return z, theirs.decode(z)


def through_sparsify(sent: Path, x: Tensor, back: Path) -> Codes:
    """The same for sparsify."""
    from sparsify import SparseCoder

    theirs = SparseCoder.load_from_disk(sent)
    out = theirs.encode(x)
    theirs.save_to_disk(back)
    z = torch.zeros(len(x), theirs.num_latents).scatter(1, out.top_indices, out.top_acts)
    return z, theirs.decode(out.top_acts, out.top_indices)


LIBRARIES: dict[str, tuple[str, Callable[[Path, Tensor, Path], Codes]]] = {
    "saelens": ("sae-lens", through_sae_lens),
    "sparsify": ("eai-sparsify", through_sparsify),
}


def scaled_atoms(config: Config, tensors: Tensors) -> None:
    """Selection by decoder norm, which we do not write but SAELens does."""
    norms = 0.5 + torch.rand(ATOMS, 1, generator=torch.Generator().manual_seed(0))
    tensors["W_dec"] = tensors["W_dec"] * norms
    config["rescale_acts_by_decoder_norm"] = True


def plain_inputs(config: Config, tensors: Tensors) -> None:
    """An encoder that does not subtract the decoder's bias."""
    del tensors
    config["apply_b_dec_to_input"] = False


OTHERS = {
    "saelens-topk-rescaled": ("saelens-topk", scaled_atoms),
    "saelens-gated-plain": ("saelens-gated", plain_inputs),
}
"""Further folders of the libraries, which are only imported -> (what they are made from, the change)."""


def check(name: str, keep: Path | None) -> tuple[float, float]:
    """The largest differences from the library's codes and rows; keeps its folder at `keep`."""
    source, change = OTHERS.get(name, (name, None))
    model, params, x = learned(*CASES[source])
    kind = name.partition("-")[0]
    file, write, read = FORMATS[kind]
    config, tensors = write(model, params)
    if change is not None:
        change(config, tensors)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        sent, back = Path(folder) / "sent", keep or Path(folder) / "back"
        sent.mkdir()
        (sent / "cfg.json").write_text(json.dumps(config))
        save_file(tensors, sent / file)
        z, rows = LIBRARIES[kind][1](sent, x, back)
        found = read(json.loads((back / "cfg.json").read_text()), load_file(back / file))
        again = make_model(found.model, {"atoms": found.atoms, **found.settings})
        assert isinstance(again, Autoencoder)
        pairs = [(again, found.params)] + ([(model, params)] if change is None else [])
        coded = [(m, p, m.encode(p, Batch(x))) for m, p in pairs]
        apart = max(float((codes.dense(ATOMS) - z).abs().max()) for _, _, codes in coded)
        far = max(float((m.reconstruct(p, codes) - rows).abs().max()) for m, p, codes in coded)
    if keep is not None:
        np.savez_compressed(keep / "rows.npz", x=x.numpy(), codes=z.numpy(), reconstruction=rows.numpy())
        if change is None:
            (keep / "sent.json").write_text(json.dumps(config, indent=1) + "\n")
    return apart, far


def main() -> None:
    """Check all, and keep what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="folder for what the libraries saved")
    out: Path | None = parser.parse_args().write
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {version(name)}" for name, _ in LIBRARIES.values())
    print(f"{versions}, torch {torch.__version__}")
    worst = 0.0
    for name in (*CASES, *OTHERS):
        found = check(name, out / name if out is not None and (name in STORED or name in OTHERS) else None)
        print(f"{name:28s} codes {found[0]:.1e}  rows {found[1]:.1e}")
        worst = max(worst, *found)
    if out is not None:
        (out / "README.md").write_text(
            f"Written by `benchmarks/peers/exchange.py --write` with {versions}: in every folder `cfg.json` and\n"
            "the tensors as the library saved them after loading our export (`sent.json` is the `cfg.json` that it\n"
            "loaded), and in `rows.npz` some rows `x`, the library's `codes` [n, H] and its `reconstruction`.\n"
        )
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    main()
