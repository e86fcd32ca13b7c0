"""The protocol of the DeepGalaxy paper: a random split of one suite, and classes that are time x camera.

It leaks, because neighbouring snapshots stand in training and test; it is here to compare.
"""

from __future__ import annotations

import numpy as np

from ..data.reader import Dataset
from ..errors import ConfigError, DatasetError
from ..models.weights import Weights
from ..training.fit import TrainConfig, split
from .calibration import predict_dataset
from .evaluate import confusion, label_figures, reconstruction

__all__ = ["evaluate_paper"]


def evaluate_paper(weights: Weights, dataset: Dataset, on_batch=None) -> tuple[dict, dict]:
    """Figures on the images that the model's own random split held out.

    Returns
    -------
    result : what `--json` holds: `top1`; `within_one_step`: the right camera and a snapshot next to the right one;
        `n_classes`; `n_distinct_classes`: a camera and its opposite see mirror images, so that those count once;
        `confusion` of cameras, and of snapshots.
    samples : {"clean": ...}, as of `evaluate_unseen`.

    Raises
    ------
    ConfigError
        If the model has no classes, or was not trained on a random split.
    DatasetError
        If the data set is another than that of the training.
    """
    training = TrainConfig.parse(weights.metadata["training"], "recipe of the model")
    n_cameras, n_snapshots = int(dataset.camera.max()) + 1, int(dataset.snapshot.max()) + 1
    n_classes = weights.model.config.n_classes
    if training.split != "random" or not n_classes:
        raise ConfigError("protocol = paper: needs a model trained with split: random and model: {n_classes: ...}, as "
                          "recipes/paper.yaml does")
    trained_on = set(weights.metadata.get("training_encounters", []))  # and those of the weights that it started from
    same = (set(weights.metadata.get("validation_encounters", [])) == set(dataset.identities)
            and weights.metadata.get("n_images") == len(dataset))
    if not same or not trained_on.issuperset(dataset.identities) or n_classes < n_cameras * n_snapshots:
        raise DatasetError(f"{dataset.path}: is another data set than the one that the model was trained on; give that "
                           "one, because the split belongs to it")
    indices = split(training, dataset)[1][1]
    truth = dataset.snapshot[indices] * n_cameras + dataset.camera[indices]
    told = not weights.learnt.never_told
    probability, _, _ = predict_dataset(weights.model, dataset, indices, None, told, None, 1, on_batch=on_batch,
                                        framing=weights.learnt.framing)
    best = probability["time_camera"].argmax(axis=1)
    near = (np.abs(best // n_cameras - truth // n_cameras) <= 1) & (best % n_cameras == truth % n_cameras)
    figures, samples = label_figures(dataset, indices, probability)
    result = {"protocol": "paper", "model": weights.identity, "n_images": len(indices),
              "n_encounters": len(np.unique(dataset.group[indices])), "n_classes": n_cameras * n_snapshots,
              "n_distinct_classes": _distinct_views(dataset) * n_snapshots, "top1": float(np.mean(best == truth)),
              "within_one_step": float(near.mean()), "clean": figures,
              "confusion": {"camera": confusion(truth % n_cameras, best % n_cameras, n_cameras),
                            "snapshot": confusion(truth // n_cameras, best // n_cameras, n_snapshots)},
              "reconstruction": reconstruction(weights, dataset, indices[:512])}
    return result, {"clean": samples}


def _distinct_views(dataset: Dataset) -> int:
    """Cameras that do not see the mirror image of what another one sees."""
    views = []
    for camera in range(int(dataset.camera.max()) + 1):
        view = dataset.view[np.flatnonzero(dataset.camera == camera)[0]]
        if not any(np.allclose(view, -other, atol=1e-3) for other in views):
            views.append(view)
    return len(views)
