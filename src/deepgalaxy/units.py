"""Units: kpc, Myr, Msun.

Velocities are kpc/Myr; 1 km/s = 1.0227e-3 kpc/Myr. Energies are Msun (kpc/Myr)^2.
"""

from __future__ import annotations

import math

__all__ = ["G", "KM_S", "REFERENCE_LENGTH", "REFERENCE_STARS", "REFERENCE_TIME", "dynamical_time", "time_factor",
           "kpc_per_arcsec"]

#: Gravitational constant, kpc^3 / (Msun Myr^2) (CODATA 2018 and IAU 2015 nominal solar mass).
G = 4.498502e-12

#: One km/s in kpc/Myr.
KM_S = 1.022712e-3


def dynamical_time(length: float, mass: float) -> float:
    """sqrt(L^3 / (G M)) in Myr, for a length in kpc and a mass in Msun.

    Two encounters of the same shape run on clocks that scale with this time: lengths fixed, masses
    times four, everything happens twice as fast and looks the same.
    """
    return math.sqrt(length**3 / (G * mass))


#: The primary of the simulations: scale length of its disc, kpc; stars of disc and bulge, Msun; its clock, Myr (10.0).
REFERENCE_LENGTH = 3.0
REFERENCE_STARS = 6e10
REFERENCE_TIME = dynamical_time(REFERENCE_LENGTH, REFERENCE_STARS)


def time_factor(length: float, mass: float) -> float:
    """By how much all times grow when all lengths and all masses are multiplied: sqrt(length^3 / mass)."""
    return math.sqrt(length**3 / mass)


def kpc_per_arcsec(redshift: float) -> float:
    """Physical size of one arcsecond at a redshift, in kpc (flat LCDM of Planck 2018)."""
    import astropy.units as u
    from astropy.cosmology import Planck18

    return float(Planck18.kpc_proper_per_arcmin(redshift).to_value(u.kpc / u.arcsec))
