"""The rooms: arrows point down only, nobody imports a room by its bare name, and the wheel holds the whole tree."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "models": {"models"},
    "storage": {"storage"},
    "workers": {"workers", "models", "storage"},
    "pipelines": {"pipelines", "workers", "models", "storage"},
}
# What a room must not know, whatever else it imports.
UNKNOWN_TO = {
    "models": {"ray", "mpi4py", "prefect", "zarr", "icechunk", "dask"},
    "storage": {"ray", "mpi4py", "prefect", "torch"},
    "workers": {"prefect", "icechunk"},
}
FILES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in the file."""
    package = ["sparsefleet", *path.relative_to(ROOT).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {stem} if stem != "sparsefleet" else {f"sparsefleet.{a.name}" for a in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Registries name modules as strings; they point the same way.
            names |= set(re.findall(r"^(sparsefleet\.[a-z_.]+)(?::\w+)?$", node.value))
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "sparsefleet" and len(parts) > 1:
            assert parts[1] in MAY_IMPORT[room], f"{room} must not import {name}"
        assert parts[0] not in UNKNOWN_TO.get(room, set()), f"{room} must not import {name}"
        assert parts[0] not in MAY_IMPORT, f"import {name} by its full name or relatively"


def test_only_one_module_knows_icechunk() -> None:
    users = [str(p.relative_to(ROOT)) for p in FILES if any(n.split(".")[0] == "icechunk" for n in imported(p))]
    assert users == ["storage/artifacts/repository.py"]


def test_an_arrow_that_points_up_would_be_found(tmp_path: Path) -> None:
    source = "def f():\n    from ..workers import run\n"
    tree = tmp_path / "x.py"
    tree.write_text(source)
    node = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom))
    assert node.level == 2 and node.module == "workers"


def test_the_wheel_holds_the_tree(tmp_path: Path) -> None:
    # Built from a copy: setuptools leaves its build folder in the tree.
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, tree)
    for room in (*MAY_IMPORT, "sparsefleet"):
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    # One kernel shows whether the wheel holds the compiled ones; each takes long.
    for path in (tree / "models/kernels").glob("*.cpp"):
        if path.name != "rows.cpp":
            path.unlink()
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", ".", str(tree)]
    subprocess.run(command, check=True, timeout=240, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"sparsefleet/{p.relative_to(ROOT)}" for p in FILES} | {
        "sparsefleet/__init__.py",
        "sparsefleet/py.typed",
    }
    expected |= {f"sparsefleet/{p.relative_to(ROOT)}" for p in (ROOT / "pipelines/recipes").glob("*.yaml")}
    assert {n for n in inside if n.endswith((".py", "py.typed", ".yaml"))} == expected
    assert any(n.startswith("sparsefleet/models/kernels/_native") for n in inside) == (shutil.which("g++") is not None)
