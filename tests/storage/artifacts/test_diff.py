"""What differs between two versions."""

import json

import numpy as np
import pytest
from sparsefleet.storage.artifacts import ArtifactStore
from sparsefleet.storage.artifacts.diff import changed, matched_cosine, relative_distance


def test_a_version_does_not_differ_from_itself(full: ArtifactStore) -> None:
    got = full.diff("photos@1", "photos")
    assert (got["a"], got["b"], got["job"], got["data"]) == ("photos@1", "photos@1", {}, {})
    assert got["arrays"]["W"]["relative_distance"] == 0
    assert got["arrays"]["W"]["matched_cosine"] == pytest.approx({"mean": 1.0, "min": 1.0})


def test_settings_metrics_and_arrays(full: ArtifactStore) -> None:
    old = full.load("photos")
    order = [2, 0, 3, 1]
    job = {"model": "bsc", "atoms": 4, "settings": {"gamma": 5}, "dtype": "float32"}
    arrays = {"W": -2 * old.arrays["W"][:, order], "sigma": np.array(1.0), "extra": np.ones(1)}
    full.publish("photos", arrays=arrays, card={"job": job, "metrics": {"free_energy": -2.0}})
    got = full.diff("photos@1", "photos@2")
    assert got["job"] == {"settings.gamma": [3, 5], "dtype": [None, "float32"]}
    assert got["data"]["rows"] == [100, None]
    assert got["metrics"]["free_energy"] == [-2.5, -2.0]
    assert got["arrays"]["sigma"]["relative_distance"] == 1.0
    assert got["arrays"]["W"]["matched_cosine"]["min"] == pytest.approx(1.0)  # order, sign and length do not matter
    assert (got["only_a"], got["only_b"]) == (["prior/pi"], ["extra"])
    full.publish("photos", arrays={"W": np.ones((6, 9))}, card={})
    wider = full.diff("photos@1", "photos@3")["arrays"]["W"]
    assert wider["shape"] == [[6, 4], [6, 9]]
    assert wider["relative_distance"] is None
    assert 0 < wider["matched_cosine"]["mean"] < 1
    json.dumps(wider)


def test_distances_by_hand() -> None:
    assert relative_distance(np.array([3, 4], np.uint8), np.array([3, 5], np.uint8)) == 0.2
    assert relative_distance(np.array(0.0), np.array(0.0)) == 0
    assert relative_distance(np.array(0.0), np.array(2.0)) == float("inf")
    a, b = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 0.0]])
    assert matched_cosine(a, b) == pytest.approx({"mean": (1 + 0.5**0.5) / 2, "min": 0.5**0.5})
    assert matched_cosine(a, np.ones((3, 2))) is None
    assert changed({"a": {"b": 1, "c": {}}}, {"a": {"b": 2, "c": {}}, "d": 1}) == {"a.b": [1, 2], "d": [None, 1]}
