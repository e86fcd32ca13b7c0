"""The answer about one picture."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Match", "QUANTILES", "Story", "Twin", "UNFAMILIAR", "UNUSUAL"]

#: Names and probabilities of the quantiles that are given for every property.
QUANTILES = {"p05": 0.05, "p16": 0.16, "p50": 0.50, "p84": 0.84, "p95": 0.95}
#: Familiarities below which numbers are not to be trusted, and to be trusted less.
UNFAMILIAR, UNUSUAL = 0.02, 0.05


@dataclass
class Match:
    """One look-alike in the library."""

    encounter: str
    time_myr: float
    mass_ratio: float
    size_ratio: float
    view: float  #: angle of the orbital plane to the sky, degrees
    distance: float  #: in the latent space, in units of the library's median distance to the ten nearest
    #: (P, P) float32 0..1, y upwards, turned as the query is, and as bright as that is without sky
    thumbnail: np.ndarray = field(repr=False, default=None)
    row: int = field(repr=False, default=-1)  #: of the library

    def to_dict(self) -> dict:
        """What `--json` holds."""
        names = ("encounter", "time_myr", "mass_ratio", "size_ratio", "view", "distance")
        return {name: getattr(self, name) for name in names}


@dataclass
class Twin:
    """The encounter behind a look-alike, simulated anew: T snapshots of N stars, in the axes of the picture."""

    encounter: str
    time: np.ndarray  #: (T,) Myr since the first pericentre, as those of the matches
    #: (T, N, 3) float32, kpc from the middle of the frame: to its right, upwards, and towards the observer.
    positions: np.ndarray = field(repr=False)
    galaxy: np.ndarray = field(repr=False)  #: (N,) int8, 0 primary, 1 secondary, in this order
    at: int  #: the snapshot that fits the picture best, within 30 Myr of the look-alike
    side: float  #: of the frame, kpc
    agreement: float  #: correlation of its picture with the frame, with sky and without, in the mean; at best 1


@dataclass
class Story:
    """What is known about one picture.

    `properties` maps each label's name to {"unit", "p05", "p16", "p50", "p84", "p95"};
    `distributions` maps it to (edges (K + 1,), probability (K,)), the whole posterior.
    """

    image: str
    model: dict  #: name, version, sha256
    scale: dict  #: kpc_per_pixel (of the picture as read, or None) and source: given, wcs or content
    properties: dict[str, dict]
    stage: dict[str, float]
    familiarity: float  #: fraction of observed images of unseen encounters that are less usual than this one
    flags: list[str]
    matches: list[Match]
    clock: dict = field(default_factory=dict)  #: what the Myr hold for, see `clock.set_clock`
    training: dict = field(default_factory=dict)  #: of the model, for reports: see `predictor.training_of`
    scale_used: bool = True  #: the model was told the scale, if it is known; one that cannot be is not told
    kpc_per_pixel_estimate: dict | None = None  #: quantiles of what the picture suggests, if nobody tells its scale
    distributions: dict[str, tuple[np.ndarray, np.ndarray]] = field(repr=False, default_factory=dict)
    #: Draws (S,) from the joint posterior, one array per label and "kpc_per_pixel"; of "view_inclination" with the
    #: mirror image of each, 0..180 degrees, where 90 is edge-on; see `posterior.joint_samples`.
    samples: dict[str, np.ndarray] = field(repr=False, default_factory=dict)
    twin: Twin | None = None  #: of the first match, if it was asked for
    z: np.ndarray = field(repr=False, default=None)  #: (latent_size,), told the scale if known: `Library.told_index`
    display: np.ndarray = field(repr=False, default=None)  #: (H, W, 3) uint8, y downwards: the picture as read
    frame_box: np.ndarray = field(repr=False, default=None)  #: (4, 2) corners x, y of the frame on `display`, pixels
    frame: np.ndarray = field(repr=False, default=None)  #: (112, 112) 0..1, y upwards: what the model saw
    reconstruction: np.ndarray = field(repr=False, default=None)  #: (112, 112) 0..1, y upwards: without sky and stars

    def to_dict(self) -> dict:
        """What `--json` holds."""
        return {"image": self.image, "model": self.model, "scale": self.scale, **self.properties,
                "stage": self.stage, "familiarity": self.familiarity, "flags": self.flags,
                "matches": [match.to_dict() for match in self.matches], "clock": self.clock,
                "kpc_per_pixel_estimate": self.kpc_per_pixel_estimate}
