"""Encounters made of a user's own snapshots, by a file of labels that lies beside them.

`labels.csv` has one line per snapshot. `labels.yaml` may hold the same as a list under `snapshots`, or the settings
for reading alone, beside a `labels.csv`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from pydantic import Field, create_model

from ..config import Config, read_yaml
from ..errors import ConfigError, DatasetError
from ..labels import ENCOUNTER_NAME, NO_SEPARATION, NO_STAGE, STAGES, UNDISTURBED
from ..progress import one_line
from ..simulate.snapshot import stages
from .foreign import files_of, read_stars
from .schema import label_attributes

__all__ = ["LABELS_NAMES", "LabelledEncounter", "Labels", "ReadingConfig", "SnapshotLabels",
           "labels_file", "orbit_rotation"]

#: Names of a file of labels; the first that is there counts.
LABELS_NAMES = ("labels.yaml", "labels.yml", "labels.csv")

_OF_ENCOUNTER = ("mass_ratio", "size_ratio", "pericentre", "primary_stars", "orbit_normal_x", "orbit_normal_y",
                 "orbit_normal_z")


class SnapshotLabels(Config):
    """One snapshot."""

    snapshot: str = Field(min_length=1, description="its file, from the folder of the labels")
    encounter: str = Field(pattern=rf"^{ENCOUNTER_NAME}$", description="which encounter it belongs to")
    time: float = Field(description="Myr since the first pericentre, negative before")
    mass_ratio: float = Field(gt=0, description="secondary / primary")
    size_ratio: float = Field(gt=0, description="secondary / primary")
    pericentre: float = Field(gt=0, description="kpc, closest approach of the initial orbit")
    primary_stars: float | None = Field(None, gt=0, description="Msun of the primary's stars, "
                                        "6e10 without it: what its Myr are worth")
    stage: str | int | None = Field(None, description=f"0..{len(STAGES) - 1} or {', '.join(STAGES)}")
    separation: float | None = Field(None, ge=0, description="of the nuclei, kpc")
    orbit_normal_x: float | None = Field(None, description="orbital angular momentum, any length")
    orbit_normal_y: float | None = None
    orbit_normal_z: float | None = None


class FileUnits(Config):
    """Units of files that do not say them, or say them wrongly; physical, without h and scale factor."""

    length_in_kpc: float = Field(gt=0)
    mass_in_msun: float = Field(gt=0)


class ReadingConfig(Config):
    """How the snapshots are read."""

    star_types: tuple[int, ...] | None = Field(None, min_length=1, description="numbers of PartType that are stars; "
                                               "without it 2, 3 and 4, of SWIFT only 4")
    smoothing: Literal["neighbours", "file"] = Field("neighbours", description="a star is smeared to its n-th "
                                                     "neighbour, or by the smoothing length in the file")
    units: FileUnits | None = Field(None, description="without it, as the files say")


@dataclass
class LabelledEncounter:
    """As far as pictures go the same as `Encounter`; the stars stay in their files until they are asked for."""

    name: str
    time: np.ndarray  #: (T,) Myr since the first pericentre
    separation: np.ndarray  #: (T,) float32, kpc; NO_SEPARATION where not known
    stage: np.ndarray  #: (T,) uint8; NO_STAGE where not known
    parameters: dict
    files: tuple[Path, ...]
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))  #: (3, 3), from the files' axes to the orbit's

    def stars(self, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Positions (N, 3) in kpc, masses (N,) in Msun and smoothing lengths in kpc (or None) at one snapshot."""
        units = self.reading.units
        stars = read_stars(self.files[t], self.reading.star_types,
                           (units.length_in_kpc, units.mass_in_msun) if units else None,
                           smoothing=self.reading.smoothing == "file")
        if self.reading.smoothing == "file" and stars.smoothing is None:
            raise DatasetError(f"{one_line(self.files[t])}: its stars have no smoothing lengths; set "
                               "'smoothing: neighbours' in labels.yaml")
        return (stars.positions @ self.rotation.T).astype(np.float32), stars.masses, stars.smoothing

    @property
    def attributes(self) -> dict:
        """Of its group in a data set."""
        return self.parameters

    def without_stars(self) -> LabelledEncounter:
        """What is left when the pictures are made."""
        return self


def labels_file(folder: str | Path) -> Path | None:
    """The file of labels in a folder; None if there is none."""
    return next((path for name in LABELS_NAMES if (path := Path(folder) / name).is_file()), None)


