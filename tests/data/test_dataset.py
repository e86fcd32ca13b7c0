"""The file of images: what is written is read, what is broken is found, nothing leads outside."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings

import h5py
import numpy as np
import pytest

from deepgalaxy.data import schema
from deepgalaxy.data.reader import Dataset
from deepgalaxy.data.schema import check_dataset
from deepgalaxy.data.splits import split_by_encounter, split_random
from deepgalaxy.data.writer import DatasetWriter, write_dummy_dataset
from deepgalaxy.errors import ConfigError, DatasetError
from deepgalaxy.image.view import CameraImages
from deepgalaxy.labels import LABELS, Label

PARAMETERS = {"mass_ratio": 0.5, "size_ratio": 0.75, "pericentre": 12.0, "seed": 3, "model": "disc"}
STAGE, SEPARATION = np.array([0, 1, 3], np.uint8), np.array([40, 12, 1.5], np.float32)


def camera_images(seed=0, n_pixels=16):
    rng = np.random.default_rng(seed)
    view = rng.normal(size=(3, 3))
    return CameraImages(
        images=rng.uniform(4, 10, (3, n_pixels, n_pixels)).astype(np.float16),
        times=np.array([-50.0, 0.0, 120.0]), pixel_scale=rng.uniform(0.5, 2, 3).astype(np.float32),
        view=view / np.linalg.norm(view, axis=1, keepdims=True))


def write(path, names=("encounter_0000",), config="{}", **options):
    with DatasetWriter(path, config, **options) as writer:
        for name in names:
            if name not in writer.done:
                writer.write_encounter(name, PARAMETERS, [camera_images(0), camera_images(1)],
                                       STAGE, SEPARATION)
    return path


@pytest.fixture
def dummy(tmp_path):
    return write_dummy_dataset(tmp_path / "suite.h5")


def assert_refused(path, words=""):
    """The checker and the reader both give one line that names the file."""
    problems = check_dataset(path)
    assert problems and all("\n" not in line and path.name in line for line in problems)
    assert any(words in line for line in problems), problems
    with pytest.raises(DatasetError, match=words) as caught:
        dataset = Dataset(path)
        dataset.images(range(len(dataset)))
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


# What is written is read


def test_round_trip_returns_what_was_written(tmp_path):
    path = write(tmp_path / "suite.h5", config=json.dumps({"n_pixels": 16}))
    assert check_dataset(path) == []
    dataset = Dataset(path)
    assert len(dataset) == 6 and dataset.groups == ["encounter_0000"] and dataset.shape == (16, 16)
    assert json.loads(dataset.config) == {"n_pixels": 16}
    assert dataset.attributes[0] == {**PARAMETERS, "quantity": "log10_surface_density"}
    for i in range(6):
        camera, t = camera_images(int(dataset.camera[i])), dataset.snapshot[i]
        assert dataset.image(i).dtype == np.float32
        np.testing.assert_array_equal(dataset.image(i), camera.images[t])
        assert dataset.labels["time"][i] == camera.times[t]
        assert dataset.labels["pixel_scale"][i] == camera.pixel_scale[t]
        assert dataset.labels["separation"][i] == SEPARATION[t]
        assert dataset.labels["stage"][i] == STAGE[t]
        assert dataset.labels["view_inclination"][i] == pytest.approx(
            np.degrees(np.arccos(abs(camera.view[t, 2]))), abs=0.1)
        np.testing.assert_allclose(dataset.view[i], camera.view[t], atol=1e-6)
    assert set(dataset.labels["mass_ratio"]) == {0.5} and set(dataset.labels["pericentre"]) == {12.0}
    assert not list(tmp_path.glob("*.partial*"))


def test_images_equals_image_by_image(dummy):
    dataset = Dataset(dummy)
    order = np.random.default_rng(0).permutation(len(dataset))
    np.testing.assert_array_equal(dataset.images(order), [dataset.image(i) for i in order])


def test_surface_density_is_linear_and_zero_without_light(dummy):
    dataset = Dataset(dummy)
    image, density = dataset.image(0), dataset.surface_density(0)
    assert (image == 0).any() and (density[image == 0] == 0).all()
    np.testing.assert_allclose(density[image > 0], 10.0 ** image[image > 0].astype(float), rtol=1e-4)


def test_published_layout_is_read(tmp_path):
    path = write_dummy_dataset(tmp_path / "published.h5", n_cameras=14, published=True)
    assert check_dataset(path) == []
    dataset = Dataset(path)
    assert dataset.published and dataset.quantity == "stretched" and len(dataset) == 2 * 3 * 14
    assert dataset.groups == ["s_0.25_m_0.25", "s_0.25_m_0.50"]
    assert set(dataset.labels["size_ratio"]) == {0.25} and set(dataset.labels["mass_ratio"]) == {0.25, 0.5}
    assert np.isnan(dataset.labels["pixel_scale"]).all() and np.isnan(dataset.labels["separation"]).all()
    assert (dataset.labels["stage"] == 255).all()
    inclination = dataset.labels["view_inclination"][dataset.snapshot == 0][:14]
    np.testing.assert_allclose(inclination, [90] * 4 + [0] * 2 + [54.7356] * 8, atol=0.1)
    np.testing.assert_array_equal(dataset.surface_density(3), dataset.image(3))


def test_published_uint8_is_scaled_to_one(tmp_path):
    path = tmp_path / "published.h5"
    with h5py.File(path, "w") as f:
        f["s_0.25_m_1.50/images_camera_00"] = np.full((2, 8, 8, 1), 51, np.uint8)
        f["s_0.25_m_1.50/t_myr_camera_00"] = [0.0, 5.0]
    np.testing.assert_allclose(Dataset(path).image(1), 0.2, rtol=1e-6)


def test_published_views_are_seven_opposite_pairs():
    views = schema.PUBLISHED_VIEWS
    np.testing.assert_allclose(np.linalg.norm(views, axis=1), 1, rtol=1e-6)
    assert (np.isclose(views @ views.T, -1).sum(axis=1) == 1).all()
    np.testing.assert_allclose(views[[4, 6, 7]], [[0, 0, 1], [3**-0.5] * 3, [3**-0.5, 3**-0.5, -(3**-0.5)]],
                               rtol=1e-6)


# Processes


def _images_in_child(dataset, indices, queue):
    queue.put(dataset.images(indices))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_process_reads_the_same_images(tmp_path, method):
    path = write_dummy_dataset(tmp_path / "suite.h5", n_encounters=4, n_snapshots=6)
    dataset, other = Dataset(path), Dataset(path)
    expected = dataset.images(range(len(dataset)))
    other.image(0)  # a second open handle on the same file
    context = multiprocessing.get_context(method)
    for repeat in range(3 if method == "fork" else 1):
        order = np.random.default_rng(repeat).permutation(len(dataset))
        queue = context.Queue()
        child = context.Process(target=_images_in_child, args=(dataset, order, queue))
        child.start()
        mine = dataset.images(order[::-1])
        np.testing.assert_array_equal(queue.get(timeout=60), expected[order])
        np.testing.assert_array_equal(mine, expected[order[::-1]])
        child.join(60)
        assert child.exitcode == 0


def test_no_handle_is_open_in_a_forked_child(dummy):
    dataset = Dataset(dummy)
    dataset.image(0)
    pid = os.fork()
    if pid == 0:
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                 if os.path.lexists(f"/proc/self/fd/{fd}")]
        os._exit(str(dummy) in links)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_pickle_carries_no_handle_and_reads_the_same(dummy):
    dataset = Dataset(dummy)
    expected = dataset.image(5)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy._file is None
    np.testing.assert_array_equal(copy.image(5), expected)


def test_file_that_changed_meanwhile_is_refused(dummy):
    copy = pickle.dumps(Dataset(dummy))
    write_dummy_dataset(dummy, n_encounters=1, seed=1)
    with pytest.raises(DatasetError, match="changed"):
        pickle.loads(copy).image(0)


# A writer that ends badly

_ENDLESS = """
import sys
sys.path.insert(0, {tests!r})
from test_dataset import *
with DatasetWriter({path!r}, "{{}}") as writer:
    print("ready", flush=True)
    for i in range({n}):
        if f"encounter_{{i:04d}}" not in writer.done:
            writer.write_encounter(f"encounter_{{i:04d}}", PARAMETERS,
                                   [camera_images(c) for c in range(8)], STAGE, SEPARATION)
