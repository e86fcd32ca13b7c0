"""Make a library from a model and a data set, and calibrate the model on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..data.reader import Dataset
from ..image.observation import image_seeds, light_from_stored, observe_frames
from ..image.realism import RealismConfig
from ..inference.calibration import fit_temperatures, predict_dataset
from ..models.weights import Weights, load_weights, update_metadata
from .index import LatentIndex
from .library import encode_thumbnail, write_library

__all__ = ["calibrate", "build_library"]


def _held_out(weights: Weights, dataset: Dataset) -> np.ndarray:
    """Mask (N,) of the images whose encounters were held out when the model was trained."""
    names = set(weights.metadata.get("validation_encounters", []))
    groups = [g for g, identity in enumerate(dataset.identities) if identity in names]
    return np.isin(dataset.group, groups)


def _spread(indices: np.ndarray, n: int) -> np.ndarray:
    """At most n of the indices, chosen at random but always the same ones."""
    return np.sort(np.random.default_rng(0).permutation(indices)[:n])


def calibrate(model: str | Path, data: str | Path, n_images: int = 1536, output: str | Path | None = None,
              ) -> dict[str, float]:
    """Find the temperatures on the held-out encounters of the training data, and store them with the weights.

    output : the calibrated weights; without it, `model` itself is changed.
    """
    weights, dataset = load_weights(model), Dataset(data)
    held = np.flatnonzero(_held_out(weights, dataset))
    if len(held) == 0:
        held = np.arange(len(dataset))
    realism = weights.metadata["training"].get("realism")
    temperatures = fit_temperatures(weights.model, dataset, np.random.default_rng(1).permutation(held)[:n_images],
                                    RealismConfig.parse(realism, "realism") if realism else None)
    update_metadata(model, output, temperatures=temperatures)
    return temperatures


@torch.inference_mode()
def build_library(model: str | Path, data: str | Path, path: str | Path, n_images: int = 36000,
                  on_batch: Callable[[int], None] | None = None) -> int:
    """Write a library of the data set's images, spread evenly; returns how many.

    Encounters held out of training are in it too: it is a set of references, and the more the better.
    """
    weights, dataset = load_weights(model), Dataset(data)
    chosen = _spread(np.arange(len(dataset)), n_images)
    z, thumbnails = [], []
    for start in range(0, len(chosen), 128):
        index = chosen[start:start + 128]
        light = light_from_stored(torch.from_numpy(dataset.images(index)), dataset.quantity == "log10_surface_density")
        seen = observe_frames(light, torch.full((len(index),), torch.nan), image_seeds(0, 0, index), None)
        z.append(weights.model.encode(seen.frames).mu.numpy())
        thumbnails += [encode_thumbnail(frame) for frame in seen.frames[:, 0].numpy()]
        if on_batch:
            on_batch(len(index))
    z = np.concatenate(z)
    unseen = _held_out(weights, dataset)
    held = _spread(np.flatnonzero(unseen), 1024)
    realism = weights.metadata["training"].get("realism")
    familiar, metric = np.zeros((0, weights.model.config.latent_size), np.float32), None
    if len(held) and realism:
        _, clean = predict_dataset(weights.model, dataset, held, None, n_views=1)
        _, familiar = predict_dataset(weights.model, dataset, held, RealismConfig.parse(realism, "realism"), n_views=1)
        metric = LatentIndex.by_observation(z, familiar - clean)
    elif len(held):
        _, familiar = predict_dataset(weights.model, dataset, held, None, n_views=1)
    write_library(path, z=z, labels={k: v[chosen] for k, v in dataset.labels.items()},
                  encounters=dataset.groups, encounter=dataset.group[chosen], snapshot=dataset.snapshot[chosen],
                  camera=dataset.camera[chosen], thumbnails=thumbnails, familiar_z=familiar,
                  model_sha256=weights.sha256, config=dataset.config, metric=metric,
                  comparable=~unseen[chosen])
    return len(chosen)
