"""Leapfrog in time, with the books of energy and angular momentum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit

from .galaxy import BULGE, Particles
from .gpu import DirectForces
from .gravity import Tree

__all__ = ["Step", "Conservation", "time_step", "conserve_momenta", "evolve", "nuclei"]


@dataclass
class Step:
    """The state after one step; the arrays of `particles` change in place with the next one."""

    time: float  #: Myr since the start
    particles: Particles
    separation: float  #: of the two nuclei, kpc; 0 for a single galaxy, NaN where it was not measured
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
        drifts = abs(energy / energy0 - 1), np.linalg.norm(momentum - momentum0) / np.linalg.norm(momentum0)
        # Unlike max, this keeps what is no number.
        self.energy_drift = float(np.maximum(self.energy_drift, drifts[0]))
        self.angular_momentum_drift = float(np.maximum(self.angular_momentum_drift, drifts[1]))


def time_step(softening: np.ndarray, acceleration: np.ndarray, snapshot_interval: float, factor: float = 0.45) -> float:
    """`factor` times the 1 % quantile of sqrt(2 softening / a), rounded down to a divisor of the interval, Myr."""
    wanted = factor * np.sqrt(2 * float(np.quantile(_ease(softening, acceleration), 0.01)))
    return snapshot_interval / np.ceil(snapshot_interval / wanted)


@njit(cache=True)
def _ease(softening, a):
    """softening / |a| of every second particle: half of them tell the quantile well enough."""
    out = np.empty((len(a) + 1) // 2)
    for i in range(len(out)):
        j = 2 * i
        out[i] = softening[j] / max(np.sqrt(a[j, 0] ** 2 + a[j, 1] ** 2 + a[j, 2] ** 2), 1e-30)
    return out


def conserve_momenta(positions: np.ndarray, masses: np.ndarray, acceleration: np.ndarray) -> np.ndarray:
    """The nearest accelerations (N, 3) that exert no net force and no net torque.

    A tree's forces are not mutual, so their sums are not zero; over 700 Myr that made up to 2.4 % of the angular
    momentum where the galaxies' spins cancel the orbit's. True forces conserve both momenta, so the orthogonal
    projection (in the mass-weighted norm) onto all fields that do never takes the forces away from the true ones.
    """
    total, centre, force, torque, moments = _sums(positions, masses, acceleration)
    torque -= np.cross(centre, force)
    inertia = np.trace(moments) * np.eye(3) - moments
    spin = np.linalg.solve(inertia, torque)
    return _without(acceleration, positions, force / total, spin, centre)


@njit(cache=True)
def _sums(x, m, a):
    """Mass, centre of mass (3,), sums of m a and m x cross a (3,), and of m r r about the centre (3, 3)."""
    total, first, force, torque, moments = 0.0, np.zeros(3), np.zeros(3), np.zeros(3), np.zeros((3, 3))
    for i in range(len(x)):
        total += m[i]
        for k in range(3):
            first[k] += m[i] * x[i, k]
            force[k] += m[i] * a[i, k]
            torque[k] += m[i] * (x[i, (k + 1) % 3] * a[i, (k + 2) % 3] - x[i, (k + 2) % 3] * a[i, (k + 1) % 3])
            for j in range(3):
                moments[k, j] += m[i] * x[i, k] * x[i, j]
    for k in range(3):
        for j in range(3):
            moments[k, j] -= first[k] * first[j] / total
    return total, first / total, force, torque, moments


@njit(cache=True)
def _without(a, x, common, spin, centre):
    """a - common - spin cross (x - centre)."""
    out = np.empty_like(a)
    for i in range(len(a)):
        for k in range(3):
            j, n = (k + 1) % 3, (k + 2) % 3
            out[i, k] = a[i, k] - common[k] - (spin[j] * (x[i, n] - centre[n]) - spin[n] * (x[i, j] - centre[j]))
    return out


def evolve(particles: Particles, snapshot_interval: float, opening_angle: float = 0.95,
           conservation: Conservation | None = None, device: str = "cpu", step_factor: float = 0.45) -> Iterator[Step]:
    """Integrate for as long as the caller asks for more; yields after every step, the start first.

    Parameters
    ----------
    snapshot_interval : Myr.
    opening_angle : of the tree, on the CPU.
    conservation : keeps the books at snapshots.
    device : "cpu", or "cuda" for forces of all pairs on a GPU.
    step_factor : of `time_step`.

    Kick-drift-kick leapfrog with one global step, so that snapshots fall on multiples of
    snapshot_interval (Myr). It is halved as soon as the accelerations demand it, as at a close
    passage, and chosen anew at a snapshot.
    """
    p = particles
    bulges = _bulges(p)
    direct = DirectForces(p.masses, p.softening) if device == "cuda" else None

    def force():
        if direct is not None:
            acceleration, potential = direct(p.positions)
        else:
            acceleration, potential = Tree(p.positions, p.masses, p.softening, opening_angle).accelerations()
        return conserve_momenta(p.positions, p.masses, acceleration), potential

    acceleration, potential = force()
    dt = time_step(p.softening, acceleration, snapshot_interval, step_factor)
    start, n = 0.0, 0
    while True:
        time = start + n * dt
        is_snapshot = abs(time / snapshot_interval - round(time / snapshot_interval)) < 1e-6
        if is_snapshot:
            start, n = round(time / snapshot_interval) * snapshot_interval, 0
            if conservation is not None:
                conservation.record(p, potential)
            demanded = time_step(p.softening, acceleration, snapshot_interval, step_factor)
            if not 0.9 * dt <= demanded <= 1.3 * dt:  # slack keeps the step from dithering between two divisors
                dt = demanded
        elif time_step(p.softening, acceleration, snapshot_interval, step_factor) < 0.65 * dt:
            dt, n = 0.5 * dt, 2 * n
        # Every second step tells the pericentre well enough; all of them would take 3 % of the time.
        separation = _separation(p.positions, bulges) if n % 2 == 0 or len(bulges) != 2 else np.nan
        yield Step(time, p, separation, is_snapshot, potential)
        p.velocities += 0.5 * dt * acceleration
        p.positions += dt * p.velocities
        acceleration, potential = force()
        p.velocities += 0.5 * dt * acceleration
        n += 1


def nuclei(particles: Particles) -> np.ndarray:
    """Centres (n_galaxies, 3) in kpc of the densest part of each galaxy's bulge."""
    return _centres(particles.positions, _bulges(particles))


def _bulges(particles: Particles) -> list[np.ndarray]:
    """Indices of each galaxy's bulge."""
    return [np.flatnonzero((particles.galaxy == galaxy) & (particles.component == BULGE))
            for galaxy in range(int(particles.galaxy.max()) + 1)]


def _centres(positions, bulges) -> np.ndarray:
    centres = []
    for bulge in bulges:
        x = positions[bulge]
        centre = np.median(x, axis=0)
        for fraction in (0.5, 0.3):
            r2 = ((x - centre) ** 2).sum(axis=1)
            centre = x[r2 <= np.quantile(r2, fraction)].mean(axis=0)
        centres.append(centre)
    return np.array(centres)


def _separation(positions, bulges) -> float:
    if len(bulges) != 2:
        return 0.0
    centres = _centres(positions, bulges)
    return float(np.linalg.norm(centres[0] - centres[1]))
