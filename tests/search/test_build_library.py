"""Making a library: it is stopped at any time, of sets that hold next to nothing, and of files with odd names."""

import os
import shutil

import h5py
import pytest

from deepgalaxy import cli
from deepgalaxy.data.writer import write_dummy_dataset
from deepgalaxy.errors import DatasetError
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
