"""Suites: which encounters to run, as YAML, and the campaign that runs what is missing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from ..cluster import PATIENCE, LostWorkers, run_tasks
from ..config import Config
from ..errors import ConfigError, SimulationError
from ..files import keep_others_out, write_whole
from ..labels import ENCOUNTER_NAME
from .encounter import EncounterConfig, Resolution, is_finished, simulate_to_file
from .galaxy import GalaxyConfig
from .snapshot import CannotWrite

__all__ = ["Range", "SobolDesign", "GridDesign", "ListDesign", "SuiteConfig", "alone_in", "run_suite"]


#: Age of a temporary file that nobody writes to any more.
_STALE_SECONDS = 3600


class Range(Config):
    """An interval that is sampled evenly, or evenly in the logarithm."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self):
        if self.high < self.low or (self.log and self.low <= 0):
            raise ValueError("low must not exceed high, and must be positive with log: true")
        return self

    def at(self, u: float) -> float:
        """The value at a fraction u in 0..1 of the interval."""
        if self.log:
            return float(self.low * (self.high / self.low) ** u)
        return float(self.low + (self.high - self.low) * u)


class SobolDesign(Config):
    """Encounters spread evenly over all parameters at once; orientations are isotropic."""

    kind: Literal["sobol"] = "sobol"
    n_encounters: int = Field(300, ge=1, le=1_000_000)
    seed: int = Field(0, ge=0, lt=2**63 // 1_000_000, description="encounters have its millionfold and their number")
    mass_ratio: Range = Range(low=0.2, high=1.0, log=True)
    size_excess: Range = Field(Range(low=0.7, high=1.4, log=True),
                               description="size_ratio / sqrt(mass_ratio): how large for its mass")
    pericentre: Range = Field(Range(low=2.0, high=30.0, log=True), description="kpc")
    orbital_energy: Range = Field(Range(low=-0.08, high=0.08))
    start_time: Range = Field(Range(low=160.0, high=200.0), description="Myr")
    disc_size: Range = Field(Range(low=1.0, high=1.0), description="of both discs, over that of the suite's primary")
    bulge_share: Range | None = Field(None, description="of each galaxy's stars, of both independently; without it, "
                                      "that of the suite's primary")
    long_share: float = Field(0.0, ge=0, le=1, description="of the encounters that are followed to long_time")
    long_time: float = Field(1000.0, gt=0, description="Myr since the first pericentre")
    galaxies_follow_orbits: bool = Field(False, description="disc sizes, bulge shares and run lengths that go with "
                                         "mass ratio, size excess, pericentre and energy (rank correlations of 0.4 to "
                                         "0.9): only to make suites of before 2026-11-26 again")

    @model_validator(mode="after")
    def _galaxies_can_be(self):
        for name in ("mass_ratio", "size_excess", "pericentre", "start_time", "disc_size", "bulge_share"):
            between = getattr(self, name)
            if between is not None and not between.low > 0:
                raise ValueError(f"{name}: low = {between.low:g}: must be more than 0")
        if self.bulge_share is not None and not self.bulge_share.high < 1:
            raise ValueError(f"bulge_share: high = {self.bulge_share.high:g}: must be less than 1, the disc has the "
                             "rest")
        return self


class GridDesign(Config):
    """The DeepGalaxy grid: every mass ratio with every size ratio on one orbit."""

    kind: Literal["grid"] = "grid"
    mass_ratios: tuple[float, ...] = Field((0.25, 0.5, 0.75, 1.0, 1.25, 1.5), min_length=1)
    size_ratios: tuple[float, ...] = Field((0.25, 0.5, 0.75, 1.0, 1.25, 1.5), min_length=1)
    pericentre: float = Field(8.0, gt=0, le=200, description="kpc")
    orbital_energy: float = Field(0.0, ge=-0.5, le=1)
    start_time: float = Field(160.0, gt=0, description="Myr")


class ListedEncounter(EncounterConfig):
    """An encounter with a name of its own; what the suite has in common need not be repeated."""

    name: str = Field(min_length=1, max_length=80, pattern=rf"^{ENCOUNTER_NAME}$")
    primary: GalaxyConfig | None = Field(None, description="instead of the suite's, as a whole")
    resolution: Resolution | None = Field(None, description="instead of the suite's, as a whole")


class ListDesign(Config):
    """Encounters that are written out one by one."""

    kind: Literal["list"] = "list"
    encounters: tuple[ListedEncounter, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self):
        names = [e.name for e in self.encounters]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name '{name}' stands twice; each encounter needs one of its own")
        return self


class SuiteConfig(Config):
    """A suite of encounters."""

    name: str = Field("suite", min_length=1, max_length=80, pattern=r"^[\w.+-]+$")
    design: SobolDesign | GridDesign | ListDesign = Field(default_factory=SobolDesign, discriminator="kind")
    primary: GalaxyConfig = Field(default_factory=GalaxyConfig)
    resolution: Resolution = Field(default_factory=Resolution)

    @field_validator("design", mode="before")
    @classmethod
    def _sobol_where_nothing_is_said(cls, design):
        return {"kind": "sobol", **design} if isinstance(design, dict) else design

    @model_validator(mode="after")
    def _long_runs_end_after_they_begin(self):
        design = self.design
        if isinstance(design, SobolDesign) and design.long_share and design.long_time <= self.resolution.first_time:
            raise ValueError(f"design.long_time = {design.long_time:g}: must be after resolution.first_time = "
                             f"{self.resolution.first_time:g}")
        return self

    def encounters(self) -> list[EncounterConfig]:
        """All encounters of the suite; the same list for the same configuration, always."""
        make = {"sobol": _sobol, "grid": _grid, "list": _listed}[self.design.kind]
        shared = {"primary": self.primary, "resolution": self.resolution}
        source = f"suite '{self.name}'"
        encounters = [EncounterConfig.parse({**shared, **parameters}, source) for parameters in make(self)]
        if len({e.name for e in encounters}) < len(encounters):
            raise ConfigError(f"{source}: mass_ratios and size_ratios name the encounters to two digits, and must "
                              "differ in them")
        return encounters


def _sobol(suite: SuiteConfig) -> Iterator[dict]:
    from scipy.stats import qmc

    design = suite.design
    n = 2 ** int(np.ceil(np.log2(max(design.n_encounters, 2))))
    # The orbit and the orientations are one sequence, what came later another, so that older suites stay as they were.
    # Of the latter the axes after those of the former are taken: the same axes of two scrambled sequences go together.
    points, galaxies = (
        qmc.Sobol(d=axes, scramble=True, rng=np.random.default_rng(seed)).random(n)[:design.n_encounters]
        for axes, seed in ((9, design.seed), (4 if design.galaxies_follow_orbits else 13, [design.seed, 1])))
    galaxies = galaxies[:, -4:]
    for i, (u, v) in enumerate(zip(points, galaxies, strict=True)):
        mass_ratio = design.mass_ratio.at(u[0])
        size_ratio = float(np.sqrt(mass_ratio)) * design.size_excess.at(u[1])
        last_time = design.long_time if v[3] < design.long_share else suite.resolution.last_time
        yield {
            "name": f"encounter_{i:04d}",
            "mass_ratio": mass_ratio,
            "size_ratio": size_ratio,
            "pericentre": design.pericentre.at(u[2]),
            "orbital_energy": design.orbital_energy.at(u[3]),
            "start_time": design.start_time.at(u[4]),
            "primary_disc_inclination": float(np.degrees(np.arccos(1 - 2 * u[5]))),
            "primary_disc_node": 360 * float(u[6]),
            "secondary_disc_inclination": float(np.degrees(np.arccos(1 - 2 * u[7]))),
            "secondary_disc_node": 360 * float(u[8]),
            "seed": design.seed * 1_000_000 + i,
            **_galaxies(suite, mass_ratio, size_ratio, v),
            "resolution": suite.resolution.model_copy(update={"last_time": last_time}),
        }


def _galaxies(suite: SuiteConfig, mass_ratio: float, size_ratio: float, v: np.ndarray) -> dict:
    """Both galaxies, where a design varies more than the ratios."""
    design, factor = suite.design, suite.design.disc_size.at(v[0])
    if design.bulge_share is None and factor == 1:
        return {}
    primary, secondary = (
        suite.primary.resized(factor, design.bulge_share.at(u) if design.bulge_share else None) for u in v[1:3])
    return {"primary": primary, "secondary": secondary.scaled(mass_ratio, size_ratio)}


def _grid(suite: SuiteConfig) -> Iterator[dict]:
    design = suite.design
    for i, size_ratio in enumerate(design.size_ratios):
        for j, mass_ratio in enumerate(design.mass_ratios):
            yield {
                "name": f"s_{size_ratio:.2f}_m_{mass_ratio:.2f}",
                "mass_ratio": mass_ratio, "size_ratio": size_ratio, "pericentre": design.pericentre,
                "orbital_energy": design.orbital_energy, "start_time": design.start_time,
                "seed": i * len(design.mass_ratios) + j,
            }


def _listed(suite: SuiteConfig) -> Iterator[dict]:
    for encounter in suite.design.encounters:
        yield encounter.model_dump(exclude_none=True)


def _refuse_another_suite(config: SuiteConfig, path: Path) -> None:
    """Encounters of two suites have the same names: a folder keeps to the one that it was begun with."""
    if not path.exists():
        return
    before = SuiteConfig.from_json(path.read_text(), str(path)).model_dump()
    now = config.model_dump()
    for tree in (before, now):
        tree["design"].pop("n_encounters", None)  # a Sobol suite may grow
    if before != now:
        changed = next(key for key in now if now[key] != before.get(key))
        raise ConfigError(f"{path.parent}: holds encounters of another suite (its '{changed}' differs, see "
                          f"{path.name}); choose another folder")


def alone_in(folder: str | Path) -> AbstractContextManager:
    """Keep other campaigns out of a folder meanwhile: two would run the same encounters.

    Raises
    ------
    SimulationError
        If another one is at work there, or the folder cannot be made.
    """
    return keep_others_out(folder, SimulationError, "another 'deepgalaxy simulate' is at work there; wait for it to "
                           "end, or give more workers to one (--workers, --scheduler)")


def run_suite(config: SuiteConfig, folder: str | Path, client, patience: float = PATIENCE, gadget: bool = False,
              device: str = "cpu") -> Iterator[tuple[str, str | None]]:
    """Run the encounters that are not in the folder yet.

    An encounter whose worker died is run again; one that cost three workers is set aside: a file
    NAME.set_aside in the folder says why, and keeps it from being tried again until it is deleted.

    Parameters
    ----------
    client : a Dask client, see `dask_client`.
    patience : seconds without any worker after which the campaign ends.
    gadget : keep all snapshots too, whole, as Gadget files in a folder NAME each.
    device : of the forces, "cpu" or "cuda".

    Yields
    ------
    (name, error) : first those that were set aside before, then as encounters finish; error is None,
        or one line about one that failed or is set aside.

    Raises
    ------
    SimulationError
        If the folder cannot be written, at the start or later: what was finished is kept.
    ClusterError
        If the scheduler is gone, or all workers.
    """
    folder = Path(folder)
    encounters = config.encounters()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_another_suite(config, folder / "suite.json")
        write_whole(folder / "suite.json", config.to_json())
    except OSError as error:
        raise SimulationError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None
    for stale in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - stale.stat().st_mtime > _STALE_SECONDS:  # younger ones may be another campaign's
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
    tasks = {}
    for encounter in encounters:
        if is_finished(encounter.name, folder, gadget):
            continue
        record = folder / f"{encounter.name}.set_aside"
        if record.exists():
            yield encounter.name, f"was set aside before; delete {record} to try it again"
        else:
            tasks[encounter.name] = (encounter.to_json(), str(folder.resolve()), gadget, device)
    for name, _, error in run_tasks(client, simulate_to_file, tasks, patience):
        if isinstance(error, CannotWrite):  # nor will the others be written
            raise SimulationError(str(error))
        if isinstance(error, LostWorkers):
            yield name, _set_aside(folder / f"{name}.set_aside", error)
        elif error is not None:
            yield name, f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            yield name, None


def _set_aside(record: Path, error: LostWorkers) -> str:
    """Write down why an encounter is not to be tried again; the line about it."""
    try:
        write_whole(record, f"{error} (memory?); delete this file to try the encounter again\n")
    except OSError as problem:
        raise SimulationError(f"{record}: cannot be written ({problem.strerror}); free space and start again, "
                              "finished encounters are kept") from None
    return f"{error}; it is set aside, delete {record} to try it again"
