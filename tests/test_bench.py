"""Benchmarks run with real processes and say what they measured; how fast it is, is no matter here."""

import json

import pytest


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


def test_rendering_is_measured_at_every_size_asked_for(run):
    done = run("bench", "render", "--pixels", "32", "--pixels", "64", "--runs", "1", "--json", "-", timeout=600)
    assert done.status == 0, done.err
    result = json.loads(done.out)
    assert [row["n_pixels"] for row in result["rows"]] == [32, 64]
    assert all(row["seconds_per_image"]["median"] > 0 for row in result["rows"])
    assert result["smoothing_seconds_per_snapshot"]["median"] > 0
