"""Forces: against all pairs, against pytreegrav, and against spheres that can be done by hand."""

import numpy as np
import pytest

from deepgalaxy.simulate.encounter import EncounterConfig, initial_conditions
from deepgalaxy.simulate.gravity import Tree, direct
from deepgalaxy.units import G


def isotropic(n, rng):
    v = rng.standard_normal((n, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def plummer_sphere(n, scale=5.0, mass=1e11, seed=0):
    """Positions and masses; stratified in radius, so that enclosed masses hardly scatter."""
    rng = np.random.default_rng(seed)
    u = (np.arange(n) + rng.random(n)) / n
    radius = scale / np.sqrt(u ** (-2 / 3) - 1)
    return radius[:, None] * isotropic(n, rng), np.full(n, mass / n)


def relative_errors(values, truth):
    difference, size = values - truth, truth
    if values.ndim == 2:
        difference, size = np.linalg.norm(difference, axis=1), np.linalg.norm(truth, axis=1)
    return np.abs(difference) / np.abs(size)


@pytest.fixture(scope="module")
def system():
    """Two galaxies on their way in: clustered, flattened, of unequal masses and softenings."""
    p = initial_conditions(EncounterConfig(mass_ratio=0.5, size_ratio=0.7, resolution={"n_particles": 6000}))
    x, m, softening = p.positions, p.masses, p.softening
    return x, m, softening, *direct(x, softening, x, m, softening)


def test_tree_agrees_with_all_pairs(system):
    x, m, softening, acceleration, potential = system
    a, phi = Tree(x, m, softening, opening_angle=0.6).accelerations()
    errors = relative_errors(a, acceleration)
    assert np.median(errors) <= 4e-3
    assert np.quantile(errors, 0.99) <= 4e-2
    assert np.median(relative_errors(phi, potential)) <= 1e-3
    assert relative_errors(phi, potential).max() <= 2e-2


def test_smaller_opening_angle_is_more_accurate(system):
    x, m, softening, acceleration, _ = system
    errors = [np.median(relative_errors(Tree(x, m, softening, opening_angle=t).accelerations()[0], acceleration))
              for t in (0.8, 0.5, 0.3)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_opening_everything_is_exact_to_single_precision(system):
    x, m, softening, acceleration, potential = system
    a, phi = Tree(x, m, softening, opening_angle=1e-6).accelerations()
    assert np.median(relative_errors(a, acceleration)) < 2e-6
    assert relative_errors(phi, potential).max() < 2e-6


@pytest.mark.parametrize("leaf_size, group_size", [(16, 16), (32, 64), (64, 256)])
def test_leaf_and_group_sizes_only_change_the_error(system, leaf_size, group_size):
    x, m, softening, acceleration, _ = system
    a, _ = Tree(x, m, softening, 0.6, leaf_size).accelerations(group_size)
    assert np.median(relative_errors(a, acceleration)) <= 7e-3


def test_order_of_the_particles_does_not_matter(system):
    x, m, softening, _, _ = system
    order = np.random.default_rng(0).permutation(len(x))
    a, phi = Tree(x, m, softening).accelerations()
    b, psi = Tree(x[order], m[order], softening[order]).accelerations()
    np.testing.assert_allclose(b, a[order], rtol=0, atol=1e-5 * np.abs(a).max())
    np.testing.assert_allclose(psi, phi[order], rtol=1e-5)


def test_forces_cancel_in_the_sum(system):
    x, m, softening, acceleration, _ = system
    size = (m * np.linalg.norm(acceleration, axis=1)).sum()
    total = np.linalg.norm((m[:, None] * acceleration).sum(axis=0))
    assert total < 1e-12 * size
    a, _ = Tree(x, m, softening).accelerations()
    # Cells make action and reaction differ by the force error, at random: 1e-3 over the root of N.
    assert np.linalg.norm((m[:, None] * a).sum(axis=0)) < 1e-3 * size


def test_all_pairs_agree_with_pytreegrav():
    pytreegrav = pytest.importorskip("pytreegrav")
    # Its softening is a spline's support radius: between particles further apart than both lengths,
    # both forces are Newton's.
    x, m = plummer_sphere(1500, 100.0)
    softening = np.full(len(x), 1e-3)
    a, phi = direct(x, softening, x, m, softening)
    theirs = pytreegrav.Accel(x, m, softening, G=G, method="bruteforce")
    assert relative_errors(a, theirs).max() < 1e-5
    theirs_phi = pytreegrav.Potential(x, m, softening, G=G, method="bruteforce")
    assert relative_errors(phi, theirs_phi).max() < 1e-5
    b, psi = Tree(x, m, softening).accelerations()
    assert np.median(relative_errors(b, theirs)) <= 4e-3
    assert np.median(relative_errors(psi, theirs_phi)) <= 2e-3


def test_one_particle_is_a_plummer_sphere():
    mass, softening = 1e10, 0.7
    points = np.linspace(0.01, 30, 40)[:, None] * isotropic(40, np.random.default_rng(0))
    r = np.linalg.norm(points, axis=1)
    for a, phi in (Tree(np.zeros((1, 3)), np.array([mass]), np.array([softening])).field_at(
                        points, np.full(40, softening)),
                   direct(points, np.full(40, softening), np.zeros((1, 3)), np.array([mass]),
                          np.array([softening]))):
        np.testing.assert_allclose(phi, -G * mass / np.sqrt(r**2 + softening**2), rtol=2e-6)
        expected = -G * mass * points / (r**2 + softening**2)[:, None] ** 1.5
        np.testing.assert_allclose(a, expected, rtol=0, atol=2e-6 * np.abs(a).max())


def test_softenings_of_a_pair_are_averaged_in_squares():
    points, source = np.array([[1.0, 0, 0]]), np.zeros((1, 3))
    _, phi = Tree(source, np.array([1e10]), np.array([0.2])).field_at(points, np.array([0.6]))
    np.testing.assert_allclose(phi, -G * 1e10 / np.sqrt(1 + (0.2**2 + 0.6**2) / 2), rtol=1e-6)


def test_force_of_a_plummer_sphere_is_the_analytic_one():
    scale, mass = 5.0, 1e11
    x, m = plummer_sphere(20000, scale, mass)
    tree = Tree(x, m, np.full(len(x), 0.05))
    directions = isotropic(300, np.random.default_rng(3))
    for r in (0.5 * scale, scale, 2 * scale, 6 * scale):
        a, phi = tree.field_at(r * directions, np.full(300, 0.05))
        inward = -(a * directions).sum(axis=1).mean()
        assert inward == pytest.approx(G * mass * r / (r**2 + scale**2) ** 1.5, rel=0.015)
        assert phi.mean() == pytest.approx(-G * mass / np.sqrt(r**2 + scale**2), rel=0.005)


def test_field_at_the_particles_is_their_acceleration(system):
    x, m, softening, acceleration, _ = system
    tree = Tree(x, m, softening, opening_angle=1e-6)
    (a, phi), (b, psi) = tree.accelerations(), tree.field_at(x, softening)
    np.testing.assert_allclose(b, a, rtol=0, atol=2e-6 * np.abs(a).max())
    np.testing.assert_allclose(psi, phi - G * m / softening, rtol=1e-5)  # a field has no self to leave out
    b, _ = Tree(x, m, softening).field_at(x, softening)
    assert np.median(relative_errors(b, acceleration)) <= 5e-3


def test_tree_forces_do_not_change_the_particles(system):
    x, m, softening, _, _ = system
    copies = x.copy(), m.copy(), softening.copy()
    Tree(x, m, softening).accelerations()
    for before, after in zip(copies, (x, m, softening), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("n_spread", [0, 500])
def test_coincident_particles_neither_hang_nor_attract_each_other(n_spread):
    n = 1500
    x = np.concatenate([np.full((n, 3), 0.3), np.random.default_rng(0).normal(0, 10, (n_spread, 3))])
    m, softening = np.full(len(x), 1e7), np.full(len(x), 0.25)
    a, phi = Tree(x, m, softening).accelerations()
    b, psi = direct(x, softening, x, m, softening)
    assert np.isfinite(a).all() and np.isfinite(phi).all()
    assert np.abs(a[:n] - a[0]).max() <= 1e-4 * max(np.abs(b).max(), 1e-12)
    if n_spread:
        assert np.median(relative_errors(a[n:], b[n:])) < 4e-3
    else:
        np.testing.assert_array_equal(a, 0)
        np.testing.assert_allclose(phi, -G * (n - 1) * 1e7 / 0.25, rtol=3e-5)  # summed in single precision


@pytest.mark.parametrize("n", [1, 2, 3, 33])
def test_few_particles(n):
    x = np.random.default_rng(n).normal(0, 5, (n, 3))
    m, softening = np.full(n, 1e9), np.full(n, 0.25)
    a, phi = Tree(x, m, softening).accelerations()
    b, psi = direct(x, softening, x, m, softening)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-15))
    np.testing.assert_allclose(phi, psi, rtol=1e-5, atol=1e-6 * G * 1e9 / 0.25)
