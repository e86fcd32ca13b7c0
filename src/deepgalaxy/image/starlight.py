"""Light that does not follow mass: galaxies of other colours, faint bulges, bright outskirts, arms of young stars.

Simulated stars shine by their mass. Real ones do not, and a model that only knows the former is too sure of the ratios
of the latter. Each snapshot draws how its two galaxies shine; positions and labels stay.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from ..labels import STARLIGHT
from ..simulate.galaxy import BULGE, DISC
from ..simulate.snapshot import Encounter
from ..simulate.undisturbed import Undisturbed

__all__ = ["Starlight", "shine"]

_RATIO_DEX = 0.15  # of the light per mass of a whole galaxy
_BULGE_DEX = (-0.6, 0.1)  # of a bulge against its disc
_GRADIENT = 0.3  # at most, of the logarithm of a disc's light per mass, per scale length
_ARMS = (0.3, 1.7)  # amplitude of the logarithm of the light of arms, in two of three galaxies
_PITCH = (10.0, 35.0)  # degrees
_LEAST = 50  # stars that a disc must have to be lit by arms


@dataclass
class Starlight:
    """As far as pictures go the same as its source, with light in the place of mass."""

    source: Encounter | Undisturbed

    def __getattr__(self, name):
        if name == "source":  # not there yet when it is unpickled
            raise AttributeError(name)
        return getattr(self.source, name)

    @property
    def name(self) -> str:
        """Of its group in a data set."""
        return f"{self.source.name}-{STARLIGHT}"

    @property
    def attributes(self) -> dict:
        """Of its group in a data set."""
        return {"encounter": self.source.name, **self.source.attributes, "light": "varied"}

    def without_stars(self) -> Starlight:
        """What is left when the pictures are made: labels and parameters."""
        return Starlight(self.source.without_stars())

    def stars(self, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Positions (N, 3) in kpc, light (N,) in Msun of mean stars and smoothing lengths in kpc at one snapshot."""
        positions, masses, smoothing = self.source.stars(t)
        galaxy, component = self.source.members(t)
        # Suites name their encounters alike.
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), int(self.source.parameters.get("seed", 0)), t])
        light = masses.astype(np.float64)
        for k in (0, 1):
            own = galaxy == k
            if own.any():
                light[own] *= shine(positions[own], component[own], rng)
        return positions, light, smoothing


def shine(positions: np.ndarray, component: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light per mass (N,) of the stars of one galaxy, 1 in the mean of many galaxies' discs.

    Parameters
    ----------
    positions : (N, 3) kpc.
    component : (N,) `galaxy.DISC` or `galaxy.BULGE`.
    rng : draws how the galaxy shines.
    """
    u = rng.random(8)
    disc = component == DISC
    # Whatever the galaxy has, the same numbers are drawn.
    light = np.full(len(positions), 10 ** (_RATIO_DEX * np.clip(rng.standard_normal(), -2, 2)))
    light[component == BULGE] *= 10 ** (_BULGE_DEX[0] + (_BULGE_DEX[1] - _BULGE_DEX[0]) * u[0])
    if disc.sum() < _LEAST:
        return light
    nucleus = np.median(positions[~disc] if (~disc).sum() > 20 else positions, axis=0)
    x = np.asarray(positions[disc], np.float64) - nucleus
    radius = np.linalg.norm(x, axis=1)
    scale = np.median(radius) / 1.678  # half of an exponential disc lies within 1.678 scale lengths
    light[disc] *= np.exp(_GRADIENT * u[1] * (np.minimum(radius / scale, 5) - 1.678))
    if u[2] < 2 / 3:
        light[disc] *= _arms(x, scale, u[3:], rng.choice([2, 3, 4], p=[0.7, 0.15, 0.15]))
    return light


def _arms(x, scale, u, n_arms) -> np.ndarray:
    """Logarithmic spirals in the plane of the disc as it lies now, from 0.8 to 4 scale lengths."""
    inner = x[np.linalg.norm(x, axis=1) < 3 * scale]
    _, axes = np.linalg.eigh(inner.T @ inner)  # the shortest first
    a, b = x @ axes[:, 2], x @ axes[:, 1]
    r = np.hypot(a, b) / scale
    amplitude = _ARMS[0] + (_ARMS[1] - _ARMS[0]) * u[0]
    pitch = np.radians(_PITCH[0] + (_PITCH[1] - _PITCH[0]) * u[1])
    sense = 1 if u[2] < 0.5 else -1
    phase = n_arms * (np.arctan2(b, a) - sense * np.log(np.maximum(r, 0.3)) / np.tan(pitch)) + 2 * np.pi * u[3]
    where = 1 / ((1 + np.exp((r - 4) / 0.5)) * (1 + np.exp((0.8 - r) / 0.2)))
    return 1 + where * (np.exp(amplitude * np.cos(phase)) - 1)
