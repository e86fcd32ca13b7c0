"""The encounter file: the stars of one encounter at all its snapshots.

An encounter is a file that is either whole or not there: it is written under a temporary name,
flushed, synced and renamed; a checksum guards every byte.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import h5py
import numpy as np

from ..errors import SimulationError
from ..files import open_sealed, read_arrays, sealed_hdf5

__all__ = ["CannotWrite", "Encounter", "MAX_DRIFT", "drift_of", "parameters_of", "stages"]

FORMAT = "deepgalaxy-encounter"
FORMAT_VERSION = 2

#: Relative drift of energy and of angular momentum over a run above which it is not to be believed.
MAX_DRIFT = 0.003


class CannotWrite(SimulationError):
    """The disk is full, or the folder gone or read-only: other encounters cannot be written either."""


@dataclass
class Encounter:
    """One simulated encounter: T snapshots of N stars."""

    name: str
    time: np.ndarray  #: (T,) Myr since the first pericentre
    positions: np.ndarray  #: (T, N, 3) float32, kpc; orbit in the x-y plane, turning about +z
    masses: np.ndarray  #: (N,) float32, Msun
    component: np.ndarray  #: (N,) int8, galaxy.DISC or galaxy.BULGE
    galaxy: np.ndarray  #: (N,) int8, 0 primary, 1 secondary
    separation: np.ndarray  #: (T,) float32, kpc between the nuclei
    stage: np.ndarray  #: (T,) uint8, index into labels.STAGES
    parameters: dict = field(default_factory=dict)  #: mass_ratio, pericentre, drifts, ...
    config: str = "{}"  #: JSON of the configuration that made it

    def stars(self, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Positions (N, 3) in kpc, masses (N,) in Msun and smoothing lengths in kpc at one snapshot.

        None for the lengths: they are to be found from the neighbours.
        """
        return self.positions[t], self.masses, None

    def members(self, t: int) -> tuple[np.ndarray, np.ndarray]:
        """Galaxy (N,) and component (N,) of these stars."""
        return self.galaxy, self.component

    @property
    def attributes(self) -> dict:
        """Of its group in a data set: its parameters, and what it takes to simulate it again."""
        return {**self.parameters, "config": self.config}

    def without_stars(self) -> Encounter:
        """What is left when the pictures are made: labels and parameters."""
        return replace(self, positions=self.positions[:0])

    def write(self, path: str | Path) -> None:
        """Write whole or not at all."""
        from .. import __version__

        path = Path(path)
        try:
            with sealed_hdf5(path) as f:
                f.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, "name": self.name,
                                "deepgalaxy_version": __version__, "config": self.config,
                                "units": "kpc, Myr, Msun", **self.parameters})
                f.create_dataset("positions", data=self.positions.astype(np.float32),
                                 chunks=(1, *self.positions.shape[1:]))
                for name in ("time", "masses", "component", "galaxy", "separation", "stage"):
                    f.create_dataset(name, data=getattr(self, name))
        except OSError as error:
            raise CannotWrite(f"{path}: cannot be written ({error}); free space or choose another "
                                  "folder and start again, finished encounters are kept") from None

    @classmethod
    def read(cls, path: str | Path) -> Encounter:
        """Read an encounter file.

        Raises
        ------
        SimulationError
            If it is missing, of another kind, cut or damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise SimulationError(f"{path}: no such encounter file; make it with 'deepgalaxy simulate'")
        try:
            with open(path, "rb") as f:
                if f.read(4) == b"\x89HDF":  # ours begin with their checksum
                    raise SimulationError(f"{path}: is not an encounter file of deepgalaxy; move it elsewhere")
            with open_sealed(path) as f:
                if f.attrs.get("format") != FORMAT:
                    raise SimulationError(f"{path}: is not an encounter file of deepgalaxy")
                if f.attrs.get("format_version") != FORMAT_VERSION:
                    raise SimulationError(f"{path}: is of version {f.attrs.get('format_version')}, this program reads "
                                          f"{FORMAT_VERSION}; simulate it again")
                arrays = read_arrays(f, ("time", "positions", "masses", "component", "galaxy", "separation", "stage"))
                _check_arrays(arrays)
                return cls(name=f.attrs["name"], config=f.attrs["config"], parameters=_parameters(f), **arrays)
        except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
            raise SimulationError(f"{path}: damaged encounter file ({error}); delete it and simulate "
                                  "again, only this encounter will run") from None


def _check_arrays(arrays: dict[str, np.ndarray]) -> None:
    """ValueError if they do not fit each other, or hold what is no number."""
    n_times, n_stars = len(arrays["time"]), len(arrays["masses"])
    shapes = {"positions": (n_times, n_stars, 3), **dict.fromkeys(("time", "separation", "stage"), (n_times,))}
    for name, values in arrays.items():
        if values.shape != shapes.get(name, (n_stars,)):
            raise ValueError(f"'{name}' does not fit the other arrays")
        measured = name in ("time", "positions", "masses")  # a separation may be unknown
        if values.dtype.kind not in "fiu" or (measured and not np.isfinite(values).all()):
            raise ValueError(f"'{name}' holds what is no finite number")


def drift_of(path: str | Path) -> float:
    """The larger drift of energy and angular momentum that an encounter file records."""
    parameters = parameters_of(path)
    return float(np.max([parameters.get(name, np.nan) for name in ("energy_drift", "angular_momentum_drift")]))


def parameters_of(path: str | Path) -> dict:
    """What `Encounter.parameters` of a file will be; all its bytes are read, for the checksum."""
    try:
        with open_sealed(path) as f:
            return _parameters(f)
    except (OSError, KeyError) as error:
        raise SimulationError(f"{path}: damaged encounter file ({error}); delete it and simulate again, only this "
                              "encounter will run") from None


def _parameters(f: h5py.File) -> dict:
    own = {"format", "format_version", "name", "deepgalaxy_version", "config", "units"}
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in f.attrs.items() if k not in own}


def stages(time: np.ndarray, separation: np.ndarray, merged_below: float = 3.0, merged_for: float = 50.0,
           turned_by: float = 1.0) -> np.ndarray:
    """Stage (T,) uint8 of every snapshot from the track of the nuclei.

    "return" begins at the first apocentre, which is known once the nuclei have come closer by `turned_by` kpc: less is
    their jitter. "merged" begins once they stay within `merged_below` kpc, and are followed for `merged_for` Myr from
    there: a record may end in a passage.
    """
    stage = np.where(time < 0, 0, 1).astype(np.uint8)
    after = np.flatnonzero(time >= 0)
    if len(after) == 0:
        return stage
    track = separation[after]
    closer = np.flatnonzero(track < np.maximum.accumulate(track) - turned_by)
    if len(closer):
        stage[after[track[:closer[0]].argmax()]:] = 2
    apart = np.flatnonzero(track > merged_below)
    together = after[apart[-1] + 1:] if len(apart) else after
    if len(together) and time[together[-1]] - time[together[0]] >= merged_for:
        stage[together] = 3
    return stage
