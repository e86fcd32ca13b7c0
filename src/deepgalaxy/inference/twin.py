"""The simulated twin: the encounter behind a look-alike, simulated anew, that can be turned and followed in time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import ConfigError, LibraryError
from ..image.preprocess import Framing, cut_frames, find_frames, stretch
from ..image.render import field_of_view_by_content, render, smoothing_lengths
from ..image.view import View
from ..search.library import Library
from ..search.pictures import PICTURE_PIXELS, flipped, tidy, with_and_without_sky
from ..simulate.encounter import EncounterConfig, Resolution, simulate
from ..simulate.snapshot import Encounter
from ..units import REFERENCE_STARS
from .story import Match, Twin

__all__ = ["simulate_twin"]

#: Stars and snapshots that are kept to be shown, and Myr between those of the run.
_N_STARS, _N_SNAPSHOTS, _INTERVAL = 3000, 60, 10.0
#: Myr before the first pericentre, and after the time of the look-alike, that are shown.
_BEFORE, _AFTER = 150.0, 150.0
#: Myr, on the clock of the encounter, that a look-alike may be from its first pericentre.
_TIMES = (-1000.0, 3000.0)
_MAX_PARTICLES, _LEAST_SOFTENING = 16384, 0.05
#: How the twin is laid on the picture: degrees, half of all (mirror images are the other half), and zooms.
_TURNS, _TURNS_NEARBY, _ZOOMS = tuple(range(-90, 90, 10)), (-10, 0, 10), (0.87, 1.0, 1.15)
#: Between the images of a library lie 20 degrees and more. Around the look-alike's direction and snapshot the twin is
#: looked for by so many degrees and snapshots to either side, once coarsely and once finely.
_SEARCHES = ((14.0, (-2, 0, 2)), (7.0, (-1, 0, 1)))
#: So much more correlation is worth a snapshot more from the look-alike, whose time agrees with the answers.
_WORTH = 0.005


def simulate_twin(library: Library, match: Match, frame: np.ndarray,
                  on_snapshot: Callable[[float], None] | None = None, clean: np.ndarray | None = None) -> Twin:
    """Run the encounter of a look-alike again, and show it when and from where it fits the picture best.

    It is not the run of the library: at most 16,384 particles, usual forces and steps, and those of this machine.

    Parameters
    ----------
    frame : (n, n) the picture framed by its content, 0..1, y upwards.
    on_snapshot : called with the share of the run that is done.
    clean : (n, n) the same without sky and stars, as the decoder sees it.

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
    at, axes, pivot, side, agreement = _as_in_the_picture(encounter, at, direction, frame, clean)
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
                       clean: np.ndarray | None) -> tuple[int, np.ndarray, np.ndarray, float, float]:
    """When and how the picture shows it: the snapshot; rows (3, 3) of the picture's right, its up and the way to the
    observer, of determinant +1; the point (3,) in its middle, kpc; its side, kpc; and the correlation of both pictures.

    at, direction : where the look-alike is; around it the best is looked for.
    frame, clean : (n, n) the picture, 0..1, and the same without sky and stars, if a decoder knows it.
    """
    targets = _standardised(with_and_without_sky(frame, clean))
    lengths: dict[int, np.ndarray] = {}

    def lay(at: int, direction: np.ndarray, near: _Laid | None = None) -> _Laid:
        if at not in lengths:
            lengths[at] = smoothing_lengths(encounter.positions[at].astype(float))
        return _lay(encounter, at, direction, lengths[at], targets, near)

    best = lay(at, np.asarray(direction, float))
    for degrees, steps in _SEARCHES:
        around = [(now, towards) for now in (best.at + step for step in steps) if 0 <= now < len(encounter.time)
                  for towards in _tilted(best.direction, degrees)]
        best = max([best, *(lay(*one, best) for one in around)],
                   key=lambda laid: laid.agreement - _WORTH * abs(laid.at - at))
    return best.at, *best.axes(), best.agreement


