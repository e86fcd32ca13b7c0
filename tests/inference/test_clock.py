"""The clock of an encounter goes with sqrt(length^3 / mass)."""

import math

import numpy as np
import pytest

from deepgalaxy.errors import ConfigError
from deepgalaxy.inference.clock import set_clock
from deepgalaxy.inference.posterior import summarise
from deepgalaxy.inference.predictor import Scale
from deepgalaxy.inference.story import QUANTILES
from deepgalaxy.labels import LABELS, STAGES
from deepgalaxy.report import scale_sentence
from deepgalaxy.units import REFERENCE_STARS, REFERENCE_TIME, G, dynamical_time, time_factor


def posterior(time=100.0, width=15.0, mass_ratio=0.5, ratio_width=0.02):
    """Gaussian distributions over the bins of every label."""
    probability = {"stage": np.full((1, len(STAGES)), 1 / len(STAGES))}
    for label in LABELS:
        middle = label.position(np.array({"time": time, "mass_ratio": mass_ratio}.get(label.column, (
            label.low * label.high) ** 0.5 if label.log else (label.low + label.high) / 2)))
        spread = {"time": width / 10, "mass_ratio": ratio_width * 32}.get(label.column, 3.0)
        p = np.exp(-0.5 * ((np.arange(label.n_bins) + 0.5 - middle) / spread) ** 2)
        probability[label.name] = (p / p.sum())[None]
    properties, _, curves = summarise(probability, 0, QUANTILES)
    return properties, curves


def test_dynamical_time_is_that_of_a_circular_orbit_over_two_pi():
    # Kepler: a body at the distance L of a point mass M goes round in 2 pi sqrt(L^3 / GM).
    speed = math.sqrt(G * 6e10 / 3)
    assert dynamical_time(3, 6e10) == pytest.approx(3 / speed)
    assert pytest.approx(10.0, abs=0.02) == REFERENCE_TIME


def test_times_grow_with_size_and_shrink_with_mass():
    assert time_factor(1, 4) == 0.5
    assert time_factor(4, 1) == 8
    assert time_factor(2, 3) == pytest.approx(dynamical_time(2, 3) / dynamical_time(1, 1))


def test_without_a_mass_the_time_stays_and_is_told_in_dynamical_times_too():
    properties, curves = posterior()
    before = dict(properties["time_since_pericentre"])
    clock = set_clock(properties, curves, QUANTILES)
    assert properties["time_since_pericentre"] == before
    assert clock["basis"] == "reference" and clock["stellar_mass"] is None
    assert clock["dynamical_time_myr"] == REFERENCE_TIME
    assert clock["time_in_dynamical_times"]["p50"] == pytest.approx(before["p50"] / REFERENCE_TIME)


@pytest.mark.parametrize("heavier", [0.25, 1.0, 4.0])
def test_exact_mass_only_changes_the_clock(heavier):
    properties, curves = posterior(ratio_width=0.001)
    before = dict(properties["time_since_pericentre"])
    q = properties["mass_ratio"]["p50"]
    clock = set_clock(properties, curves, QUANTILES, heavier * REFERENCE_STARS * (1 + q), 0.0)
    for name in QUANTILES:
        assert properties["time_since_pericentre"][name] == pytest.approx(
            before[name] / math.sqrt(heavier), abs=1.0 / math.sqrt(heavier))
    assert clock["basis"] == "mass"
    assert clock["dynamical_time_myr"] == pytest.approx(REFERENCE_TIME / math.sqrt(heavier), rel=0.01)
    # In units of the clock, nothing has changed.
    assert clock["time_in_dynamical_times"]["p50"] == pytest.approx(before["p50"] / REFERENCE_TIME)
    edges, p = curves["time_since_pericentre"]
    assert p.sum() == pytest.approx(1) and len(edges) == len(p) + 1
    assert np.average(0.5 * (edges[1:] + edges[:-1]), weights=p) == pytest.approx(100 / math.sqrt(heavier), rel=0.03)


def test_error_of_the_mass_is_propagated():
    # A narrow time of 100 Myr and a mass within 0.3 dex: log10 of the time has a standard deviation of 0.15.
    properties, curves = posterior(width=1.0, ratio_width=0.001)
    set_clock(properties, curves, QUANTILES, REFERENCE_STARS * 1.5, 0.3)
    t = properties["time_since_pericentre"]
    width = (math.log10(t["p84"]) - math.log10(t["p16"])) / 2
    assert width == pytest.approx(0.15 * 0.9945, rel=0.05)  # p16 and p84 are 0.9945 standard deviations away
    assert t["p05"] < t["p16"] < t["p50"] < t["p84"] < t["p95"]


def test_unknown_mass_ratio_widens_the_time():
    narrow, wide = (posterior(width=1.0, ratio_width=w) for w in (0.001, 0.3))
    widths = []
    for properties, curves in (narrow, wide):
        set_clock(properties, curves, QUANTILES, 9e10, 0.0)
        t = properties["time_since_pericentre"]
        widths.append(t["p84"] - t["p16"])
    assert widths[1] > 1.3 * widths[0]


@pytest.mark.parametrize("given, words", [
    ({"mass": 1e11}, "needs the size of a pixel"), ({"mass": -1, "kpc_per_pixel": 1}, "mass must be in"),
    ({"mass": 5.0, "kpc_per_pixel": 1}, "at least 1e6"), ({"mass_dex": 0.1, "kpc_per_pixel": 1}, "give mass too"),
    ({"mass": 1e11, "mass_dex": -1, "kpc_per_pixel": 1}, "mass_dex must be in"),
    ({"mass": float("nan"), "kpc_per_pixel": 1}, "mass must be in")])
def test_impossible_mass_is_one_line(given, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Scale(**given)
    assert "\n" not in str(caught.value)


def test_sentence_always_says_whose_myr():
    properties, curves = posterior()
    reference = set_clock(properties, curves, QUANTILES)
    assert "Milky Way" in scale_sentence({"kpc_per_pixel": None}, reference)
    assert "10 Myr" in scale_sentence({"kpc_per_pixel": None}, reference)
    known = {"kpc_per_pixel": 0.5, "source": "given"}
    assert "Milky Way's mass" in scale_sentence(known, reference)
    mass = set_clock(properties, curves, QUANTILES, 9e10, 0.2)
    assert "of this system" in scale_sentence(known, mass) and "9e+10" in scale_sentence(known, mass)
