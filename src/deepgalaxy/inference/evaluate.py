"""How good are the answers? On encounters that the model has never seen."""

from __future__ import annotations

import numpy as np
import torch

from ..data.reader import Dataset
from ..errors import DatasetError
from ..image.observation import light_from_stored, observe_frames
from ..image.realism import RealismConfig
from ..labels import LABELS
from ..models.losses import ssim
from ..models.weights import Weights
from ..search.index import LatentIndex
from .calibration import predict_dataset
from .posterior import coverage_level, quantile

__all__ = ["evaluate_unseen"]


def evaluate_unseen(weights: Weights, dataset: Dataset, library=None, n_images: int | None = None,
                    time_range: tuple[float, float] = (-150.0, 500.0), n_views: int = 8, seed: int = 0,
                    on_batch=None) -> tuple[dict, dict]:
    """Errors, coverage, reconstruction and neighbours on a data set of unseen encounters.

    Parameters
    ----------
    library : for neighbours in z; without one they are left out.
    n_images : at most so many, spread evenly; all without it.
    time_range : Myr.

    Returns
    -------
    result : what `--json` holds.
    samples : {"clean" | "realism": {label: {"truth", "p16", "p50", "p84", "pit"}}}, arrays (N,).

    Raises
    ------
    DatasetError
        If the model was trained on one of these encounters, or no image lies in the time range.
    """
    if set(weights.metadata.get("training_encounters", [])) & set(dataset.identities):
        raise DatasetError(f"{dataset.path}: holds encounters that the model was trained on; evaluate on others")
    time = dataset.labels["time"]
    indices = np.flatnonzero((time >= time_range[0] - 8) & (time <= time_range[1] + 8))
    if len(indices) == 0:
        raise DatasetError(f"{dataset.path}: no image lies within {time_range[0]:g}..{time_range[1]:g} Myr")
    if n_images is not None and len(indices) > n_images:
        indices = np.random.default_rng(seed).permutation(indices)[:n_images]
    realism = RealismConfig.parse(weights.metadata["training"].get("realism") or {}, "realism")
    temperatures = weights.metadata.get("temperatures", {})
    result = {"protocol": "unseen", "model": weights.identity, "n_images": int(len(indices)),
              "n_encounters": len(np.unique(dataset.group[indices])), "time_range": list(time_range)}
    samples, latents = {}, None
    runs = {"clean": (None, True), "realism": (realism, True), "realism_without_scale": (realism, False)}
    for name, (how, scale_known) in runs.items():
        p, z = predict_dataset(weights.model, dataset, indices, how, scale_known, temperatures, n_views,
                               seed=seed + 5, on_batch=on_batch)
        if name == "clean":
            latents = z
        result[name], samples[name] = _figures(dataset, indices, p)
    result["reconstruction"] = _reconstruction(weights, dataset, indices[:512])
    if library is not None:
        result["neighbours"] = _neighbours(weights, dataset, indices, latents, library)
    return result, samples


def _figures(dataset, indices, probability):
    figures, samples = {}, {}
    for label in LABELS:
        truth = dataset.labels[label.column][indices]
        p = probability[label.name]
        p16, p50, p84 = (quantile(label, p, q) for q in (0.16, 0.5, 0.84))
        pit = coverage_level(label, p, truth)
        error = np.abs(p50 - truth)
        figures[label.name] = {
            "unit": label.unit, "median_abs_error": float(np.median(error)), "mean_abs_error": float(error.mean()),
            "coverage68": float(np.mean(np.abs(pit - 0.5) < 0.34)),
            "coverage95": float(np.mean(np.abs(pit - 0.5) < 0.475)),
            "prior_median_abs_error": float(np.median(np.abs(truth - np.median(truth)))),
        }
        samples[label.name] = {"truth": truth, "p16": p16, "p50": p50, "p84": p84, "pit": pit}
    stage = dataset.labels["stage"][indices]
    known = stage != 255
    if known.any():
        best = probability["stage"][known].argmax(1)
        figures["stage"] = {"accuracy": float((best == stage[known]).mean())}
    return figures, samples


@torch.inference_mode()
def _reconstruction(weights, dataset, indices):
    """SSIM of clean frames and their reconstructions, from the maps and through z."""
    model, direct, through = weights.model, [], []
    for start in range(0, len(indices), 64):
        index = indices[start:start + 64]
        light = light_from_stored(torch.from_numpy(dataset.images(index)), dataset.quantity == "log10_surface_density")
        frames = observe_frames(light, torch.full((len(index),), torch.nan), [0] * len(index), None).frames
        encoding = model.encode(frames)
        direct.append(ssim(model.reconstruct(encoding.maps, frames.shape[2:]), frames))
        maps = model.vae.decode(encoding.mu, encoding.maps.shape[2:])
        through.append(ssim(model.reconstruct(maps, frames.shape[2:]), frames))
    return {"ssim_fcae": float(torch.cat(direct).mean()), "ssim_vae": float(torch.cat(through).mean())}


def _neighbours(weights, dataset, indices, latents, library):
    """How far in time the 5 nearest library images in z are, for clean images."""
    index: LatentIndex = library.index
    _, rows = index.search(latents, 5)
    dt = np.abs(library.labels["time"][rows] - dataset.labels["time"][indices][:, None])
    return {"median_abs_dt_5": float(np.median(dt)), "median_abs_dt_1": float(np.median(dt[:, 0]))}


