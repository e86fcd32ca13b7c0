"""Pictures that are shown mirrored, as the camera opposite to theirs sees them."""

import numpy as np
import pytest
import torch

from deepgalaxy.data.build import build_dataset
from deepgalaxy.data.datamodule import EncounterImages, opposite_cameras
from deepgalaxy.data.reader import Dataset
from deepgalaxy.data.writer import write_dummy_dataset
from deepgalaxy.errors import ConfigError, DatasetError
from deepgalaxy.image.observation import mirror, mirrored_classes
from deepgalaxy.image.render import RenderConfig
from deepgalaxy.image.view import View, cube_views, opposite_views
from deepgalaxy.inference.paper import evaluate_paper, n_shown
from deepgalaxy.models.weights import load_weights
from deepgalaxy.simulate.snapshot import Encounter
from deepgalaxy.training.fit import fit
from deepgalaxy.training.recipe import TrainConfig

N_CAMERAS, N_SNAPSHOTS = 14, 3


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Two encounters, seen by the 14 cameras of a cube."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate("ab"):
        rng = np.random.default_rng(seed)
        x = rng.normal(0, 6, (N_SNAPSHOTS, 400, 3)).astype(np.float32)
        x[:, 200:] += np.array([[30, 10, 4], [15, 5, 2], [5, -5, -3]], np.float32)[:, None]
        Encounter(name=name, time=5.0 * np.arange(N_SNAPSHOTS), positions=x, masses=np.full(400, 1e8, np.float32),
                  component=np.zeros(400, np.int8), galaxy=np.repeat([0, 1], 200).astype(np.int8),
                  separation=np.array([32, 16, 8], np.float32), stage=np.array([0, 1, 2], np.uint8),
                  parameters={"mass_ratio": 0.5, "size_ratio": 0.7, "pericentre": 8.0}).write(folder / f"{name}.h5")
    path = folder / "cube.h5"
    assert dict(build_dataset(folder, path, RenderConfig(n_pixels=64, cameras="cube", field_of_view=120.0))) == {
        "a": None, "b": None}
    return path


def recipe(grid, output, tiny_settings, **changes):
    return TrainConfig(**{
        "data": str(grid), "output": str(output), "epochs": 2, "images_per_epoch": 64, "batch_size": 16,
        "framing": "whole", "split": "random", "validation_share": 0.3, "validation_images": 8, "validate_every": 9,
        "seed": 2, "realism": None, "mirrored": True, "model": {**tiny_settings, "n_classes": N_CAMERAS * N_SNAPSHOTS},
        "loss": {"scale_known": 1, "dropout": 0}, "optimiser": {"ema": 0.9, "warmup": 5}} | changes)


@pytest.fixture(scope="module")
def weights(grid, tiny_settings, tmp_path_factory):
    return load_weights(fit(recipe(grid, tmp_path_factory.mktemp("paper"), tiny_settings), say=lambda text: None))


def test_opposite_directions_are_found():
    views = np.array([view.unit for view in cube_views()])
    opposite = opposite_views(views)
    np.testing.assert_allclose(views[opposite], -views, atol=1e-7)
    np.testing.assert_array_equal(opposite[opposite], np.arange(14))
    np.testing.assert_array_equal(opposite_views(np.eye(3)), [-1, -1, -1])
    # From there right is left, up is up: what the mirror image rests on.
    for direction in views:
        here, there = View(tuple(direction)).rotation, View(tuple(-direction)).rotation
        np.testing.assert_allclose(there, here * np.array([[-1], [1], [-1]]), atol=1e-12)


