"""The protocol of the paper: classes of time x camera on a random split, counted by hand."""

import json

import numpy as np
import pytest
import torch

from deepgalaxy.data.reader import Dataset
from deepgalaxy.data.splits import split_random
from deepgalaxy.data.writer import write_dummy_dataset
from deepgalaxy.errors import ConfigError, DatasetError
from deepgalaxy.image.preprocess import stretch
from deepgalaxy.inference.evaluate import evaluate_unseen
from deepgalaxy.inference.paper import evaluate_paper, n_shown
from deepgalaxy.models.weights import load_weights
from deepgalaxy.training.fit import fit
from deepgalaxy.training.recipe import TrainConfig


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """In the published layout: 4 encounters x 5 snapshots x 4 cameras, two of which are opposite to two others."""
    return write_dummy_dataset(tmp_path_factory.mktemp("grid") / "grid.h5", n_encounters=4, n_snapshots=5, n_cameras=4,
                               n_pixels=64, published=True)


@pytest.fixture(scope="module")
def file(grid, tiny_settings, tmp_path_factory):
    recipe = TrainConfig(data=str(grid), output=str(tmp_path_factory.mktemp("paper")), epochs=3, images_per_epoch=320,
                         batch_size=16, framing="whole", split="random", validation_share=0.25, validation_images=8,
                         validate_every=9, seed=2, realism=None, model={**tiny_settings, "n_classes": 20},
                         loss={"scale_known": 1, "labels": {"time_camera": 3.0}}, optimiser={"ema": 0.9, "warmup": 5})
    return fit(recipe, say=lambda text: None)


@pytest.fixture(scope="module")
def weights(file):
    return load_weights(file)


def test_figures_are_those_counted_by_hand(weights, grid):
    dataset = Dataset(grid)
    done = []
    result, samples = evaluate_paper(weights, dataset, done.append)
    assert sum(done) == n_shown(weights, dataset) == result["n_images"]
    held = split_random(len(dataset), (0.75, 0.25), seed=2)[1]
    assert result["n_images"] == len(held) == 20 and result["n_encounters"] == 4
    # Cameras +x -x +y -y: opposite ones are mirror images, so that half of the classes are left.
    assert result["n_classes"] == 20 and result["n_distinct_classes"] == 10
    right, near = [], []
    for i in held:
        frame = torch.nn.functional.interpolate(torch.from_numpy(dataset.image(i))[None, None], (112, 112),
                                                mode="bilinear", align_corners=False)
        with torch.inference_mode():
            _, logits = weights.model(stretch(frame), torch.tensor([torch.nan]))
        snapshot, camera = divmod(int(logits["time_camera"].argmax()), 4)
        right.append((snapshot, camera) == (dataset.snapshot[i], dataset.camera[i]))
        near.append(abs(snapshot - dataset.snapshot[i]) <= 1 and camera == dataset.camera[i])
    assert result["top1"] == pytest.approx(np.mean(right), abs=0.051)  # one image on the edge between two classes
    assert result["within_one_step"] == pytest.approx(np.mean(near), abs=0.051)
    assert result["within_one_step"] >= result["top1"]
    camera, snapshot = (np.array(result["confusion"][name]) for name in ("camera", "snapshot"))
    assert camera.shape == (4, 4) and snapshot.shape == (5, 5) and camera.sum() == snapshot.sum() == len(held)
    np.testing.assert_array_equal(camera.sum(axis=1), np.bincount(dataset.camera[held], minlength=4))
    assert min(np.trace(camera), np.trace(snapshot)) >= result["top1"] * len(held)
    assert len(samples["clean"]["time_since_pericentre"]["truth"]) == len(held)
    assert np.isfinite(result["clean"]["time_since_pericentre"]["median_abs_error"])


def test_only_the_split_of_the_training_counts(weights, grid, predictor, tiny_dataset, tmp_path):
    with pytest.raises(ConfigError, match="split: random"):
        evaluate_paper(predictor.weights, Dataset(tiny_dataset))
    other = write_dummy_dataset(tmp_path / "other.h5", n_encounters=5, n_snapshots=5, n_cameras=4, n_pixels=64,
                                published=True)
    # The same encounters, photographed less often: the split would be another one.
    fewer = write_dummy_dataset(tmp_path / "grid.h5", n_encounters=4, n_snapshots=4, n_cameras=4, n_pixels=64,
                                published=True)
    for data in (other, fewer):
        with pytest.raises(DatasetError, match="another data set"):
            evaluate_paper(weights, Dataset(data))
    with pytest.raises(ConfigError, match="protocol paper"):
        evaluate_unseen(weights, Dataset(tiny_dataset))


def test_command_says_the_same_and_nothing_else(run, file, weights, grid):
    done = run("evaluate", "--protocol", "paper", "--model", file, "--data", grid, "--json", "-")
    assert done.status == 0, done.err
    assert json.loads(done.out)["top1"] == pytest.approx(evaluate_paper(weights, Dataset(grid))[0]["top1"], abs=0.051)
    # Libraries that count what is left of them when the interpreter ends have nothing to complain of.
    assert not [line for line in done.err.splitlines() if not line.startswith("evaluate: ")], done.err
