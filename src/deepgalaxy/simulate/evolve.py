"""Leapfrog in time, with the books of energy and angular momentum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .galaxy import BULGE, Particles
from .gravity import Tree

__all__ = ["Step", "Conservation", "time_step", "conserve_momenta", "evolve", "nuclei"]


@dataclass
class Step:
    """The state after one step; the arrays of `particles` change in place with the next one."""

    time: float  #: Myr since the start
    particles: Particles
    separation: float  #: of the two nuclei, kpc; 0 for a single galaxy
    is_snapshot: bool
    potential: np.ndarray  #: (N,) (kpc/Myr)^2


class Conservation:
    """Largest relative drift of energy and angular momentum seen so far."""

    def __init__(self):
        self._first = None
        self.energy_drift = 0.0
        self.angular_momentum_drift = 0.0

    def record(self, particles: Particles, potential: np.ndarray) -> None:
        """Take note of one state."""
        p = particles
        kinetic = 0.5 * (p.masses * (p.velocities**2).sum(axis=1)).sum()
        energy = kinetic + 0.5 * (p.masses * potential).sum()
        momentum = (p.masses[:, None] * np.cross(p.positions, p.velocities)).sum(axis=0)
        if self._first is None:
            self._first = energy, momentum
        energy0, momentum0 = self._first
        self.energy_drift = max(self.energy_drift, abs(energy / energy0 - 1))
        self.angular_momentum_drift = max(
            self.angular_momentum_drift,
            float(np.linalg.norm(momentum - momentum0) / np.linalg.norm(momentum0)))


def time_step(softening: np.ndarray, acceleration: np.ndarray, snapshot_interval: float) -> float:
    """0.3 times the 1 % quantile of sqrt(2 softening / a), rounded down to a divisor of the interval, Myr."""
    a = np.linalg.norm(acceleration, axis=1)
    wanted = 0.3 * float(np.quantile(np.sqrt(2 * softening / np.maximum(a, 1e-30)), 0.01))
    return snapshot_interval / np.ceil(snapshot_interval / wanted)


def conserve_momenta(positions: np.ndarray, masses: np.ndarray, acceleration: np.ndarray) -> np.ndarray:
    """The nearest accelerations (N, 3) that exert no net force and no net torque.

    A tree's forces are not mutual, so their sums are not zero; over 700 Myr that made up to 2.4 % of the angular
    momentum where the galaxies' spins cancel the orbit's. True forces conserve both momenta, so the orthogonal
    projection (in the mass-weighted norm) onto all fields that do never takes the forces away from the true ones.
    """
    total = masses.sum()
    r = positions - masses @ positions / total
    acceleration = acceleration - masses @ acceleration / total
    torque = masses @ np.cross(r, acceleration)
    moments = (r * masses[:, None]).T @ r
    inertia = np.trace(moments) * np.eye(3) - moments
    return acceleration - np.cross(np.linalg.solve(inertia, torque), r)


def evolve(particles: Particles, snapshot_interval: float, opening_angle: float = 0.6,
           conservation: Conservation | None = None) -> Iterator[Step]:
    """Integrate for as long as the caller asks for more; yields after every step, the start first.

    Kick-drift-kick leapfrog with one global step. It is rounded so that snapshots fall on
    multiples of snapshot_interval (Myr), and shortened, never lengthened, at a snapshot when the
    galaxies have come so close that accelerations demand it.
    """
    p = particles

    def force():
        acceleration, potential = Tree(p.positions, p.masses, p.softening, opening_angle).accelerations()
        return conserve_momenta(p.positions, p.masses, acceleration), potential

    acceleration, potential = force()
    dt = time_step(p.softening, acceleration, snapshot_interval)
    start, n = 0.0, 0
    while True:
        time = start + n * dt
        is_snapshot = abs(time / snapshot_interval - round(time / snapshot_interval)) < 1e-6
        if is_snapshot:
            start, n = round(time / snapshot_interval) * snapshot_interval, 0
            if conservation is not None:
                conservation.record(p, potential)
            # A quarter of slack keeps the step from dithering between two divisors.
            demanded = time_step(p.softening, acceleration, snapshot_interval)
            if demanded < 0.75 * dt:
                dt = demanded
        yield Step(time, p, _separation(p), is_snapshot, potential)
        p.velocities += 0.5 * dt * acceleration
        p.positions += dt * p.velocities
        acceleration, potential = force()
        p.velocities += 0.5 * dt * acceleration
        n += 1


def nuclei(particles: Particles) -> np.ndarray:
    """Centres (n_galaxies, 3) in kpc of the densest part of each galaxy's bulge."""
    centres = []
    for galaxy in range(int(particles.galaxy.max()) + 1):
        x = particles.positions[(particles.galaxy == galaxy) & (particles.component == BULGE)]
        centre = np.median(x, axis=0)
        for fraction in (0.5, 0.3):
            r2 = ((x - centre) ** 2).sum(axis=1)
            centre = x[r2 <= np.quantile(r2, fraction)].mean(axis=0)
        centres.append(centre)
    return np.array(centres)


def _separation(particles: Particles) -> float:
    centres = nuclei(particles)
    return float(np.linalg.norm(centres[0] - centres[1])) if len(centres) == 2 else 0.0
