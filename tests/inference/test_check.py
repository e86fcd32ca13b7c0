"""Is a file sound? Every kind is recognised by its content, and what is damaged is found."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from deepgalaxy.image.mock import write_mock_fits
from deepgalaxy.inference.check import check_file
from deepgalaxy.simulate.snapshot import Encounter


@pytest.fixture(scope="module")
def encounter(tmp_path_factory):
    """A small encounter file: 3 snapshots of 40 stars."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("encounter") / "encounter_0000.h5"
    Encounter("encounter_0000", np.array([-10, 0, 10], np.float32), rng.normal(size=(3, 40, 3)).astype(np.float32),
              np.ones(40, np.float32), np.zeros(40, np.int8), np.zeros(40, np.int8), np.array([30, 9, 20], np.float32),
              np.array([0, 1, 1], np.uint8), {"mass_ratio": 0.5, "energy_drift": 1e-3, "angular_momentum_drift": 2e-3},
              '{"name": "encounter_0000"}').write(path)
    return path


def test_every_kind_is_recognised(encounter, tiny_dataset, tiny_model, sky, tmp_path):
    write_mock_fits(tmp_path / "sky.fits", sky, 90, 0.03)
    for path, kind in ((encounter, "encounter"), (tiny_dataset, "data set"), (tiny_model / "library.h5", "library"),
                       (tiny_model, "library"), (tiny_model / "model.safetensors", "model"),
                       (tmp_path / "sky.fits", "image")):
        assert check_file(path) == (kind, [])


@pytest.mark.parametrize("name", ["missing.h5", "missing.safetensors", "missing.fits", "empty.h5", "empty.safetensors",
                                  "empty.png", "folder", "text.h5", "text.safetensors"])
def test_what_is_no_file_of_ours_is_one_line(tmp_path, name):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif not name.startswith("missing"):
        path.write_text("no such format" * 99 if name.startswith("text") else "")
    _, problems = check_file(path)
    assert len(problems) == 1 and name in problems[0] and "\n" not in problems[0]


def test_a_snapshot_is_told_from_a_data_set(tmp_path):
    with h5py.File(tmp_path / "snapshot_000.hdf5", "w") as f:
        f.create_group("Header")
        f["PartType2/Masses"] = np.ones(3)
    _, [problem] = check_file(tmp_path / "snapshot_000.hdf5")
    assert "is a snapshot, not a data set" in problem and "deepgalaxy render" in problem


@pytest.mark.parametrize("name", ["energy_drift", "angular_momentum_drift"])
@pytest.mark.parametrize("drift", [0.04, None])
def test_encounter_that_does_not_conserve_or_does_not_say_is_told(encounter, tmp_path, name, drift):
    bad = Encounter.read(encounter)
    bad.parameters[name] = drift
    if drift is None:
        del bad.parameters[name]
    bad.write(tmp_path / "bad.h5")
    kind, problems = check_file(tmp_path / "bad.h5")
    assert kind == "encounter" and len(problems) == 1
    assert f"{name} is {'4.00' if drift else 'nan'} %" in problems[0]


_FLIP = """
import pickle, sys
from pathlib import Path
from deepgalaxy.errors import DeepGalaxyError
from deepgalaxy.simulate.snapshot import Encounter
path, copy = Path(sys.argv[1]), Path(sys.argv[2])
data = path.read_bytes()
whole = pickle.dumps(vars(Encounter.read(path)))
for offset in range(0, len(data), 31):
    copy.write_bytes(data[:offset] + bytes([data[offset] ^ 0x04]) + data[offset + 1:])
    try:
        same = pickle.dumps(vars(Encounter.read(copy))) == whole
    except DeepGalaxyError:
        continue
    if not same:
        print(offset)
"""


def test_any_flipped_byte_of_an_encounter_is_found_or_changes_nothing(encounter, tmp_path):
    """In a process of its own, because HDF5 can crash on damaged text of variable length."""
    done = subprocess.run([sys.executable, "-c", _FLIP, str(encounter), str(tmp_path / "copy.h5")],
                          capture_output=True, text=True)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-500:]}"
    assert done.stdout.split() == []
