"""Maps the top-level folders to `sparsefleet.*` and builds the kernels; everything else is in pyproject.toml."""

from concurrent.futures import ThreadPoolExecutor
from glob import glob
from os import cpu_count

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOMS = ("models", "storage", "workers", "pipelines")
found = [p for room in ROOMS for p in (room, *(f"{room}.{sub}" for sub in find_packages(room)))]


class BuildSideBySide(build_ext):
    """Compiles the files of an extension on all cores."""

    def build_extensions(self) -> None:
        compile_in_turn = self.compiler.compile

        def compile_side_by_side(sources: list[str], **options: object) -> list[str]:
            with ThreadPoolExecutor(cpu_count()) as pool:
                done = list(pool.map(lambda source: compile_in_turn([source], **options), sources))
            return [path for paths in done for path in paths]

        self.compiler.compile = compile_side_by_side
        super().build_extensions()


kernels = Extension(
    "sparsefleet.models.kernels._native",
    sources=sorted(glob("models/kernels/*.cpp")),
    depends=sorted(glob("models/kernels/*.h")),
    language="c++",
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-fopenmp",
        "-fvisibility=hidden",
        "-fno-math-errno",
        "-fno-trapping-math",
        # Vectors wider than the base instruction set are only passed to functions that are compiled in place.
        "-Wno-psabi",
    ],
    extra_link_args=["-fopenmp"],
    py_limited_api=True,
    # Without a compiler the torch twins do the work.
    optional=True,
)

setup(
    packages=["sparsefleet", *(f"sparsefleet.{p}" for p in found)],
    package_dir={"sparsefleet": "sparsefleet", **{f"sparsefleet.{p}": p.replace(".", "/") for p in found}},
    ext_modules=[kernels],
    cmdclass={"build_ext": BuildSideBySide},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
