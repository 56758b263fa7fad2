"""Maps the top-level folders to `sparsefleet.*`; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

ROOMS = ("models", "storage", "workers", "pipelines")
found = [p for room in ROOMS for p in (room, *(f"{room}.{sub}" for sub in find_packages(room)))]

setup(
    packages=["sparsefleet", *(f"sparsefleet.{p}" for p in found)],
    package_dir={"sparsefleet": "sparsefleet", **{f"sparsefleet.{p}": p.replace(".", "/") for p in found}},
)
