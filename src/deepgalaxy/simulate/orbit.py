"""Encounter orbits of extended galaxies, and the orientation of discs on them.

The orbit lies in the x-y plane and turns about +z. A parabola of point masses would be unbound for
overlapping haloes, so the orbit is integrated in the mutual potential of the two rigid spheres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import SimulationError
from .galaxy import Galaxy

__all__ = ["Orbit", "approach", "disc_rotation", "mutual_potential"]


@dataclass
class Orbit:
    """Where the secondary stands and moves relative to the primary when the run starts."""

    position: np.ndarray  #: (3,) kpc
    velocity: np.ndarray  #: (3,) kpc/Myr
    time_to_pericentre: float  #: Myr, for rigid galaxies


def mutual_potential(primary: Galaxy, secondary: Galaxy, n_samples: int = 20000):
    """Mutual potential energy per reduced mass of two rigid spherical galaxies.

    Returns
    -------
    separation : (60,) kpc, increasing.
    potential : (60,) (kpc/Myr)^2, negative.
    """
    separation = np.geomspace(0.3, 500, 60)
    grows = np.r_[True, np.diff(secondary.enclosed) > 0]
    u = (np.arange(n_samples) + 0.5) / n_samples
    r = np.interp(u * secondary.mass, secondary.enclosed[grows], secondary.radius[grows])
    cosine = np.random.default_rng(0).uniform(-1, 1, n_samples)
    distance = np.sqrt(r**2 + separation[:, None] ** 2 + 2 * r * separation[:, None] * cosine)
    psi = np.interp(distance, primary.radius, primary.psi).mean(axis=1)
    return separation, -psi * (primary.mass + secondary.mass) / primary.mass


def approach(primary: Galaxy, secondary: Galaxy, pericentre: float, orbital_energy: float,
             start_time: float) -> Orbit:
    """The orbit that comes to its first pericentre a given time from now.

    Parameters
    ----------
    pericentre : closest approach, kpc.
    orbital_energy : specific energy over the depth of the mutual potential at pericentre;
        0 is parabolic, negative bound.
    start_time : Myr from the start to the first pericentre.

    Raises
    ------
    SimulationError
        If a bound orbit never was so far out that it took so long to come in.
    """
    separation, potential = mutual_potential(primary, secondary)
    log_separation = np.log(separation)

    def w(r):
        return np.interp(np.log(r), log_separation, potential)

    energy = orbital_energy * abs(w(pericentre))
    angular_momentum = pericentre * np.sqrt(2 * (energy - w(pericentre)))
    # r = rp + x^2 takes the singularity at the turning point out of dt = dr / v_r.
    x = np.linspace(0, np.sqrt(480 - pericentre), 8001)[1:]
    r = pericentre + x**2
    radial2 = 2 * (energy - w(r)) - (angular_momentum / r) ** 2
    if radial2[10] <= 0:
        raise SimulationError(f"pericentre = {pericentre:g} kpc and orbital_energy = {orbital_energy:g}: on this orbit "
                              "the galaxies are nowhere further apart; raise orbital_energy or lower pericentre")
    bound = np.flatnonzero(radial2 <= 0)
    bound = bound[bound > 10]  # rounding right at pericentre does not count
    reach = bound[0] if len(bound) else len(r)
    rate = 2 * x[:reach] / np.sqrt(np.clip(radial2[:reach], 1e-12, None))
    elapsed = np.cumsum(rate) * (x[1] - x[0])
    i = int(np.searchsorted(elapsed, start_time))
    if i >= reach:
        raise SimulationError(
            f"start_time = {start_time:g} Myr: with pericentre = {pericentre:g} kpc and orbital_energy = "
            f"{orbital_energy:g} the galaxies are at most {elapsed[-1]:.0f} Myr from their pericentre; "
            "start later or raise orbital_energy")
    transverse = angular_momentum / r[i]
    return Orbit(np.array([r[i], 0, 0]), np.array([-np.sqrt(radial2[i]), transverse, 0]), float(elapsed[i]))


def disc_rotation(inclination: float, node: float) -> np.ndarray:
    """Rotation (3, 3), determinant +1, that tilts a spin along +z.

    Parameters
    ----------
    inclination : degrees between spin and orbital angular momentum; 0 is prograde, 180 retrograde.
    node : degrees of the line of nodes from the x axis, in the orbital plane.

    References
    ----------
    Toomre & Toomre (1972), ApJ 178, 623, section II.
    """
    i, o = np.radians([inclination, node])
    tilt = np.array([[1, 0, 0], [0, np.cos(i), -np.sin(i)], [0, np.sin(i), np.cos(i)]])
    turn = np.array([[np.cos(o), -np.sin(o), 0], [np.sin(o), np.cos(o), 0], [0, 0, 1]])
    return turn @ tilt
