"""In whose Myr: from the time of the simulations to that of the system in the picture.

A picture cannot tell a heavy fast encounter from a light slow one: with all lengths fixed, masses times m and times
over sqrt(m) look the same. The model's times hold for the primary of the simulations; a mass sets the clock.
"""

from __future__ import annotations

import numpy as np

from ..labels import MASS_RATIO, TIME, Label
from ..units import REFERENCE_STARS, REFERENCE_TIME

__all__ = ["set_clock"]

_DRAWS = 40_000


def set_clock(properties: dict, curves: dict, quantiles: dict[str, float], mass: float | None = None,
              mass_dex: float = 0.0) -> dict:
    """Turn the time into Myr of the system in the picture, if its mass is known; say what the Myr hold for.

    Parameters
    ----------
    properties, curves : as `posterior.summarise` makes them; the time in them is changed if there is a mass.
    mass : of the stars of both galaxies, Msun. Their halos are taken to be as heavy against them as simulated.
    mass_dex : standard deviation of its decimal logarithm.

    Returns
    -------
    clock : {"basis": "reference" or "mass", "stellar_mass", "stellar_mass_dex" (None without a mass),
        "dynamical_time_myr" (of the primary: sqrt(L^3 / GM), L its disc's scale length, M its stars),
        "time_in_dynamical_times": {p05, ...}}.
    """
    before = properties[TIME.name]
    clock = {"basis": "reference", "stellar_mass": None, "stellar_mass_dex": None,
             "dynamical_time_myr": REFERENCE_TIME,
             "time_in_dynamical_times": {name: before[name] / REFERENCE_TIME for name in quantiles}}
    if mass is None:
        return clock
    rng = np.random.default_rng(0)  # the same picture, the same answer
    ratio = _draw(MASS_RATIO, curves[MASS_RATIO.name][1], rng)
    heavier = mass * 10 ** (mass_dex * rng.standard_normal(_DRAWS)) / (REFERENCE_STARS * (1 + ratio))
    time = _draw(TIME, curves[TIME.name][1], rng) / np.sqrt(heavier)
    properties[TIME.name] = {"unit": "Myr", **{name: float(np.quantile(time, q)) for name, q in quantiles.items()}}
    low, high = np.quantile(time, [0.0005, 0.9995])
    edges = np.linspace(low, high, TIME.n_bins + 1)
    counts = np.histogram(time, edges)[0]
    curves[TIME.name] = edges, counts / counts.sum()
    return {**clock, "basis": "mass", "stellar_mass": mass, "stellar_mass_dex": mass_dex,
            "dynamical_time_myr": float(REFERENCE_TIME / np.sqrt(np.median(heavier)))}


def _draw(label: Label, probability: np.ndarray, rng) -> np.ndarray:
    """Samples (_DRAWS,) of a binned distribution, evenly within each bin."""
    bins = rng.choice(label.n_bins, _DRAWS, p=np.asarray(probability, float) / np.sum(probability, dtype=float))
    position = bins + rng.random(_DRAWS)
    return np.interp(position, np.arange(label.n_bins + 1), label.edges)
