"""A training step of the TopK autoencoder beside other libraries, dense autograd and what bounds it, in one run.

    python benchmarks/sparse_autoencoders.py [--python PEERS/bin/python] [--atoms 4096 16384] [--rounds 8]

The peers (sae-lens, dictionary-learning, eai-sparsify, overcomplete) pull in much that this project does not need, so
they belong into an environment of their own, which also sees this one:

    python -m venv PEERS       # this and the next line with the interpreter that has sparsefleet
    python -c "import site; print('import site;', *(f'site.addsitedir({p!r})' for p in site.getsitepackages()))" \\
        > PEERS/lib/python3.11/site-packages/ours.pth
    PEERS/bin/pip install -c constraints-dev.txt sae-lens dictionary-learning eai-sparsify overcomplete
    PEERS/bin/pip uninstall -y torchvision timm      # overcomplete's vision models; they need another build of torch

Every contender is a process of its own that waits while the others work: they make one step in turn, round after
round. A step's time is the median of its processor time over the rounds after the first two (processor time, because
other load on the machine disturbs it less). `bound` is one encoder product in float32 and torch's top-k, which
`sparsefleet, bfloat16` may beat: its product has fewer bits, where the processor knows them. Memory is
the peak of the process, and what the steps added to it: beyond imports, data and start values.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from sae_peers import OWN, PEERS

WARM = 2
HERE = Path(__file__).parent / "peers"


class Contender:
    """A process that makes a step when asked to."""

    def __init__(self, python: str, name: str, sizes: list[int]) -> None:
        script = str(HERE / "sae_peers.py")
        command = [python, script, name, *map(str, sizes)]
        self.name, self.seen = name, list[dict[str, Any]]()
        # What libraries print must not mix with the answers, which are the lines that begin with a brace.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def step(self) -> None:
        """Make one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.seen.append(self._answer())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def time(self, clock: str) -> float:
        """Median seconds of a step."""
        return statistics.median(s[clock] for s in self.seen[WARM:])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with status {self._process.wait(30)}")


def imports(python: str, module: str) -> bool:
    """Whether `python` can import `module`."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-P", "-c", code], check=False).returncode == 0


def installed(python: str) -> list[str]:
    """The peers that `python` can import; says which are missing."""
    found: list[str] = []
    for module, (distribution, _) in PEERS.items():
        if imports(python, module):
            found.append(module)
        else:
            print(f"skipped {distribution}: not installed for {python} (see --help)")
    return found


def compare(python: str, names: list[str], sizes: list[int], rounds: int) -> list[Contender]:
    """All contenders after `rounds` rounds."""
    contenders: list[Contender] = []
    try:
        for name in names:
            contenders.append(Contender(python, name, sizes))
        for _ in range(rounds + WARM):
            for contender in contenders:
                contender.step()
    finally:
        for contender in contenders:
            contender.close()
    return contenders


def report(found: list[Contender], sizes: list[int]) -> None:
    """Print the table and the ratios."""
    dim, atoms, k, rows, threads = sizes
    print(f"\nD={dim} H={atoms} k={k} rows={rows} float32; torch {torch.__version__}, {threads} threads", end=", ")
    print(platform.machine())
    by_name = {c.name: c for c in found}
    limit, our = by_name["bound"].time("cpu"), by_name["sparsefleet"]
    print(
        f"{'':22s} {'CPU ms':>8s} {'wall ms':>8s} {'rows / CPU s':>12s} {'/ bound':>8s} {'peak MB':>8s} {'own MB':>8s}"
    )
    for c in found:
        cpu, wall, last = c.time("cpu"), c.time("wall"), c.seen[-1]
        print(f"{c.name:22s} {cpu * 1e3:8.1f} {wall * 1e3:8.1f} {rows / cpu:12.0f} {limit / cpu:8.2f}", end=" ")
        print(f"{last['peak']:8.0f} {last['own']:8.0f}")
    peers = [c for c in found if c.name in PEERS]
    if peers:
        best = min(peers, key=lambda c: c.time("cpu"))
        print(f"speed over the best peer ({best.name}): {best.time('cpu') / our.time('cpu'):.2f}")
        smallest = min(peers, key=lambda c: c.seen[-1]["own"])
        share = our.seen[-1]["own"] / smallest.seen[-1]["own"]
        print(f"peak memory over the smallest peer's ({smallest.name}): {share:.2f}")
    for name in ("sparsefleet", "sparsefleet, bfloat16"):
        pairs = zip(by_name[name].seen, by_name["dense autograd"].seen, strict=True)
        apart = max(abs(a["error"] / b["error"] - 1) for a, b in pairs)
        print(f"{name}: largest difference of the loss from dense autograd over {len(our.seen)} steps: {apart:.1e}")


def main() -> None:
    """Compare at every size asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment with the peers")
    parser.add_argument("--atoms", type=int, nargs="+", default=[4096, 16384])
    for name, value in (("dim", 512), ("k", 32), ("rows", 4096), ("threads", 1), ("rounds", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    if not imports(args.python, "sparsefleet"):
        parser.error(f"{args.python} cannot import sparsefleet: link it as --help describes")
    names = [*OWN, *installed(args.python)]
    for atoms in args.atoms:
        sizes = [args.dim, atoms, args.k, args.rows, args.threads]
        report(compare(args.python, names, sizes, args.rounds), sizes)


if __name__ == "__main__":
    main()
