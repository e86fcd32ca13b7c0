"""Whole snapshots, dark matter and velocities included, as Gadget-HDF5 files that other programs read.

Units are the usual ones of Gadget: kpc, 1e10 Msun, km/s. A particle's id is 1 + its number within its galaxy,
plus 1e9 in the secondary: the same particle in every snapshot, and the galaxy can be told from it.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from pathlib import Path

import h5py
import numpy as np

from ..errors import SimulationError
from ..files import sync_folder, temporary_beside, write_whole
from ..units import KM_S
from .galaxy import BULGE, DISC, HALO, Particles
from .snapshot import CannotWrite, Encounter

__all__ = ["KPC_IN_CM", "MSUN_IN_G", "PARTICLE_TYPES", "SECONDARY_IDS", "SnapshotFolder", "particle_ids",
           "write_snapshot"]

#: IAU 2012 and 2015, with G of CODATA 2018.
KPC_IN_CM = 3.0856775814913674e21
MSUN_IN_G = 1.988409870698051e33

#: Gadget's number of each component; 0 would be gas.
PARTICLE_TYPES = {HALO: 1, DISC: 2, BULGE: 3}
#: Added to the ids of the secondary's particles.
SECONDARY_IDS = 1_000_000_000

_MASS = 1e10  # Msun
#: Physical numbers need neither the scale factor nor h: in the words of Gadget-3 and of Gadget-4.
_SCALING = {"aexp-scale-exponent": 0.0, "h-scale-exponent": 0.0, "a_scaling": 0.0, "h_scaling": 0.0}


def particle_ids(galaxy: np.ndarray) -> np.ndarray:
    """Ids (N,) uint32 of particles in the order of the run, which never changes."""
    ids = np.empty(len(galaxy), np.uint32)
    for k in np.unique(galaxy):
        mine = np.flatnonzero(galaxy == k)
        ids[mine] = int(k) * SECONDARY_IDS + 1 + np.arange(len(mine))
    return ids


def write_snapshot(path: str | Path, particles: Particles, time: float) -> None:
    """Write all particles at one time, whole or not at all.

    Parameters
    ----------
    path : of the file; ".hdf5" is what other programs expect.
    particles : kpc, kpc/Myr, Msun.
    time : Myr since the start of the run.

    Raises
    ------
    CannotWrite
    """
    # In memory first: on a full disk HDF5 crashes when it closes a file.
    content = io.BytesIO()
    with h5py.File(content, "w") as f:
        _fill(f, particles, time)
    try:
        write_whole(path, content.getbuffer())
    except OSError as error:
        raise _cannot_write(path, error) from None


def _fill(f: h5py.File, particles: Particles, time: float) -> None:
    from .. import __version__

    # Name, values, factor to Gadget's units, those in cgs and words, the powers of length, mass and velocity in them.
    quantities = (("Coordinates", particles.positions, 1.0, KPC_IN_CM, "U_L [cm]", (1, 0, 0)),
                  ("Velocities", particles.velocities, 1 / KM_S, 1e5, "U_V [cm/s]", (0, 0, 1)),
                  ("Masses", particles.masses, 1 / _MASS, _MASS * MSUN_IN_G, "U_M [g]", (0, 1, 0)))
    ids = particle_ids(particles.galaxy)
    counts = np.zeros(6, np.uint32)
    for component, number in PARTICLE_TYPES.items():
        mine = particles.component == component
        counts[number] = mine.sum()
        if not counts[number]:
            continue
        group = f.create_group(f"PartType{number}")
        group["ParticleIDs"] = ids[mine]
        group["ParticleIDs"].attrs.update({**_SCALING, "CGSConversionFactor": 1.0, "VarDescription": np.bytes_("id")})
        for name, values, factor, cgs, words, powers in quantities:
            group[name] = (values[mine] * factor).astype(np.float32)
            group[name].attrs.update({
                **_SCALING, "CGSConversionFactor": cgs, "to_cgs": cgs, "VarDescription": np.bytes_(f"{name}, {words}"),
                **dict(zip(("length_scaling", "mass_scaling", "velocity_scaling"), map(float, powers), strict=True))})
    header = {"NumPart_ThisFile": counts, "NumPart_Total": counts, "NumPart_Total_HighWord": np.zeros(6, np.uint32),
              "MassTable": np.zeros(6), "Time": time * KM_S, "Time_GYR": time / 1e3, "Redshift": 0.0, "BoxSize": 0.0,
              "NumFilesPerSnapshot": 1, "Omega0": 0.0, "OmegaLambda": 0.0, "HubbleParam": 1.0,
              "Code": np.bytes_(f"deepgalaxy {__version__}")}  # of fixed length: yt cannot read others
    header |= {f"Flag_{name}": 0 for name in ("Sfr", "Cooling", "StellarAge", "Metals", "Feedback",
                                              "DoublePrecision", "IC_Info", "Entropy_ICs")}
    f.create_group("Header").attrs.update(header)
    f.create_group("Units").attrs.update({"UnitLength_in_cm": KPC_IN_CM, "UnitMass_in_g": _MASS * MSUN_IN_G,
                                          "UnitVelocity_in_cm_per_s": 1e5})


class SnapshotFolder:
    """All snapshots of one encounter: the folder gets its name when all of them are in it.

    Examples
    --------
    >>> with SnapshotFolder("runs/encounter_0000") as snapshots:
    ...     snapshots.label(simulate(config, snapshots.write))
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        # The end of the name is that of all temporary files: `run_suite` clears away what was left behind.
        self._temporary = temporary_beside(self.path)
        self._times: list[float] = []

    def __enter__(self) -> SnapshotFolder:
        if self.path.exists() and not self._is_ours():
            raise SimulationError(f"{self.path}: is in the way of the snapshots and was not written by deepgalaxy; "
                                  "move it, or choose another folder")
        try:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary.mkdir(parents=True)
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                sync_folder(self._temporary)
                if self.path.exists():  # of a run that was killed before its encounter file was there
                    shutil.rmtree(self.path)
                os.replace(self._temporary, self.path)
                sync_folder(self.path.parent)
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def write(self, time: float, particles: Particles) -> None:
        """Add the next snapshot; `time` in Myr since the start (see `simulate`)."""
        write_snapshot(self._temporary / f"snapshot_{len(self._times):03d}.hdf5", particles, time)
        self._times.append(time)

    def label(self, encounter: Encounter) -> None:
        """Write `labels.csv`, which names those snapshots that the encounter holds, with their labels."""
        p = encounter.parameters
        times = np.array(self._times) - p["pericentre_time"]
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["snapshot", "encounter", "time", "mass_ratio", "size_ratio", "pericentre", "stage",
                       "separation", "primary_stars"])
        for time, stage, separation in zip(encounter.time, encounter.stage, encounter.separation, strict=True):
            n = int(np.argmin(np.abs(times - time)))
            rows.writerow([f"snapshot_{n:03d}.hdf5", encounter.name, f"{time:.4f}", p["mass_ratio"], p["size_ratio"],
                           p["pericentre"], stage, f"{separation:.4f}", p["primary_stars"]])
        try:
            write_whole(self._temporary / "labels.csv", text.getvalue())
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def _is_ours(self) -> bool:
        return self.path.is_dir() and all(
            p.name == "labels.csv" or p.match("snapshot_*.hdf5") for p in self.path.iterdir())


def _cannot_write(path: str | Path, error: OSError) -> CannotWrite:
    return CannotWrite(f"{path}: cannot be written ({error.strerror}); free space or choose another folder and start "
                       "again, finished encounters are kept")
