"""From encounter files to the file of images, as a stream."""

import fnmatch
import os
import signal

import h5py
import numpy as np
import pytest

from deepgalaxy.cluster import dask_client
from deepgalaxy.data import build
from deepgalaxy.data.build import build_dataset
from deepgalaxy.data.reader import Dataset
from deepgalaxy.data.schema import check_dataset
from deepgalaxy.data.writer import write_dummy_dataset
from deepgalaxy.errors import DatasetError
from deepgalaxy.image.render import RenderConfig, render_encounter
from deepgalaxy.simulate.snapshot import Encounter
from deepgalaxy.simulate.suite import GridDesign, SuiteConfig

SNAPSHOTS = 5


def encounter(name, seed=0, mass_ratio=0.5, size_ratio=0.75):
    """Two clouds of stars that come together."""
    rng = np.random.default_rng(seed)
    n = 300
    x = rng.normal(0, 3, (SNAPSHOTS, n, 3)).astype(np.float32)
    x[:, n // 2:, 0] += np.array([40, 20, 5, 12, 3])[:, None]
    return Encounter(
        name=name, time=np.arange(SNAPSHOTS) * 5.0, positions=x, masses=np.full(n, 1e8, np.float32),
        component=np.zeros(n, np.int8), galaxy=np.repeat([0, 1], n // 2).astype(np.int8),
        separation=np.array([40, 20, 5, 12, 3], np.float32), stage=np.array([0, 0, 1, 1, 2], np.uint8),
        parameters={"mass_ratio": mass_ratio, "size_ratio": size_ratio, "pericentre": 8.0})


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    for i, name in enumerate("abc"):
        encounter(name, i).write(folder / f"{name}.h5")
    return folder


@pytest.mark.parametrize("cameras", ["cube", "random"])
def test_pieces_make_the_same_pictures_as_the_whole(cameras):
    config = RenderConfig(n_pixels=24, cameras=cameras, n_cameras=2)
    whole = render_encounter(encounter("a"), config)
    pieces = [render_encounter(encounter("a"), config, first, 2) for first in range(0, SNAPSHOTS, 2)]
    for c, camera in enumerate(whole):
        for name in ("images", "times", "pixel_scale", "view"):
            np.testing.assert_array_equal(getattr(camera, name), np.concatenate([getattr(p[c], name) for p in pieces]))


def test_the_data_set_may_lie_among_its_encounters(runs):
    config = RenderConfig(n_pixels=24, n_cameras=2)
    for _ in range(2):
        assert dict(build_dataset(runs, runs / "whole.h5", config)) == dict.fromkeys("abc")
    (runs / "other.h5").write_bytes((runs / "whole.h5").read_bytes())
    found = dict(build_dataset(runs, runs / "again.h5", config))
    assert "is not an encounter file" in found.pop("other") and "delete" not in str(found)


@pytest.mark.parametrize("cluster", [False, True])
def test_data_set_does_not_depend_on_how_it_streams(runs, tmp_path, cluster, monkeypatch):
    config = RenderConfig(n_pixels=24, n_cameras=2)
    assert dict(build_dataset(runs, tmp_path / "whole.h5", config)) == dict.fromkeys("abc")
    monkeypatch.setattr(build, "_PIECE", 1)  # one snapshot at a time
    sizes, render_piece = [], build._render_piece

    def rendered(*arguments):
        sizes.append(arguments[-1])
        return render_piece(*arguments)

    if not cluster:
        monkeypatch.setattr(build, "_render_piece", rendered)
    if cluster:
        with dask_client(n_workers=2) as client:
            done = dict(build_dataset(runs, tmp_path / "pieces.h5", config, client))
    else:
        done = dict(build_dataset(runs, tmp_path / "pieces.h5", config))
    assert done == dict.fromkeys("abc") and sizes == ([] if cluster else [1] * 3 * SNAPSHOTS)
    whole, pieces = Dataset(tmp_path / "whole.h5"), Dataset(tmp_path / "pieces.h5")
    np.testing.assert_array_equal(whole.images(range(len(whole))), pieces.images(range(len(pieces))))
    for name, values in whole.labels.items():
        np.testing.assert_array_equal(values, pieces.labels[name])
    assert check_dataset(tmp_path / "pieces.h5") == []


def test_campaign_that_went_on_adds_what_is_new(runs, tmp_path):
    config = RenderConfig(n_pixels=24, n_cameras=2)
    assert dict(build_dataset(runs, tmp_path / "suite.h5", config)) == dict.fromkeys("abc")
    before = Dataset(tmp_path / "suite.h5").images(range(SNAPSHOTS))
    encounter("d", 3).write(runs / "d.h5")
    (runs / "a.h5").write_bytes(b"no longer needed")  # an encounter that was rendered again would be left out
    assert dict(build_dataset(runs, tmp_path / "suite.h5", config)) == dict.fromkeys("abcd")
    extended = Dataset(tmp_path / "suite.h5")
    assert list(extended.groups) == list("abcd")
    np.testing.assert_array_equal(extended.images(range(SNAPSHOTS)), before)
    assert check_dataset(tmp_path / "suite.h5") == []
    assert [p.name for p in tmp_path.glob("suite.h5*")] == ["suite.h5"]


@pytest.mark.parametrize("finished", [True, False])
def test_pictures_of_another_campaign_are_not_taken_for_these(runs, tmp_path, finished):
    """All suites name their encounters alike."""
    config = RenderConfig(n_pixels=16, n_cameras=2)
    path, others = tmp_path / "suite.h5", tmp_path / "others"
    steps = build_dataset(runs, path, config)
    next(steps)
    if finished:
        list(steps)
    steps.close()
    others.mkdir()
    for i, name in enumerate("abcd"):
        encounter(name, i, mass_ratio=0.9).write(others / f"{name}.h5")
    with pytest.raises(DatasetError, match="its a is another encounter .*mass_ratio 0.5, here 0.9.*another output"):
        list(build_dataset(others, path, config))
    # Nothing is lost: the first campaign goes on.
    assert dict(build_dataset(runs, path, config)) == dict.fromkeys("abc")
    assert (Dataset(path).labels["mass_ratio"] == 0.5).all()


def test_an_unfinished_data_set_of_another_folder_is_not_gone_on_with(runs, tmp_path):
    config, other = RenderConfig(n_pixels=16, n_cameras=2), tmp_path / "other"
    other.mkdir()
    encounter("z").write(other / "z.h5")
    steps = build_dataset(runs, tmp_path / "suite.h5", config)
    next(steps)
    steps.close()
    with pytest.raises(DatasetError, match="suite.h5.partial: holds a, which is not in the folder; choose another"):
        list(build_dataset(other, tmp_path / "suite.h5", config))
    assert dict(build_dataset(runs, tmp_path / "suite.h5", config)) == dict.fromkeys("abc")


def test_pictures_beside_those_of_an_encounter_are_of_the_same_one(runs, tmp_path):
    """An encounter's own come last: stopped before, only those of its galaxies alone tell whose they are."""
    config, others = RenderConfig(n_pixels=16, n_cameras=2, n_undisturbed=1), tmp_path / "others"
    others.mkdir()
    for folder, seed, ratio in ((runs, 1, 0.5), (others, 2, 0.9)):
        for k, name in enumerate("ab"):
            one = encounter(name, k)
            one.time = one.time - 100
            one.parameters.update({"mass_ratio": ratio, "seed": seed})
            one.write(folder / f"{name}.h5")
    (runs / "c.h5").unlink()
    steps = build._rendered([(runs / "a.h5", kind) for kind in build._kinds(config)], config, None)
    with pytest.raises(KeyboardInterrupt), build.DatasetWriter(tmp_path / "suite.h5", config.to_json()) as writer:
        assert build._write_pieces(writer, next(steps)[1], config) is None
        raise KeyboardInterrupt
    with pytest.raises(DatasetError, match="its a-.* is another encounter .*here"):
        list(build_dataset(others, tmp_path / "suite.h5", config))
    assert dict(build_dataset(runs, tmp_path / "suite.h5", config)) == dict.fromkeys("ab")


def test_an_encounter_of_which_a_part_cannot_be_rendered_is_named_once(runs, tmp_path):
    """They begin at their pericentre: there are none of their galaxies alone."""
    config = RenderConfig(n_pixels=16, n_cameras=2, n_undisturbed=1, light="both")
    done = list(build_dataset(runs, tmp_path / "suite.h5", config))
    assert [name for name, _ in done] == ["a", "b", "c"]
    assert all(error.startswith(f"{name}-single-starlight: ") and "n_undisturbed" in error for name, error in done)
    assert {"b", "b-starlight"} <= set(Dataset(tmp_path / "suite.h5").groups)


@pytest.mark.parametrize("change, words", [
    ({"n_pixels": 32}, "n_pixels = 24, here 32; choose another output, or delete it"),
    ({"n_pixels": 32, "seed": 1}, "n_pixels = 24, here 32 .and 1 more differ"),
    ({"cameras": "cube"}, "cameras = random, here cube"), ({"field_of_view": 80.0}, "field_of_view = None, here 80")])
def test_a_finished_data_set_is_not_replaced_by_one_of_another_configuration(runs, tmp_path, change, words):
    path, settings = tmp_path / "suite.h5", {"n_pixels": 24, "n_cameras": 2}
    list(build_dataset(runs, path, RenderConfig(**settings)))
    before = path.read_bytes()
    for encounters in ("abc", "abcd"):  # also where the campaign has gone on since
        encounter(encounters[-1], 9).write(runs / f"{encounters[-1]}.h5")
        with pytest.raises(DatasetError, match=f"suite.h5: was rendered with {words}") as caught:
            list(build_dataset(runs, path, RenderConfig(**settings | change)))
        assert "\n" not in str(caught.value) and path.read_bytes() == before
    assert [p.name for p in tmp_path.glob("suite.h5*")] == ["suite.h5"]


def test_pictures_of_encounters_that_are_gone_are_not_replaced(runs, tmp_path):
    config = RenderConfig(n_pixels=16, n_cameras=2)
    list(build_dataset(runs, tmp_path / "suite.h5", config))
    before = (tmp_path / "suite.h5").read_bytes()
    (runs / "b.h5").unlink()
    with pytest.raises(DatasetError, match="suite.h5: holds b, which is not in the folder; choose another output"):
        list(build_dataset(runs, tmp_path / "suite.h5", config))
    assert (tmp_path / "suite.h5").read_bytes() == before


@pytest.mark.parametrize("file", ["encounter", "text", "dummy", "published"])
def test_a_file_of_another_kind_is_not_replaced(runs, file):
    path = runs / "b.h5"
    if file == "text":
        path.write_text("my notes")
    elif file != "encounter":
        write_dummy_dataset(path, published=file == "published")
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="b.h5: .*choose another output") as caught:
        list(build_dataset(runs, path, RenderConfig(n_pixels=16, n_cameras=2)))
    assert "\n" not in str(caught.value) and path.read_bytes() == before


@pytest.mark.parametrize("piece", [1, 64 << 20])
def test_damaged_encounter_is_named_and_the_others_are_rendered(runs, tmp_path, piece, monkeypatch):
    monkeypatch.setattr(build, "_PIECE", piece)
    whole = (runs / "b.h5").read_bytes()
    (runs / "b.h5").write_bytes(whole[:-100])
    done = dict(build_dataset(runs, tmp_path / "suite.h5", RenderConfig(n_pixels=16, n_cameras=2)))
    assert done["a"] is None and done["c"] is None and "b.h5" in done["b"] and "\n" not in done["b"]
    assert Dataset(tmp_path / "suite.h5").groups == ["a", "c"] and check_dataset(tmp_path / "suite.h5") == []
    # Once it is mended, the data set is made with it.
    (runs / "b.h5").write_bytes(whole)
    assert set(dict(build_dataset(runs, tmp_path / "suite.h5", RenderConfig(n_pixels=16, n_cameras=2)))) == set("abc")
    assert Dataset(tmp_path / "suite.h5").groups == ["a", "b", "c"]


def test_killed_worker_costs_nothing(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_PIECE", 1)
    config = RenderConfig(n_pixels=24, n_cameras=2)
    list(build_dataset(runs, tmp_path / "whole.h5", config))
    with dask_client(n_workers=2) as client:
        rendering = build_dataset(runs, tmp_path / "killed.h5", config, client)
        assert next(rendering) == ("a", None)
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        assert dict(rendering) == {"b": None, "c": None}
    whole, killed = Dataset(tmp_path / "whole.h5"), Dataset(tmp_path / "killed.h5")
    np.testing.assert_array_equal(whole.images(range(len(whole))), killed.images(range(len(killed))))


def test_a_file_under_another_name_is_named_and_the_others_are_rendered(runs, tmp_path):
    """The name within is that of the group: two files of one encounter would meet in it."""
    (runs / "copy.h5").write_bytes((runs / "a.h5").read_bytes())
    encounter("../../x").write(runs / "x.h5")
    done = dict(build_dataset(runs, tmp_path / "suite.h5", RenderConfig(n_pixels=16, n_cameras=2)))
    assert [done[name] for name in "abc"] == [None] * 3
    assert "copy.h5: holds the encounter 'a'" in done["copy"] and "x.h5: holds the encounter '../../x'" in done["x"]
    assert Dataset(tmp_path / "suite.h5").groups == ["a", "b", "c"]


def test_nothing_but_damaged_encounters_is_one_line(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"no encounter")
    with pytest.raises(DatasetError, match="no encounter was written"):
        list(build_dataset(tmp_path, tmp_path / "x.hdf5", RenderConfig()))
    # What it left behind holds nothing: another way of rendering may begin.
    encounter("a").write(tmp_path / "a.h5")
    list(build_dataset(tmp_path, tmp_path / "x.hdf5", RenderConfig(n_pixels=16, n_cameras=2)))
    assert Dataset(tmp_path / "x.hdf5").groups == ["a"]


def test_grid_is_read_by_the_conventions_of_the_original(tmp_path):
    """Groups s_*_m_*, arrays images_camera_%02d of (T, H, W, 1), times t_myr_camera_%02d in Myr."""
    suite = SuiteConfig(design=GridDesign())
    encounters = suite.encounters()
    assert len(encounters) == 36
    for e in encounters[:3]:
        encounter(e.name, 0, e.mass_ratio, e.size_ratio).write(tmp_path / f"{e.name}.h5")
    config = RenderConfig(n_pixels=32, cameras="cube", field_of_view=150.0)
    list(build_dataset(tmp_path, tmp_path / "grid.hdf5", config))
    with h5py.File(tmp_path / "grid.hdf5") as f:
        groups = [name for name in f if fnmatch.fnmatch(name, "s_*_m_*")]
        assert groups == ["s_0.25_m_0.25", "s_0.25_m_0.50", "s_0.25_m_0.75"]
        for group in groups:
            for camera in range(14):
                images, times = f[group][f"images_camera_{camera:02d}"], f[group][f"t_myr_camera_{camera:02d}"]
                assert images.shape == (SNAPSHOTS, 32, 32, 1) and images.dtype == np.float16
                np.testing.assert_array_equal(times, np.arange(SNAPSHOTS) * 5)
    dataset = Dataset(tmp_path / "grid.hdf5")
    assert len(dataset) == 3 * 14 * SNAPSHOTS
    np.testing.assert_allclose(np.unique(dataset.labels["mass_ratio"]), [0.25, 0.5, 0.75])
