"""Are the error bars honest? Tests of posteriors against truths.

Images of one encounter resemble each other, so that ten thousand images of a hundred encounters are worth little
more than a hundred. Tests that assume independence therefore take one image of each encounter at a time; or the scatter
is taken from how encounters differ.
"""

from __future__ import annotations

import numpy as np

__all__ = ["rank_test", "rank_test_of_all", "tarp", "auroc"]


def rank_test(pit: np.ndarray, encounter: np.ndarray, n_bins: int = 8, repeats: int = 200, seed: int = 0) -> float:
    """p-value that the ranks of the truths are uniform (simulation-based calibration); small is bad.

    Parameters
    ----------
    pit : (N,) posterior's cumulative probability at the truth, 0..1.
    encounter : (N,) which encounter each belongs to.

    Returns
    -------
    p : median over `repeats` choices of one image from each encounter, of a chi-square test with n_bins.

    References
    ----------
    Talts et al. (2018), arXiv 1804.06788.
    """
    from scipy.stats import chisquare

    rng, values = np.random.default_rng(seed), []
    order = np.argsort(encounter, kind="stable")
    starts, counts = np.unique(encounter[order], return_index=True, return_counts=True)[1:]
    for _ in range(repeats):
        chosen = order[starts + (rng.random(len(starts)) * counts).astype(int)]
        found = np.histogram(np.clip(pit[chosen], 0, 1), bins=n_bins, range=(0, 1))[0]
        values.append(chisquare(found).pvalue)
    return float(np.median(values))


def rank_test_of_all(pit: np.ndarray, encounter: np.ndarray, n_bins: int = 8) -> float | None:
    """p-value that the ranks of the truths are uniform, of all images together; small is bad.

    One image of each of a hundred encounters hardly tells 68 % from 75 %. All of their images do, where images of one
    encounter differ: shares of the bins are compared with 1 / n_bins in units of their covariance from encounter to
    encounter, whatever correlates within one (Hotelling's T-squared).

    Parameters
    ----------
    pit, encounter : as of `rank_test`.

    Returns
    -------
    p : None where there are no more than n_bins encounters.
    """
    from scipy.stats import f

    names, of = np.unique(encounter, return_inverse=True)
    n, k = len(names), n_bins - 1
    if n <= n_bins:
        return None
    counts = np.zeros((n, n_bins))
    np.add.at(counts, (of, np.minimum((np.clip(pit, 0, 1) * n_bins).astype(int), k)), 1)
    # The last share follows from the others; encounters weigh as many images as they have.
    excess = (counts - counts.sum(axis=1, keepdims=True) / n_bins)[:, :k]
    mean, independent = excess.mean(axis=0), np.eye(k) / n_bins - 1 / n_bins**2
    covariance = ((n - 1) * np.cov(excess, rowvar=False) + counts.sum(axis=1).mean() * independent) / n
    t_squared = n * mean @ np.linalg.solve(covariance, mean)
    return float(f.sf(t_squared * (n - k) / (k * (n - 1)), k, n - k))


def tarp(samples: np.ndarray, truth: np.ndarray, encounter: np.ndarray | None = None, seed: int = 0,
         ) -> tuple[float, float]:
    """Largest distance between promised and found coverage of regions around random points, and what chance makes of 0.

    Parameters
    ----------
    samples : (S, N, D) draws from N posteriors of D quantities, each scaled to about 0..1.
    truth : (N, D).
    encounter : (N,) which encounter each belongs to; without it, each to one of its own.

    Returns
    -------
    distance : 0 is honest.
    by_chance : how large it would be, in the median, of honest posteriors of so few encounters: found by drawing the
        encounters again, with replacement.

    References
    ----------
    Lemos et al. (2023), arXiv 2302.03026.
    """
    rng = np.random.default_rng(seed)
    reference = rng.random(truth.shape)
    closer = np.linalg.norm(samples - reference, axis=2) < np.linalg.norm(truth - reference, axis=1)
    # The truth is one of S + 1; anywhere between its neighbours, or few draws would look like too much coverage.
    rank = (closer.sum(axis=0) + rng.random(truth.shape[0])) / (len(samples) + 1)
    level = np.linspace(0, 1, 51)[1:-1]
    of = np.arange(len(rank)) if encounter is None else np.unique(encounter, return_inverse=True)[1]
    size = np.bincount(of)
    below = np.stack([np.bincount(of, rank <= x, minlength=len(size)) for x in level], axis=1)
    found = below.sum(axis=0) / len(rank)
    again = rng.multinomial(len(size), np.full(len(size), 1 / len(size)), 400)
    wander = np.abs(again @ below / (again @ size)[:, None] - found).max(axis=1)
    return float(np.abs(found - level).max()), float(np.median(wander))


def auroc(strange: np.ndarray, usual: np.ndarray) -> float:
    """Probability that one of the strange has a higher score than one of the usual; 0.5 is chance."""
    from scipy.stats import rankdata

    n = len(strange)
    return float((rankdata(np.concatenate([strange, usual]))[:n].sum() - n * (n + 1) / 2) / n / len(usual))