class Labels:
    """A file of labels.

    Attributes
    ----------
    names : list of str
        Of the encounters, sorted.
    digest : str
        SHA-256 of all that it says, and of size and date of the snapshots: other labels, other data set.

    Raises
    ------
    DatasetError
        Naming the file, the line or snapshot, what is wrong and what is allowed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._source = one_line(path)
        tree = {}
        if self.path.suffix in (".yaml", ".yml"):
            tree, rows = self._from_yaml()
        else:
            rows = list(self._from_csv(self.path))
        self.reading = self._parse(ReadingConfig, tree, self._source)
        kind = _snapshot_labels()
        labels = [(where, self._parse(kind, row, where)) for where, row in rows]
        if not labels:
            raise DatasetError(f"{self._source}: names no snapshots")
        self._encounters: dict[str, list[SnapshotLabels]] = {}
        for where, row in labels:
            self._check(row, where)
            self._encounters.setdefault(row.encounter, []).append(row)
        for name, rows in self._encounters.items():
            self._check_encounter(name, rows)
        self.names = sorted(self._encounters)
        # A snapshot that was written again makes other pictures, whichever of its files.
        everything = [self.reading.to_json()]
        for _, row in labels:
            found = [file.stat() for file in files_of(self.path.parent / row.snapshot)]
            everything.append((_written(row), *(x for file in found for x in (file.st_size, file.st_mtime_ns))))
        self.digest = hashlib.sha256(json.dumps(everything).encode()).hexdigest()

    def encounter(self, name: str) -> LabelledEncounter:
        """One encounter, its snapshots in the order of time."""
        rows = sorted(self._encounters[name], key=lambda row: row.time)
        first = rows[0]
        time = np.array([row.time for row in rows])
        known = [row.separation is not None for row in rows]
        separation = np.array([NO_SEPARATION if row.separation is None else row.separation for row in rows], np.float32)
        followed = stages(time, separation) if all(known) else np.where(time < 0, 0, NO_STAGE)
        stage = [followed[i] if row.stage is None else _stage(row.stage) for i, row in enumerate(rows)]
        kind = _undisturbed(first)
        told = {None: ("mass_ratio", "size_ratio", "pericentre"), "chance": ("mass_ratio", "size_ratio"), "single": ()}
        parameters = {key: getattr(first, key) for key in told[kind]}
        if first.primary_stars is not None:
            parameters["primary_stars"] = first.primary_stars
        parameters |= {key: value for key in _own_columns() if (value := getattr(first, key)) is not None}
        if kind is not None:
            parameters |= {"kind": kind, "encounter": name}
        return LabelledEncounter(
            name=name, time=time.astype(np.float32), separation=separation, stage=np.array(stage, np.uint8),
            parameters=parameters,
            files=tuple(self.path.parent / row.snapshot for row in rows), reading=self.reading,
            rotation=orbit_rotation(_normal(first)))

    def _from_yaml(self):
        try:
            tree = read_yaml(self.path) or {}
        except ConfigError as error:
            raise DatasetError(str(error)) from None
        if not isinstance(tree, dict):
            raise DatasetError(f"{self._source}: expected a mapping of settings with a list 'snapshots', got "
                               f"{type(tree).__name__}")
        tree = dict(tree)
        if "snapshots" not in tree:
            table = self.path.with_name("labels.csv")
            if not table.is_file():
                raise DatasetError(f"{self._source}: 'snapshots' is missing, and there is no labels.csv beside it; "
                                   "list the snapshots in one of them")
            return tree, list(self._from_csv(table))
        rows = tree.pop("snapshots")
        if not isinstance(rows, list):
            raise DatasetError(f"{self._source}: snapshots must be a list, one entry per snapshot, got "
                               f"{type(rows).__name__}")
        return tree, [(f"{self._source}: snapshots[{i}]", row) for i, row in enumerate(rows)]

    @staticmethod
    def _from_csv(path: Path) -> Iterator[tuple[str, dict]]:
        """(where, row) of all lines; empty cells are left out, lines that begin with # are comments."""
        source = one_line(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{source}: cannot be read as text ({one_line(error)})") from None
        numbered = [(i, line) for i, line in enumerate(text.splitlines(), 1)
                    if line.strip(" ,\t") and not line.lstrip().startswith("#")]
        try:
            cells = [[cell.strip() for cell in row] for row in csv.reader([line for _, line in numbered], strict=True)]
        except csv.Error as error:
            raise DatasetError(f"{source}: is no table with commas ({error})") from None
        if len(cells) != len(numbered):
            raise DatasetError(f"{source}: a cell goes over several lines; write one line per snapshot")
        header = cells[0] if cells else []
        fields = _snapshot_labels().model_fields
        needed = [name for name, f in fields.items() if f.is_required()]
        if missing := [name for name in needed if name not in header]:
            one = len(header) == 1 and any(sign in header[0] for sign in ";\t|")
            hint = "; columns are separated by commas, not by semicolons or tabs" if one else ""
            raise DatasetError(f"{source}: column '{missing[0]}' is missing; needed are {', '.join(needed)}{hint}")
        for name in header:
            if name not in fields or header.count(name) > 1:
                raise DatasetError(f"{source}: column '{one_line(name)}' is not known or there twice; allowed are "
                                   f"{', '.join(fields)}, and the columns of labels of your own (docs/extending.md)")
        for (i, _), row in zip(numbered[1:], cells[1:], strict=True):
            if len(row) != len(header):
                raise DatasetError(f"{source}: line {i} has {len(row)} cells, the first line {len(header)}")
            yield f"{source}: line {i}", {k: v for k, v in zip(header, row, strict=True) if v != ""}

    @staticmethod
    def _parse(kind: type[Config], tree: Any, where: str):
        try:
            return kind.parse(tree, where)
        except ConfigError as error:
            raise DatasetError(one_line(error)) from None

    def _check(self, row: SnapshotLabels, where: str) -> None:
        inside = PurePath(row.snapshot)
        if inside.is_absolute() or ".." in inside.parts:
            raise DatasetError(f"{where}: snapshot = {one_line(row.snapshot)}: must lie in the folder of the labels; "
                               "move it or link to it there")
        if not (self.path.parent / inside).is_file():
            raise DatasetError(f"{where}: snapshot = {one_line(row.snapshot)}: no such file in "
                               f"{one_line(self.path.parent)}")
        if row.stage is not None and _stage(row.stage) is None:
            raise DatasetError(f"{where}: stage must be 0..{len(STAGES) - 1} or one of {', '.join(STAGES)}, got "
                               f"{one_line(row.stage)}")
        normal = (row.orbit_normal_x, row.orbit_normal_y, row.orbit_normal_z)
        if normal != (None, None, None) and (None in normal or not np.any(normal)):
            raise DatasetError(f"{where}: orbit_normal_x, _y and _z must be given together and not be all 0")

    def _check_encounter(self, name: str, rows: list[SnapshotLabels]) -> None:
        for key in (*_OF_ENCOUNTER, *_own_columns()):
            values = list(dict.fromkeys(getattr(row, key) for row in rows))
            if len(values) > 1:
                raise DatasetError(f"{self._source}: encounter '{name}': {key} must be the same for all its snapshots, "
                                   f"got {values[0]} and {values[1]}")
        kinds = list(dict.fromkeys(_undisturbed(row) for row in rows))
        if len(kinds) > 1:
            raise DatasetError(f"{self._source}: encounter '{name}': stage must be single (or chance pair) for all its "
                               "snapshots or for none; give galaxies that do not meet names of their own")
        for key in ("snapshot", "time"):
            value, n = Counter(getattr(row, key) for row in rows).most_common(1)[0]
            if n > 1:
                raise DatasetError(f"{self._source}: encounter '{name}': {key} = {one_line(value)} is there {n} times")


def _own_columns() -> list[str]:
    """Columns of labels that a user has added: numbers, the same for all snapshots of an encounter."""
    return [name for name in label_attributes() if name not in SnapshotLabels.model_fields]


def _snapshot_labels() -> type[SnapshotLabels]:
    """With those columns."""
    own = {name: (float | None, None) for name in _own_columns()}
    return create_model("SnapshotLabels", __base__=SnapshotLabels, **own) if own else SnapshotLabels


def _written(row: SnapshotLabels) -> str:
    """As it was before there were columns of that kind, where it has none of them."""
    return row.model_dump_json(exclude={name for name in _own_columns() if getattr(row, name) is None})


def orbit_rotation(normal) -> np.ndarray:
    """Rotation (3, 3), determinant +1, that takes the orbital angular momentum to +z by the shortest way."""
    x, y, z = np.asarray(normal, float) / np.linalg.norm(normal)
    if z < -1 + 1e-12:
        return np.diag([1.0, -1.0, -1.0])
    cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + z)


def _normal(row: SnapshotLabels) -> tuple[float, float, float]:
    if row.orbit_normal_x is None:
        return 0.0, 0.0, 1.0
    return row.orbit_normal_x, row.orbit_normal_y, row.orbit_normal_z


def _undisturbed(row: SnapshotLabels) -> str | None:
    """Of `labels.UNDISTURBED`, where it shows no encounter at all."""
    stage = None if row.stage is None else _stage(row.stage)
    return next((kind for kind, number in UNDISTURBED.items() if number == stage), None)


def _stage(value: str | int) -> int | None:
    """Its number; None if there is no such stage."""
    names = {str(i): i for i in range(len(STAGES))} | {name: i for i, name in enumerate(STAGES)}
    return names.get(str(value).strip().lower())
