"""Suites: which encounters to run, as YAML, and the campaign that runs what is missing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ..config import Config
from ..errors import ConfigError, SimulationError
from ..files import write_whole
from .encounter import EncounterConfig, Resolution, simulate_to_file
from .galaxy import GalaxyConfig

__all__ = ["Range", "SobolDesign", "GridDesign", "SuiteConfig", "run_suite", "dask_client"]


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
    seed: int = Field(0, ge=0)
    mass_ratio: Range = Range(low=0.2, high=1.0, log=True)
    size_excess: Range = Field(Range(low=0.7, high=1.4, log=True),
                               description="size_ratio / sqrt(mass_ratio): how large for its mass")
    pericentre: Range = Field(Range(low=2.0, high=30.0, log=True), description="kpc")
    orbital_energy: Range = Field(Range(low=-0.08, high=0.08))
    start_time: Range = Field(Range(low=160.0, high=200.0), description="Myr")


class GridDesign(Config):
    """The DeepGalaxy grid: every mass ratio with every size ratio on one orbit."""

    kind: Literal["grid"] = "grid"
    mass_ratios: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    size_ratios: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    pericentre: float = Field(8.0, gt=0, le=200, description="kpc")
    orbital_energy: float = Field(0.0, ge=-0.5, le=1)
    start_time: float = Field(160.0, gt=0, description="Myr")


class SuiteConfig(Config):
    """A suite of encounters."""

    name: str = Field("suite", min_length=1, max_length=80, pattern=r"^[\w.+-]+$")
    design: SobolDesign | GridDesign = Field(default_factory=SobolDesign, discriminator="kind")
    primary: GalaxyConfig = Field(default_factory=GalaxyConfig)
    resolution: Resolution = Field(default_factory=Resolution)

    def encounters(self) -> list[EncounterConfig]:
        """All encounters of the suite; the same list for the same configuration, always."""
        make = _sobol if isinstance(self.design, SobolDesign) else _grid
        shared = {"primary": self.primary, "resolution": self.resolution}
        source = f"suite '{self.name}'"
        encounters = [EncounterConfig.parse({**shared, **parameters}, source) for parameters in make(self.design)]
        if len({e.name for e in encounters}) < len(encounters):
            raise ConfigError(f"{source}: mass_ratios and size_ratios name the encounters to two digits, and must "
                              "differ in them")
        return encounters


def _sobol(design: SobolDesign) -> Iterator[dict]:
    from scipy.stats import qmc

    sampler = qmc.Sobol(d=9, scramble=True, rng=np.random.default_rng(design.seed))
    points = sampler.random(2 ** int(np.ceil(np.log2(max(design.n_encounters, 2)))))[:design.n_encounters]
    for i, u in enumerate(points):
        mass_ratio = design.mass_ratio.at(u[0])
        yield {
            "name": f"encounter_{i:04d}",
            "mass_ratio": mass_ratio,
            "size_ratio": float(np.sqrt(mass_ratio)) * design.size_excess.at(u[1]),
            "pericentre": design.pericentre.at(u[2]),
            "orbital_energy": design.orbital_energy.at(u[3]),
            "start_time": design.start_time.at(u[4]),
            "primary_disc_inclination": float(np.degrees(np.arccos(1 - 2 * u[5]))),
            "primary_disc_node": 360 * float(u[6]),
            "secondary_disc_inclination": float(np.degrees(np.arccos(1 - 2 * u[7]))),
            "secondary_disc_node": 360 * float(u[8]),
            "seed": design.seed * 1_000_000 + i,
        }


def _grid(design: GridDesign) -> Iterator[dict]:
    for i, size_ratio in enumerate(design.size_ratios):
        for j, mass_ratio in enumerate(design.mass_ratios):
            yield {
                "name": f"s_{size_ratio:.2f}_m_{mass_ratio:.2f}",
                "mass_ratio": mass_ratio, "size_ratio": size_ratio, "pericentre": design.pericentre,
                "orbital_energy": design.orbital_energy, "start_time": design.start_time,
                "seed": i * len(design.mass_ratios) + j,
            }


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


@contextmanager
def dask_client(scheduler: str | None = None, n_workers: int | None = None):
    """A Dask client: of the cluster at an address, or of a local one with one thread per process.

    Two processes of one thread beat one process of two threads by a third on small galaxies.
    """
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=20)
        except (OSError, ValueError) as error:
            raise ConfigError(f"scheduler = {scheduler}: no Dask scheduler answers there ({error})") from None
        with client:
            yield client
        return
    threads = {name: "1" for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    before = {name: os.environ.get(name) for name in threads}
    os.environ.update(threads)
    try:
        with (
            LocalCluster(n_workers=n_workers or os.cpu_count(), threads_per_worker=1, processes=True,
                         dashboard_address=None, memory_limit=0, silence_logs=50) as cluster,
            Client(cluster) as client,
        ):
            yield client
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def run_suite(config: SuiteConfig, folder: str | Path, client) -> Iterator[tuple[str, str | None]]:
    """Run the encounters that are not in the folder yet.

    Parameters
    ----------
    client : a Dask client, see `dask_client`.

    Yields
    ------
    (name, error) : as encounters finish; error is None, or one line about one that failed. An
        encounter whose worker died three times is among the failed.
    """
    from distributed import as_completed

    folder = Path(folder)
    encounters = config.encounters()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_another_suite(config, folder / "suite.json")
        write_whole(folder / "suite.json", config.to_json())
    except OSError as error:
        raise SimulationError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None
    for stale in folder.glob(".*.tmp"):
        if time.time() - stale.stat().st_mtime > _STALE_SECONDS:  # younger ones may be another campaign's
            stale.unlink(missing_ok=True)
    missing = [e for e in encounters if not (folder / f"{e.name}.h5").exists()]
    names = {}
    for encounter in missing:
        future = client.submit(simulate_to_file, encounter.to_json(), str(folder.resolve()),
                               key=f"{config.name}-{encounter.name}", retries=0)
        names[future] = encounter.name
    for future in as_completed(names):
        error = future.exception()
        message = None if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
        future.release()
        yield names[future], message
