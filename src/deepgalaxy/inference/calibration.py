"""Temperatures that make the error bars honest, found on encounters held out of training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..data.reader import Dataset
from ..image.observation import image_seeds, light_from_stored, observe_frames
from ..image.realism import RealismConfig
from ..labels import LABELS
from ..models.deepgalaxy import DeepGalaxy
from .posterior import coverage_level, distributions, views_of

__all__ = ["predict_dataset", "fit_temperatures"]

_LEVELS = (0.5, 0.68, 0.9, 0.95)


def predict_dataset(model: DeepGalaxy, dataset: Dataset, indices: np.ndarray, realism: RealismConfig | None,
                    scale_known: bool = True, temperatures: dict | None = None, n_views: int = 8, seed: int = 99,
                    on_batch: Callable[[int], None] | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Posteriors {label: (N, n_bins)} and latent means (N, latent_size) of images of a data set."""
    parts, latents = [], []
    for start in range(0, len(indices), 64):
        index = indices[start:start + 64]
        seen = _observe(dataset, index, realism, seed)
        scale = seen.scale if scale_known else torch.full_like(seen.scale, torch.nan)
        p, mu = distributions(model, seen.frames, scale, temperatures, n_views)
        parts.append(p)
        latents.append(mu[0].numpy())
        if on_batch:
            on_batch(len(index))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}, np.concatenate(latents)


def fit_temperatures(model: DeepGalaxy, dataset: Dataset, indices: np.ndarray, realism: RealismConfig | None,
                     n_views: int = 8) -> dict[str, float]:
    """One temperature per label, so that central intervals cover what they promise.

    Half of the images have their scale told, half not. The temperature of least mean squared
    difference between the promised and the found coverage at 50, 68, 90 and 95 % is taken.
    """
    grid = np.geomspace(0.4, 3.0, 21)
    levels = {(label.name, k): [] for label in LABELS for k in range(len(grid))}
    for start in range(0, len(indices), 64):
        index = indices[start:start + 64]
        seen = _observe(dataset, index, realism, seed=98)
        scale = torch.where(torch.arange(len(index)) % 2 == 0, seen.scale, torch.nan)
        with torch.inference_mode():
            logits = [model(view, scale)[1] for view in views_of(seen.frames, n_views=n_views)]
        for label in LABELS:
            truth = dataset.labels[label.column][index]
            for k, temperature in enumerate(grid):
                p = sum(torch.softmax(one[label.name] / temperature, dim=1) for one in logits) / len(logits)
                levels[label.name, k].append(coverage_level(label, p.numpy(), truth))
    chosen = {}
    for label in LABELS:
        misses = []
        for k in range(len(grid)):
            u = np.concatenate(levels[label.name, k])
            found = [np.mean(np.abs(u - 0.5) < q / 2) for q in _LEVELS]
            misses.append(np.mean((np.array(found) - _LEVELS) ** 2))
        chosen[label.name] = float(grid[int(np.argmin(misses))])
    return chosen


def _observe(dataset, index, realism, seed):
    light = light_from_stored(torch.from_numpy(dataset.images(index)), dataset.quantity == "log10_surface_density")
    pixel = torch.from_numpy(dataset.labels["pixel_scale"][index])
    return observe_frames(light, pixel, image_seeds(seed, 0, index), realism)
