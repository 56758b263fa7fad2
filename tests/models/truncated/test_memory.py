"""The memory that models predict covers what they use: measured, from surveys to update."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sparsefleet.models.kernels import native

MODELS = {
    "bsc": ("bsc", {"h_prime": 8, "gamma": 5}),
    "gsc": ("gsc", {"h_prime": 6, "gamma": 4}),
    "gsc full": ("gsc", {"h_prime": 6, "gamma": 3, "slab": "full", "noise": "full"}),
    "mca": ("mca", {"h_prime": 6, "gamma": 4}),
}
KINDS = {
    "plain": {},
    "hysteresis": {"hysteresis": True},
    "evolutionary": {"states": "evolutionary", "evolution": {"size": 12, "parents": 4, "children": 2, "warm_up": 0}},
    "missing": {"missing": True},
}
SLACK = 4 << 20
"""Bytes of pages that are not full: large tensors lie in huge ones of 2 MiB where the system offers them."""
# Every case is measured in a child of its own, whose peak is not yet that of another case.
MEASURE = """
import json, os, re, sys, torch
from pathlib import Path
from sparsefleet.models import Batch, Probe, Stage, make_model
torch.set_num_threads(1)
ROWS, DIM, ATOMS = 3000, 100, 80

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def update(model, rows, dim):
    draw = torch.Generator().manual_seed(0)
    sample = torch.rand(50, dim, generator=draw, dtype=torch.float64)
    params = model.init(Probe(rows, sample.mean(0), sample.var(0), sample), draw)
    x = torch.rand(rows, dim, generator=draw)
    if model.missing:
        x.view(-1)[::9] = float("nan")
    kept, whole = {}, None
    for _ in range(2):
        stage = Stage(step=1, steps=9, rows=2 * rows, values={"T": 1.5, **({} if model.by_sets else {"ncut": 0.5})})
        batch = Batch(x, 0, {}, kept)
        for _ in range(model.surveys_at(stage)):
            stage = model.refine(params, model.survey(params, batch, stage), stage)
        stats = model.statistics(params, batch, stage)
        whole = stats if whole is None else whole + stats
    whole = whole.unflatten(whole.flatten())
    model.metrics(params, whole)
    model.update(params, whole, stage)

found = {}
for case, (name, settings) in json.loads(sys.argv[1]).items():
    read, write = os.pipe()
    if not os.fork():
        update(make_model(name, {"atoms": 8, **settings}), 30, 9)  # libraries loaded
        before = peak()
        model = make_model(name, {"atoms": ATOMS, **settings})
        update(model, ROWS, DIM)
        os.write(write, json.dumps([peak() - before, model.memory(ROWS, DIM) + ROWS * model.row_memory()]).encode())
        os._exit(0)
    os.close(write)
    found[case] = json.loads(os.read(read, 1000))
    os.wait()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def measured():
    """Bytes used and bytes predicted of every case."""
    cases = {(m, k): (MODELS[m][0], {**MODELS[m][1], **KINDS[k]}) for m in MODELS for k in KINDS}
    cases["gsc full", "missing"][1]["noise"] = "diagonal"
    given = json.dumps({" ".join(case): settings for case, settings in cases.items()})
    # Otherwise glibc decides as it goes along how much of the freed memory the process keeps.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run([sys.executable, "-c", MEASURE, given], capture_output=True, text=True, check=True, env=env)
    return json.loads(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.skipif(native.library() is None, reason="the kernels were not compiled (no C++ compiler at set-up)")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_memory_is_predicted(measured, model, kind):
    used, predicted = measured[f"{model} {kind}"]
    assert used <= predicted + SLACK
    assert predicted <= 10 * used
