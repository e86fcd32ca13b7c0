"""Which images are for training and which for testing.

Snapshots and cameras of one encounter resemble each other, so whole encounters are held out;
`split_random` leaks and serves only to compare with DeepGalaxy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError

__all__ = ["split_by_encounter", "split_random"]


def split_by_encounter(groups: Sequence[str], fractions: Sequence[float] = (0.85, 0.15),
                       seed: int = 0) -> tuple[np.ndarray, ...]:
    """Divide encounters among parts by a hash of their names.

    Encounters that are added later do not move the others (but for a part that would be empty: it
    takes, from the largest part, the encounter whose hash is nearest).

    Parameters
    ----------
    groups : sequence of str
        Names of the encounters; equal names go to the same part.
    fractions : sequence of float
        Expected share of each part; positive, sum 1. Shares of few encounters scatter.
    seed : int
        Another seed, another division.

    Returns
    -------
    parts : tuple of int64 arrays
        Sorted indices into `groups`; disjoint, together all of them.

    Raises
    ------
    ConfigError
        If the fractions are not allowed.
    """
    edges = _edges(fractions)
    hashes = np.array([_hash(name, seed) for name in groups])
    part = np.searchsorted(edges[1:-1], hashes, side="right")
    n_parts = len(fractions)
    if len(set(groups)) >= n_parts:
        centres = (edges[:-1] + edges[1:]) / 2
        while len(empty := np.setdiff1d(np.arange(n_parts), part)):
            names_in = [len({groups[i] for i in np.flatnonzero(part == p)}) for p in range(n_parts)]
            candidates = np.flatnonzero(part == int(np.argmax(names_in)))
            nearest = candidates[np.argmin(np.abs(hashes[candidates] - centres[empty[0]]))]
            part[hashes == hashes[nearest]] = empty[0]
    return tuple(np.flatnonzero(part == p) for p in range(n_parts))


def split_random(n: int, fractions: Sequence[float] = (0.8, 0.2), seed: int = 0) -> tuple[np.ndarray, ...]:
    """Divide `n` images at random, as DeepGalaxy did (leaks between parts; for comparison only).

    Returns
    -------
    parts : tuple of int64 arrays
        Sorted indices; disjoint, together all of them.
    """
    cuts = np.round(_edges(fractions)[1:-1] * n).astype(int)
    order = np.random.default_rng(seed).permutation(n)
    return tuple(np.sort(part) for part in np.split(order, cuts))


def _edges(fractions: Sequence[float]) -> np.ndarray:
    if len(fractions) == 0 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"fractions must be positive and add up to 1, got {tuple(fractions)}")
    return np.concatenate([[0.0], np.cumsum(fractions)])


def _hash(name: str, seed: int) -> float:
    """A number in [0, 1) that depends only on the name and the seed, on every machine."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
