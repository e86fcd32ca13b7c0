"""Encounters of one shape are one encounter: masses times q with times over sqrt(q), lengths times s with times s^1.5.

Powers of four, so that the scaled run meets the same roundings as the first: what is left is what does not scale.
"""

import numpy as np
import pytest

from deepgalaxy.image.render import render
from deepgalaxy.image.view import View
from deepgalaxy.simulate.encounter import EncounterConfig, simulate
from deepgalaxy.simulate.evolve import evolve
from deepgalaxy.simulate.galaxy import Galaxy, GalaxyConfig, Particles

PRIMARY = GalaxyConfig()
TIMES = {"start_time": 90.0, "snapshot_interval": 20.0, "first_time": -40.0, "last_time": 100.0}
VIEW = View((0.3, -0.5, 0.8))


def encounter(masses: float):
    """The same encounter with other masses, on the clock that belongs to them."""
    times = {name: value / np.sqrt(masses) for name, value in TIMES.items()}
    return simulate(EncounterConfig.parse({
        "mass_ratio": 0.5, "size_ratio": 0.7, "pericentre": 10.0, "primary_disc_inclination": 30.0,
        "secondary_disc_inclination": 60.0, "secondary_disc_node": 40.0, "seed": 5,
        "start_time": times.pop("start_time"), "primary": PRIMARY.scaled(masses, 1.0).model_dump(),
        "resolution": {"n_particles": 1024, **times}}))


def pictures(e, masses: float):
    """Surface density over the factor of the masses, (T, 64, 64)."""
    return np.array([render(x, e.masses, VIEW, 64, 160.0) / masses for x in e.positions])


@pytest.fixture(scope="module")
def reference():
    return encounter(1.0)


@pytest.mark.parametrize("masses", [4.0, 1 / 16])
def test_masses_set_the_clock_and_nothing_else(reference, masses):
    scaled = encounter(masses)
    np.testing.assert_allclose(scaled.time * np.sqrt(masses), reference.time, rtol=0, atol=1e-3)
    wanted, found = pictures(reference, 1.0), pictures(scaled, masses)
    assert wanted.shape == found.shape == (8, 64, 64)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * wanted.max())
    np.testing.assert_array_equal(scaled.stage, reference.stage)
    measured, wanted = (e.parameters["pericentre_measured"] for e in (scaled, reference))
    assert measured == pytest.approx(wanted, rel=1e-6)


def test_pictures_are_those_of_the_clock_and_not_of_the_calendar(reference):
    """Without the scaled clock they differ by far more than that: the test above can fail."""
    first = pictures(reference, 1.0)
    assert np.abs(first[1:] - first[:-1]).max() > 1e-2 * first.max()


def pair(masses: float, lengths: float) -> list[np.ndarray]:
    """Positions over the factor of the lengths, of two galaxies that fly past each other; on their own clock."""
    rng = np.random.default_rng(8)
    parts = []
    for k, (q, s) in enumerate(((1.0, 1.0), (0.5, 0.7))):
        config = PRIMARY.scaled(q * masses, s * lengths)
        part = Galaxy(config, 0.25 * lengths).sample(300, 50, 150, 0.5 * lengths, rng, galaxy=k)
        part.positions += lengths * np.array([40.0, 12.0, 3.0]) * k
        part.velocities += np.sqrt(masses / lengths) * np.array([-0.5, 0.0, 0.0]) * k
        parts.append(part)
    particles = Particles.join(parts)
    clock = np.sqrt(lengths**3 / masses)
    found = []
    for step in evolve(particles, 20.0 * clock):
        if step.is_snapshot:
            found.append(particles.positions / lengths)
        if step.time >= 100 * clock * (1 - 1e-9):
            return found


@pytest.mark.parametrize("masses, lengths", [(1.0, 4.0), (1.0, 0.25), (4.0, 4.0)])
def test_lengths_and_softening_set_the_clock_and_nothing_else(masses, lengths):
    """Of the integrator; the orbit's tables stand at fixed distances in kpc and would add their own error."""
    wanted, found = pair(1.0, 1.0), pair(masses, lengths)
    assert len(wanted) == len(found) == 6
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-6 * np.abs(a).max())
