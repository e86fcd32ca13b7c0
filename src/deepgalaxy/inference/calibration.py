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
from ..labels import HEADS, LABELS, Label
from ..models.deepgalaxy import DeepGalaxy
from .posterior import N_VIEWS, SLOPE, UNTOLD, coverage_level, distributions, mixed, n_turns, views_of, widths

__all__ = ["predict_dataset", "fit_temperature", "fit_temperatures", "fit_correlation", "light_of"]

_LEVELS = (0.5, 0.68, 0.9, 0.95)


def predict_dataset(model: DeepGalaxy, dataset: Dataset, indices: np.ndarray, realism: RealismConfig | None,
                    scale_known: bool = True, temperatures: dict | None = None, n_views: int = N_VIEWS, seed: int = 99,
                    on_batch: Callable[[int], None] | None = None, framing: str = "content",
                    mirrored: bool = False) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Posteriors {label: (N, n_bins)}, latent means (N, latent_size) and sides of the frames (N,) in kpc, of images.

    mirrored : of the images with left and right exchanged.
    """
    parts, latents, sides = [], [], []
    for start in range(0, len(indices), 64):
        index = indices[start:start + 64]
        seen = _observe(dataset, index, realism, seed, framing, n_views, mirrored)
        scale = seen.scale if scale_known else torch.full_like(seen.scale, torch.nan)
        p, encodings = distributions(model, seen.turned, scale, temperatures, n_views)
        parts.append(p)
        latents.append(encodings[0].mu.numpy())
        sides.append(100 * 10 ** seen.scale.numpy())
        if on_batch:
            on_batch(len(index))
    probability = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return probability, np.concatenate(latents), np.concatenate(sides)


def fit_temperatures(model: DeepGalaxy, dataset: Dataset, indices: np.ndarray, realism: RealismConfig | None,
                     n_views: int = N_VIEWS, framing: str = "content", never_told: bool = False) -> dict[str, float]:
    """Two temperatures per label, with the scale told and not, so that central intervals cover what they promise.

    Every image is shown with its scale told and without, to a model that is `never_told` only so. Returns what
    `posterior.tempered` takes.
    """
    logits, truths = {}, {}
    for start in range(0, len(indices), 64):
        index = indices[start:start + 64]
        seen = _observe(dataset, index, realism, 98, framing, n_views)
        with torch.inference_mode():
            maps = [model.maps(view) for view in views_of(seen.turned, n_views)]
        for end, scale in (("", seen.scale), (UNTOLD, torch.full_like(seen.scale, torch.nan))):
            if end == "" and (never_told or torch.isnan(scale).all()):
                continue
            with torch.inference_mode():
                answers = [model.classify(one, scale) for one in maps]
            for label in HEADS:
                truth = dataset.labels[label.column][index] if label.column else 100 * 10 ** seen.scale.numpy()
                known = np.isfinite(truth) & (np.isfinite(scale.numpy()) | (end == UNTOLD))
                truths.setdefault((label, end), []).append(truth[known])
                logits.setdefault((label, end), []).append(torch.stack([one[label.name][known] for one in answers]))
    temperatures = {}
    for (label, end), parts in logits.items():
        truth = np.concatenate(truths[label, end])
        if len(truth):
            t, slope = fit_temperature(label, torch.cat(parts, dim=1).float(), truth)
            temperatures |= {label.name + end: t, label.name + end + SLOPE: slope}
    return temperatures


def fit_temperature(label: Label, logits: torch.Tensor, truth: np.ndarray) -> tuple[float, float]:
    """A temperature and its power of the width, of logits (V, N, n_bins) whose truths (N,) are known.

    What is promised at 50, 68, 90 and 95 % is compared with what is found, in the narrowest, the narrower, the wider
    and the widest quarter of the distributions, as exactly as so many different truths tell it (a ratio is one number
    per encounter); the temperature of the highest likelihood, within 15 %, is what is believed where they do not.
    Alone, the first is noisy where a posterior hardly depends on its temperature, and the second makes intervals of
    time too wide, for the sake of the few that are far off.
    """
    width = widths(logits)
    typical, quarters = float(width.median()), np.digitize(width, np.quantile(width, [0.25, 0.5, 0.75]))
    bins = np.clip(label.position(truth).astype(int), 0, label.n_bins - 1)
    grid, n_truths, best = np.geomspace(0.4, 3.0, 31), len(np.unique(truth)), (np.inf, 1.0, 0.0)
    for slope in (0.0, 0.1, 0.2, 0.3, 0.4):
        levels, surprise = [], []
        for t in grid:
            p = mixed(logits, t * (width / typical) ** slope).numpy()
            levels.append(coverage_level(label, p, truth))
            surprise.append(-np.log(p[np.arange(len(bins)), bins] + 1e-9).mean())
        costs = _costs(grid, levels, grid[np.argmin(surprise)], n_truths, quarters) + (slope / 0.25) ** 2
        k = int(np.argmin(costs))
        best = min(best, (float(costs[k]), float(grid[k] * typical**-slope), slope))
    return best[1:]


def _costs(grid: np.ndarray, levels: list[np.ndarray], likeliest: float, n_truths: int, parts: np.ndarray):
    """How little to believe in each temperature (T,) of the grid; see `fit_temperature`.

    levels : at each temperature, where in its posterior each truth lies.
    parts : (N,) of which each shall cover as promised.
    """
    promised, names = np.array(_LEVELS), np.unique(parts)
    costs = (np.log(grid / likeliest) / 0.15) ** 2
    for part in names:
        found = np.array([np.mean(np.abs(u[parts == part, None] - 0.5) < promised / 2, axis=0) for u in levels])
        costs += np.mean((found - promised) ** 2 / (promised * (1 - promised)), axis=1) * n_truths / len(names)
    return costs


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


def _observe(dataset, index, realism, seed, framing, n_views, mirrored=False):
    light = light_of(dataset, index)
    light = light.flip(3) if mirrored else light
    pixel = torch.from_numpy(dataset.labels["pixel_scale"][index])
    return observe_frames(light, pixel, image_seeds(seed, 0, index), realism, framing=framing,
                          n_turns=n_turns(n_views))
