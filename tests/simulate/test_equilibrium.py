"""The reference galaxy left alone stays what it is: benchmarks/isolation.py with fewer particles and looser limits."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from deepgalaxy.simulate.galaxy import HALO, GalaxyConfig
from deepgalaxy.simulate.gravity import Tree

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "isolation.py"


@pytest.fixture(scope="module")
def isolation():
    return SimpleNamespace(**runpy.run_path(str(BENCHMARK)))


@pytest.fixture(scope="module")
def alone(isolation):
    """8192 particles, 250 Myr: two turns of the disc at its half-mass radius."""
    return isolation.isolate(8192, 250.0, seed=1)


def test_virial_ratio_stays_one(alone):
    assert alone.virial[0] == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(alone.virial, 1, atol=0.03)


def test_disc_keeps_its_scale_length(alone):
    assert alone.scale_length[0] == pytest.approx(3.0, rel=0.02)
    # So few particles stir up waves that come and go with the radial period, about 100 Myr.
    np.testing.assert_allclose(alone.scale_length, alone.scale_length[0], rtol=0.12)
    assert np.mean(alone.scale_length[-4:]) == pytest.approx(alone.scale_length[0], rel=0.06)


def test_disc_thickens_slowly(alone):
    assert alone.height[0] == pytest.approx(0.6 * np.pi / np.sqrt(12), rel=0.08)  # of sech^2(z / 0.6 kpc)
    assert max(alone.height) < 1.35 * alone.height[0]


def test_halo_neither_contracts_nor_expands(alone):
    radii = np.array(alone.halo_radii)
    np.testing.assert_allclose(radii[:, 1:], np.broadcast_to(radii[0, 1:], radii[:, 1:].shape), rtol=0.06)


def test_disc_makes_no_bar(alone):
    assert max(alone.a2) < 0.25


def test_books_are_kept(alone):
    assert alone.energy_drift[-1] < 2e-3
    assert alone.momentum_drift[-1] < 1e-11


def test_galaxy_that_starts_out_of_balance_is_noticed(isolation):
    """The limits above can fail: 20 % less rotation and dispersion and the disc is no longer what it was."""
    particles = isolation.reference_galaxy(4096, seed=1)
    particles.velocities *= 0.8
    history = isolation.History(GalaxyConfig(), 4096)
    for step in isolation.evolve(particles, 25.0):
        if step.is_snapshot:
            isolation.measure(history, particles, step.time)
        if step.time >= 100:
            break
    assert abs(history.virial[0] - 1) > 0.03
    assert max(np.abs(np.array(history.scale_length) / history.scale_length[0] - 1)) > 0.12
    radii = np.array(history.halo_radii)
    assert np.abs(radii[:, 1:] / radii[0, 1:] - 1).max() > 0.06


def test_bar_strength_of_noise_is_none_and_of_a_bar_its_own(isolation):
    rng = np.random.default_rng(0)
    R, phi = 6 * np.sqrt(rng.random(40000)), rng.uniform(0, 2 * np.pi, 40000)
    assert isolation.bar_strength(R, phi, 6.0) < 0.03
    keep = rng.random(40000) < 0.5 * (1 + 0.6 * np.cos(2 * phi))  # <exp(2 i phi)> = 0.3
    assert isolation.bar_strength(R[keep], phi[keep], 6.0) == pytest.approx(0.3, abs=0.03)


def test_fitted_scale_length_is_that_of_an_exponential_disc(isolation):
    x = np.linspace(0, 12, 4000)
    R = 3.7 * np.interp((np.arange(40000) + 0.5) / 40000, 1 - (1 + x) * np.exp(-x), x)
    assert isolation.fitted_scale_length(R, 3.7) == pytest.approx(3.7, rel=0.01)


def test_cusps_of_disc_bulge_and_halo_stand_in_one_place(isolation):
    """A halo shifted as a whole by the mean of its 2,900 particles stands 0.6 kpc beside the disc, and sloshes."""
    offsets = []
    for seed in range(6):
        particles = isolation.reference_galaxy(8192, seed)
        halo = particles.positions[particles.component == HALO]
        inner = halo[np.linalg.norm(halo, axis=1) < 6.0]
        offsets.append(inner.mean(axis=0))
        assert np.abs(halo.mean(axis=0)).max() < 1e-9
    assert np.sqrt(np.mean(np.square(offsets))) < 0.3  # 0.15 is the noise of so few particles


def test_every_component_is_in_balance_with_the_force_that_it_will_feel(isolation):
    """Set up with the stars' softening for the halo too, disc and halo were 1 % too hot."""
    particles = isolation.reference_galaxy(32768, seed=0)
    p = particles
    acceleration, _ = Tree(p.positions, p.masses, p.softening, 0.5).accelerations()
    kinetic, virial = p.masses * (p.velocities**2).sum(axis=1), -p.masses * (p.positions * acceleration).sum(axis=1)
    for component, tolerance in enumerate((0.012, 0.04, 0.012)):
        chosen = p.component == component
        assert kinetic[chosen].sum() / virial[chosen].sum() == pytest.approx(1, abs=tolerance)
