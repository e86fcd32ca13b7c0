"""Distances to the n-th neighbour: exactly those that scipy finds."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from deepgalaxy.image.neighbours import neighbour_distances


def clustered(n):
    """A disc, a dense clump and a few stars far away."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 10, (n, 3)) * [1, 1, 0.05]
    x[: n // 3] = rng.normal(30, 0.01, (n // 3, 3))
    x[-max(n // 100, 1):] = rng.normal(0, 500, (max(n // 100, 1), 3))
    return x


@pytest.mark.parametrize("n_stars", [2, 7, 100, 3000])
@pytest.mark.parametrize("n", [1, 2, 24, 100])
def test_distances_are_those_of_scipy(n_stars, n):
    x = clustered(n_stars)
    wanted = cKDTree(x).query(x, k=[min(n, n_stars)])[0][:, 0]
    np.testing.assert_allclose(neighbour_distances(x, n), wanted, rtol=1e-12, atol=1e-12)


def test_single_star_is_its_own_nearest():
    np.testing.assert_array_equal(neighbour_distances(np.zeros((1, 3)), 24), [0])


def test_stars_at_one_place_have_distance_zero():
    x = np.concatenate([np.zeros((500, 3)), clustered(200)])
    wanted = cKDTree(x).query(x, k=[24])[0][:, 0]
    np.testing.assert_allclose(neighbour_distances(x, 24), wanted, rtol=1e-12, atol=1e-12)
    assert (neighbour_distances(x, 24)[:500] == 0).all()


def test_order_of_the_stars_does_not_matter():
    x = clustered(1000)
    order = np.random.default_rng(1).permutation(1000)
    np.testing.assert_allclose(neighbour_distances(x[order], 24), neighbour_distances(x, 24)[order], rtol=1e-12)
