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
