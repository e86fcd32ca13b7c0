"""From simulated light to frames, as they are shown in training and evaluation.

The observed canvas passes through `preprocess` exactly as a real picture does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .preprocess import FRAME_PIXELS, FRAMINGS, TURNS, Framing, cut_frames, resampled, stretch, turned_frames
from .realism import RealismConfig, add_detail, draw, observe

__all__ = ["Observation", "observe_frames", "light_from_stored", "image_seeds", "mirror", "mirrored_classes",
           "told_or_asked"]


@dataclass
class Observation:
    """B frames as the model sees them."""

    frames: torch.Tensor  #: (B, 1, 112, 112) stretched
    scale: torch.Tensor  #: (B,) log10(frame side / 100 kpc), NaN where the pixel scale is unknown
    ideal: torch.Tensor  #: (K, 1, 112, 112) the first K frames without sky, stars and noise
    turned: list[torch.Tensor]  #: the frames turned by `preprocess.TURNS`, as many as were asked for; they come first


def light_from_stored(images: torch.Tensor, logarithmic: bool = True) -> torch.Tensor:
    """Stored images (B, H, W) as linear light (B, 1, H, W)."""
    images = images[:, None].float()
    # exp is vectorised on the CPU, pow is not
    return torch.where(images > 0, torch.exp(2.302585093 * images), 0.0) if logarithmic else images


def image_seeds(seed: int, epoch: int, indices) -> np.ndarray:
    """A 62-bit seed for every image, that depends on nothing but these numbers (splitmix64)."""
    with np.errstate(over="ignore"):
        start = np.uint64((seed * 1_000_003 + epoch) % 2**64)
        x = np.asarray(indices, np.uint64) + start * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(2)


def mirror(light: torch.Tensor, classes: torch.Tensor, opposite: np.ndarray,
           which: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Light (B, 1, H, W) and classes (B,) of time and camera, where `which` (B,) as the opposite camera sees them.

    opposite : (C,) of each camera the one opposite to it.
    """
    here, there = (torch.from_numpy(which).to(values.device) for values in (light, classes))
    return (torch.where(here[:, None, None, None], light.flip(3), light),
            torch.where(there, mirrored_classes(classes, torch.from_numpy(opposite).to(classes.device)), classes))


def mirrored_classes(classes, opposite):
    """Classes snapshot * C + camera with the camera opposite; arrays or tensors of integers, opposite (C,)."""
    camera = classes % len(opposite)
    return classes - camera + opposite[camera]


def told_or_asked(scale: torch.Tensor, told: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model is told, and what it is asked for where it is not: scale (B,) and side of the frame (B,) in kpc.

    scale : (B,) log10(frame side / 100 kpc).
    told : (B,) or (), bool.
    """
    return torch.where(told, scale, torch.nan), torch.where(told, torch.nan, 100 * 10**scale)


@torch.no_grad()
def observe_frames(light: torch.Tensor, pixel_scale: torch.Tensor, seeds, realism: RealismConfig | None,
                   realistic: float | np.ndarray = 1.0, jitter: bool = False, n_ideal: int = 0,
                   size: int = FRAME_PIXELS, framing: str = "content", n_turns: int = 1) -> Observation:
    """Observe, frame and stretch simulated light.

    Parameters
    ----------
    light : (B, 1, S, S) linear; it is observed on the device that it is on.
    pixel_scale : (B,) kpc per pixel, NaN where unknown.
    seeds : (B,) one per image; on a GPU, what observation draws follows from the first of them alone.
    realism : what observation does to images; None for clean ones.
    realistic : share of the images that it is done to, or the probability (B,) of each.
    jitter : mirror, and misplace the frame a little, as training wants it.
    n_ideal : for how many of the images the undisturbed frame is asked for too.
    framing : one of `preprocess.FRAMINGS`.
    n_turns : how many turned frames are wanted, 1 to 3, the first of them not turned.
    """
    canvas, ideal, zoom = light, light, light.new_ones(len(light))
    seeds = np.asarray(seeds, np.uint64)
    active = torch.from_numpy(seeds.astype(np.float64) / 2.0**62 < realistic)
    observed = realism is not None and bool(active.any())
    if observed:
        draws = draw(seeds[active.numpy()], light.shape[-1], light.device)
        active = active.to(light.device)
        canvas, ideal = light.clone(), light.clone()
        canvas[active], ideal[active], zoom[active] = observe(light[active], draws, realism)
    framing = FRAMINGS[framing](canvas)
    if jitter:
        framing, mirrors = _jitter(framing, seeds)
    turned = turned_frames(canvas, framing, n_turns, size)
    if observed:
        detail = add_detail(turned[0][active], draws, realism) - turned[0][active]
        for frame, degrees in zip(turned, TURNS, strict=False):
            frame[active] += resampled(detail, degrees) if degrees else detail
    turned = [stretch(frame) for frame in turned]
    first = Framing(*(getattr(framing, name)[:n_ideal] for name in Framing.__dataclass_fields__))
    ideal = stretch(cut_frames(ideal[:n_ideal], first, size)) if n_ideal else turned[0][:0]
    if jitter:
        for axis, mask in zip((2, 3), mirrors, strict=True):
            mask = torch.from_numpy(mask).to(light.device)[:, None, None, None]
            turned = [torch.where(mask, frame.flip(axis), frame) for frame in turned]
            ideal = torch.where(mask[:n_ideal], ideal.flip(axis), ideal)
    half_side = torch.from_numpy(framing.half_side).float().to(light.device)
    side = half_side * light.shape[-1] * pixel_scale / zoom
    return Observation(turned[0], torch.log10(side / 100), ideal, turned)


def _jitter(framing: Framing, seeds) -> tuple[Framing, np.ndarray]:
    """Frames a little off, and which of them (2, B) to mirror along y and x; from each image's own seed."""
    from scipy.special import ndtri

    u = np.stack([(image_seeds(k, 0, seeds) + 0.5) / 2.0**62 for k in range(6)], axis=1)
    n, mirrors = ndtri(u[:, :4]), u[:, 4:].T < 0.5
    return framing.jittered(0.05 * n[:, :2], np.exp(0.1 * n[:, 2]), np.radians(6) * n[:, 3]), mirrors
