"""Make a library from a model and a data set, and calibrate the model on the way."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..data.joined import JoinedDataset, open_data
from ..data.reader import Dataset
from ..errors import ConfigError, DatasetError, DeepGalaxyWarning, LibraryError
from ..files import shipped
from ..image.observation import image_seeds, observe_frames
from ..image.realism import RealismConfig
from ..inference.calibration import fit_correlation, fit_temperatures, light_of
from ..inference.posterior import N_VIEWS
from ..models.weights import Weights, load_weights, update_metadata
from ..progress import one_line
from ..training.recipe import TrainConfig, split
from .index import LatentIndex
from .library import Library, encode_thumbnail, extend_library, rewrite_library, write_library

__all__ = ["make_library", "calibrate", "build_library", "extend", "keep_library", "library_images", "not_trained_on"]


def make_library(model: Path | None, data, output: Path, references: Path | None, n_images: int, calibrated: bool,
                 say: Callable[[str], None], progress: Callable[[str, int], AbstractContextManager],
                 add: bool = False) -> dict:
    """Calibrate weights and make the library that belongs to them, both in one folder, which may be the model's own.

    It may be stopped anywhere, and started again: the weights take their place after the library, so that until then
    those that were there and theirs stay.

    Parameters
    ----------
    model : weights; without it, the shipped ones.
    references : a library of this model, whose images are kept.
    n_images : of a new library, at most.
    calibrated : whether to calibrate the model.
    add : n_images of the data set at most come beside those of the references, without any of the shipped library, and
        the model is not calibrated.

    Returns
    -------
    {"library", "model", "images", "temperatures"}

    Raises
    ------
    LibraryError
        If the references were made with another model.
    ConfigError
        If the folder cannot be written, or holds weights that the library would not belong to.
    """
    model = model or shipped("model.safetensors")
    if add:
        calibrated, references = False, references or shipped("library.h5")
    kept = None if references is None else Library(references)
    library, weights = output / "library.h5", output / "model.safetensors"
    ready = output / ".model.safetensors.calibrated"
    if kept is not None:
        # Stopped between the library and its weights, it left them under this name.
        if ready.is_file() and load_weights(ready).sha256 == kept.model_sha256:
            os.replace(ready, weights)
        if kept.model_sha256 != load_weights(model).sha256:
            raise LibraryError(f"references = {references}: was made with another model; give one of {model}")
    if not calibrated and weights.is_file() and load_weights(weights).sha256 != load_weights(model).sha256:
        raise ConfigError(f"output = {output}: holds other weights than {model}, and the library would not belong to "
                          "them; give --model, or another folder")
    temperatures = None
    if calibrated:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output = {output}: cannot be written ({error.strerror})") from None
        temperatures = calibrate(model, data, output=ready)
        model = ready
        say("temperatures: " + ", ".join(f"{k} {v:.2f}" for k, v in temperatures.items() if v))
    if kept is not None and not add:
        n = keep_library(model, kept, data, library)
    else:
        with progress("index", min(n_images, len(library_images(open_data(data))))) as advance:
            n = (extend(model, kept, data, library, n_images, advance) if add else
                 build_library(model, data, library, n_images, advance))
    if calibrated:
        os.replace(ready, weights)
        model = weights
    say(f"library: {library}, {n} images")
    return {"library": str(library), "model": str(model), "images": n, "temperatures": temperatures}


def _held_out(weights: Weights, dataset: Dataset | JoinedDataset) -> np.ndarray:
    """Mask (N,) of the images of encounters that were held out when the model was trained.

    Of a random split, the images that it held out.
    """
    names = set(weights.metadata.get("validation_encounters", []))
    groups = [g for g, identity in enumerate(dataset.identities) if identity in names]
    held = np.isin(dataset.group, groups) & dataset.is_encounter
    if weights.metadata["training"].get("split") == "random" and held.any():
        if weights.metadata.get("n_images") != len(dataset):
            raise DatasetError(f"{dataset.path}: holds {len(dataset)} images, the model was trained on a random split "
                               f"of {weights.metadata.get('n_images')}; give the data set of its training")
        training = TrainConfig.parse(weights.metadata["training"], "recipe of the model")
        held &= np.isin(np.arange(len(dataset)), split(training, dataset)[1][1])
    return held


def _new(weights: Weights, dataset: Dataset | JoinedDataset) -> np.ndarray:
    """Indices of the images that were held out; without any, of encounters that were not trained on; may be none."""
    held = _held_out(weights, dataset)
    if not held.any():
        known = set(weights.metadata.get("training_encounters", []))
        groups = [g for g, identity in enumerate(dataset.identities) if identity not in known]
        held = np.isin(dataset.group, groups) & dataset.is_encounter
    return np.flatnonzero(held)


def not_trained_on(weights: Weights, dataset: Dataset | JoinedDataset) -> np.ndarray:
    """Indices of images that were not trained on, see `_new`; a DatasetError if there are none."""
    new = _new(weights, dataset)
    if not dataset.is_encounter.any():
        raise DatasetError(f"{dataset.path}: shows single galaxies and chance pairs only; give one of encounters")
    if not len(new):
        raise DatasetError(f"{dataset.path}: the model was trained on all of its encounters; calibrate on others, or "
                           "keep its temperatures (--no-calibration)")
    return new


def library_images(dataset: Dataset | JoinedDataset) -> np.ndarray:
    """Indices of the images that a library may hold: encounters as they were simulated."""
    return np.flatnonzero(dataset.is_encounter & dataset.shines_by_mass)


def _spread(indices: np.ndarray, n: int) -> np.ndarray:
    """At most n of the indices, chosen at random but always the same ones."""
    return np.sort(np.random.default_rng(0).permutation(indices)[:n])


def calibrate(model: str | Path, data, n_images: int = 4096, output: str | Path | None = None,
              ) -> dict[str, float]:
    """Find temperatures and the correlation of errors on encounters held out of training; store them with the weights.

    data : path of the data set, or several.
    output : the calibrated weights; without it, `model` itself is changed.
    """
    weights, dataset = load_weights(model), open_data(data)
    held = np.random.default_rng(1).permutation(not_trained_on(weights, dataset))[:n_images]
    realism, of = _realism_of(weights), weights.learnt
    temperatures = fit_temperatures(weights.model, dataset, held, realism, of.n_views(N_VIEWS), of.framing,
                                    of.never_told)
    correlation = fit_correlation(weights.model, dataset, held[:n_images // 2], realism, temperatures, of.n_views(4),
                                  of.framing, of.never_told)
    update_metadata(model, output, temperatures=temperatures, correlation=correlation,
                    calibration_encounters=sorted({dataset.identities[g] for g in dataset.group[held]}))
    return temperatures


@torch.inference_mode()
def build_library(model: str | Path, data, path: str | Path, n_images: int = 36000,
                  on_batch: Callable[[int], None] | None = None) -> int:
    """Write a library of the data set's images, spread evenly; returns how many.

    Encounters held out of training are in it too: it is a set of references, and the more the better.

    Raises
    ------
    DatasetError
        If none of its images may be in a library.
    """
    weights, dataset = load_weights(model), open_data(data)
    new = _new_images(weights, dataset, n_images, on_batch)
    z, z_told = new["z"], new["z_told"]
    held = _spread(_new(weights, dataset), 1024)
    if not len(held):
        warnings.warn(f"{dataset.path}: the model was trained on all of its encounters: the library cannot say how "
                      "familiar a picture is; calibrate it on others (--references)", DeepGalaxyWarning, stacklevel=2)
    realism = _realism_of(weights)
    observed = _encodings(weights, dataset, held, realism)
    metric, metric_told = _metrics(weights, dataset, held, z, z_told, observed, realism)
    # Single galaxies and chance pairs count as familiar.
    usual = _encodings(weights, dataset, _spread(np.arange(len(dataset)), 3072), realism).features
    write_library(path, **new, usual_features=usual, unseen_features=observed.features, model_sha256=weights.sha256,
                  config=dataset.config, metric=metric, metric_told=metric_told)
    return len(z)


@torch.inference_mode()
def extend(model: str | Path, library: Library, data, path: str | Path, n_images: int,
           on_batch: Callable[[int], None] | None = None) -> int:
    """Write the library anew with images of the data set, spread evenly, beside its own; returns how many it holds.

    What is usual, and what observation does to z, stay as they were learnt when the library was made.

    Raises
    ------
    DatasetError
        If none of its images may be in a library.
    """
    dataset = open_data(data)
    new = _new_images(load_weights(model), dataset, n_images, on_batch)
    if isinstance(dataset, Dataset):  # the names of several have the file's already
        new["encounters"] = [f"{one_line(dataset.path.stem)}:{name}" for name in new["encounters"]]
    extend_library(library, path, **new)
    return len(library) + len(new["z"])


def _new_images(weights: Weights, dataset: Dataset | JoinedDataset, n_images: int,
                on_batch: Callable[[int], None] | None) -> dict:
    """What `write_library` is told of images of a data set, spread evenly, and of their encounters."""
    chosen = _spread(library_images(dataset), n_images)
    if not len(chosen):
        raise DatasetError(f"{dataset.path}: holds no image of an encounter whose light follows mass, and a library is "
                           "made of such; give a data set with some")
    of, model = weights.learnt, weights.model
    z, z_told, thumbnails = [], [], []
    for start in range(0, len(chosen), 128):
        index = chosen[start:start + 128]
        seen = observe_frames(light_of(dataset, index), _pixel_scale(dataset, index), image_seeds(0, 0, index), None,
                              framing=of.framing)
        maps = model.maps(seen.frames)
        z.append(model.vae.encode(maps)[0].numpy())
        if model.config.latent_scale:
            z_told.append(model.vae.encode(maps, of.told(seen.scale))[0].numpy())
        thumbnails += [encode_thumbnail(frame) for frame in seen.frames[:, 0].numpy()]
        if on_batch:
            on_batch(len(index))
    return {"z": np.concatenate(z), "z_told": np.concatenate(z_told) if z_told else None, "thumbnails": thumbnails,
            "labels": {k: v[chosen] for k, v in dataset.labels.items()},
            "encounters": dataset.groups, "encounter": dataset.group[chosen], "snapshot": dataset.snapshot[chosen],
            "camera": dataset.camera[chosen], "view": dataset.view[chosen],
            "configs": [row.get("config") for row in dataset.attributes]}


@torch.inference_mode()
def keep_library(model: str | Path, library: Library, data, path: str | Path) -> int:
    """Write the library anew for the same weights calibrated on other images; returns how many it holds.

    Its reference images stay, and what is usual, which is what training showed; how far from that an unseen image of
    an encounter may be, and what observation does to z, is learnt from the data set.
    """
    weights, dataset = load_weights(model), open_data(data)
    images, realism = _spread(not_trained_on(weights, dataset), 1024), _realism_of(weights)
    observed = _encodings(weights, dataset, images, realism)
    metric, metric_told = _metrics(weights, dataset, images, library.arrays["z"], library.arrays.get("z_told"),
                                   observed, realism)
    rewrite_library(library, path, unseen_features=observed.features, model_sha256=weights.sha256, metric=metric,
                    metric_told=metric_told)
    return len(library)


def _metrics(weights: Weights, dataset, indices, z, z_told, observed: _Encodings, realism: RealismConfig | None):
    """Metrics (D, D) for z (N, D) and z with the scale told, by what observation did to these images.

    None where it did nothing, or where there is no such z.
    """
    if realism is None or not len(indices):
        return None, None
    clean = _encodings(weights, dataset, indices, None)
    told = None if z_told is None else LatentIndex.by_observation(z_told, observed.z_told - clean.z_told)
    return LatentIndex.by_observation(z, observed.z - clean.z), told


def _realism_of(weights: Weights) -> RealismConfig | None:
    """What its training did to images."""
    realism = weights.metadata["training"].get("realism")
    return RealismConfig.parse(realism, "realism") if realism else None


class _Encodings(NamedTuple):
    """Of N images, observed or clean."""

    z: np.ndarray  #: (N, D) latent means
    z_told: np.ndarray  #: (N, D) the same with the scale told
    features: np.ndarray  #: (N, K) what the classifier sees


def _encodings(weights: Weights, dataset, indices, realism: RealismConfig | None) -> _Encodings:
    model, latents, told, features = weights.model, [], [], []
    for start in range(0, len(indices), 64):
        index = indices[start:start + 64]
        seen = observe_frames(light_of(dataset, index), _pixel_scale(dataset, index), image_seeds(99, 0, index),
                              realism, framing=weights.learnt.framing)
        maps = model.maps(seen.frames)
        latents.append(model.vae.encode(maps)[0].numpy())
        told.append(model.vae.encode(maps, weights.learnt.told(seen.scale))[0].numpy())
        features.append(model.unscaled_features(maps).numpy())
    if not latents:
        return _Encodings(*np.zeros((2, 0, model.config.latent_size), np.float32), np.zeros((0, 1), np.float32))
    return _Encodings(*map(np.concatenate, (latents, told, features)))


def _pixel_scale(dataset, index) -> torch.Tensor:
    """kpc per pixel (B,), NaN where the data set does not say."""
    return torch.from_numpy(dataset.labels["pixel_scale"][index].astype(np.float32))
