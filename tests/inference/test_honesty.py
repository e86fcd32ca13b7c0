"""Tests of error bars: pass honest posteriors, fail others."""

import numpy as np
import pytest
from scipy.stats import kstest, norm

from deepgalaxy.inference.honesty import auroc, rank_test, rank_test_of_all, tarp


def _gaussians(width, n=400, dimensions=2, seed=0):
    """Draws (S, N, D) of posteriors of a certain width over the right one, and truths (N, D)."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0.3, 0.7, (n, dimensions))
    truth = centre + 0.1 * rng.standard_normal(centre.shape)
    return centre + width * 0.1 * rng.standard_normal((200, n, dimensions)), truth


def test_tarp_is_small_for_honest_posteriors_and_large_for_narrow_wide_and_shifted_ones():
    honest, by_chance = tarp(*_gaussians(1.0, n=2000))
    assert honest < 0.04  # Kolmogorov-Smirnov: 1.36 / sqrt(2000) = 0.03 at 5 %
    assert by_chance == pytest.approx(0.83 / 2000**0.5, rel=0.15)  # and its median, 0.83 / sqrt(2000)
    samples, truth = _gaussians(1.0, n=2000)
    assert tarp(*_gaussians(0.5, n=2000))[0] > 0.1 and tarp(*_gaussians(2.0, n=2000))[0] > 0.1
    assert tarp(samples + 0.1, truth)[0] > 0.08


def test_tarp_does_not_take_few_draws_for_too_much_coverage():
    """The rank of the truth among S + 1 has steps of 1 / (S + 1)."""
    samples, truth = _gaussians(1.0, n=20_000)
    many = tarp(samples, truth)
    few = tarp(samples[:9], truth)
    assert many[0] < 0.015 and few[0] < 0.015


def test_tarp_knows_that_images_of_an_encounter_are_one_draw():
    samples, truth = _gaussians(1.0, n=100)
    once = tarp(samples, truth)[1]
    often = np.repeat(samples, 30, axis=1), np.repeat(truth, 30, axis=0)
    encounter = np.repeat(np.arange(100), 30)
    # Around other points the same truth has another rank: they are more than a hundred draws, and less than 3,000.
    assert 1.5 * tarp(*often)[1] < tarp(*often, encounter)[1] < once


def test_rank_test_passes_uniform_ranks_and_fails_others():
    rng, encounter = np.random.default_rng(1), np.repeat(np.arange(200), 10)
    uniform = rng.random(2000)
    assert rank_test(uniform, encounter) > 0.1
    assert rank_test(0.5 + 0.4 * (uniform - 0.5), encounter) < 1e-4  # too wide: truths in the middle
    assert rank_test(uniform**2, encounter) < 1e-3  # to one side


def test_rank_test_knows_that_images_of_an_encounter_are_one_draw():
    """Twenty encounters with a thousand equal images each are twenty ranks, uniform or not by chance."""
    from scipy.stats import chisquare

    encounter = np.repeat(np.arange(20), 1000)
    pit = np.random.default_rng(3).random(20)[encounter]
    assert chisquare(np.histogram(pit, 8, (0, 1))[0]).pvalue < 1e-6
    assert rank_test(pit, encounter) > 0.05


@pytest.mark.parametrize("strange, usual, expected", [([3, 4], [1, 2], 1.0), ([1, 2], [3, 4], 0.0), ([1, 1], [1], 0.5)])
def test_auroc_counts_pairs(strange, usual, expected):
    assert auroc(np.array(strange), np.array(usual)) == expected


def test_auroc_is_that_of_shifted_gaussians():
    from scipy.stats import norm

    x = np.random.default_rng(0).standard_normal((2, 20000))
    assert auroc(x[0] + 1, x[1]) == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.01)


def test_all_images_together_tell_what_one_of_each_encounter_cannot():
    """Intervals of 68 % that hold 76 % (ranks from half of each encounter's images towards the middle)."""
    rng, encounter = np.random.default_rng(5), np.repeat(np.arange(128), 24)
    seldom, often = [], []
    for _ in range(20):
        score = 0.82 * (0.3 * rng.standard_normal(128)[encounter] + 0.91**0.5 * rng.standard_normal(len(encounter)))
        pit = norm.cdf(score)
        assert np.mean(np.abs(pit - 0.5) < 0.34) == pytest.approx(0.775, abs=0.04)
        seldom.append(rank_test(pit, encounter) < 0.01)
        often.append(rank_test_of_all(pit, encounter) < 0.01)
    assert np.mean(seldom) < 0.5 and np.mean(often) > 0.9


def test_rank_test_of_all_rejects_honest_ranks_as_often_as_it_says():
    rng, encounter = np.random.default_rng(6), np.repeat(np.arange(128), 12)
    scores = (0.6 * rng.standard_normal(128)[encounter] + 0.8 * rng.standard_normal(len(encounter)) for _ in range(400))
    p = [rank_test_of_all(norm.cdf(score), encounter) for score in scores]
    assert kstest(p, "uniform").pvalue > 0.01
    assert rank_test_of_all(rng.random(80), np.repeat(np.arange(8), 10)) is None


@pytest.mark.parametrize("low, high", [(0, 0.1), (0.4, 0.6), (0.13, 0.87), (0.25, 0.75)])
@pytest.mark.parametrize("share", [1.0, 0.8])
def test_rank_test_of_all_finds_ranks_that_never_lie_in_some_bins(low, high, share):
    """Whether or not all encounters have as many images: a bin that is never hit does not scatter."""
    rng, encounter = np.random.default_rng(7), np.repeat(np.arange(40), 20)
    encounter = encounter[rng.random(len(encounter)) < share] if share < 1 else encounter
    assert rank_test_of_all(rng.uniform(low, high, len(encounter)), encounter) < 1e-9
