"""Several data sets as one."""

import h5py
import numpy as np
import pytest

from deepgalaxy.data.joined import JoinedDataset, open_data
from deepgalaxy.data.reader import Dataset
from deepgalaxy.data.writer import write_dummy_dataset
from deepgalaxy.errors import DatasetError


def test_images_and_labels_are_those_of_the_parts(tiny_dataset, other_dataset):
    a, b = Dataset(tiny_dataset), Dataset(other_dataset)
    both = open_data([tiny_dataset, other_dataset])
    assert len(both) == len(a) + len(b) and len(both.groups) == len(a.groups) + len(b.groups)
    pick = np.array([len(a) + 3, 0, len(a), 7])
    np.testing.assert_array_equal(both.images(pick), np.stack([b.image(3), a.image(0), b.image(0), a.image(7)]))
    for name, values in both.labels.items():
        np.testing.assert_array_equal(values, np.concatenate([a.labels[name], b.labels[name]]))
    assert both.groups[both.group[len(a)]] == f"other:{b.groups[0]}"
    assert both.identities == a.identities + b.identities
    np.testing.assert_array_equal(both.encounter, both.group)  # each in one light only
    assert isinstance(open_data([tiny_dataset]), Dataset) and isinstance(open_data(tiny_dataset), Dataset)


def test_what_does_not_fit_is_refused(tiny_dataset, tmp_path):
    small = write_dummy_dataset(tmp_path / "small.h5", n_pixels=32)
    with h5py.File(small, "r+") as f:
        f.move("encounter_0000", "x")
        f.move("encounter_0001", "y")
    with pytest.raises(DatasetError, match="render them alike"):
        open_data([tiny_dataset, small])
    with pytest.raises(DatasetError, match="in two of the data sets"):
        open_data([tiny_dataset, tiny_dataset])
    with pytest.raises(DatasetError, match="at least one"):
        JoinedDataset([])


def test_training_and_library_take_several(tiny_dataset, other_dataset, tiny_settings, tmp_path):
    from deepgalaxy.search.build import build_library, calibrate
    from deepgalaxy.search.library import Library
    from deepgalaxy.training.fit import fit
    from deepgalaxy.training.recipe import TrainConfig

    data = [str(tiny_dataset), str(other_dataset)]
    weights = fit(TrainConfig(data=data, output=str(tmp_path), epochs=1, images_per_epoch=16, batch_size=8,
                              validation_images=8, model=tiny_settings), say=lambda text: None)
    calibrate(weights, data, n_images=8)
    n = build_library(weights, data, tmp_path / "library.h5")
    assert n == len(open_data(data))
    assert {name.split(":")[0] for name in Library(tmp_path).encounters} == {"tiny", "other"}
