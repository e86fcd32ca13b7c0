"""The protocol of the DeepGalaxy paper: a random split of one suite, and classes that are time x camera.

It leaks, because neighbouring snapshots stand in training and test; it is here to compare.
"""

from __future__ import annotations

import numpy as np

from ..data.datamodule import camera_views
from ..data.reader import Dataset
from ..errors import ConfigError, DatasetError
from ..image.observation import mirrored_classes
from ..image.view import opposite_views
from ..models.weights import Weights
from ..training.recipe import TrainConfig, split
from .calibration import predict_dataset
from .evaluate import confusion, label_figures, reconstruction

__all__ = ["evaluate_paper", "n_shown"]


def evaluate_paper(weights: Weights, dataset: Dataset, on_batch=None) -> tuple[dict, dict]:
    """Figures on the images that the model's own random split held out.

    Returns
    -------
    result : what `--json` holds: `top1`; `within_one_step`: the right camera and a snapshot next to the right one;
        `n_classes`; `n_distinct_classes`: a camera and its opposite see mirror images, so that those count once;
        `mirror_image_trained_on`, `mirror_image_held_out`: the two figures of pictures whose mirror image, from the
        opposite camera, was among those trained on, and of the others;
        `confusion` of cameras, and of snapshots.
    samples : {"clean": ...}, as of `evaluate_unseen`.

    Raises
    ------
    ConfigError
        If the model has no classes, or was not trained on a random split.
    DatasetError
        If the data set is another than that of the training.
    """
    training, indices = _held_out(weights, dataset)
    n_cameras, n_snapshots = int(dataset.camera.max()) + 1, int(dataset.snapshot.max()) + 1
    opposite = opposite_views(camera_views(dataset))
    truth = dataset.snapshot[indices] * n_cameras + dataset.camera[indices]
    probability = _answers(weights, dataset, indices, opposite if training.mirrored else None, on_batch)
    best = probability["time_camera"].argmax(axis=1)
    near = (np.abs(best // n_cameras - truth // n_cameras) <= 1) & (best % n_cameras == truth % n_cameras)
    figures, samples = label_figures(dataset, indices, probability)
    result = {"protocol": "paper", "model": weights.identity, "n_images": len(indices),
              "n_encounters": len(np.unique(dataset.group[indices])), "n_classes": n_cameras * n_snapshots,
              "n_distinct_classes": (n_cameras - np.count_nonzero(opposite > np.arange(n_cameras))) * n_snapshots,
              **_shares(best == truth, near), **_by_mirror_image(dataset, indices, opposite, best == truth, near),
              "clean": figures,
              "confusion": {"camera": confusion(truth % n_cameras, best % n_cameras, n_cameras),
                            "snapshot": confusion(truth // n_cameras, best // n_cameras, n_snapshots)},
              "reconstruction": reconstruction(weights, dataset, indices[:512])}
    return result, {"clean": samples}


def n_shown(weights: Weights, dataset: Dataset) -> int:
    """How many pictures `evaluate_paper` shows the model: those held out, twice if their mirror images count too.

    Raises
    ------
    ConfigError, DatasetError
        As `evaluate_paper`.
    """
    training, indices = _held_out(weights, dataset)
    return len(indices) * (1 + training.mirrored)


def _held_out(weights: Weights, dataset: Dataset) -> tuple[TrainConfig, np.ndarray]:
    """The recipe of the model, and the images (N,) that its random split held out."""
    training = TrainConfig.parse(weights.metadata["training"], "recipe of the model")
    n_classes = weights.model.config.n_classes
    needed = (int(dataset.camera.max()) + 1) * (int(dataset.snapshot.max()) + 1)
    if training.split != "random" or not n_classes:
        raise ConfigError("protocol = paper: needs a model trained with split: random and model: {n_classes: ...}, as "
                          "recipes/paper.yaml does")
    trained_on = set(weights.metadata.get("training_encounters", []))  # and those of the weights that it started from
    same = (set(weights.metadata.get("validation_encounters", [])) == set(dataset.identities)
            and weights.metadata.get("n_images") == len(dataset))
    if not same or not trained_on.issuperset(dataset.identities) or n_classes < needed:
        raise DatasetError(f"{dataset.path}: is another data set than the one that the model was trained on; give that "
                           "one, because the split belongs to it")
    return training, split(training, dataset)[1][1]


def _answers(weights: Weights, dataset: Dataset, indices: np.ndarray, opposite: np.ndarray | None,
             on_batch) -> dict[str, np.ndarray]:
    """Distributions {label: (N, n_bins)} of one view; with `opposite`, the mean of a picture's and its mirror's."""
    told = not weights.learnt.never_told
    shown = []
    for mirrored in (False, True)[:1 if opposite is None else 2]:
        probability, _, _ = predict_dataset(weights.model, dataset, indices, None, told, None, 1,
                                            on_batch=on_batch, framing=weights.learnt.framing, mirrored=mirrored)
        if mirrored:
            classes = probability["time_camera"]
            probability["time_camera"] = classes[:, mirrored_classes(np.arange(classes.shape[1]), opposite)]
        shown.append(probability)
    return {name: np.mean([one[name] for one in shown], axis=0) for name in shown[0]}


def _shares(right: np.ndarray, near: np.ndarray) -> dict[str, float | None]:
    return {name: float(values.mean()) if len(values) else None
            for name, values in (("top1", right), ("within_one_step", near))}


def _by_mirror_image(dataset: Dataset, indices: np.ndarray, opposite: np.ndarray, right: np.ndarray,
                     near: np.ndarray) -> dict[str, dict]:
    """The same figures of pictures whose mirror image, from the opposite camera, was trained on, and of the others."""
    images = list(zip(dataset.group[indices], dataset.snapshot[indices], dataset.camera[indices], strict=True))
    held = set(images)
    seen = np.array([opposite[camera] >= 0 and (group, snapshot, opposite[camera]) not in held
                     for group, snapshot, camera in images])
    return {name: {"n_images": int(part.sum()), **_shares(right[part], near[part])}
            for name, part in (("mirror_image_trained_on", seen), ("mirror_image_held_out", ~seen))}
