"""The orbit that the galaxies come in on, and the tilt of their discs."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicSpline

from deepgalaxy.errors import SimulationError
from deepgalaxy.simulate.galaxy import Galaxy, GalaxyConfig
from deepgalaxy.simulate.orbit import approach, disc_rotation, mutual_potential
from deepgalaxy.units import G


@pytest.fixture(scope="module")
def pair():
    config = GalaxyConfig()
    return Galaxy(config, 0.25), Galaxy(config.scaled(0.5, 0.7), 0.25)


@pytest.fixture(scope="module")
def potential(pair):
    """W(d) per reduced mass, averaged by Gauss-Legendre over directions and midpoints over shells."""
    primary, secondary = pair
    cosine, weight = np.polynomial.legendre.leggauss(32)
    grows = np.r_[True, np.diff(secondary.enclosed) > 0]
    shell = np.interp((np.arange(1000) + 0.5) / 1000 * secondary.mass, secondary.enclosed[grows],
                      secondary.radius[grows])
    d = np.geomspace(0.3, 490, 150)
    distance = np.sqrt(shell[:, None] ** 2 + d[:, None, None] ** 2 + 2 * shell[:, None] * d[:, None, None] * cosine)
    psi = (np.interp(np.log(distance), np.log(primary.radius), primary.psi) @ weight / 2).mean(axis=1)
    return CubicSpline(d, -psi * (primary.mass + secondary.mass) / primary.mass)


@pytest.mark.parametrize("inclination, node", [(0, 0), (30, 200), (71, -39), (90, 90), (135, 10), (180, 300)])
def test_disc_rotation_is_a_rotation_that_tilts_the_spin(inclination, node):
    rotation = disc_rotation(inclination, node)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    spin = rotation @ [0, 0, 1]
    assert np.degrees(np.arccos(np.clip(spin[2], -1, 1))) == pytest.approx(inclination, abs=1e-5)
    # The line of nodes lies in both planes.
    line = np.array([np.cos(np.radians(node)), np.sin(np.radians(node)), 0])
    assert abs(line @ spin) < 1e-12


def test_mutual_potential_is_that_of_points_when_far_apart_and_shallower_inside(pair):
    d, w = mutual_potential(*pair)
    kepler = -G * (pair[0].mass + pair[1].mass) / d
    assert w[-1] == pytest.approx(kepler[-1], rel=0.01)
    assert (w >= 1.001 * kepler).all()
    assert w[0] > 0.1 * kepler[0]  # overlapping haloes: a point-mass parabola would be far from bound here
    assert (np.diff(w) > 0).all()


def test_mutual_potential_agrees_with_quadrature(pair, potential):
    d, w = mutual_potential(*pair)
    inside = d < 480
    np.testing.assert_allclose(w[inside], potential(d[inside]), rtol=0.01)


def test_mutual_potential_does_not_depend_on_who_is_called_primary(pair):
    d, w = mutual_potential(*pair)
    _, v = mutual_potential(*pair[::-1])
    far = d > 3  # nearer, the softened centres differ
    np.testing.assert_allclose(v[far], w[far], rtol=0.03)


@pytest.mark.parametrize("pericentre, energy, start", [(8, 0, 180), (2, 0.08, 160), (25, -0.06, 200), (15, 0, 60)])
def test_start_has_the_energy_and_angular_momentum_asked_for(pair, potential, pericentre, energy, start):
    orbit = approach(*pair, pericentre, energy, start)
    r, v = orbit.position, orbit.velocity
    depth = abs(potential(pericentre))
    assert 0.5 * v @ v + potential(np.linalg.norm(r)) == pytest.approx(energy * depth, abs=0.01 * depth)
    momentum = np.cross(r, v)
    np.testing.assert_array_equal(momentum[:2], 0)  # in the x-y plane, turning about +z
    assert momentum[2] == pytest.approx(pericentre * np.sqrt(2 * (1 + energy) * depth), rel=0.01)
    assert r @ v < 0
    assert orbit.time_to_pericentre == pytest.approx(start, abs=1)


@pytest.mark.parametrize("pericentre, energy, start", [(8, 0, 180), (2, 0.08, 160), (25, -0.06, 200)])
def test_rigid_galaxies_reach_the_pericentre_asked_for_in_time(pair, potential, pericentre, energy, start):
    orbit = approach(*pair, pericentre, energy, start)
    slope = potential.derivative()

    def motion(_, y):
        r = np.linalg.norm(y[:3])
        return np.concatenate([y[3:], -slope(r) * y[:3] / r])

    def turns(_, y):
        return y[:3] @ y[3:]

    turns.direction, turns.terminal = 1, True
    track = solve_ivp(motion, (0, 2 * start), np.concatenate([orbit.position, orbit.velocity]), events=turns,
                      rtol=1e-8, atol=1e-10)
    assert track.t_events[0][0] == pytest.approx(start, rel=0.02)
    assert np.linalg.norm(track.y_events[0][0][:3]) == pytest.approx(pericentre, rel=0.02)


def test_a_pericentre_that_would_be_an_apocentre_is_refused(pair):
    with pytest.raises(SimulationError, match="pericentre = 200 kpc and orbital_energy = -0.5: .*raise orbital_energy"):
        approach(*pair, 200.0, -0.5, 100.0)
    assert np.isfinite(approach(*pair, 150.0, -0.5, 100.0).velocity).all()


def test_bound_orbit_that_cannot_have_lasted_so_long_is_refused(pair):
    with pytest.raises(SimulationError, match="start_time = 2000 .*orbital_energy = -0.4") as caught:
        approach(*pair, 8, -0.4, 2000)
    assert "\n" not in str(caught.value)
    assert approach(*pair, 8, -0.4, 40).time_to_pericentre == pytest.approx(40, abs=1)
