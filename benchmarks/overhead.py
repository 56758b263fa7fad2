"""What Prefect adds to a run, against a real server of its own: per flow, per task, and per update of a run's page.

The same small job is learned plainly and as a flow, in one process; trivial flows with more and more tasks tell what a
task costs; the calls by which a page is kept up to date are timed one by one. What an update of the parameters waits
for is only the hand-over to the page's thread, which is timed too.

    python benchmarks/overhead.py [--repeats 5]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path


def seconds(do, repeats: int) -> float:
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        do()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def make_job(folder: str):
    import numpy as np
    from sparsefleet.storage import create_dataset
    from sparsefleet.workers import LearnJob

    uri = f"{folder}/rows.zarr"
    writer = create_dataset(
        uri, rows=2000, arrays={"data": ((16,), "float32")}, shard_rows=500, chunk_rows=500, attributes={}
    )
    for shard in writer.shards():
        writer.write(shard, data=np.random.default_rng(shard.index).normal(size=(500, 16)).astype(np.float32))
    writer.finish()
    return LearnJob(data=uri, store=f"{folder}/store", atoms=8, passes=20, threads=1, report_seconds=0)


def pages(repeats: int) -> dict[str, float]:
    """Milliseconds of the calls that keep a page up to date."""
    import json
    import logging

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
    from sparsefleet.pipelines.prefect_reporter import Page
    from sparsefleet.workers import Progress

    rows = json.dumps([{"update": i, "free_energy": -1.0 * i, "sigma": 0.1, "seconds": 1.0} for i in range(50)])
    with get_client(sync_client=True) as client:
        kinds = {"progress": 50.0, "table": rows, "markdown": "x" * 200_000}
        made = {k: client.create_artifact(ArtifactCreate(type=k, key=f"b-{k}", data=d)).id for k, d in kinds.items()}
        found = {
            f"update of a page's {kind}": 1e3
            * seconds(lambda k=kind, d=data: client.update_artifact(made[k], ArtifactUpdate(data=d)), 5 * repeats)
            for kind, data in kinds.items()
        }
        import uuid

        page = Page("x", lambda _: {}, client, uuid.uuid4(), logging.getLogger("x"), watch_cancel=False)
        message = Progress(kind="step", step=1, steps=2, metrics={"free_energy": -1.0})
        found["what an update of the parameters waits for"] = 1e3 * seconds(lambda: page(message), 500)
    return found


def measure(folder: str, repeats: int) -> None:
    from prefect import flow, task
    from sparsefleet.pipelines import flows, learn

    @task
    def nothing() -> None:
        pass

    @flow
    def many(count: int) -> None:
        for _ in range(count):
            nothing()

    many(1)
    counts = [1, 10, 50]
    took = [seconds(lambda c=count: many(c), repeats) for count in counts]
    task_ms = 1e3 * (took[-1] - took[0]) / (counts[-1] - counts[0])
    print("| what | time |\n| --- | --- |")
    print(f"| a flow of one task that does nothing | {took[0]:.2f} s |")
    print(f"| a further task | {task_ms:.1f} ms |")
    job = make_job(folder)
    turns = iter(range(10**6))
    fresh = lambda: job.model_copy(update={"name": f"n{next(turns)}"})  # noqa: E731
    learn(fresh())
    flows.learn(params=fresh())
    plain, flown = seconds(lambda: learn(fresh()), repeats), seconds(lambda: flows.learn(params=fresh()), repeats)
    print(f"| `learn` of {plain:.2f} s as a flow: more by | {flown - plain:.2f} s |")
    for what, ms in pages(repeats).items():
        print(f"| {what} | {ms:.3g} ms |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in [n for n in os.environ if n.startswith("PREFECT_")]:
            del os.environ[name]
        os.environ["SPARSEFLEET_HOME"] = str(Path(folder) / "home")
        from sparsefleet.pipelines import server
        from sparsefleet.pipelines.connection import need_api, use

        server.up()
        try:
            use(need_api())
            measure(folder, options.repeats)
        finally:
            server.down()


if __name__ == "__main__":
    main()
