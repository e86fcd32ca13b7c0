"""Temperatures that make the error bars honest, found on encounters held out of training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..data.datamodule import read_images
from ..data.reader import Dataset
from ..data.schema import LOG_SURFACE_DENSITY
from ..image.observation import image_seeds, light_from_stored, observe_frames
from ..image.realism import RealismConfig
from ..labels import HEADS, LABELS
from ..models.deepgalaxy import DeepGalaxy
from .posterior import UNTOLD, coverage_level, distributions, views_of

__all__ = ["predict_dataset", "fit_temperatures", "fit_correlation", "light_of"]

_LEVELS = (0.5, 0.68, 0.9, 0.95)


def predict_dataset(model: DeepGalaxy, dataset: Dataset, indices: np.ndarray, realism: RealismConfig | None,
                    scale_known: bool = True, temperatures: dict | None = None, n_views: int = 8, seed: int = 99,
                    on_batch: Callable[[int], None] | None = None, framing: str = "content",
                    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Posteriors {label: (N, n_bins)}, latent means (N, latent_size) and sides of the frames (N,) in kpc, of images."""
    parts, latents, sides = [], [], []
    for start in range(0, len(indices), 64):
        index = indices[start:start + 64]
        seen = _observe(dataset, index, realism, seed, framing)
        scale = seen.scale if scale_known else torch.full_like(seen.scale, torch.nan)
        p, encodings = distributions(model, seen.frames, scale, temperatures, n_views)
        parts.append(p)
        latents.append(encodings[0].mu.numpy())
        sides.append(100 * 10 ** seen.scale.numpy())
        if on_batch:
            on_batch(len(index))
    probability = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return probability, np.concatenate(latents), np.concatenate(sides)


def fit_temperatures(model: DeepGalaxy, dataset: Dataset, indices: np.ndarray, realism: RealismConfig | None,
                     n_views: int = 8, framing: str = "content", never_told: bool = False) -> dict[str, float]:
    """Two temperatures per label, with the scale told and not, so that central intervals cover what they promise.

    Every image is shown with its scale told and without, to a model that is `never_told` only so. What is promised
    at 50, 68, 90 and 95 % is compared with what is found, as exactly as so many different truths tell it (a ratio
    is one number per encounter); the temperature of the highest likelihood, within 15 %, is what is believed where
    they do not. Alone, the first is noisy where a posterior hardly depends on its temperature, and the second makes
    intervals of time too wide, for the sake of the few that are far off.
    """
    grid = np.geomspace(0.4, 3.0, 41)
    levels, surprise, truths = {}, {}, {}
    for start in range(0, len(indices), 64):
        index = indices[start:start + 64]
        seen = _observe(dataset, index, realism, 98, framing)
        for end, scale in (("", seen.scale), (UNTOLD, torch.full_like(seen.scale, torch.nan))):
            if end == "" and (never_told or torch.isnan(scale).all()):
                continue
            with torch.inference_mode():
                logits = [model(view, scale)[1] for view in views_of(seen.frames, n_views=n_views)]
            for label in HEADS:
                truth = dataset.labels[label.column][index] if label.column else 100 * 10 ** seen.scale.numpy()
                known = np.isfinite(truth) & (np.isfinite(scale.numpy()) | (end == UNTOLD))
                truths.setdefault(label.name + end, []).append(truth[known])
                bins = np.clip(label.position(truth[known]).astype(int), 0, label.n_bins - 1)
                for t in grid if known.any() else ():
                    p = sum(torch.softmax(one[label.name][known] / t, dim=1) for one in logits) / len(logits)
                    at = (label.name + end, t)
                    levels.setdefault(at, []).append(coverage_level(label, p.numpy(), truth[known]))
                    surprise.setdefault(at, []).append(-np.log(p.numpy()[np.arange(len(bins)), bins] + 1e-9))
    surprises: dict[str, dict[float, float]] = {}
    for (name, t), values in surprise.items():
        surprises.setdefault(name, {})[t] = float(np.mean(np.concatenate(values)))
    return {name: _honest(grid, [np.concatenate(levels[name, t]) for t in grid], min(of, key=of.get),
                          len(np.unique(np.concatenate(truths[name])))) for name, of in surprises.items()}


def _honest(grid: np.ndarray, levels: list[np.ndarray], likeliest: float, n_truths: int) -> float:
    """The temperature of the grid that covers as promised, but for what n truths do not tell; see `fit_temperatures`.

    levels : at each temperature, where in its posterior each truth lies.
    """
    promised = np.array(_LEVELS)
    found = np.array([np.mean(np.abs(u[:, None] - 0.5) < promised / 2, axis=0) for u in levels])
    miss = np.mean((found - promised) ** 2 / (promised * (1 - promised)), axis=1) * n_truths
    return float(grid[np.argmin(miss + (np.log(grid / likeliest) / 0.15) ** 2)])


def fit_correlation(model: DeepGalaxy, dataset: Dataset, indices: np.ndarray, realism: RealismConfig | None,
                    temperatures: dict[str, float], n_views: int = 4, framing: str = "content",
                    never_told: bool = False) -> list[list[float]] | None:
    """Correlation (L, L) of the labels' errors where the scale is told (if ever), in the order of LABELS.

    An error is where in its posterior the truth lies, as a normal score. None if fewer than 100 images have all labels.
    """
    from scipy.special import ndtri

    probability, _, _ = predict_dataset(model, dataset, indices, realism, not never_told, temperatures, n_views, 97,
                                        framing=framing)
    truths = [dataset.labels[label.column][indices] for label in LABELS]
    known = np.isfinite(truths).all(axis=0)
    if known.sum() < 100:
        return None
    scores = np.stack([ndtri(np.clip(coverage_level(label, probability[label.name][known], truth[known]), 0.005, 0.995))
                       for label, truth in zip(LABELS, truths, strict=True)])
    # A label that never errs, or of which all errors are one, has no correlation.
    scores = scores + 1e-3 * np.random.default_rng(0).standard_normal(scores.shape)
    return np.corrcoef(scores).round(4).tolist()


def light_of(dataset, index) -> torch.Tensor:
    """Linear light (B, 1, H, W) of images of a data set; a DatasetError names a bad one."""
    return light_from_stored(torch.from_numpy(read_images(dataset, index)), dataset.quantity == LOG_SURFACE_DENSITY)


def _observe(dataset, index, realism, seed, framing):
    light = light_of(dataset, index)
    pixel = torch.from_numpy(dataset.labels["pixel_scale"][index])
    return observe_frames(light, pixel, image_seeds(seed, 0, index), realism, framing=framing)