@dataclass
class _Laid:
    """A snapshot, photographed as the library's images are and laid on a picture as it fits best."""

    at: int
    direction: np.ndarray  #: (3,) towards the observer
    middle: np.ndarray  #: (3,) of the stars, kpc
    centre: np.ndarray  #: (2,) of the photograph on the sky, kpc from there
    field: float  #: its side, kpc
    framing: Framing
    mirror: int
    agreement: float  #: correlation with the picture, the mean of with and without sky

    def axes(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Rows (3, 3): right, up and towards the observer; the middle (3,) of the frame and its side, kpc.

        A mirror image is the view from behind: stars do not hide each other.
        """
        right, up, _ = (rotation := View(tuple(self.direction)).rotation)
        pivot = self.middle + (self.centre + self.framing.centre[0] * self.field / 2) @ rotation[:2]
        c, s = np.cos(self.framing.angle[0]), np.sin(self.framing.angle[0])
        right, up = c * right + s * up, c * up - s * right
        right = -right if self.mirror in (1, 3) else right
        up = -up if self.mirror in (2, 3) else up
        return np.array([right, up, np.cross(right, up)]), pivot, float(self.framing.half_side[0] * self.field)


def _lay(encounter: Encounter, at: int, direction: np.ndarray, smoothing: np.ndarray, targets: np.ndarray,
         near: _Laid | None) -> _Laid:
    """Photograph a snapshot, framed by its content, and mirror, turn and zoom it as it lies best on a picture.

    at, direction : the snapshot, and the way (3,) to the observer.
    smoothing : (N,) of the snapshot's stars, kpc.
    targets : (Q, n, n) the picture, standardised, with and without sky.
    near : the like, seen from nearly the same direction: then it lies nearly as that does.
    """
    view, n = View(tuple(direction)), 160
    positions, masses = encounter.positions[at].astype(float), encounter.masses.astype(float)
    middle = np.median(positions, axis=0)
    centre, field = field_of_view_by_content((positions - middle) @ view.rotation[:2].T, masses)
    image = render(positions - middle, masses, view, n, field, smoothing, centre)
    canvas = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None]
    found, turns, mirrors = find_frames(canvas), _TURNS, range(4)
    if near is not None:
        right = near.axes()[0][0] * (-1 if near.mirror in (1, 3) else 1)
        found.angle[0] = np.arctan2(right @ view.rotation[1], right @ view.rotation[0])
        turns, mirrors = _TURNS_NEARBY, (near.mirror,)
    changes = np.array(list(itertools.product(turns, _ZOOMS)))
    every = Framing(*(np.repeat(getattr(found, name), len(changes), axis=0) for name in Framing.__dataclass_fields__))
    every = every.jittered(np.zeros((len(changes), 2)), changes[:, 1], np.radians(changes[:, 0]))
    pictures = tidy(stretch(cut_frames(canvas.expand(len(changes), -1, -1, -1), every,
                                        PICTURE_PIXELS))[:, 0].numpy())
    agreement = np.stack([_standardised(flipped(pictures, mirror)).reshape(len(changes), -1)
                          @ targets.reshape(len(targets), -1).T for mirror in mirrors]).mean(axis=2)
    which, change = np.unravel_index(int(agreement.argmax()), agreement.shape)
    framing = found.jittered(np.zeros((1, 2)), changes[change, 1:], np.radians(changes[change, :1]))
    return _Laid(at, np.asarray(direction, float), middle, np.asarray(centre), float(field), framing, mirrors[which],
                 float(agreement.max()))


def _tilted(direction: np.ndarray, degrees: float) -> list[np.ndarray]:
    """A direction (3,) and eight around it, on a square whose sides are so many degrees from its middle."""
    right, up, towards = View(tuple(direction)).rotation
    step = np.tan(np.radians(degrees))
    around = [towards + step * (i * right + j * up) for i, j in itertools.product((-1, 0, 1), repeat=2)]
    return [one / np.linalg.norm(one) for one in around]


def _standardised(pictures: np.ndarray) -> np.ndarray:
    """Pictures (..., n, n) less their mean, of length 1: products are correlations."""
    pictures = pictures - pictures.mean(axis=(-2, -1), keepdims=True)
    return pictures / np.maximum(np.linalg.norm(pictures, axis=(-2, -1), keepdims=True), 1e-9)
