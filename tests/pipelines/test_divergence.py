"""A run whose gradients overflow says so; nothing is published."""

from sparsefleet.storage import ArtifactStore


def test_a_run_that_diverges_ends_with_one_line_and_no_version(sparsefleet, bars, tmp_path):
    store = tmp_path / "store"
    settings = ("--set", "model.k=4", "--set", "model.learning_rate=1e30", "--set", "passes=4")
    done = sparsefleet(
        *("learn", "--data", bars, "--model", "topk", "--atoms", 16, *settings, "--store", store, "--name", "broken")
    )
    assert done.code == 2, done.err
    assert "the gradient is not finite at update 2: lower learning_rate=1e+30" in done.err
    assert ArtifactStore(str(store), create=False).names() == []