"""


def _start(path, n):
    code = _ENDLESS.format(tests=os.path.dirname(__file__), path=str(path), n=n)
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_killed_writer_loses_nothing_that_was_whole(tmp_path):
    path, pause = tmp_path / "suite.h5", random.Random(0)
    before: set[str] = set()
    for _ in range(10):
        process = _start(path, 10_000)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(pause.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not path.exists()
        with warnings.catch_warnings(action="error"):
            writer = DatasetWriter(path, "{}")
        whole = writer.done
        writer.close()
        assert before <= whole
        before = whole
    assert before
    process = _start(path, len(before) + 2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert check_dataset(path) == []
    dataset = Dataset(path)
    assert len(dataset.groups) == len(before) + 2
    expected = np.concatenate([camera_images(c).images for c in range(8)])
    for g in range(len(dataset.groups)):
        np.testing.assert_array_equal(dataset.images(np.flatnonzero(dataset.group == g)), expected)


def _dying(function, left):
    def call(*arguments, **options):
        if next(left, None) is None:
            os._exit(1)
        return function(*arguments, **options)
    return call


def test_every_moment_of_a_commit_can_be_the_last(tmp_path):
    """The child ends itself at its k-th write or rename; whatever k, nothing whole is lost."""
    path, k, whole = tmp_path / "suite.h5", 0, 10  # from 9 links on, HDF5 keeps them in trees
    with pytest.raises(ZeroDivisionError), DatasetWriter(path, "{}") as writer:
        for i in range(whole):
            writer.write_encounter(f"encounter_{i:04d}", PARAMETERS, [camera_images()], STAGE, SEPARATION)
        raise ZeroDivisionError
    first, outcomes = (tmp_path / "suite.h5.partial").read_bytes(), set()
    while not path.exists():
        for file in tmp_path.iterdir():
            file.unlink()
        (tmp_path / "suite.h5.partial").write_bytes(first)
        pid = os.fork()
        if pid == 0:
            left = iter(range(k))
            for name in ("pwrite", "fsync", "ftruncate", "replace", "unlink"):
                setattr(os, name, _dying(getattr(os, name), left))
            with DatasetWriter(path, "{}") as writer:
                writer.write_encounter("last", PARAMETERS, [camera_images(7)], STAGE, SEPARATION)
            os._exit(0)
        os.waitpid(pid, 0)
        k += 1
        if path.exists():
            break
        with warnings.catch_warnings(action="error"):
            writer = DatasetWriter(path, "{}")
        outcomes.add(len(writer.done))
        for name in writer.done:
            seed = 7 if name == "last" else 0
            np.testing.assert_array_equal(writer._file[name]["images_camera_00"][..., 0],
                                          camera_images(seed).images)
        writer.close()
    assert outcomes == {whole, whole + 1} and k > 20
    assert check_dataset(path) == []


def test_exception_leaves_the_partial_file_and_resume_goes_on(tmp_path):
    path = tmp_path / "suite.h5"
    with pytest.raises(ZeroDivisionError), DatasetWriter(path, "{}") as writer:
        writer.write_encounter("one", PARAMETERS, [camera_images()], STAGE, SEPARATION)
        writer._file.create_group("torn")
        writer._file.flush()
        raise ZeroDivisionError
    assert not path.exists()
    with DatasetWriter(path, "{}") as writer:
        assert writer.done == {"one"} and "torn" not in writer._file
        writer.write_encounter("torn", PARAMETERS, [camera_images()], STAGE, SEPARATION)
    assert check_dataset(path) == [] and Dataset(path).groups == ["one", "torn"]


def test_partial_of_another_configuration_is_refused(tmp_path):
    path = tmp_path / "suite.h5"
    with pytest.raises(ZeroDivisionError), DatasetWriter(path, '{"n": 1}') as writer:
        writer.write_encounter("one", PARAMETERS, [camera_images()], STAGE, SEPARATION)
        raise ZeroDivisionError
    with pytest.raises(DatasetError, match="another configuration"):
        DatasetWriter(path, '{"n": 2}')
    with DatasetWriter(path, '{"n": 1}') as writer:  # nothing of it is lost
        assert writer.done == {"one"}
    write(path, config='{"n": 2}', resume=False)
    assert Dataset(path).config == '{"n": 2}'


def test_partial_of_another_configuration_that_holds_nothing_is_begun_anew(tmp_path):
    path = tmp_path / "suite.h5"
    with pytest.raises(ZeroDivisionError), DatasetWriter(path, '{"n": 1}'):
        raise ZeroDivisionError
    first = DatasetWriter(path, '{"n": 1}')
    with pytest.raises(DatasetError, match="by another process"):
        DatasetWriter(path, '{"n": 2}')  # somebody is about to write it
    first.close()
    write(path, config='{"n": 2}')
    assert Dataset(path).config == '{"n": 2}'


def test_unreadable_partial_is_set_aside_with_a_warning(tmp_path):
    path = tmp_path / "suite.h5"
    (tmp_path / "suite.h5.partial").write_bytes(b"not HDF5" * 100)
    with pytest.warns(UserWarning, match="broken"):
        write(path)
    assert check_dataset(path) == [] and (tmp_path / "suite.h5.partial.broken").exists()


def test_damaged_encounter_of_a_partial_is_written_again(tmp_path):
    path, partial = tmp_path / "suite.h5", tmp_path / "suite.h5.partial"
    write(partial, ["one", "two"])
    with h5py.File(partial) as f:
        offset = f["one/images_camera_00"].id.get_chunk_info(0).byte_offset
    flip(partial, offset + 10)
    with DatasetWriter(path, "{}") as writer:
        assert writer.done == {"two"}
        writer.write_encounter("one", PARAMETERS, [camera_images()], STAGE, SEPARATION)
    assert check_dataset(path) == []


def test_second_writer_is_refused(tmp_path):
    with DatasetWriter(tmp_path / "suite.h5", "{}") as writer:
        code = ("from deepgalaxy.data.writer import DatasetWriter\n"
                f"DatasetWriter({str(tmp_path / 'suite.h5')!r}, '{{}}')")
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "being written by another process" in result.stderr.splitlines()[-1]
        writer.write_encounter("one", PARAMETERS, [camera_images()], STAGE, SEPARATION)
    assert check_dataset(tmp_path / "suite.h5") == []


@pytest.mark.parametrize("limit", [100, 3_000_000])
def test_file_size_limit_gives_one_line_and_keeps_the_previous_file(dummy, limit):
    previous = dummy.read_bytes()
    code = _ENDLESS.format(tests=os.path.dirname(__file__), path=str(dummy), n=10_000)
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n" + code
    result = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("deepgalaxy.errors.DatasetError: ")
    assert "cannot be written (File too large)" in result.stderr.splitlines()[-1]
    assert dummy.read_bytes() == previous
    with DatasetWriter(dummy, "{}") as writer:  # what was whole is kept
        assert (len(writer.done) > 0) == (limit > 100)
        writer.write_encounter("last", PARAMETERS, [camera_images()], STAGE, SEPARATION)
    assert check_dataset(dummy) == []


def test_missing_or_read_only_folder_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "nowhere/suite.h5", tmp_path / "file/suite.h5", tmp_path / "folder"):
        with pytest.raises(DatasetError) as caught:
            DatasetWriter(path, "{}")
        assert "\n" not in str(caught.value)
    read_only = tmp_path / "read_only"
    read_only.mkdir(mode=0o555)
    # root may write anywhere but in the kernel's folders
    with pytest.raises(DatasetError, match="cannot be written"):
        DatasetWriter(("/proc" if os.geteuid() == 0 else str(read_only)) + "/suite.h5", "{}")


@pytest.mark.parametrize("change, words", [
    ({"stage": STAGE[:2]}, "stage"), ({"attributes": {"mass_ratio": 1.0}}, "size_ratio"),
    ({"name": "../etc"}, "name"), ({"attributes": {**PARAMETERS, "list": [1]}}, "list"),
    ({"attributes": {**PARAMETERS, "primary_stars": 0}}, "primary_stars"),
    ({"cameras": [dataclasses.replace(camera_images(), images=np.ones((3, 16, 20), np.float16))]}, "must be square"),
    ({"cameras": []}, "camera"), ({"separation": np.array([1, np.nan, 2])}, "finite")])
def test_bad_encounter_is_refused_before_it_is_written(tmp_path, change, words):
    good = {"name": "one", "attributes": PARAMETERS, "cameras": [camera_images()], "stage": STAGE,
            "separation": SEPARATION}
    with DatasetWriter(tmp_path / "suite.h5", "{}") as writer:
        with pytest.raises(DatasetError, match=words):
            writer.write_encounter(**{**good, **change})
        assert not list(writer._file)
        writer.write_encounter(**good)


def test_no_encounter_no_file(tmp_path):
    with pytest.raises(DatasetError, match="no encounter"), DatasetWriter(tmp_path / "suite.h5", "{}"):
        pass
    assert not (tmp_path / "suite.h5").exists()


# Damage and malice


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        value = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([value ^ 0x40]))


def _content(path):
    dataset = Dataset(path)
    return pickle.dumps([dataset.groups, dataset.attributes, dataset.config, dataset.labels, dataset.view,
                         dataset.images(range(len(dataset)))])


def test_flipped_byte_in_an_image_is_found(dummy):
    with h5py.File(dummy) as f:
        offset = f["encounter_0001/images_camera_01"].id.get_chunk_info(2).byte_offset
    flip(dummy, offset + 100)
    problems = check_dataset(dummy)
    assert len(problems) == 1 and "encounter_0001" in problems[0] and "snapshot 2" in problems[0]
    with pytest.raises(DatasetError, match="snapshot 2"):
        Dataset(dummy).images(range(12))


def test_any_flipped_byte_is_found_or_changes_nothing(dummy, tmp_path):
    original, size, found = _content(dummy), dummy.stat().st_size, 0
    copy, rng = tmp_path / "copy.h5", random.Random(1)
    for offset in [*range(0, 96, 3), *(rng.randrange(size) for _ in range(150))]:
        shutil.copy(dummy, copy)
        flip(copy, offset)
        if check_dataset(copy):
            found += 1
        else:
            assert _content(copy) == original, offset
    assert found > 50


@pytest.mark.parametrize("kind", ["external storage", "external link", "soft link", "virtual"])
def test_data_outside_the_file_are_refused(dummy, tmp_path, kind):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as f:
        f["x"] = np.zeros((3, 32, 32, 1), np.float16)
    with h5py.File(dummy, "r+") as f:
        group = f["encounter_0000"]
        del group["images_camera_01"]
        if kind == "external storage":
            group.create_dataset("images_camera_01", (3, 32, 32, 1), "f2", external=[(str(secret), 0, 6144)])
        elif kind == "external link":
            group["images_camera_01"] = h5py.ExternalLink(str(secret), "x")
        elif kind == "soft link":
            group["images_camera_01"] = h5py.SoftLink("/encounter_0001/images_camera_01")
        else:
            layout = h5py.VirtualLayout((3, 32, 32, 1), "f2")
            layout[:] = h5py.VirtualSource(str(secret), "x", (3, 32, 32, 1))
            group.create_virtual_dataset("images_camera_01", layout)
    assert_refused(dummy, "link to elsewhere" if "link" in kind else "outside the file")


def test_group_that_is_an_external_link_is_refused(dummy, tmp_path):
    other = write_dummy_dataset(tmp_path / "other.h5")
    with h5py.File(dummy, "r+") as f:
        f["encounter_0009"] = h5py.ExternalLink(str(other), "encounter_0000")
    assert_refused(dummy, "link to elsewhere")


def _replace_images(path, **options):
    with h5py.File(path, "r+") as f:
        del f["encounter_0000/images_camera_00"]
        f["encounter_0000"].create_dataset("images_camera_00", **options)


@pytest.mark.parametrize("options, words", [
    ({"shape": (3, 187_000, 187_000, 1), "dtype": "f2", "chunks": (1, 64, 64, 1)}, "claims 195 GiB"),
    ({"shape": (71, 2048, 2048, 1), "dtype": "f2", "compression": "gzip"}, "claims"),
    ({"shape": (3, 32, 32, 1), "dtype": "f2", "chunks": (1, 32, 32, 1)}, "holds 0 GiB"),
    ({"data": np.zeros((1, 8200, 8200, 1), np.uint8), "compression": "gzip"}, "at most 67108864 pixels"),
    ({"data": np.zeros((3, 32, 32), np.float16)}, "shape"),
    ({"data": np.zeros((3, 32, 32, 1), "S4")}, "array of numbers"),
    ({"data": np.zeros((3, 32, 32, 1), np.float64)}, "float16 or uint8"),
    ({"data": np.zeros((3, 64, 64, 1), np.float16)}, "same shape"),
    ({"data": np.zeros((3, 24, 32, 1), np.float16)}, "'images_camera_00' must hold square images, got 24 x 32")])
def test_absurd_images_are_refused_before_they_are_read(dummy, options, words):
    _replace_images(dummy, **options)
    assert_refused(dummy, words)


@pytest.mark.parametrize("name", ["images_camera_00", "t_myr_camera_01", "stage"])
def test_an_array_without_a_checksum_is_found(dummy, name):
    with h5py.File(dummy, "r+") as f:
        group = f[next(iter(f))]
        values = group[name][()]
        del group[name]
        group[name] = values
    [problem] = check_dataset(dummy)
    assert f"'{name}'" in problem and "fletcher32" in problem


def test_lost_chunk_is_found(dummy):
    with h5py.File(dummy, "r+") as f:
        data = f["encounter_0000/images_camera_00"][()]
        del f["encounter_0000/images_camera_00"]
        holed = f["encounter_0000"].create_dataset("images_camera_00", data.shape, "f2",
                                                   chunks=(1, 32, 32, 1), compression="gzip")
        holed[0], holed[2] = data[0], data[2]
    assert any("chunks" in line for line in check_dataset(dummy))


def test_missing_attribute_names_the_group_and_the_remedy(dummy):
    with h5py.File(dummy, "r+") as f:
        del f["encounter_0001"].attrs["mass_ratio"]
    message = (f"{dummy}: group encounter_0001 has no attribute 'mass_ratio'; "
               f"run 'deepgalaxy check {dummy}'")
    assert check_dataset(dummy) == [message]
    with pytest.raises(DatasetError) as caught:
        Dataset(dummy)
    assert str(caught.value) == message


@pytest.mark.parametrize("name, value", [("kind", np.array([b"a", b"b"])), ("quantity", np.zeros(2)), ("seed", "four"),
                                         ("seed", np.nan), ("seed", 1.5), ("orbit", np.zeros(3))])
def test_an_attribute_of_another_type_is_one_line(dummy, name, value):
    with h5py.File(dummy, "r+") as f:
        f["encounter_0001"].attrs[name] = value
    [line] = check_dataset(dummy)
    assert f"group encounter_0001: attribute '{name}' must be a single" in line and "\n" not in line
    with pytest.raises(DatasetError, match=f"attribute '{name}'"):
        Dataset(dummy)


@pytest.mark.parametrize("kind", ["encounter", "chance", "single"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, "heavy"])
@pytest.mark.parametrize("name", ["mass_ratio", "size_ratio", "pericentre", "primary_stars"])
def test_what_must_be_a_positive_number_is_one_whatever_the_group_shows(dummy, kind, value, name):
    with h5py.File(dummy, "r+") as f:
        f["encounter_0001"].attrs.update({"kind": kind, name: value})
    assert_refused(dummy, f"group encounter_0001: attribute '{name}' must be a positive number, got {value}")
    assert len(check_dataset(dummy)) == 1


@pytest.mark.parametrize("name, change", [
    ("stage", lambda v: v + 7), ("view_camera_00", lambda v: v * 2),
    ("pixel_scale_camera_01", lambda v: -v), ("t_myr_camera_00", lambda v: v * np.nan)])
def test_values_that_are_not_allowed_are_found(dummy, name, change):
    with h5py.File(dummy, "r+") as f:
        f["encounter_0000"][name][...] = change(f["encounter_0000"][name][()])
    assert len(check_dataset(dummy)) == 1


def test_an_image_that_shows_nothing_is_found(dummy):
    with h5py.File(dummy, "r+") as f:
        f["encounter_0001/images_camera_01"][2] = 0
    assert check_dataset(dummy) == [f"{dummy}: group encounter_0001: 'images_camera_01', snapshot 2: shows nothing, "
                                    "all of its pixels are equal; leave it out"]


@pytest.mark.parametrize("name", ["t_myr", "pixel_scale"])
def test_infinite_times_and_scales_are_refused_by_name_and_unknown_ones_are_not(dummy, name):
    with h5py.File(dummy, "r+") as f:
        f[f"encounter_0001/{name}_camera_01"][2] = -np.inf if name == "t_myr" else np.inf
    where = f"{dummy}: group encounter_0001"
    with pytest.raises(DatasetError, match=f"{where}, camera 1, snapshot 2: {name} = -?inf cannot be"):
        Dataset(dummy)
    assert check_dataset(dummy) == [f"{where}: '{name}_camera_01' holds values that are not finite"]
    with h5py.File(dummy, "r+") as f:
        f[f"encounter_0001/{name}_camera_01"][2] = np.nan
    column = Dataset(dummy).labels["time" if name == "t_myr" else name]
    assert np.isnan(column).sum() == 1


@pytest.mark.parametrize("value", ["half", np.inf])
def test_an_attribute_that_a_label_is_read_from_is_a_number(dummy, monkeypatch, value):
    label = Label("gas_fraction", "gas_fraction", "gas/baryons", 0, 1, 20, 1.0)
    monkeypatch.setattr(schema, "LABELS", (*LABELS, label))
    with h5py.File(dummy, "r+") as f:
        f["encounter_0000"].attrs["gas_fraction"] = 0.25
        f["encounter_0001"].attrs["gas_fraction"] = np.nan
    data = Dataset(dummy)
    np.testing.assert_array_equal(data.labels["gas_fraction"], np.where(data.group == 0, np.float32(0.25), np.nan))
    with h5py.File(dummy, "r+") as f:
        f["encounter_0001"].attrs["gas_fraction"] = value
    assert_refused(dummy, "group encounter_0001: attribute 'gas_fraction' must be a finite number, because a label is "
                   f"read from it, got {value}")


def test_many_problems_of_one_group_are_counted(tmp_path):
    path = write_dummy_dataset(tmp_path / "suite.h5", n_encounters=2, n_snapshots=8, n_cameras=4)
    with h5py.File(path, "r+") as f:
        for camera in range(4):
            f[f"encounter_0000/images_camera_{camera:02d}"][...] = np.nan
        f["encounter_0001/images_camera_00"][3] = -1
    lines = check_dataset(path)
    assert len(lines) == 12 and lines[10] == f"{path}: group encounter_0000: and 22 more"
    assert "encounter_0001" in lines[11] and "snapshot 3" in lines[11]


def test_what_is_no_data_set_is_one_line(tmp_path, dummy):
    cut, text, empty = tmp_path / "cut.h5", tmp_path / "text.h5", tmp_path / "empty.h5"
    cut.write_bytes(dummy.read_bytes()[:-2000])
    text.write_text("<html>404</html>" * 100)
    empty.touch()
    fifo, loop, line = tmp_path / "fifo.h5", tmp_path / "loop.h5", tmp_path / "missing.h5"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    (tmp_path / "dir.h5").mkdir()
    bare = tmp_path / "bare.h5"
    h5py.File(bare, "w").close()
    for path, words in [(cut, "cut"), (text, "not an HDF5"), (empty, "empty"), (fifo, "regular"),
                        (loop, "cannot be opened"), (line, "no such file"), (tmp_path / "dir.h5", "regular"),
                        (bare, "no encounters")]:
        assert_refused(path, words)
    for name in ("a\nb.h5", "a\0b.h5"):
        with pytest.raises(DatasetError) as caught:
            Dataset(name)
        assert "\n" not in str(caught.value)


def test_file_of_another_format_is_named(tmp_path):
    path = tmp_path / "encounter.h5"
    with h5py.File(path, "w") as f:
        f.attrs["format"] = "deepgalaxy-encounter"
    assert_refused(path, "run 'deepgalaxy render'")


# Splits


NAMES = [f"encounter_{i:04d}" for i in range(200)]


def test_splits_are_disjoint_and_complete():
    for parts in (split_by_encounter(NAMES, (0.7, 0.2, 0.1)), split_random(1000, (0.7, 0.2, 0.1))):
        together = np.concatenate(parts)
        assert len(parts) == 3 and len(set(together)) == len(together) == together.max() + 1


def test_split_by_encounter_is_stable_when_encounters_are_added():
    test = {NAMES[i] for i in split_by_encounter(NAMES[:150])[1]}
    later = {NAMES[i] for i in split_by_encounter(NAMES)[1]}
    assert test == later & set(NAMES[:150])
    assert 0.08 < len(later) / 200 < 0.22


def test_split_by_encounter_fills_every_part():
    for n in (2, 3, 5):
        for seed in range(20):
            assert all(len(part) for part in split_by_encounter(NAMES[:n], seed=seed))
    assert sum(len(part) for part in split_by_encounter(NAMES[:1])) == 1


def test_split_depends_on_the_seed_only():
    assert all(np.array_equal(a, b) for a, b in zip(split_random(100), split_random(100), strict=True))
    assert not np.array_equal(split_random(100)[1], split_random(100, seed=1)[1])
    assert not np.array_equal(split_by_encounter(NAMES)[1], split_by_encounter(NAMES, seed=1)[1])
    assert [len(part) for part in split_random(35_784)] == [28_627, 7_157]


@pytest.mark.parametrize("fractions", [(), (0.5, 0.6), (1.2, -0.2)])
def test_fractions_that_are_not_allowed(fractions):
    for split in (lambda f: split_by_encounter(NAMES, f), lambda f: split_random(10, f)):
        with pytest.raises(ConfigError, match="fractions"):
            split(fractions)
