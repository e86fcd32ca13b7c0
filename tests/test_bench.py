"""Benchmarks run with real processes and say what they measured; how fast it is, is no matter here."""

import json
import sys

import pytest
import torch

from deepgalaxy import bench, bench_physics
from deepgalaxy.errors import DeepGalaxyError
from deepgalaxy.simulate import gpu
from deepgalaxy.simulate.gpu import DirectForces


def test_scaling_measures_one_and_two_workers(run):
    done = run("bench", "scaling", "--runs", "1", "--steps", "2", "--json", "-", timeout=600)
    assert done.status == 0, done.err
    result = json.loads(done.out)
    assert result["bench"] == "scaling" and result["hardware"]["cores"] >= 1
    assert [row["workers"] for row in result["rows"]] == [1, 2]
    for row in result["rows"]:
        for kind in ("weak", "strong"):
            assert row[f"images_per_second_{kind}"]["median"] > 0
        assert 0 <= row["input_wait"]["median"] <= 1
    one, two = result["rows"]
    assert one["efficiency_weak"]["median"] == pytest.approx(1)
    rates = [row["images_per_second_weak"]["median"] for row in result["rows"]]
    assert two["efficiency_weak"]["median"] == pytest.approx(rates[1] / 2 / rates[0])
    assert two["allreduce"]["median"] > 0 and one["allreduce"]["median"] == 0


def test_a_training_that_fails_says_why(tmp_path):
    """And not what torchrun writes around it."""
    with pytest.raises(DeepGalaxyError, match="a training of 2 workers failed: DatasetError: .*none.h5"):
        bench._train_once(tmp_path / "run", tmp_path / "none.h5", 2, 8, 2)


def test_gravity_is_measured_beside_pytreegrav(run):
    """Of two equal galaxies, so that an odd number is one less."""
    done = run("bench", "simulate", "--particles", "2049", "--runs", "2", "--json", "-", timeout=600)
    assert done.status == 0, done.err
    result = json.loads(done.out)
    [row] = result["rows"]
    assert row["n_particles"] == 2048 and "pytreegrav" in result["peer"]
    for name in ("seconds", "peer_seconds", "times_faster"):
        assert 0 < row[name]["min"] <= row[name]["median"] <= row[name]["max"]
    # Side by side at no larger an error than ours, or the ratio of their times would say nothing.
    assert 0 < row["peer_error"]["median"] <= row["error"]["median"] < 0.02
    assert ("gpu_seconds" in row) == ("gpu_error" in row) == (result["hardware"]["gpu"] is not None)


def test_gravity_of_a_gpu_is_measured_beside_the_tree(monkeypatch):
    """As far as that can be seen without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "DirectForces", lambda m, eps: DirectForces(m, eps, "cpu"))
    monkeypatch.setattr(bench_physics, "hardware", dict)
    monkeypatch.setitem(sys.modules, "pytreegrav", None)
    said = []
    [row] = bench_physics.measure_gravity([512], runs=1, say=said.append)["rows"]
    assert row["gpu_seconds"]["median"] > 0 and 0 < row["gpu_error"]["median"] < 1e-5 < row["error"]["median"]
    assert "GPU" in said[0] and "peer_seconds" not in row


def test_rendering_is_measured_at_every_size_asked_for(run):
    done = run("bench", "render", "--pixels", "32", "--pixels", "64", "--runs", "1", "--json", "-", timeout=600)
    assert done.status == 0, done.err
    result = json.loads(done.out)
    assert [row["n_pixels"] for row in result["rows"]] == [32, 64]
    assert all(row["seconds_per_image"]["median"] > 0 for row in result["rows"])
    assert result["smoothing_seconds_per_snapshot"]["median"] > 0
