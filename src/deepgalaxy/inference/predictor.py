"""The main job: a picture in, its story out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import ConfigError, DeepGalaxyError, ImageError, LibraryError
from ..files import sha256_of, shipped
from ..image.preprocess import FRAME_PIXELS, FRAMINGS, MARGIN, Framing, stretch, to_canvas, turned_frames
from ..image.reader import Picture, from_array, read
from ..labels import FRAME_SIDE, STARLIGHT, TIME, UNDISTURBED
from ..models.weights import Weights, load_weights
from ..search.library import Library
from ..units import kpc_per_arcsec
from .clock import set_clock
from .posterior import (
    N_VIEWS,
    at_ranks,
    distributions,
    joint_samples,
    n_turns,
    quantile,
    ranks,
    summarise,
    tempered,
    two_answers,
    views_of,
)
from .story import QUANTILES, UNFAMILIAR, Match, Story

__all__ = ["Predictor", "Scale", "load", "look_alikes", "n_encounters", "shipped", "training_of",
           "without_sky"]

#: Sides of the frames seen in training, kpc; outside, the scale is not to be believed.
_FRAME_KPC = (25.0, 450.0)
#: Groups that show an encounter once more: its galaxies alone, by chance, or in another light.
_ONCE_MORE = re.compile(rf"-({'|'.join((*UNDISTURBED, STARLIGHT))})(#\d+)?$")


@dataclass(frozen=True)
class Scale:
    """What is known about the size of a pixel and the mass of the system.

    kpc_per_pixel alone, or redshift with arcsec_per_pixel (or with the picture's own WCS); mass is that of the stars
    of both galaxies, Msun, with the standard deviation of its decimal logarithm.
    """

    kpc_per_pixel: float | None = None
    arcsec_per_pixel: float | None = None
    redshift: float | None = None
    mass: float | None = None
    mass_dex: float | None = None

    def __post_init__(self):
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                try:
                    object.__setattr__(self, field.name, float(value))
                except (TypeError, ValueError):
                    raise ConfigError(f"{field.name} = {value!r}: must be a plain number (kpc, arcsec, Msun)") from None
        for name, high in (("kpc_per_pixel", 1e3), ("arcsec_per_pixel", 3600), ("redshift", 20), ("mass", 1e14)):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and 0 < value <= high):
                hint = "; is it a velocity in km/s? divide it by 299792" if name == "redshift" and value > high else ""
                raise ConfigError(f"{name} must be in (0, {high:g}], got {value:g}{hint}")
        if self.mass_dex is not None and not (np.isfinite(self.mass_dex) and 0 <= self.mass_dex <= 2):
            raise ConfigError(f"mass_dex must be in [0, 2], got {self.mass_dex:g}")
        if self.mass_dex is not None and self.mass is None:
            raise ConfigError(f"mass_dex = {self.mass_dex:g}: is the error of mass; give mass too")
        if self.mass is not None and self.mass < 1e6:
            hint = f"; is it a logarithm? give {10**self.mass:.2g}" if 6 <= self.mass <= 14 else ""
            raise ConfigError(f"mass = {self.mass:g}: must be at least 1e6 Msun, of the stars of both galaxies{hint}")
        if self.mass is not None and self.kpc_per_pixel is None and self.redshift is None:
            raise ConfigError(f"mass = {self.mass:g}: needs the size of a pixel too (kpc_per_pixel or redshift), "
                              "because times go with the square root of size^3 / mass")
        if self.arcsec_per_pixel is not None and self.redshift is None:
            raise ConfigError(f"arcsec_per_pixel = {self.arcsec_per_pixel:g}: needs redshift too, to become kpc")
        if self.kpc_per_pixel is not None and (self.arcsec_per_pixel is not None or self.redshift is not None):
            raise ConfigError("kpc_per_pixel says all; leave arcsec_per_pixel and redshift out")

    def of(self, picture: Picture) -> tuple[float | None, str]:
        """kpc per pixel of a picture, and where it is from: given, wcs or content."""
        if self.kpc_per_pixel is not None:
            return self.kpc_per_pixel, "given"
        if self.redshift is not None:
            if self.arcsec_per_pixel is not None:
                return self.arcsec_per_pixel * kpc_per_arcsec(self.redshift), "given"
            if picture.arcsec_per_pixel is not None:
                return picture.arcsec_per_pixel * kpc_per_arcsec(self.redshift), "wcs"
        return None, "content"


def load(model: str | Path | None = None, library: str | Path | None = None) -> Predictor:
    """A predictor, from weights and a library; without them, from those that ship with the package.

    Raises
    ------
    ModelError, LibraryError
        If a file is missing, damaged, or the library belongs to another model.
    """
    weights = load_weights(model if model is not None else shipped("model.safetensors"))
    if library is None and model is not None:
        beside = Path(model).parent / "library.h5"
        return Predictor(weights, Library(beside) if beside.is_file() else None)
    return Predictor(weights, Library(library if library is not None else shipped("library.h5")))


@cache
def _shipped_sha256() -> str | None:
    path = shipped("model.safetensors")
    return sha256_of(path) if path.is_file() else None


def training_of(weights: Weights) -> dict:
    """What reports say of a training.

    Returns
    -------
    training : {"shipped": whether the weights are those that ship, "n_encounters": that were trained on, 0 if not
        known, "unseen_stages": names of the stages that no image showed}.
    """
    return {"shipped": weights.sha256 == _shipped_sha256(), "unseen_stages": list(weights.learnt.unseen_stages),
            "n_encounters": n_encounters(weights.metadata.get("training_encounters", ()))}


def n_encounters(names: Iterable[str]) -> int:
    """How many encounters the groups of these names show."""
    return sum(_ONCE_MORE.search(name) is None for name in names)


class Predictor:
    """Weights and a library, ready to answer.

    Parameters
    ----------
    library : without one, matches and familiarity are left out.
    n_views : mirrored and turned views of each image that are averaged, 1 to 12.
    """

    def __init__(self, weights: Weights, library: Library | None = None, n_views: int = N_VIEWS):
        if library is not None and library.model_sha256 != weights.sha256:
            raise LibraryError(f"{library.path}: was made with another model ({library.model_sha256[:12]}, not "
                               f"{weights.sha256[:12]}); make it again with 'deepgalaxy index'")
        if not 1 <= n_views <= N_VIEWS:
            raise ConfigError(f"n_views = {n_views}: must be in 1..{N_VIEWS}")
        self.weights, self.library, self.learnt = weights, library, weights.learnt
        self.n_views = self.learnt.n_views(n_views)
        self._temperatures = weights.metadata.get("temperatures", {})
        self._correlation = weights.metadata.get("correlation")
        self._frames = FRAMINGS[weights.learnt.framing]
        self._training = training_of(weights)

    def predict(self, image, *, kpc_per_pixel: float | None = None, arcsec_per_pixel: float | None = None,
                redshift: float | None = None, mass: float | None = None, mass_dex: float | None = None,
                ext: int | str | None = None, n_matches: int = 5, ranking: dict[str, float] | None = None) -> Story:
        """The story of one picture.

        Parameters
        ----------
        image : a path (FITS, PNG, JPEG, TIFF), an array (see `reader.from_array`) or a Picture.
        kpc_per_pixel, arcsec_per_pixel, redshift : of the picture as read, see `Scale`.
        mass, mass_dex : of the stars of both galaxies, Msun, and its error (0.2 if not given): times then are in Myr
            of this system, otherwise in Myr of the simulated primary; see `Story.clock`.
        ext : extension of a FITS file.
        ranking : {"picture_weight", "posterior_weight"} of the look-alikes, if not the usual ones; see
            `Library.matches`.

        Raises
        ------
        ImageError
            If the picture cannot be read or holds no light.
        ConfigError
            If the scale makes no sense.
        """
        scale = Scale(kpc_per_pixel, arcsec_per_pixel, redshift, mass, mass_dex)
        if isinstance(image, Picture):
            picture = image
        elif isinstance(image, np.ndarray):
            picture = from_array(image)
        elif isinstance(image, bytes) and b"\0" in image:
            raise ImageError("image is the content of a file; give its path, or np.asarray of the picture")
        elif isinstance(image, (str, bytes, os.PathLike)):
            picture = read(image, ext)
        else:
            raise ImageError(f"image is of type {type(image).__name__}; give a path, a numpy array (hdu.data, "
                             "np.asarray(image)) or a Picture")
        if n_matches < 0:
            raise ConfigError(f"n_matches = {n_matches}: must be 0 or more")
        canvas, canvas_pixel = to_canvas(picture.pixels, picture.mask)
        framing = self._frames(canvas)
        turned = [stretch(frames) for frames in turned_frames(canvas, framing, n_turns(self.n_views))]
        frame = turned[0]
        kpc, source = scale.of(picture)
        side_pixels = float(framing.half_side[0]) * canvas.shape[-1] * canvas_pixel
        side_kpc = side_pixels * kpc if kpc is not None else None
        # A scale from far outside of what training told would be answered with narrow nonsense.
        told = side_kpc is not None and _sensible(side_kpc) and not self.learnt.never_told
        log_scale = torch.tensor([np.log10(side_kpc / 100) if told else np.nan], dtype=torch.float32)
        model = self.weights.model
        probability, encodings = distributions(model, turned, log_scale, self._temperatures, self.n_views)
        properties, stage, curves = summarise(probability, 0, QUANTILES)
        estimate = None
        if kpc is None and self.learnt.scale < 1 and FRAME_SIDE.name not in self.learnt.untrained:
            side = quantile(FRAME_SIDE, probability[FRAME_SIDE.name], list(QUANTILES.values()))[0]
            estimate = dict(zip(QUANTILES, map(float, side / side_pixels), strict=True))
        maps = torch.cat([encoding.maps for encoding in encodings])
        with torch.inference_mode():
            samples = joint_samples(model, maps[:1], log_scale, probability, self._temperatures, side_pixels,
                                    correlation=self._correlation, never_told=self.learnt.never_told)
            if kpc is not None:
                samples["kpc_per_pixel"][:] = kpc
            clean = without_sky(self.weights, maps[:1], frame.shape[2:])
            features = model.unscaled_features(maps).numpy()
        flags = picture.flags + _scale_flags(kpc, redshift, mass)
        usual = "{} of the simulations" if self._training["shipped"] else "usual {}"
        flags += _flags(framing, side_kpc, properties, mass, usual)
        if told and self.learnt.scale < 1 and FRAME_SIDE.name not in self.learnt.untrained:
            flags += self._odd_scale(maps, side_kpc, side_pixels)
        flags += self.learnt.flags(kpc is not None)
        clock = set_clock(properties, curves, QUANTILES, mass if told else None,
                          0.2 if mass_dex is None else mass_dex)
        if clock["basis"] == "mass":
            time = TIME.name
            samples[time] = at_ranks(*curves[time], ranks(samples[time]))
        if TIME.name not in self.learnt.untrained:
            flags += _two_times(*curves[TIME.name])
        matches, familiarity = [], float("nan")
        if self.library is not None:
            views = np.stack([v[0, 0].numpy() for v in views_of(turned, len(maps))])
            matches = look_alikes(self.library, self.weights, maps, views, clean,
                                  {k: p[0] for k, p in probability.items()}, n_matches, **(ranking or {}))
            familiarity = self.library.familiarity(features)
            if matches and TIME.name not in self.learnt.untrained:
                flags += _other_time(matches[0].time_myr, probability[TIME.name])
        story = Story(
            image=picture.name, model=self.weights.identity,
            scale={"kpc_per_pixel": kpc, "source": source}, scale_used=bool(told),
            properties=properties, stage=stage, familiarity=familiarity,
            flags=flags + _familiarity_flags(familiarity) + _stage_flags(stage, self._training["unseen_stages"]),
            matches=matches, clock=clock, training=self._training, kpc_per_pixel_estimate=estimate,
            distributions=curves, samples=samples, z=encodings[0].mu[0].numpy(), display=picture.display,
            frame_box=_frame_box(framing, canvas, canvas_pixel, picture), frame=frame[0, 0].numpy(),
            reconstruction=clean)
        return story

    def _odd_scale(self, maps: torch.Tensor, side_kpc: float, side_pixels: float) -> list[str]:
        """A flag if the frame is of another size than its activation maps (V, C, h, w), not told, suggest at 98 %."""
        untold = torch.full((1,), torch.nan)
        with torch.inference_mode():
            logits = self.weights.model.classify(maps, untold.expand(len(maps)))[FRAME_SIDE.name][:, None]
        low, high = quantile(FRAME_SIDE, tempered(logits, self._temperatures, FRAME_SIDE.name, untold).numpy(),
                             [0.01, 0.99])[0]
        if low <= side_kpc <= high:
            return []
        return [f"the picture itself suggests {low / side_pixels:.2g} to {high / side_pixels:.2g} kpc per pixel, not "
                f"{side_kpc / side_pixels:.2g}: check the scale, the time hangs on it"]

    def simulate_twin(self, story: Story, on_snapshot: Callable[[float], None] | None = None) -> None:
        """Simulate the first match of a story anew, as `story.twin`; about ten seconds on two cores.

        on_snapshot : called with the share of the run that is done.

        Raises
        ------
        LibraryError
            If there is no match, or the library does not know how it was simulated.
        ConfigError
            If the model takes pictures whole: then nothing says where in them the galaxies lie.
        SimulationError
            If it cannot be.
        """
        from .twin import simulate_twin  # numba is loaded only here

        if self.library is None or not story.matches:
            raise LibraryError(f"{story.image}: has no look-alike to simulate; a library is needed, and n_matches > 0")
        if self.learnt.framing != "content":
            raise ConfigError(f"twin: needs a model that frames pictures by their content, this one takes them "
                              f"{self.learnt.framing}")
        story.twin = simulate_twin(self.library, story.matches[0], story.frame, on_snapshot, story.reconstruction)

    def predict_many(self, images: Iterable, **options) -> Iterator[Story | tuple[str, str]]:
        """Stories of many pictures, in their order; (name, error) for one that has none."""
        for image in images:
            try:
                yield self.predict(image, **options)
            except DeepGalaxyError as error:
                yield _name(image), str(error)

    def predict_batch(self, images: np.ndarray, kpc_per_pixel: np.ndarray | None = None, n_views: int = 1):
        """Posteriors and latent means of equally large arrays, at full speed.

        Parameters
        ----------
        images : (B, H, H) float, y upwards.
        kpc_per_pixel : (B,), NaN where unknown; not used where the framed light would span less than 12 or more than
            900 kpc, as by `predict`.

        Returns
        -------
        probability : {label: (B, n_bins)}.
        z : (B, latent_size), told the scale where it is given: neighbours are sought by `Library.told_index` then.

        Raises
        ------
        ImageError
            If they have another shape, values that are not finite, or one of them no light.
        ConfigError
            If a size of a pixel is not allowed.
        """
        images = np.asarray(images)
        if images.ndim != 3 or not len(images) or images.shape[1] != images.shape[2] or not np.isfinite(images).all():
            raise ImageError(f"images of shape {images.shape}: must be (B, H, H), of one image or more, and finite; "
                             "predict takes others")
        kpc = np.full(len(images), np.nan) if kpc_per_pixel is None else np.asarray(kpc_per_pixel, float)
        if kpc.shape != images.shape[:1]:
            raise ConfigError(f"kpc_per_pixel of shape {kpc.shape}: must be one number for each of the {len(images)} "
                              "images")
        for one in kpc[~np.isnan(kpc)]:
            Scale(kpc_per_pixel=one)
        low, high = (end(images, axis=(1, 2), keepdims=True).astype(float) for end in (np.min, np.max))
        if (flat := np.flatnonzero(low == high)).size:
            raise ImageError(f"images[{flat[0]}]: holds no light: all its pixels are equal")
        # Large offsets and tiny fluxes both lose digits in single precision, as in `to_canvas`.
        canvas = torch.from_numpy(((images - low) / (high - low)).astype(np.float32))[:, None]
        framing = self._frames(canvas)
        n_views = min(n_views, self.n_views)
        side = framing.half_side * canvas.shape[-1] * kpc
        side = np.where(_sensible(side) & (not self.learnt.never_told), side, np.nan)
        scale = torch.from_numpy(np.log10(side / 100).astype(np.float32))
        turned = [stretch(frames) for frames in turned_frames(canvas, framing, n_turns(n_views))]
        probability, encodings = distributions(self.weights.model, turned, scale, self._temperatures, n_views)
        return probability, encodings[0].mu.numpy()


@torch.inference_mode()
def without_sky(weights: Weights, maps: torch.Tensor, size: tuple[int, int]) -> np.ndarray | None:
    """A picture without sky and stars (n, n), 0..1, from its maps (1, C, h, w); None if the decoder has not learnt."""
    return weights.model.reconstruct(maps, size)[0, 0].numpy().clip(0, 1) if weights.learnt.images else None


@torch.inference_mode()
def look_alikes(library: Library, weights: Weights, maps: torch.Tensor, views: np.ndarray, clean: np.ndarray | None,
                probability: dict[str, np.ndarray], k: int, **ranking) -> list[Match]:
    """The k best matches of one picture, by what its model has learnt; arguments as of `Library.matches`.

    maps : (V, C, h, w) of the picture and its mirror images.
    clean : (n, n) the picture `without_sky`.
    probability : {label: (n_bins,)} of the picture.
    """
    learnt, z = weights.learnt, weights.model.vae.encode(maps)[0].numpy()
    trained = {name: p for name, p in probability.items() if name not in learnt.untrained}
    ranking = ranking if learnt.z else {**ranking, "picture_weight": 1.0}

    def see(pictures: np.ndarray) -> np.ndarray:
        # By the first backbone alone: a tenth of the work, and what is found looks as much like the picture.
        frames = torch.from_numpy(np.asarray(pictures, np.float32))[:, None]
        return weights.model.encoder(F.interpolate(frames, size=views.shape[1:], mode="bilinear")).numpy()

    return library.matches(z, views, k, implausibility=library.implausibility(trained), clean=clean, see=see,
                           **ranking)


def _sensible(side_kpc):
    """Is a frame so large that its size can be told? Training told none that are much smaller or larger."""
    return (_FRAME_KPC[0] / 2 <= side_kpc) & (side_kpc <= 2 * _FRAME_KPC[1])


def _two_times(edges: np.ndarray, probability: np.ndarray) -> list[str]:
    if (two := two_answers(edges, probability)) is None:
        return []
    (first, more), (second, less) = two
    return [f"two times fit the picture, about {first:.0f} Myr ({100 * more:.0f} %) and about {second:.0f} Myr "
            f"({100 * less:.0f} %): look at the curve, the median may lie where neither is"]


def _other_time(time: float, probability: np.ndarray) -> list[str]:
    """A flag if the best match's time lies outside of 90 % of the posterior (1, n_bins), both as simulated."""
    low, high = quantile(TIME, probability, [0.05, 0.95])[0]
    if low <= time <= high:
        return []
    return [f"the best match is seen at {time:+.0f} Myr, outside of the answer's 90 %: it looks alike, and is not what "
            "the answer rests on"]


def _scale_flags(kpc: float | None, redshift: float | None, mass: float | None) -> list[str]:
    if kpc is None and redshift is not None:
        unused = f"the redshift {redshift:g}" + (f" and the mass {mass:g}" if mass is not None else "")
        verb = "is" if mass is None else "are"
        return [f"{unused} {verb} not used: the picture says no pixel scale; give --arcsec-per-pixel"]
    return []


def _familiarity_flags(familiarity: float) -> list[str]:
    return ["unlike anything simulated here: do not trust the numbers"] if familiarity < UNFAMILIAR else []


def _stage_flags(stage: dict, unseen: list[str]) -> list[str]:
    """What it takes for granted may not be so; of stages that it has never seen it knows nothing."""
    texts = {"single": "looks like a single galaxy", "chance pair": "looks like two galaxies that overlap by chance"}
    return [f"{text} ({100 * stage[name]:.0f} %): time and angle then mean nothing"
            for name, text in texts.items() if stage[name] > 0.5 and name not in unseen]


def _name(image) -> str:
    if isinstance(image, (str, bytes, os.PathLike)):
        return os.fsdecode(image)[:300]
    return image.name if isinstance(image, Picture) else "array" if isinstance(image, np.ndarray) else repr(image)[:80]


def _flags(framing: Framing, side: float | None, properties: dict, mass: float | None, usual: str) -> list[str]:
    flags = []
    if not framing.found[0]:
        flags.append("no light stands out of the background: the whole picture was taken")
    reach = np.abs(framing.centre[0]) + framing.half_side[0] / MARGIN
    if framing.found[0] and reach.max() > 1.02:
        flags.append("the light reaches the border: parts of the system may be outside of the picture")
    if framing.crowded[0]:
        others = int(framing.crowded[0])
        flags.append(f"{others} other source{'s' if others > 1 else ''} in the field: taken as not belonging")
    if side is not None and not _FRAME_KPC[0] <= side <= _FRAME_KPC[1]:
        far = ""
        if not _sensible(side):
            far = "; it is not used" + (", nor is the mass" if mass is not None else "")
        sides = usual.format(f"{_FRAME_KPC[0]:.0f}-{_FRAME_KPC[1]:.0f} kpc")
        flags.append(f"the framed light spans {side:.3g} kpc, outside of the {sides}: check the scale{far}")
    label = TIME
    p = properties[label.name]
    if p["p95"] - p["p05"] > 0.6 * (label.high - label.low):
        flags.append("the picture hardly constrains the time")
    return flags


def _frame_box(framing: Framing, canvas, canvas_pixel: float, picture: Picture) -> np.ndarray:
    """Corners (4, 2) of the frame in pixels of `picture.display`, whose y points down."""
    corner = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    c, s = np.cos(framing.angle[0]), np.sin(framing.angle[0])
    unit = framing.centre[0] + framing.half_side[0] * corner @ np.array([[c, s], [-s, c]])
    height, width = picture.pixels.shape
    side = max(height, width)
    x = (unit[:, 0] + 1) / 2 * side - (side - width) // 2
    y = (unit[:, 1] + 1) / 2 * side - (side - height) // 2
    shrink = picture.display.shape[1] / width
    return np.column_stack([x, height - y]) * shrink


assert FRAME_PIXELS % 16 == 0  # the default stride divides a frame
