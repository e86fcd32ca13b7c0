"""The simulated twin: the encounter behind a look-alike, simulated anew, that can be turned and followed in time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch

from ..errors import ConfigError, LibraryError
from ..image.preprocess import cut_frames, find_frames, stretch
from ..image.render import field_of_view_by_content, render, smoothing_lengths
from ..image.view import View
from ..search.library import Library
from ..search.pictures import flipped, tidy
from ..simulate.encounter import EncounterConfig, Resolution, simulate
from ..simulate.snapshot import Encounter
from ..units import REFERENCE_STARS
from .story import Match, Twin

__all__ = ["simulate_twin"]

#: Stars and snapshots that are kept to be shown, and Myr between those of the run.
_N_STARS, _N_SNAPSHOTS, _INTERVAL = 3000, 60, 10.0
#: Myr before the first pericentre, and after the time of the picture, that are shown.
_BEFORE, _AFTER = 150.0, 150.0
#: Myr, on the clock of the encounter, that a look-alike may be from its first pericentre.
_TIMES = (-1000.0, 3000.0)
_MAX_PARTICLES, _LEAST_SOFTENING = 16384, 0.05
#: How the twin is laid on the picture: degrees, half of all (mirror images are the other half), and zooms.
_TURNS, _ZOOMS = tuple(range(-90, 90, 10)), (0.87, 1.0, 1.15)


def simulate_twin(library: Library, match: Match, frame: np.ndarray,
                  on_snapshot: Callable[[float], None] | None = None) -> Twin:
    """Run the encounter of a look-alike again, and turn it as the picture is.

    It is not the run of the library: at most 16,384 particles, usual forces and steps, and those of this machine.

    Parameters
    ----------
    frame : (n, n) the picture framed by its content, 0..1, y upwards.
    on_snapshot : called with the share of the run that is done.

    Raises
    ------
    LibraryError
        If the library does not know how the look-alike was simulated.
    SimulationError
        If it cannot be.
    """
    source, direction = library.origin(match.row)
    try:
        config = EncounterConfig.from_json(source, "configuration in the library")
        # What Myr of the library are on the clock of a primary of another mass (see the data sets' reader).
        clock = float(np.sqrt((config.primary.disc_mass + config.primary.bulge_mass) / REFERENCE_STARS))
        time = match.time_myr / clock
        if not _TIMES[0] < time < _TIMES[1]:
            raise ConfigError(f"seen at {match.time_myr:g} Myr, must be {_TIMES[0]:g} to {_TIMES[1]:g} on its clock")
        config = _to_be_shown(config, time)
    except ConfigError as error:
        raise LibraryError(f"{library.path}: {match.encounter} cannot be simulated by this version: {error}") from None
    whole = config.start_time + config.resolution.last_time

    def tell(since_start: float, _) -> None:
        if on_snapshot is not None:
            on_snapshot(min(since_start / whole, 1.0))

    encounter = simulate(config, tell)
    at = int(np.argmin(np.abs(encounter.time - time)))
    if abs(encounter.time[at] - time) > _INTERVAL:
        raise LibraryError(f"{library.path}: {match.encounter} begins {encounter.time[0]:+.0f} Myr from its "
                           f"pericentre, and should be seen at {time:+.0f}; make the library again with 'deepgalaxy "
                           "index'")
    axes, pivot, side, agreement = _as_in_the_picture(encounter, at, direction, frame)
    stars, every = _some_of(encounter, _N_STARS), -(-len(encounter.time) // _N_SNAPSHOTS)
    film = np.arange(at % every, len(encounter.time), every)
    positions = (encounter.positions[film][:, stars] - pivot.astype(np.float32)) @ axes.T.astype(np.float32)
    return Twin(match.encounter, encounter.time[film] * clock, positions, encounter.galaxy[stars], at // every, side,
                agreement)


def _to_be_shown(config: EncounterConfig, time: float) -> EncounterConfig:
    """The encounter at a resolution that shows it in seconds, from before the look-alike to some time after it."""
    usual, own = Resolution(), config.resolution
    return EncounterConfig.parse({**config.model_dump(), "resolution": {
        "n_particles": min(own.n_particles, _MAX_PARTICLES), "disc_fraction": own.disc_fraction,
        "bulge_fraction": own.bulge_fraction, "softening_stars": max(own.softening_stars, _LEAST_SOFTENING),
        "softening_halo": max(own.softening_halo, _LEAST_SOFTENING), "opening_angle": usual.opening_angle,
        "step_factor": usual.step_factor, "snapshot_interval": _INTERVAL,
        "first_time": min(-_BEFORE, time - _INTERVAL), "last_time": max(time, 0) + _AFTER}})


def _some_of(encounter: Encounter, n: int) -> np.ndarray:
    """Indices of n stars, chosen by their mass and always the same ones; the primary's first."""
    p = encounter.masses.astype(float) / encounter.masses.sum(dtype=float)
    chosen = np.random.default_rng(0).choice(len(p), min(n, len(p)), replace=False, p=p)
    return chosen[np.argsort(encounter.galaxy[chosen], kind="stable")]


@torch.inference_mode()
def _as_in_the_picture(encounter: Encounter, at: int, direction: np.ndarray, frame: np.ndarray,
                       ) -> tuple[np.ndarray, np.ndarray, float, float]:
    """How the picture shows it: rows (3, 3) of the picture's right, its up and the way to the observer, of determinant
    +1; the point (3,) in its middle, kpc; its side, kpc; and the correlation of both pictures.

    It is photographed as the library's images are, framed by its content, and mirrored, turned and zoomed as it lies
    best on the picture. A mirror image is the view from behind: stars do not hide each other.
    """
    view, n = View(tuple(direction)), 160
    positions, masses = encounter.positions[at].astype(float), encounter.masses.astype(float)
    middle = np.median(positions, axis=0)
    sky = (positions - middle) @ view.rotation[:2].T
    centre, field = field_of_view_by_content(sky, masses)
    image = render(positions - middle, masses, view, n, field, smoothing_lengths(positions), centre)
    canvas = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    framing = find_frames(canvas)
    target, best = tidy(frame), (-np.inf,)
    for turn, zoom in itertools.product(_TURNS, _ZOOMS):
        framed = framing.jittered(np.zeros((1, 2)), np.array([zoom]), np.radians([turn]))
        picture = stretch(cut_frames(canvas, framed))[0, 0].numpy()
        for mirror in range(4):
            agreement = _correlation(tidy(flipped(picture, mirror)), target)
            if agreement > best[0]:
                best = (agreement, mirror, framed)
    agreement, mirror, framed = best
    right, up, towards = view.rotation
    pivot = middle + (centre + framed.centre[0] * field / 2) @ view.rotation[:2]
    c, s = np.cos(framed.angle[0]), np.sin(framed.angle[0])
    right, up = c * right + s * up, c * up - s * right
    right = -right if mirror in (1, 3) else right
    up = -up if mirror in (2, 3) else up
    return np.array([right, up, np.cross(right, up)]), pivot, float(framed.half_side[0] * field), float(agreement)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-9))