def test_opposite_cameras_take_mirror_images(grid):
    dataset = Dataset(grid)
    opposite = opposite_cameras(dataset)
    images = EncounterImages(dataset, np.arange(len(dataset)))
    batch = images.__getitems__(range(len(dataset)))
    classes = batch["time_camera"]
    light, there = mirror(batch["image"][:, None], classes, opposite, np.ones(len(classes), bool))
    # Each mirrored picture is the one that the opposite camera took, and is called so.
    of_class = {(int(g), int(c)): i for i, (g, c) in enumerate(zip(dataset.group, classes, strict=True))}
    taken = batch["image"][[of_class[int(g), int(c)] for g, c in zip(dataset.group, there, strict=True)]]
    assert (light[:, 0] - taken).abs().max() < 0.02 and (batch["image"] - taken).abs().max() > 1
    assert (there // N_CAMERAS == classes // N_CAMERAS).all()
    which = np.arange(len(classes)) % 3 == 0
    some, called = mirror(batch["image"][:, None], classes, opposite, which)
    assert torch.equal(some[~which], batch["image"][:, None][~which]) and torch.equal(some[which], light[which])
    assert torch.equal(called, torch.where(torch.from_numpy(which), there, classes))


def test_columns_are_exchanged_as_labels_are(grid):
    opposite = opposite_cameras(Dataset(grid))
    classes = np.arange(N_CAMERAS * N_SNAPSHOTS)
    there = mirrored_classes(classes, opposite)
    np.testing.assert_array_equal(mirrored_classes(there, opposite), classes)
    assert there[4] == 5 and there[N_CAMERAS] == N_CAMERAS + 1 and (there != classes).all()


def test_answers_to_a_picture_and_to_its_mirror_image_are_the_same(weights, grid, tmp_path):
    """Held-out pictures in the place of which stands what the opposite camera saw: the mean of both is the same."""
    import shutil

    import h5py

    dataset = Dataset(grid)
    done = []
    before, samples = evaluate_paper(weights, dataset, done.append)
    assert sum(done) == n_shown(weights, dataset) == 2 * before["n_images"]
    assert before["n_classes"] == 42 and before["n_distinct_classes"] == 21
    parts = [before[name] for name in ("mirror_image_trained_on", "mirror_image_held_out")]
    assert sum(part["n_images"] for part in parts) == before["n_images"] and all(part["n_images"] for part in parts)
    for figure in ("top1", "within_one_step"):
        assert sum(p[figure] * p["n_images"] for p in parts) == pytest.approx(before[figure] * before["n_images"])
    swapped = shutil.copy(grid, tmp_path / "cube.h5")
    opposite = opposite_cameras(dataset)
    with h5py.File(grid) as source, h5py.File(swapped, "r+") as f:
        for group in source:
            for camera in range(N_CAMERAS):
                f[group][f"images_camera_{camera:02d}"][:] = source[group][f"images_camera_{opposite[camera]:02d}"][:]
    after, mirrored = evaluate_paper(weights, Dataset(swapped))
    for name, within in (("time_since_pericentre", 2), ("view_inclination", 0.5)):
        np.testing.assert_allclose(samples["clean"][name]["p50"], mirrored["clean"][name]["p50"], atol=within)
    camera = np.array(before["confusion"]["camera"])
    assert np.abs(camera[:, opposite] - after["confusion"]["camera"]).sum() <= 2  # one image on an edge


def test_last_layers_see_every_picture_twice(weights, grid, tiny_settings, tmp_path):
    from deepgalaxy.training.heads import Features

    dataset = Dataset(grid)
    images = EncounterImages(dataset, np.arange(20))
    plain = Features(images, weights.model, "whole", True)
    both = Features(images, weights.model, "whole", True, opposite=opposite_cameras(dataset))
    assert len(plain) == 20 and len(both) == 40
    assert torch.equal(both.rows["features"][:20], plain.rows["features"])
    one, other = both.rows["time_camera"][:20], both.rows["time_camera"][20:]
    assert torch.equal(mirrored_classes(one, torch.from_numpy(opposite_cameras(dataset))), other)
    fit(recipe(grid, tmp_path / "all", tiny_settings), say=lambda text: None)
    path = fit(recipe(grid, tmp_path / "heads", tiny_settings, train="heads",
                      start_from=str(tmp_path / "all" / "model.safetensors")), say=lambda text: None)
    assert load_weights(path).metadata["training"]["mirrored"] is True


def test_what_cannot_be_mirrored_is_refused(grid, tiny_settings, tmp_path):
    with pytest.raises(ConfigError, match="mirrored = True: framing = content"):
        fit(recipe(grid, tmp_path / "a", tiny_settings, framing="content"))
    published = write_dummy_dataset(tmp_path / "published.h5", n_encounters=4, n_snapshots=3, n_cameras=4, n_pixels=64,
                                    published=True)
    with pytest.raises(DatasetError, match="cameras 0 and 1 are opposite .* no mirror images; leave out mirrored"):
        fit(recipe(published, tmp_path / "b", tiny_settings))
    odd = write_dummy_dataset(tmp_path / "odd.h5", n_encounters=4, n_snapshots=3, n_cameras=3, n_pixels=64,
                              published=True)
    with pytest.raises(DatasetError, match="camera 2 has none opposite to it"):
        fit(recipe(odd, tmp_path / "c", tiny_settings))
    moving = tmp_path / "moving.h5"
    list(build_dataset(grid.parent, moving, RenderConfig(n_pixels=64, cameras="random", n_cameras=4)))
    with pytest.raises(DatasetError, match="camera 0 does not stand still"):
        fit(recipe(moving, tmp_path / "d", tiny_settings))
