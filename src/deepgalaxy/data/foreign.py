"""The stars in snapshots of other programs: Gadget-HDF5, AREPO and SWIFT.

A snapshot is a stranger's file: it is looked at as data sets are (data/schema.py), and nothing outside of it is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ..errors import DatasetError
from ..progress import one_line
from ..simulate.gadget import KPC_IN_CM, MSUN_IN_G
from .schema import LOSSY_FILTERS, guard, member, open_file

__all__ = ["Stars", "files_of", "read_stars"]

#: Which types are stars without a word of the user: disc, bulge and formed ones; in SWIFT 2 and 3 are dark matter
#: and sinks.
_STAR_TYPES = {"gadget": (2, 3, 4), "swift": (4,)}

#: Names in Gadget and AREPO, then in SWIFT, of a unit in cgs.
_UNITS = {"length": ("UnitLength_in_cm", "Unit length in cgs (U_L)"),
          "mass": ("UnitMass_in_g", "Unit mass in cgs (U_M)")}
_CGS = {"length": (KPC_IN_CM, "kpc"), "mass": (MSUN_IN_G, "Msun")}
#: Attributes of an array that say its unit: to cgs, exponent of the scale factor, exponent of h.
_OF_ARRAYS = (
    ("Conversion factor to CGS (not including cosmological corrections)", "a-scale exponent", "h-scale exponent"),
    ("CGSConversionFactor", "aexp-scale-exponent", "h-scale-exponent"),
    ("to_cgs", "a_scaling", "h_scaling"),
)
_SMOOTHING = ("SmoothingLengths", "SmoothingLength", "StellarHsml", "SubfindHsml")
#: SWIFT's smoothing lengths are widths of the kernel; it ends at so many of them, by the name that its files give it
#: (Dehnen & Aly 2012, arXiv 1204.2471, table 1). Gadget's and AREPO's are where the kernel ends.
_KERNEL_ENDS = {"cubic spline": 1.825742, "quartic spline": 2.018932, "quintic spline": 2.195775,
                "wendland c2": 1.936492, "wendland c4": 2.207940, "wendland c6": 2.449490}

#: A pair of galaxies is within these, or its units are wrong: Msun of all stars, kpc that hold half of them.
_MASS_RANGE = (1e5, 1e14)
_RADIUS_RANGE = (0.01, 3000.0)
#: Files of one snapshot.
_MAX_FILES = 4096
_PART = re.compile(r"(.+\.)(\d+)(\.[^.]+)")  # of the name of one of several files of a snapshot


@dataclass
class Stars:
    """The stars of one snapshot, in physical units."""

    positions: np.ndarray  #: (N, 3) float32, kpc, in the axes of the snapshot
    masses: np.ndarray  #: (N,) float32, Msun
    smoothing: np.ndarray | None  #: (N,) float32, kpc; None where the file has none


def read_stars(path: str | Path, types: Sequence[int] | None = None,
               units: tuple[float, float] | None = None, smoothing: bool = False) -> Stars:
    """The stars of a snapshot, in one HDF5 file or in several.

    Parameters
    ----------
    path : of the file; of one of them, NAME.0.hdf5, where there are several: the others lie beside it.
    types : which particles are stars; without it 2, 3 and 4, of SWIFT only 4.
    units : kpc and Msun of the file's units, physical; without it, as the file says.
    smoothing : read smoothing lengths too.

    Raises
    ------
    DatasetError
        If a file is missing, cut, damaged or of another snapshot, holds no stars, or leaves masses or units open.
    """
    source = one_line(path)
    snapshot, parts = _read_file(path, types, units, smoothing)
    total, boxes = snapshot.total, [snapshot.box]
    for other in _files_beside(Path(path), snapshot.n_files):
        beside, more = _read_file(other, types, units, smoothing)
        if (beside.n_files, beside.time, beside.total) != (snapshot.n_files, snapshot.time, total):
            raise DatasetError(f"{beside.source}: is of another snapshot than {source} (another Time, NumPart_Total or "
                               "NumFilesPerSnapshot in its header); fetch them again")
        parts += more
        boxes.append(beside.box)
    parts = [part for part in parts if len(part.masses)]
    if not parts:
        looked = ", ".join(f"PartType{k}" for k in types or _STAR_TYPES[snapshot.code])
        raise DatasetError(f"{source}: holds no stars ({looked}); choose others with star_types in labels.yaml")
    lengths = None
    if all(part.smoothing is not None for part in parts):
        lengths = np.concatenate([part.smoothing for part in parts])
    positions = _gathered(np.concatenate([part.positions for part in parts]), next(filter(np.any, boxes), None))
    stars = Stars(positions, np.concatenate([part.masses for part in parts]), lengths)
    _refuse_nonsense(stars, source)
    return stars


def _read_file(path: str | Path, types, units, smoothing: bool) -> tuple[_Snapshot, list[Stars]]:
    """One file: what its header says, and its stars of each type that it has."""
    source = one_line(path)
    try:
        file = open_file(path)
    except DatasetError as error:
        raise DatasetError(str(error).replace("a data set", "a snapshot")) from None
    with file, guard(source):  # members guard themselves; attributes and values are read here
        snapshot = _Snapshot(file, source, units)
        parts = [snapshot.stars(k, smoothing) for k in types or _STAR_TYPES[snapshot.code]]
    return snapshot, [part for part in parts if part is not None]


def files_of(path: Path) -> list[Path]:
    """A snapshot's file and, where its header says that there are several, the others that lie beside it.

    Of one that cannot be read, its own: `read_stars` says why.
    """
    if _PART.fullmatch(path.name) is None:
        return [path]
    source = one_line(path)
    try:
        with open_file(path) as file, guard(source):
            n_files = _Snapshot(file, source, (1.0, 1.0)).n_files
        return [path, *filter(Path.is_file, _files_beside(path, n_files))]
    except DatasetError:
        return [path]


def _files_beside(path: Path, n_files: int) -> list[Path]:
    """The other files of a snapshot that is written as NAME.0.hdf5, NAME.1.hdf5 and so on."""
    if n_files == 1:
        return []
    name = _PART.fullmatch(path.name)
    if name is None or int(name[2]) >= n_files:
        raise DatasetError(f"{one_line(path)}: is one of {n_files} files of its snapshot; they must be named "
                           f"NAME.0.hdf5 to NAME.{n_files - 1}.hdf5 and lie beside each other")
    return [path.with_name(f"{name[1]}{i}{name[3]}") for i in range(n_files) if i != int(name[2])]


class _Snapshot:
    """An open file: its header, and its particles type by type."""

    def __init__(self, file: h5py.File, source: str, units: tuple[float, float] | None):
        self.file, self.source = file, source
        header = self._group("Header")
        if header is None:
            raise DatasetError(f"{source}: has no group 'Header'; only snapshots in the HDF5 layout of Gadget, AREPO "
                               "or SWIFT can be read")
        self._attributes = [g.attrs for g in (header, self._group("Parameters"), self._group("Units"),
                                              self._group("Cosmology")) if g is not None]
        code = header.attrs.get("Code", b"")
        swift = _text(code).upper() == "SWIFT" or self._number(_UNITS["length"][1]) is not None
        self.code = "swift" if swift else "gadget"
        self.n_files = int(self._number("NumFilesPerSnapshot") or 1)
        if not 1 <= self.n_files <= _MAX_FILES:
            raise DatasetError(f"{source}: NumFilesPerSnapshot must be 1 to {_MAX_FILES}, got {self.n_files}")
        self.time = self._number("Time")
        self.total = tuple(self._of_type("NumPart_Total", k) for k in range(6))
        self.units = dict(zip(("length", "mass"), units, strict=True)) if units else None
        self.box: np.ndarray | None = None  #: (3,) kpc, once coordinates were read; None if the file has none
        self.expands, self.scale_factor, self.hubble = self._cosmology()

    def stars(self, number: int, with_smoothing: bool) -> Stars | None:
        """Particles of one type; None if there are none."""
        group = self._group(f"PartType{number}")
        expected = self._of_type("NumPart_ThisFile", number)
        if group is None or not group.id.links.exists(b"Coordinates"):
            if expected:
                raise DatasetError(f"{self.source}: PartType{number} should have {expected:.0f} particles and has no "
                                   "'Coordinates'; write the snapshot again")
            return None
        coordinates = self._member(group, "Coordinates")
        n = coordinates.shape[0] if coordinates.ndim else -1
        if coordinates.shape != (n, 3):
            raise DatasetError(f"{self.source}: PartType{number}: 'Coordinates' must have shape (N, 3), "
                               f"got {coordinates.shape}")
        if expected is not None and expected != n:
            raise DatasetError(f"{self.source}: PartType{number} has {n} particles, its header says {expected:.0f}; "
                               "the snapshot is not whole, fetch it again")
        kpc = self._to_physical("length", coordinates)
        positions, self.box = coordinates[()] * kpc, self._box(kpc)
        masses = self._masses(group, number, n)
        smoothing = self._smoothing(group, n) if with_smoothing else None
        if group.id.links.exists(b"GFM_StellarFormationTime"):
            formed = self._member(group, "GFM_StellarFormationTime")
            if formed.shape != (n,):
                raise DatasetError(f"{self.source}: PartType{number}: 'GFM_StellarFormationTime' must have shape "
                                   f"({n},), got {formed.shape}")
            formed = formed[()]
            if np.isnan(formed).any():
                raise DatasetError(f"{self.source}: PartType{number}: 'GFM_StellarFormationTime' of "
                                   f"{np.isnan(formed).sum()} particles is NaN; write the snapshot again")
            # The others are wind. Where the time is no scale factor, stars that were there from the start have 0.
            born = formed > 0 if self.expands else formed >= 0
            positions, masses = positions[born], masses[born]
            smoothing = None if smoothing is None else smoothing[born]
        for name, values in (("Coordinates", positions), ("Masses", masses)):
            if not np.isfinite(values).all():
                bad = int((~np.isfinite(values)).reshape(len(values), -1).any(axis=1).sum())
                raise DatasetError(f"{self.source}: PartType{number}: '{name}' of {bad} particles are not finite; "
                                   "write the snapshot again")
        if (masses < 0).any():
            raise DatasetError(f"{self.source}: PartType{number}: 'Masses' must not be negative")
        return Stars(positions.astype(np.float32), masses.astype(np.float32), smoothing)

    def _member(self, group: h5py.Group, name: str) -> h5py.Dataset:
        return member(group, name, self.source, LOSSY_FILTERS)

    def _box(self, kpc: float) -> np.ndarray | None:
        """Sides (3,) of the box in kpc; one number is that of a cube."""
        sides = np.ravel(np.asarray(self._attributes[0].get("BoxSize", ())))
        parameters = self._group("Parameters")
        if parameters is not None and _text(parameters.attrs.get("InitialConditions:periodic", b"1")) == "0":  # SWIFT
            return None
        if sides.dtype.kind not in "fiu" or len(sides) not in (1, 3):
            return None
        sides = np.broadcast_to(sides.astype(float) * kpc, 3)
        return sides if np.isfinite(sides).all() and (sides > 0).all() else None

    def _masses(self, group: h5py.Group, number: int, n: int) -> np.ndarray:
        if group.id.links.exists(b"Masses"):
            data = self._member(group, "Masses")
            if data.shape != (n,):
                raise DatasetError(f"{self.source}: PartType{number}: 'Masses' must have shape ({n},), "
                                   f"got {data.shape}")
            return data[()] * self._to_physical("mass", data)
        mass = self._of_type("MassTable", number)
        if not mass:
            raise DatasetError(f"{self.source}: PartType{number} has no 'Masses', and the MassTable of its header is 0 "
                               "there; write the snapshot with masses")
        return np.full(n, mass * self._to_physical("mass", None))

    def _smoothing(self, group: h5py.Group, n: int) -> np.ndarray | None:
        for name in _SMOOTHING:
            if group.id.links.exists(name.encode()):
                data = self._member(group, name)
                values = data[()] * self._to_physical("length", data) * self._kernel_end()
                if values.shape == (n,) and np.isfinite(values).all() and (values > 0).all():
                    return values.astype(np.float32)
        return None

    def _kernel_end(self) -> float:
        """Where the kernel ends, in smoothing lengths."""
        if self.code != "swift":
            return 1.0
        scheme = self._group("HydroScheme")
        name = _text(scheme.attrs.get("Kernel function", b"")).lower() if scheme is not None else ""
        return next((end for kernel, end in _KERNEL_ENDS.items() if kernel in name), _KERNEL_ENDS["cubic spline"])

    def _to_physical(self, quantity: str, data: h5py.Dataset | None) -> float:
        """Factor from what is stored to kpc or Msun."""
        if self.units:
            return self.units[quantity]
        cgs, _ = _CGS[quantity]
        for to_cgs, a, h in _OF_ARRAYS if data is not None else ():
            factor = _number(data.attrs, to_cgs, self.source)
            if factor:
                powers = [_number(data.attrs, key, self.source) for key in (a, h)]
                if _number(data.attrs, "Value stored as physical", self.source):
                    powers[0] = 0.0
                return factor * self.scale_factor ** (powers[0] or 0.0) * self.hubble ** (powers[1] or 0.0) / cgs
        unit = next((u for name in _UNITS[quantity] if (u := self._number(name))), None)
        if unit is None:
            raise DatasetError(f"{self.source}: does not say its unit of {quantity} ({' or '.join(_UNITS[quantity])}); "
                               "give 'units: {length_in_kpc: 1, mass_in_msun: 1.0e10}' (Gadget's usual ones) in "
                               "labels.yaml")
        comoving = self.scale_factor if quantity == "length" else 1.0
        # SWIFT has no h in its units; Gadget's and AREPO's are per h.
        return unit * comoving / (1.0 if self.code == "swift" else self.hubble) / cgs

    def _cosmology(self) -> tuple[bool, float, float]:
        """Whether the run is cosmological; scale factor (1 if not) and h that the units of the file contain."""
        if self.code == "swift":
            expands = self._number("Cosmological run") != 0
            scale_factor = self._number("Scale-factor") or 1.0
            return expands, (scale_factor if expands else 1.0), self._number("h") or 1.0
        time, redshift = self._number("Time"), self._number("Redshift") or 0.0
        expands = self._number("ComovingIntegrationOn")
        if expands is None:  # then the time is the scale factor, and fits the redshift
            universe = bool(self._number("Omega0"))
            expands = universe and time is not None and abs(time * (1 + redshift) - 1) < 1e-3
            if universe and redshift > 0 and not expands and self.units is None:
                raise DatasetError(f"{self.source}: has Omega0 and Redshift = {redshift:g}, and no Time that is its "
                                   f"scale factor: are its lengths comoving? Give 'units: {{length_in_kpc: ..., "
                                   "mass_in_msun: ...}' in labels.yaml, physical")
        if expands and not (time and time > 0):
            raise DatasetError(f"{self.source}: is of a cosmological run, and its header has no scale factor (Time)")
        hubble = self._number("HubbleParam") or 1.0
        return bool(expands), (time if expands else 1.0), hubble

    def _of_type(self, name: str, number: int) -> float | None:
        """Entry of a table of the header with one number per type."""
        table = np.ravel(np.asarray(self._attributes[0].get(name, ())))
        if table.dtype.kind not in "fiu" or number >= len(table):
            return None
        return float(table[number])

    def _number(self, name: str) -> float | None:
        return next((v for attrs in self._attributes if (v := _number(attrs, name, self.source)) is not None), None)

    def _group(self, name: str) -> h5py.Group | None:
        links, key = self.file.id.links, name.encode()
        if not links.exists(key):
            return None
        if links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise DatasetError(f"{self.source}: '{name}' is a link to elsewhere; refused, copy the data into the file")
        group = self.file[name]
        return group if isinstance(group, h5py.Group) else None


def _number(attributes, name: str, source: str) -> float | None:
    """An attribute that is one number, alone or in an array; None if it is not there."""
    if name not in attributes:
        return None
    value = np.ravel(np.asarray(attributes[name]))
    try:
        number = float(value[0])
    except (TypeError, ValueError, IndexError):
        number = np.nan
    if len(value) != 1 or not np.isfinite(number):
        raise DatasetError(f"{source}: attribute '{one_line(name)}' must be one number, got {one_line(value)[:60]}")
    return number


def _text(value) -> str:
    value = np.ravel(np.asarray(value))
    first = value[0] if len(value) else ""
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)


def _gathered(positions: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """Positions (N, 3) with the pair whole, where it lies across the edge of a periodic box with these sides.

    Where the stars leave more than half of a side free, counted around the edge, they are cut apart there. Few files
    say whether their box is periodic: positions beyond it, or a box that is filled, stay as they are.
    """
    slack = 1e-5 * box if box is not None else 0  # of single precision
    if box is None or (positions < -slack).any() or (positions > box + slack).any():
        return positions
    positions = positions.copy()
    for axis, side in enumerate(box):
        x = np.sort(positions[:, axis])
        gaps = np.append(np.diff(x), x[0] + side - x[-1])
        widest = int(np.argmax(gaps))
        if gaps[widest] > 0.5 * side and widest < len(x) - 1:
            positions[positions[:, axis] <= x[widest], axis] += np.float32(side)
    return positions


def _refuse_nonsense(stars: Stars, source: str) -> None:
    mass = float(stars.masses.sum(dtype=np.float64))
    centre = np.median(stars.positions, axis=0)
    radius = float(np.median(np.linalg.norm(stars.positions - centre, axis=1)))
    if not (_MASS_RANGE[0] <= mass <= _MASS_RANGE[1] and _RADIUS_RANGE[0] <= radius <= _RADIUS_RANGE[1]):
        raise DatasetError(f"{source}: its stars weigh {mass:.3g} Msun, and half of them lie within {radius:.3g} kpc: "
                           "that is no pair of galaxies; if its units are wrong, give 'units: {length_in_kpc: ..., "
                           "mass_in_msun: ...}' in labels.yaml, or other star_types")
