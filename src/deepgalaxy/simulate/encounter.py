"""One encounter: its parameters, and the run from them to its snapshots."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from ..config import Config
from ..errors import SimulationError
from ..labels import ENCOUNTER_NAME
from .evolve import Conservation, evolve
from .gadget import SnapshotFolder
from .galaxy import Galaxy, GalaxyConfig, Particles
from .gpu import require_device
from .orbit import approach, disc_rotation
from .snapshot import MAX_DRIFT, CannotWrite, Encounter, stages

__all__ = ["EncounterConfig", "Resolution", "simulate"]

#: Where the usual ones let the energy drift too far: forces are to blame, or steps in the passage of dense nuclei.
_FINER = {"opening_angle": 0.7, "step_factor": 0.25}

#: A nucleus is found by the stars of its bulge.
_FEWEST_IN_BULGE = 64
#: Particles without which a galaxy is none.
_FEWEST_IN_GALAXY = 32


class Resolution(Config):
    """Particles, forces and output, the same for all encounters of a suite."""

    n_particles: int = Field(16384, ge=512, le=10_000_000, description="of both galaxies, haloes included")
    disc_fraction: float = Field(0.55, gt=0, lt=1, description="of the particles")
    bulge_fraction: float = Field(0.10, gt=0, lt=1, description="of the particles; the halo has the rest")
    softening_stars: float = Field(0.25, gt=0, le=5, description="kpc, Plummer-equivalent")
    softening_halo: float = Field(0.55, gt=0, le=5, description="kpc, Plummer-equivalent")
    opening_angle: float = Field(0.95, gt=0, le=1.2, description="of the tree")
    step_factor: float = Field(0.45, gt=0, le=1, description="time step over sqrt(2 softening / acceleration) of the "
                               "percent of the particles where it is shortest")
    snapshot_interval: float = Field(10.0, gt=0, le=100, description="Myr")
    first_time: float = Field(-150.0, description="Myr since the first pericentre, of the first "
                              "snapshot kept")
    last_time: float = Field(500.0, gt=0, description="Myr since the first pericentre")
    last_separation: float | None = Field(None, gt=0, description="kpc between the nuclei after the pericentre: "
                                          "galaxies further apart are no longer followed")

    @model_validator(mode="after")
    def _some_of_each(self):
        stars = self.disc_fraction + self.bulge_fraction
        if not 1 / 8 < stars < 1:
            raise ValueError(f"disc_fraction + bulge_fraction = {stars:g}: must be more than 1/8, and less than 1 so "
                             "that the halo has some particles")
        if (1 - stars) * _FEWEST_IN_GALAXY < 1:
            raise ValueError(f"disc_fraction + bulge_fraction = {stars:g}: leaves a galaxy of {_FEWEST_IN_GALAXY} "
                             f"particles none for its halo; must be at most {1 - 1 / _FEWEST_IN_GALAXY:g}")
        if self.first_time >= self.last_time:
            raise ValueError(f"first_time = {self.first_time:g}: must be before last_time = {self.last_time:g}")
        return self


class EncounterConfig(Config):
    """Two galaxies and their orbit."""

    name: str = Field("encounter", min_length=1, max_length=80, pattern=rf"^{ENCOUNTER_NAME}$")
    mass_ratio: float = Field(1.0, gt=0, le=4, description="secondary / primary")
    size_ratio: float = Field(1.0, gt=0, le=4, description="secondary / primary")
    pericentre: float = Field(8.0, gt=0, le=200, description="closest approach of the initial orbit, kpc")
    orbital_energy: float = Field(0.0, ge=-0.5, le=1, description="over the mutual potential's depth at "
                                  "pericentre; 0 parabolic, < 0 bound")
    start_time: float = Field(180.0, gt=0, le=2000, description="Myr from the start to the pericentre")
    primary_disc_inclination: float = Field(0.0, ge=0, le=180, description="degrees; 0 prograde")
    primary_disc_node: float = Field(0.0, ge=0, le=360, description="degrees, in the orbital plane")
    secondary_disc_inclination: float = Field(0.0, ge=0, le=180, description="degrees; 0 prograde")
    secondary_disc_node: float = Field(0.0, ge=0, le=360, description="degrees, in the orbital plane")
    seed: int = Field(0, ge=0, lt=2**63, description="of the particles")
    primary: GalaxyConfig = Field(default_factory=GalaxyConfig)
    secondary: GalaxyConfig | None = Field(None, description="without it, the primary scaled by both ratios")
    resolution: Resolution = Field(default_factory=Resolution)

    @model_validator(mode="after")
    def _both_galaxies_have_particles(self):
        if self.resolution is not None:  # else it is the suite's, not known yet
            n = self.resolution.n_particles
            fewest = round(n * min(self.mass_ratio, 1) / (1 + self.mass_ratio))
            if fewest < _FEWEST_IN_GALAXY:
                raise ValueError(f"mass_ratio = {self.mass_ratio:g}: leaves the smaller galaxy {fewest} of "
                                 f"{n} particles, fewer than {_FEWEST_IN_GALAXY}; raise n_particles or mass_ratio")
        return self

    @model_validator(mode="after")
    def _ratios_are_those_of_the_secondary(self):
        if self.primary is None or self.secondary is None:  # a suite's own, not known yet; or one that is scaled
            return self
        for name, first, second in (
                ("mass_ratio", self.primary.disc_mass + self.primary.bulge_mass,
                 self.secondary.disc_mass + self.secondary.bulge_mass),
                ("size_ratio", self.primary.disc_scale_length, self.secondary.disc_scale_length)):
            if abs(second / first / getattr(self, name) - 1) > 0.01:
                what, found = "stars" if name == "mass_ratio" else "scale length of the disc", f"{second / first:.4g}"
                raise ValueError(f"{name} = {getattr(self, name):g}: the secondary that is given has {found} ({what} "
                                 f"over the primary's); write {name}: {found}")
        return self


def initial_conditions(config: EncounterConfig) -> Particles:
    """Both galaxies on their orbit, in the frame of their common centre of mass."""
    r = config.resolution
    rng = np.random.default_rng(config.seed)
    galaxies = config.primary, config.secondary or config.primary.scaled(config.mass_ratio, config.size_ratio)
    models = [Galaxy(galaxy, r.softening_stars) for galaxy in galaxies]
    orbit = approach(*models, config.pericentre, config.orbital_energy, config.start_time)
    total = models[0].mass + models[1].mass
    spins = [(config.primary_disc_inclination, config.primary_disc_node),
             (config.secondary_disc_inclination, config.secondary_disc_node)]
    parts = []
    for k, (model, spin, lever) in enumerate(zip(models, spins, (-models[1].mass, models[0].mass), strict=True)):
        n = int(round(r.n_particles * config.mass_ratio**k / (1 + config.mass_ratio)))
        n_disc, n_bulge = _stars(model.config, n, r)
        with np.errstate(all="ignore"):  # what comes of it is told below
            part = model.sample(n_disc, n_bulge, n - n_disc - n_bulge, r.softening_halo, rng, galaxy=k)
        rotation = disc_rotation(*spin)
        part.positions = part.positions @ rotation.T + orbit.position * lever / total
        part.velocities = part.velocities @ rotation.T + orbit.velocity * lever / total
        if not (np.isfinite(part.positions).all() and np.isfinite(part.velocities).all()):
            raise SimulationError(f"{config.name}: no galaxy has such a shape, positions or velocities are not finite: "
                                  f"look at {'secondary' if k else 'primary'} = {model.config!r}")
        parts.append(part)
    return Particles.join(parts)


def _stars(galaxy: GalaxyConfig, n: int, resolution: Resolution) -> tuple[int, int]:
    """How many of a galaxy's n particles are disc and bulge.

    The fractions are those of the reference galaxy; a heavier bulge has more of the stars, so that all weigh alike.
    """
    reference = GalaxyConfig()
    heavier = galaxy.bulge_mass / galaxy.disc_mass * reference.disc_mass / reference.bulge_mass
    disc, bulge = resolution.disc_fraction, resolution.bulge_fraction * heavier
    stars = (resolution.disc_fraction + resolution.bulge_fraction) * n
    n_bulge = max(round(stars * bulge / (disc + bulge)), min(_FEWEST_IN_BULGE, n // 8))
    return round(stars) - n_bulge, n_bulge


def simulate(config: EncounterConfig, on_snapshot: Callable[[float, Particles], None] | None = None,
             device: str = "cpu") -> Encounter:
    """Run one encounter from its start to `last_time` after the first pericentre.

    Parameters
    ----------
    on_snapshot : called at every snapshot with the time in Myr since the start and all particles, haloes included;
        their arrays change with the next step.
    device : where forces are computed, "cpu" or "cuda".

    Raises
    ------
    ConfigError
        If the device is not there.
    SimulationError
        If the galaxies cannot be set up, or have no pericentre in the time of the run.
    """
    require_device(device)
    r = config.resolution
    particles = initial_conditions(config)
    stars = particles.stars
    conservation = Conservation()
    snapshots, track = [], []
    pericentre_time = None
    for step in evolve(particles, r.snapshot_interval, r.opening_angle, conservation, device, r.step_factor):
        if np.isfinite(step.separation):
            track.append((step.time, step.separation))
        if step.is_snapshot:
            snapshots.append((step.time, particles.positions[stars].astype(np.float32), step.separation))
            if not np.isfinite(particles.positions).all():
                raise SimulationError(f"{config.name}: positions became infinite at {step.time:g} Myr; raise "
                                      "softening_stars")
            if on_snapshot is not None:
                on_snapshot(step.time, particles)
        if pericentre_time is None:
            pericentre_time = _first_minimum(track, config.start_time)
            if step.time > 3 * config.start_time + 300:
                raise SimulationError(f"{config.name}: no pericentre within {step.time:.0f} Myr; lower "
                                      "start_time or orbital_energy")
        elif step.time >= pericentre_time[0] + r.last_time + 0.5 * r.snapshot_interval:
            break
        elif r.last_separation is not None and step.separation > r.last_separation:
            break
    time = np.array([s[0] for s in snapshots]) - pericentre_time[0]
    # Half open, so that the number of snapshots is the same wherever the pericentre falls between two of them.
    keep = (time >= r.first_time - 0.5 * r.snapshot_interval) & (time < r.last_time + 0.5 * r.snapshot_interval)
    if not keep.any():
        raise SimulationError(f"{config.name}: no snapshot from first_time = {r.first_time:g} Myr on: they "
                              f"were {r.last_separation:g} kpc apart before; raise last_separation or lower first_time")
    separation = np.array([s[2] for s in snapshots], np.float32)
    parameters = config.model_dump(exclude={"name", "primary", "secondary", "resolution"})
    parameters.update(
        primary_stars=config.primary.disc_mass + config.primary.bulge_mass,
        pericentre_requested=config.pericentre, pericentre_measured=pericentre_time[1],
        pericentre_time=pericentre_time[0], energy_drift=conservation.energy_drift,
        angular_momentum_drift=conservation.angular_momentum_drift,
    )
    return Encounter(
        name=config.name, time=time[keep].astype(np.float32),
        positions=np.stack([s[1] for s, k in zip(snapshots, keep, strict=True) if k]),
        masses=particles.masses[stars].astype(np.float32), component=particles.component[stars],
        galaxy=particles.galaxy[stars], separation=separation[keep],
        stage=stages(time, separation)[keep], parameters=parameters, config=config.to_json())


def is_finished(name: str, folder: str | Path, gadget: bool = False) -> bool:
    """Is this encounter in the folder already, with its Gadget snapshots if they are wanted?"""
    return (Path(folder) / f"{name}.h5").exists() and not (gadget and not (Path(folder) / name).is_dir())


def simulate_to_file(config_json: str, folder: str, gadget: bool = False, device: str = "cpu") -> str:
    """What a worker runs: one encounter into its file; returns the path.

    With `gadget`, all its snapshots come into the folder `NAME` first, so that what has its file is complete.
    An encounter whose energy drifts by more than MAX_DRIFT is run again with more exact forces and shorter steps; its
    file says so.
    """
    config = EncounterConfig.parse(json.loads(config_json))
    path = Path(folder) / f"{config.name}.h5"
    if not path.parent.is_dir():
        raise CannotWrite(f"{folder}: does not exist on {socket.gethostname()}, where a worker runs; choose a folder "
                          "that all machines share")
    if is_finished(config.name, folder, gadget):
        return str(path)
    whole = path.with_suffix("") if gadget else None
    encounter = _simulate(config, whole, device)
    finer = _finer(config.resolution)
    if not encounter.parameters["energy_drift"] <= MAX_DRIFT and finer != config.resolution:
        encounter = _simulate(config.model_copy(update={"resolution": finer}), whole, device)
    encounter.write(path)
    return str(path)


def _finer(resolution: Resolution) -> Resolution:
    """What may drift less; few particles drift by their own encounters, whatever the forces and steps."""
    if resolution.n_particles < 8192:
        return resolution
    return resolution.model_copy(update={name: min(value, getattr(resolution, name)) for name, value in _FINER.items()})


def _simulate(config: EncounterConfig, folder: Path | None, device: str) -> Encounter:
    """One run, its whole snapshots in the folder, if there is one."""
    if folder is None:
        return simulate(config, device=device)
    with SnapshotFolder(folder) as snapshots:
        encounter = simulate(config, snapshots.write, device)
        snapshots.label(encounter)
    return encounter


def _first_minimum(track, expected: float):
    """Time and depth of the first pericentre, once it is 15 Myr past; None before."""
    time, separation = np.array(track[-400:]).T
    i = int(np.argmin(separation))
    # The nuclei jitter by tenths of a kpc, so a minimum counts when they are clearly apart again.
    if 0 < i < len(time) - 1 and time[-1] > time[i] + 15 and time[i] > 0.4 * expected:
        t, d = time[i - 1:i + 2], separation[i - 1:i + 2] ** 2
        a, b, _ = np.polyfit(t - t[1], d, 2)
        shift = float(np.clip(-b / (2 * a), t[0] - t[1], t[2] - t[1])) if a > 0 else 0.0
        return float(t[1] + shift), float(separation[i])
    return None
