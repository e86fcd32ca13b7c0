"""Making a library: it is stopped at any time, of sets that hold next to nothing, and of files with odd names."""

import os
import shutil

import h5py
import numpy as np
import pytest

from deepgalaxy import cli
from deepgalaxy.data.writer import write_dummy_dataset
from deepgalaxy.errors import ConfigError, DatasetError, LibraryError
from deepgalaxy.inference.predictor import load
from deepgalaxy.search.build import build_library, calibrate
from deepgalaxy.search.library import Library


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_index_in_place_goes_on_wherever_it_was_stopped(tiny_model, tiny_dataset, tmp_path, monkeypatch, stop):
    """Before each of the files that it puts in place: what is calibrated, the library, the weights."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    weights = model / "model.safetensors"
    before, replace, n = weights.read_bytes(), os.replace, 0

    def stopping(*paths):
        nonlocal n
        n += 1
        if n == stop:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        cli.index(model=weights, data=[tiny_dataset], output=model, references=model)
    monkeypatch.setattr(os, "replace", replace)
    assert weights.read_bytes() == before
    cli.index(model=weights, data=[tiny_dataset], output=model, references=model)
    assert weights.read_bytes() != before and not list(model.glob(".*"))
    assert len(load(weights).library) == len(Library(tiny_model))


def test_a_set_without_encounters_is_refused(tiny_model, tmp_path):
    path = write_dummy_dataset(tmp_path / "single.h5", n_pixels=64)
    with h5py.File(path, "r+") as f:
        for group in f.values():
            group.attrs["kind"] = "single"
    weights = tiny_model / "model.safetensors"
    with pytest.raises(DatasetError, match=r"single.h5: shows single galaxies and chance pairs only"):
        calibrate(weights, path, output=tmp_path / "model.safetensors")
    with pytest.raises(DatasetError, match=r"single.h5: holds no image of an encounter"):
        build_library(weights, path, tmp_path / "library.h5")
    assert [file.name for file in tmp_path.iterdir()] == ["single.h5"]


def test_a_library_is_made_of_files_whose_names_are_no_text(tiny_model, tiny_dataset, other_dataset, tmp_path):
    odd = shutil.copy(other_dataset, os.path.join(os.fsencode(tmp_path), b"caf\xe9\nbar.h5"))
    build_library(tiny_model / "model.safetensors", [tiny_dataset, os.fsdecode(odd)], tmp_path / "library.h5")
    library = Library(tmp_path)
    names = {name.rpartition(":")[0] for name in library.encounters}
    assert names == {"tiny", r"caf\udce9\nbar"} and len(library.encounters) == 8


def test_images_come_beside_those_of_a_library(tiny_model, tiny_dataset, other_dataset, predictor, tmp_path):
    """As if it had been made of both, but for what is usual and the metrics, which stay as they were learnt."""
    weights = tiny_model / "model.safetensors"
    cli.index(model=weights, data=[other_dataset], output=tmp_path / "more", references=tiny_model, add=True)
    before, more = Library(tiny_model), Library(tmp_path / "more")
    alone = build_library(weights, other_dataset, tmp_path / "alone.h5")
    other = Library(tmp_path / "alone.h5")
    assert len(more) == len(before) + alone == len(before) + len(other)
    assert more.encounters == before.encounters + [f"other:{name}" for name in other.encounters]
    assert not (tmp_path / "more" / "model.safetensors").exists()
    for name in ("z", "z_told", "time", "mass_ratio", "size_ratio", "view_inclination", "snapshot", "camera"):
        np.testing.assert_array_equal(more.arrays[name], np.concatenate([before.arrays[name], other.arrays[name]]))
    for name in ("metric", "metric_told", "usual_features", "feature_metric", "unseen_distances", "picture_basis"):
        np.testing.assert_array_equal(more.arrays[name], before.arrays[name])
    for row in (0, len(other) - 1):
        np.testing.assert_array_equal(more.thumbnail(len(before) + row), other.thumbnail(row))
    # A picture of its own is found first in it, at distance 0.
    np.testing.assert_array_equal(more.index.search(other.arrays["z"][:3], 1)[1][:, 0], len(before) + np.arange(3))


def test_a_file_that_is_added_again_adds_images_but_no_encounters(tiny_model, other_dataset, tmp_path):
    weights, found = tiny_model / "model.safetensors", []
    for n in (1, 2):
        cli.index(model=weights, data=[other_dataset], output=tmp_path, references=tiny_model if n == 1 else tmp_path,
                  add=True, n_images=10)
        assert len(Library(tmp_path)) == len(Library(tiny_model)) + 10 * n
        found.append(Library(tmp_path).encounters)
    assert found[0] == found[1] and len(found[0]) == 8


def test_images_beside_those_of_another_model_are_refused(tiny_model, other_dataset, tmp_path):
    with pytest.raises(LibraryError, match="was made with another model"):
        cli.index(model=tiny_model / "model.safetensors", data=[other_dataset], output=tmp_path, add=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="holds other weights than .*shipped"):  # the library would not be theirs
        cli.index(data=[other_dataset], output=tiny_model, no_calibration=True)
