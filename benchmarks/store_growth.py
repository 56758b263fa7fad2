"""What the artifact store's operations cost as it grows: to ten thousand versions of one name, and of as many names.

At each size every operation is timed a few times and the median is shown, in ms. An operation that returns one entry a
version (history) or a name (names) is also shown per entry. The last column is the time at the largest size over that
at the smallest; a logarithm would grow by the factor printed below.

    python benchmarks/store_growth.py [--versions 10000] [--store FOLDER]
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
from sparsefleet.storage import ArtifactStore

ARRAYS = {"W": np.ones((16, 8)), "pi": np.array(0.1)}
CARD = {"kind": "dictionary"}
REPEATS = 7


def operations(store: ArtifactStore, name: str) -> dict[str, Callable[[], object]]:
    return {
        "publish": lambda: store.publish(name, arrays=ARRAYS, card=CARD),
        "resolve newest": lambda: store.resolve(name),
        "resolve first": lambda: store.resolve(f"{name}@1"),
        "load first": lambda: store.load(f"{name}@1"),
        "rollback": lambda: store.rollback(name, 1),
        "alias": _alias(store, name),
        "open store": lambda: ArtifactStore(store.uri),
        "runs": store.runs,
        "names": store.names,
        "history, newest 20": lambda: store.history(name, 20),
        "history, all": lambda: store.history(name),
    }


def _alias(store: ArtifactStore, name: str) -> Callable[[], object]:
    turn = iter(range(10**9))
    # Another target each time: an alias that stays where it is writes nothing.
    return lambda: store.set_alias(name, "best", 1 + next(turn) % 2)


def median_ms(do: Callable[[], object]) -> float:
    found = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        do()
        found.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(found)


def grow(store: ArtifactStore, sizes: list[int], *, names: bool) -> dict[str, list[float]]:
    table: dict[str, list[float]] = {}
    for done in range(1, sizes[-1] + 1):
        store.publish(f"name-{done if names else 1:05d}", arrays=ARRAYS, card=CARD)
        if done in sizes:
            found = {what: median_ms(do) for what, do in operations(store, "name-00001").items()}
            found["names, per name"] = found["names"] / len(store.names())
            found["history, per version"] = found["history, all"] / len(store.history("name-00001"))
            for what, ms in found.items():
                table.setdefault(what, []).append(ms)
    return table


def show(title: str, sizes: list[int], table: dict[str, list[float]]) -> None:
    print(f"\n{title} (median ms)")
    print(f"| {'operation':22} | " + " | ".join(f"{n:>8,}" for n in sizes) + " | growth |")
    print("| --- |" + " --- |" * (len(sizes) + 1))
    for what, row in table.items():
        print(f"| {what:22} | " + " | ".join(f"{ms:8.2f}" for ms in row) + f" | {row[-1] / row[0]:5.1f}× |")
    print(f"a logarithm would grow {math.log(sizes[-1]) / math.log(sizes[0]):.1f}×", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--store", help="folder to work in (default: a temporary one)")
    options = parser.parse_args()
    sizes = [n for n in (10, 100, 1_000, 10_000, 100_000) if n < options.versions] + [options.versions]
    for title, names in (("versions of one name", False), ("names of one version each", True)):
        with tempfile.TemporaryDirectory(dir=options.store) as folder:
            show(title, sizes, grow(ArtifactStore(f"{folder}/store"), sizes, names=names))


if __name__ == "__main__":
    main()
