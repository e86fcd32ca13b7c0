"""Single galaxies, and chance pairs that only overlap, out of the first snapshots of an encounter.

Before they meet, both galaxies are as they would be alone. Whoever photographs the sky meets such
systems more often than mergers, so a model must have seen them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from ..errors import SimulationError
from ..labels import NO_SEPARATION, UNDISTURBED
from .snapshot import Encounter

__all__ = ["Undisturbed"]

_EARLY = 40.0  # Myr of the beginning of an encounter that are used
_BEFORE = -60.0  # Myr; later the galaxies begin to feel each other
_OFFSETS = (4.0, 70.0)  # kpc between the nuclei of a chance pair


@dataclass
class Undisturbed:
    """As far as pictures go the same as `Encounter`: n systems instead of n snapshots.

    Raises
    ------
    SimulationError
        If the encounter has no snapshot from before the galaxies feel each other.
    """

    encounter: Encounter
    kind: str  #: of labels.UNDISTURBED
    n: int
    parameters: dict = field(init=False)

    def __post_init__(self):
        if not (self.encounter.time <= _BEFORE).any():
            raise SimulationError(f"{self.encounter.name}: begins {self.encounter.time.min():+.0f} Myr from its "
                                  "pericentre, when its galaxies are no longer undisturbed; n_undisturbed needs "
                                  f"first_time <= {_BEFORE:g}, or leave it out")
        kept = ("seed",) if self.kind == "single" else ("seed", "mass_ratio", "size_ratio")
        self.parameters = {"kind": self.kind, "encounter": self.encounter.name,
                           **{name: v for name, v in self.encounter.parameters.items() if name in kept}}

    @property
    def name(self) -> str:
        """Of its group in a data set."""
        return f"{self.encounter.name}-{self.kind}"

    @property
    def attributes(self) -> dict:
        """Of its group in a data set."""
        return self.parameters

    @property
    def time(self) -> np.ndarray:
        """(n,) Myr of the snapshots that the galaxies are taken from, about a pericentre that plays no part."""
        return np.array([self.encounter.time[self._snapshot(t)] for t in range(self.n)], np.float32)

    @property
    def separation(self) -> np.ndarray:
        """(n,) all unknown."""
        return np.full(self.n, NO_SEPARATION, np.float32)

    @property
    def stage(self) -> np.ndarray:
        """(n,) index into labels.STAGES."""
        return np.full(self.n, UNDISTURBED[self.kind], np.uint8)

    def without_stars(self) -> Undisturbed:
        """What is left when the pictures are made: labels and parameters."""
        return Undisturbed(self.encounter.without_stars(), self.kind, self.n)

    def stars(self, t: int) -> tuple[np.ndarray, np.ndarray, None]:
        """Positions (N, 3) in kpc, masses (N,) in Msun and no smoothing lengths of one system."""
        e, snapshot = self.encounter, self._snapshot(t)
        parts = [(e.positions[snapshot][e.galaxy == k].astype(float), e.masses[e.galaxy == k]) for k in self._shown(t)]
        parts = [(x - np.median(x, axis=0), m) for x, m in parts]
        if len(parts) == 1:
            return *parts[0], None
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), t])
        (x, m), (x2, m2) = parts
        # Another time and place would show it from another side.
        turn = Rotation.random(None, rng).as_matrix()
        direction = rng.standard_normal(3)
        low, high = _OFFSETS
        offset = direction / np.linalg.norm(direction) * low * (high / low) ** rng.random()
        return np.concatenate([x, x2 @ turn.T + offset]), np.concatenate([m, m2]), None

    def members(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Galaxy (N,) and component (N,) of these stars."""
        e = self.encounter
        order = np.concatenate([np.flatnonzero(e.galaxy == k) for k in self._shown(t)])
        return e.galaxy[order], e.component[order]

    def _shown(self, t: int) -> tuple[int, ...]:
        """Of the encounter's galaxies."""
        return (t % 2,) if self.kind == "single" else (0, 1)

    def _snapshot(self, t: int) -> int:
        time = self.encounter.time
        early = np.flatnonzero((time <= time[0] + _EARLY) & (time <= _BEFORE))
        return int(early[t * len(early) // self.n])
