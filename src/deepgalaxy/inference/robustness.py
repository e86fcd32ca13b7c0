"""Does the answer stay when the picture is turned, mirrored, zoomed or noisier?"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from ..image.picture import eight_bits
from ..image.preprocess import find_frames, resampled, stretch, turned_frames
from ..labels import LABELS
from ..models.deepgalaxy import DeepGalaxy
from .posterior import N_VIEWS, distributions, n_turns, quantile

__all__ = ["robustness"]


def robustness(model: DeepGalaxy, canvases: torch.Tensor, pixel_scale: torch.Tensor, noise: torch.Tensor,
               temperatures: dict, n_views: int = N_VIEWS, seed: int = 0) -> dict:
    """How far medians move, in units of half their own 68 % interval.

    Parameters
    ----------
    canvases : (B, 1, S, S) observed pictures.
    pixel_scale : (B,) kpc per pixel.
    noise : (B,) standard deviation of their sky noise; as much is added again twice over, in quadrature to double it.

    Returns
    -------
    {change: {label: {"median_shift", "within"}}}: the median of the shifts, and the share of images that move less
    than half their interval.
    """
    before = _answers(model, canvases, pixel_scale, temperatures, n_views)
    generator = torch.Generator().manual_seed(seed)
    extra = 3**0.5 * noise[:, None, None, None] * torch.randn(canvases.shape, generator=generator)
    changes = {
        "rotated by 90 degrees": (canvases.rot90(1, (2, 3)), pixel_scale),
        "rotated by 37 degrees": (resampled(canvases, 37, outside="reflection"), pixel_scale),
        "mirrored": (canvases.flip(3), pixel_scale),
        "enlarged by 20 %": (resampled(canvases, 0, 1.2, "reflection"), pixel_scale / 1.2),
        "reduced by 20 %": (resampled(canvases, 0, 1 / 1.2, "reflection"), pixel_scale * 1.2),
        "half the signal to noise": (canvases + extra, pixel_scale),
        "as a JPEG of 8 bits": (_as_jpeg(canvases), pixel_scale),
        "as a JPEG, brightened (values to the power of 0.7)": (_as_jpeg(canvases) ** 0.7, pixel_scale),
    }
    result = {}
    for name, (changed, scale) in changes.items():
        after = _answers(model, changed, scale, temperatures, n_views)
        result[name] = {}
        for label in LABELS:
            half = (before[label.name][:, 2] - before[label.name][:, 0]) / 2
            shift = np.abs(after[label.name][:, 1] - before[label.name][:, 1]) / np.maximum(half, 1e-9)
            result[name][label.name] = {"median_shift": float(np.median(shift)), "within": float(np.mean(shift < 1))}
    return result


def _as_jpeg(canvases: torch.Tensor) -> torch.Tensor:
    """The pictures (B, 1, S, S) as people put them on a page, quality 90."""
    out = []
    for image in canvases[:, 0].numpy():
        file = io.BytesIO()
        Image.fromarray(eight_bits(image)).save(file, "jpeg", quality=90)
        out.append(np.asarray(Image.open(file), np.float32) / 255)
    return torch.from_numpy(np.stack(out))[:, None]


def _answers(model, canvases, pixel_scale, temperatures, n_views) -> dict[str, np.ndarray]:
    """p16, p50, p84 (B, 3) of every label."""
    framing = find_frames(canvases)
    turned = [stretch(frames) for frames in turned_frames(canvases, framing, n_turns(n_views))]
    side = torch.from_numpy(framing.half_side).float() * canvases.shape[-1] * pixel_scale
    p, _ = distributions(model, turned, torch.log10(side / 100), temperatures, n_views)
    return {label.name: quantile(label, p[label.name], [0.16, 0.5, 0.84]) for label in LABELS}
