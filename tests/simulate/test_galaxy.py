"""One galaxy: its masses, its radii, its equilibrium."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import i0, i1, k0, k1

from deepgalaxy.errors import ConfigError
from deepgalaxy.simulate.evolve import Conservation, evolve, nuclei
from deepgalaxy.simulate.galaxy import BULGE, DISC, HALO, Galaxy, GalaxyConfig
from deepgalaxy.simulate.gravity import Tree
from deepgalaxy.units import KM_S, G

SOFTENING, SOFTENING_HALO = 0.25, 0.55
COUNTS = 4500, 820, 2870  # disc, bulge, halo: 8190 in all, in the shares of an encounter


def hernquist_mass(r, mass, scale, truncation):
    """Enclosed mass of a Hernquist sphere times exp(-(r/rt)^2), by quadrature."""
    def shell(s):
        return mass * scale * 2 * s / (s + scale) ** 3 * np.exp(-((s / truncation) ** 2))
    return quad(shell, 0, r, limit=200)[0]


@pytest.fixture(scope="module")
def config():
    return GalaxyConfig()


@pytest.fixture(scope="module")
def galaxy(config):
    return Galaxy(config, SOFTENING)


@pytest.fixture(scope="module")
def particles(galaxy):
    return galaxy.sample(*COUNTS, SOFTENING_HALO, np.random.default_rng(1))


@pytest.mark.parametrize("component", [DISC, BULGE, HALO])
def test_mass_of_a_component_is_the_analytic_one(particles, config, component):
    c = config
    wanted = {DISC: c.disc_mass,
              BULGE: hernquist_mass(400 * c.bulge_scale, c.bulge_mass, c.bulge_scale, 30 * c.bulge_scale),
              HALO: hernquist_mass(10 * c.halo_truncation, c.halo_mass, c.halo_scale, c.halo_truncation)}[component]
    chosen = particles.masses[particles.component == component]
    assert len(chosen) == COUNTS[component]
    assert np.ptp(chosen) == 0
    assert chosen.sum() == pytest.approx(wanted, rel=2e-3)


def test_half_mass_radii_are_the_analytic_ones(particles, config):
    c = config
    r = np.linalg.norm(particles.positions, axis=1)
    R = np.hypot(*particles.positions.T[:2])
    assert np.median(R[particles.component == DISC]) == pytest.approx(1.6783 * c.disc_scale_length, rel=0.02)
    for component, mass, scale, truncation in ((BULGE, c.bulge_mass, c.bulge_scale, 30 * c.bulge_scale),
                                               (HALO, c.halo_mass, c.halo_scale, c.halo_truncation)):
        half = hernquist_mass(20 * truncation, mass, scale, truncation) / 2
        wanted = brentq(lambda s: hernquist_mass(s, mass, scale, truncation) - half, scale / 10, truncation)  # noqa: B023
        assert np.median(r[particles.component == component]) == pytest.approx(wanted, rel=0.03)


def test_disc_is_a_sech2_sheet(particles, config):
    z = particles.positions[particles.component == DISC, 2]
    # sech^2(z/z0) holds half of its light within z0 artanh(1/2).
    assert np.median(np.abs(z)) == pytest.approx(config.disc_scale_height * np.arctanh(0.5), rel=0.05)


def test_components_are_centred_at_rest(particles):
    for component in (DISC, BULGE, HALO):
        chosen = particles.component == component
        assert np.abs(particles.positions[chosen].mean(axis=0)).max() < 1e-9
        assert np.abs(particles.velocities[chosen].mean(axis=0)).max() < 1e-9


def test_disc_spins_about_plus_z(particles):
    disc = particles.component == DISC
    spin = np.cross(particles.positions[disc], particles.velocities[disc]).mean(axis=0)
    assert spin[2] > 0.99 * np.linalg.norm(spin)


def test_galaxy_is_in_virial_equilibrium(particles):
    p = particles
    acceleration, _ = Tree(p.positions, p.masses, p.softening, 0.4).accelerations()
    kinetic = 0.5 * (p.masses * (p.velocities**2).sum(axis=1)).sum()
    virial = -(p.masses * (p.positions * acceleration).sum(axis=1)).sum()  # Clausius: holds for softened forces
    assert 2 * kinetic / virial == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("q", [1.0, 1.5, 2.5])
def test_toomre_q_is_the_one_asked_for(q):
    galaxy = Galaxy(GalaxyConfig(toomre_q=q), SOFTENING)
    c = galaxy.config
    p = galaxy.sample(40000, 0, 0, SOFTENING_HALO, np.random.default_rng(0))
    R = np.hypot(*p.positions.T[:2])
    ring = np.abs(R / c.disc_scale_length - 2.43) < 0.2
    v_R = (p.positions * p.velocities)[ring, :2].sum(axis=1) / R[ring]
    at = 2.43 * c.disc_scale_length
    radii = at * np.array([0.9, 1.0, 1.1])
    omega = galaxy.circular_velocity(radii) / radii
    slope = (omega[2] ** 2 - omega[0] ** 2) / (radii[2] - radii[0])
    kappa = np.sqrt(at * slope + 4 * omega[1] ** 2)
    surface_density = c.disc_mass / (2 * np.pi * c.disc_scale_length**2) * np.exp(-2.43)
    assert v_R.std() * kappa / (3.36 * G * surface_density) == pytest.approx(q, rel=0.05)


def test_circular_velocity_in_the_outskirts_is_the_analytic_one(galaxy, config):
    c = config
    for R in (15.0, 20.0, 30.0):
        y = R / (2 * c.disc_scale_length)
        disc = 2 * G * c.disc_mass / c.disc_scale_length * y**2 * (i0(y) * k0(y) - i1(y) * k1(y))  # Freeman 1970
        spheres = sum(hernquist_mass(R, *args) for args in (
            (c.bulge_mass, c.bulge_scale, 30 * c.bulge_scale), (c.halo_mass, c.halo_scale, c.halo_truncation)))
        assert galaxy.circular_velocity(R) == pytest.approx(np.sqrt(disc + G * spheres / R), rel=0.01)


def test_primary_rotates_like_the_milky_way(galaxy):
    assert 180 < galaxy.circular_velocity(8.0) / KM_S < 260


def test_scaled_multiplies_masses_and_lengths(config):
    scaled = config.scaled(0.5, 0.8)
    for name, value in config.model_dump().items():
        factor = 0.5 if name.endswith("mass") else 1.0 if name == "toomre_q" else 0.8
        assert getattr(scaled, name) == pytest.approx(factor * value)


def test_scaled_copy_is_the_same_galaxy_in_other_units(config):
    q, s = 0.4, 0.7
    a, b = (Galaxy(c, e).sample(500, 100, 300, e, np.random.default_rng(5))
            for c, e in ((config, SOFTENING), (config.scaled(q, s), SOFTENING * s)))
    np.testing.assert_allclose(b.masses, q * a.masses, rtol=1e-9)
    np.testing.assert_allclose(b.positions, s * a.positions, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(b.velocities, np.sqrt(q / s) * a.velocities, rtol=1e-4, atol=1e-6)


def test_a_halo_is_whole_however_small_the_disc(galaxy, config):
    tiny = Galaxy(config.model_copy(update={"disc_scale_length": 0.1, "disc_scale_height": 0.02}), 0.25)
    assert tiny.halo_enclosed[-1] == pytest.approx(galaxy.halo_enclosed[-1], rel=1e-3)


def test_energy_that_is_no_number_is_no_conservation(galaxy):
    particles = galaxy.sample(100, 40, 100, 0.55, np.random.default_rng(0))
    conservation, potential = Conservation(), np.full(240, -0.1)
    conservation.record(particles, potential)
    particles.velocities[3] = np.nan
    conservation.record(particles, potential)
    assert np.isnan(conservation.energy_drift) and np.isnan(conservation.angular_momentum_drift)


def test_same_seed_same_galaxy(galaxy):
    a, b, c = (galaxy.sample(50, 10, 30, SOFTENING_HALO, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.positions, b.positions)
    np.testing.assert_array_equal(a.velocities, b.velocities)
    assert np.abs(a.positions - c.positions).max() > 0.1


def test_disc_keeps_its_scale_length_and_its_books_for_100_myr(galaxy):
    particles = galaxy.sample(*COUNTS, SOFTENING_HALO, np.random.default_rng(2))
    disc = particles.component == DISC

    def scale_length():
        x = particles.positions[disc] - nuclei(particles)[0]
        return np.median(np.hypot(x[:, 0], x[:, 1])) / 1.6783

    conservation = Conservation()
    before = scale_length()
    for step in evolve(particles, 20.0, 0.6, conservation):
        assert step.separation == 0
        if step.time >= 100 - 1e-6:
            break
    assert step.time == pytest.approx(100) and step.is_snapshot
    assert scale_length() == pytest.approx(before, rel=0.06)
    assert conservation.energy_drift < 0.003
    assert conservation.angular_momentum_drift < 0.003


@pytest.mark.parametrize("key, value", [("disc_mass", 0), ("halo_scale", -1), ("toomre_q", 0.1)])
def test_impossible_galaxy_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=key) as caught:
        GalaxyConfig.parse({key: value})
    assert "\n" not in str(caught.value)
