"""Look-alikes: the nearest, from different encounters, turned as the query is; and only from a whole file."""

import hashlib
import subprocess
import sys

import h5py
import numpy as np
import pytest

from deepgalaxy.data.reader import Dataset
from deepgalaxy.errors import LibraryError
from deepgalaxy.inference.predictor import Predictor, load
from deepgalaxy.labels import LABELS
from deepgalaxy.search.index import LatentIndex
from deepgalaxy.search.library import Library, encode_thumbnail, extend_library, rewrite_library, write_library
from deepgalaxy.search.pictures import PICTURE_PIXELS, smooth_faint, tidy

N, N_ENCOUNTERS, D = 90, 9, 5


def seal(path):
    """What a stranger knows how to make: a checksum that fits."""
    content = path.read_bytes()[512:]
    head = b"sha256 of what follows byte 512: " + hashlib.sha256(content).hexdigest().encode() + b"\n"
    path.write_bytes(head.ljust(512, b"\0") + content)


def pictures(n=N, size=112, seed=0):
    """(n, size, size) float32, 0..1: two blobs at random places."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    c = rng.uniform(0.2, 0.8, (n, 2, 2, 1, 1))
    light = np.exp(-((x - c[:, 0, 0]) ** 2 + (y - c[:, 0, 1]) ** 2) / 0.01)
    light += 0.6 * np.exp(-((x - c[:, 1, 0]) ** 2 + (y - c[:, 1, 1]) ** 2) / 0.004)
    return np.clip(light, 0, 1).astype(np.float32)


def content(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "z": rng.normal(size=(N, D)) * [3, 1, 1, 0.5, 0.001],
        "z_told": np.random.default_rng(seed + 1).normal(size=(N, D)) * [1, 2, 0.001, 4, 1],
        "labels": {"time": rng.uniform(-150, 500, N), "mass_ratio": rng.uniform(0.2, 1, N),
                   "size_ratio": rng.uniform(0.3, 1.4, N), "view_inclination": rng.uniform(0, 90, N)},
        "encounters": [f"encounter_{i:04d}" for i in range(N_ENCOUNTERS)], "encounter": np.arange(N) % N_ENCOUNTERS,
        "snapshot": rng.integers(0, 66, N), "camera": rng.integers(0, 8, N),
        "thumbnails": [encode_thumbnail(picture) for picture in pictures()],
        "usual_features": rng.normal(size=(200, 4)) * [3, 1, 0.5, 0.1] + 1,
        "unseen_features": rng.normal(size=(40, 4)) * [3, 1, 0.5, 0.1] + 1,
        "model_sha256": "ab" * 32, "config": '{"n_pixels": 160}'}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("library") / "library.h5"
    write_library(path, **content())
    return path


@pytest.fixture(scope="module")
def library(path):
    return Library(path)


# The index


def brute_force(z, query, k):
    """Distances and rows by numpy, in double precision."""
    spread = z.astype(np.float32).std(axis=0)
    scale = 1 / np.maximum(spread, 0.1 * spread.max())
    d = np.linalg.norm((query[:, None] - z[None]) * scale, axis=2)
    rows = np.argsort(d, axis=1)[:, :k]
    return np.take_along_axis(d, rows, axis=1), rows


def test_index_finds_what_brute_force_finds():
    rng = np.random.default_rng(4)
    z, query = rng.normal(size=(500, 16)) * rng.uniform(0.01, 3, 16), rng.normal(size=(20, 16))
    distances, rows = LatentIndex(z).search(query, 7)
    wanted, wanted_rows = brute_force(z, query, 7)
    np.testing.assert_array_equal(rows, wanted_rows)
    np.testing.assert_allclose(distances, wanted, rtol=1e-4)
    assert (np.diff(distances, axis=1) >= 0).all()


def test_index_gives_no_more_than_it_has():
    distances, rows = LatentIndex(np.eye(3)).search(np.zeros((1, 3)), 10)
    assert distances.shape == (1, 3) and sorted(rows[0]) == [0, 1, 2]


def test_index_does_not_blow_up_an_unused_axis():
    z = np.random.default_rng(0).normal(size=(50, 2)) * [1, 1e-9]
    d, _ = LatentIndex(z).search(z[:1] + [[0, 1e-6]], 1)
    assert d[0, 0] < 1e-3


def test_observation_counts_for_little_in_its_metric():
    """What moves images along one direction, however wide, does not make them unlike."""
    rng = np.random.default_rng(1)
    sky = np.array([0.6, 0.8, 0])  # the direction that noise moves z in
    z = rng.normal(size=(400, 3))
    changes = rng.normal(size=(300, 1)) * 3 * sky + 0.01 * rng.normal(size=(300, 3))
    index = LatentIndex(z, LatentIndex.by_observation(z, changes))
    across, along = z[:50] + 0.5 * np.array([0.8, -0.6, 0]), z[:50] + 0.5 * sky
    to = np.arange(50)
    assert (index.distances(along)[to, to] < 0.2 * index.distances(across)[to, to]).all()
    np.testing.assert_allclose(index.distances(z[:5]), np.linalg.norm(
        (z[:5, None] - z) @ LatentIndex.by_observation(z, changes), axis=2), atol=2e-3)


@pytest.mark.parametrize("z", [np.zeros((1, D)), np.ones((N, D))], ids=["one", "equal"])
def test_images_that_do_not_vary_are_told_apart_by_what_observation_does(z):
    """However few directions it moves them in."""
    for changes in (np.eye(D)[:1], np.zeros((3, D))):
        metric = LatentIndex.by_observation(z, changes)
        assert np.isfinite(metric).all()
        distances = LatentIndex(z, metric).distances(z[:1] + np.eye(D))[:, 0]
        assert np.isfinite(distances).all() and (distances > 0).all()


# The file


def test_round_trip_returns_what_was_written(library):
    wanted = content()
    assert len(library) == N and library.encounters == wanted["encounters"] and library.model_sha256 == "ab" * 32
    np.testing.assert_array_equal(library.encounter, wanted["encounter"])
    np.testing.assert_array_equal(library.snapshot, wanted["snapshot"])
    np.testing.assert_array_equal(library.camera, wanted["camera"])
    for name, values in wanted["labels"].items():
        np.testing.assert_allclose(library.labels[name], values, rtol=1e-6)
    for row in (0, 17, N - 1):
        reduced = pictures()[row].reshape(16, 7, 16, 7).mean(axis=(1, 3))
        thumbnail = library.thumbnail(row)
        assert thumbnail.shape == (PICTURE_PIXELS,) * 2 and thumbnail.dtype == np.float32
        np.testing.assert_allclose(thumbnail.reshape(16, 4, 16, 4).mean(axis=(1, 3)), reduced, atol=0.05)


def test_folder_stands_for_the_file_in_it(path, library):
    assert len(Library(path.parent)) == len(library)


def test_a_failed_write_leaves_the_previous_file(path):
    before = path.read_bytes()
    with pytest.raises(LibraryError, match="cannot be written"):
        write_library(path / "below" / "library.h5", **content())
    assert path.read_bytes() == before and not list(path.parent.glob(".*"))


_FLIP = """
import sys
from pathlib import Path
from deepgalaxy.errors import LibraryError
from deepgalaxy.search.pictures import PICTURE_PIXELS
from deepgalaxy.search.library import Library
path, copy = Path(sys.argv[1]), Path(sys.argv[2])
data, size = path.read_bytes(), path.stat().st_size
whole = Library(path)
known = lambda l: (l.model_sha256, l.encounters, l.thumbnail(3).tobytes(), l.arrays["z"].tobytes(), l._unseen.tobytes())
for offset in [*range(0, 5000, 37), *range(5000, size, size // 70), size - 1]:
    copy.write_bytes(data[:offset] + bytes([data[offset] ^ 0x04]) + data[offset + 1:])
    try:
        same = known(Library(copy)) == known(whole)
    except LibraryError:
        continue
    if not same:
        print(offset)
"""


@pytest.mark.parametrize("before, after", [
    (["gadget-4 run"] * N_ENCOUNTERS, None), (None, ["{"] * N_ENCOUNTERS),
    (['{"name": "a"}'] * N_ENCOUNTERS, None), (None, [f'{{"name": "{k}"}}' for k in range(N_ENCOUNTERS)])])
def test_a_library_is_extended_whatever_is_known_of_its_encounters(tmp_path, before, after):
    view = {"view": np.tile([0, 0, 1.0], (N, 1))}
    write_library(tmp_path / "library.h5", **content(), configs=before or [], **view if before else {})
    more = {name: value for name, value in content(1).items()
            if name not in ("usual_features", "unseen_features", "model_sha256", "config", "encounters")}
    extend_library(Library(tmp_path), tmp_path / "library.h5", **more, configs=after or [],
                   encounters=[f"more:{k}" for k in range(N_ENCOUNTERS)], **view if after else {})
    library = Library(tmp_path)
    assert len(library) == 2 * N and len(library.encounters) == 2 * N_ENCOUNTERS == len(library.configs)
    assert library.encounters[library.encounter[N + 1]] == "more:1"


def test_encounters_of_one_configuration_are_one_whatever_their_file_is_called(tmp_path):
    configs = [f'{{"name": "encounter_{k:04d}"}}' for k in range(N_ENCOUNTERS)]
    view = np.tile([0, 0, 1.0], (N, 1))
    write_library(tmp_path / "library.h5", **content(), configs=configs, view=view)
    more = {name: value for name, value in content(1).items()
            if name not in ("usual_features", "unseen_features", "model_sha256", "config", "encounters")}
    extend_library(Library(tmp_path), tmp_path / "library.h5", **more, view=view, configs=[*configs[:-1], "{}"],
                   encounters=[f"again:encounter_{k:04d}" for k in range(N_ENCOUNTERS)])
    library = Library(tmp_path)
    assert library.encounters == [*content()["encounters"], f"again:encounter_{N_ENCOUNTERS - 1:04d}"]
    own = content()["encounter"]  # all but the last are those that were there
    np.testing.assert_array_equal(library.encounter[N:], np.where(own == N_ENCOUNTERS - 1, N_ENCOUNTERS, own))


def test_any_flipped_byte_is_found_or_changes_nothing(path, tmp_path):
    """In a process of its own, because HDF5 can crash on damaged text of variable length."""
    done = subprocess.run([sys.executable, "-c", _FLIP, str(path), str(tmp_path / "copy.h5")],
                          capture_output=True, text=True)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-500:]}"
    assert done.stdout.split() == []


def _write_again(path, copy, k):
    rewrite_library(Library(path), copy, unseen_features=np.zeros((3, content()["usual_features"].shape[1])),
                    model_sha256=f"written {k}")


def test_a_library_outlives_a_writer_that_is_killed(path, tmp_path, kill_after):
    copy = tmp_path / "library.h5"
    copy.write_bytes(path.read_bytes())
    for k in range(20):
        kill_after(0.002 * k, _write_again, path, copy)
        assert Library(copy).model_sha256.startswith("written")  # whole, each time


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.7, 0.999])
def test_a_cut_file_is_refused(path, tmp_path, share):
    cut = tmp_path / "cut.h5"
    cut.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(LibraryError, match="cut.h5") as caught:
        Library(cut)
    assert "\n" not in str(caught.value)


def test_what_is_no_library_is_refused(tmp_path, tiny_dataset):
    (tmp_path / "text.h5").write_text("not HDF5")
    for path in (tmp_path, tmp_path / "nowhere.h5", tmp_path / "text.h5", tiny_dataset):
        with pytest.raises(LibraryError) as caught:
            Library(path)
        assert "\n" not in str(caught.value) and "deepgalaxy" in str(caught.value)


def _external(f, folder):
    f["z"] = h5py.ExternalLink(str(folder / "elsewhere.h5"), "z")


def _soft(f, folder):
    f["z"] = h5py.SoftLink("/time")


def _virtual(f, folder):
    layout = h5py.VirtualLayout((N, D), np.float16)
    layout[:] = h5py.VirtualSource(str(folder / "elsewhere.h5"), "z", (N, D))
    f.create_virtual_dataset("z", layout)


def _outside(f, folder):
    f.create_dataset("z", (N, D), np.float16, external=[(str(folder / "secret"), 0, h5py.h5f.UNLIMITED)])


def _bomb(f, folder):
    f.create_dataset("z", (1 << 40, D), np.float16, chunks=(1024, D))


def _missing(f, folder):
    pass


def _group(f, folder):
    f.create_group("z")


@pytest.mark.parametrize("change", [_external, _soft, _virtual, _outside, _bomb, _missing, _group])
def test_a_file_that_leads_elsewhere_or_claims_too_much_is_refused(path, tmp_path, change):
    hostile = tmp_path / "hostile.h5"
    hostile.write_bytes(path.read_bytes())
    with h5py.File(tmp_path / "elsewhere.h5", "w") as f:
        f["z"] = np.zeros((N, D), np.float16)
    (tmp_path / "secret").write_bytes(bytes(2 * N * D))
    with h5py.File(hostile, "r+") as f:
        del f["z"]
        change(f, tmp_path)
    seal(hostile)
    with pytest.raises(LibraryError, match="hostile.h5") as caught:
        Library(hostile)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, values", [
    ("z", np.full((N, D), b"text")), ("z", np.zeros(N, np.float16)), ("z", np.full((N, D), np.nan, np.float16)),
    ("metric", np.eye(D + 1, dtype=np.float32)), ("time", np.zeros(3, np.float32)),
    ("z_told", np.zeros((N, D + 1), np.float16)),
    ("encounter", np.full(N, 999, np.int32)), ("thumbnail_offsets", np.zeros(N + 1, np.int64)),
    ("pictures", np.full((N, 3), b"text"))])
def test_arrays_that_do_not_fit_are_refused_however_well_sealed(path, tmp_path, name, values):
    odd = tmp_path / "odd.h5"
    odd.write_bytes(path.read_bytes())
    with h5py.File(odd, "r+") as f:
        del f[name]
        f[name] = values
    seal(odd)
    with pytest.raises(LibraryError, match=f"odd.h5: '{name}' does not fit"):
        Library(odd)


def test_library_of_another_model_is_refused(path, tiny_model):
    with pytest.raises(LibraryError, match="another model"):
        load(tiny_model / "model.safetensors", path)


# Look-alikes


def test_where_the_scale_is_told_neighbours_are_sought_among_those_told(library):
    z = np.random.default_rng(7).normal(size=(3, D)) * [1, 2, 0.001, 4, 1]
    _, rows = library.told_index.search(z, 4)
    np.testing.assert_array_equal(rows, brute_force(library.arrays["z_told"].astype(float), z, 4)[1])


def test_matches_are_of_different_encounters_best_first(library):
    """With the weight of pictures at 0, by brute force: the least relative distance of each encounter."""
    z = np.random.default_rng(7).normal(size=(1, D)) * [3, 1, 1, 0.5, 0.001]
    matches = library.matches(z, pictures(1, seed=5), k=5, n_candidates=N, picture_weight=0)
    stored, crowding = library.arrays["z"].astype(float), library.arrays["local_distance"]
    distance = brute_force(stored, z, N)
    by_row = np.empty(N)
    by_row[distance[1][0]] = distance[0][0]
    relative = by_row / np.sqrt(crowding)
    best = sorted((relative[rows].min(), name) for name, rows in (
        (name, np.flatnonzero(library.encounter == e)) for e, name in enumerate(library.encounters)))
    assert [match.encounter for match in matches] == [name for _, name in best[:5]]
    for match in matches:
        row = int(np.argmin(np.abs(library.labels["time"] - match.time_myr)))
        assert match.mass_ratio == library.labels["mass_ratio"][row]
        assert match.distance == pytest.approx(by_row[row] / np.median(crowding), rel=1e-3)


@pytest.mark.parametrize("k", [0, 1, 5, N_ENCOUNTERS, 50])
def test_as_many_matches_as_wanted_or_as_there_are_encounters(library, k):
    matches = library.matches(library.arrays["z"][:1].astype(float), pictures(1), k=k)
    assert len(matches) == min(k, N_ENCOUNTERS) == len({match.encounter for match in matches})


def test_crowding_of_one_encounter_does_not_hide_the_others(tmp_path):
    """Most of the library is nearest to the query and of one encounter: five matches are found nevertheless."""
    values = content()
    values["encounter"] = np.r_[np.zeros(N - 8), np.arange(1, 9)].astype(int)
    values["z"][:N - 8] *= 0.01
    values["z"][N - 8:] += 20
    write_library(tmp_path / "library.h5", **values)
    matches = Library(tmp_path).matches(np.zeros((1, D)), pictures(1), k=5)
    assert len(matches) == 5


def test_pictures_decide_between_equals(tmp_path):
    """Same z everywhere: the best match is the one that looks the same."""
    values = content()
    values["z"] = np.random.default_rng(0).normal(size=(N, D)) * 1e-3 + np.eye(N, D)
    write_library(tmp_path / "library.h5", **values)
    library = Library(tmp_path)
    for row in (3, 40):
        best = library.matches(np.zeros((1, D)), pictures()[row:row + 1], k=1, n_candidates=N, picture_weight=1)[0]
        assert best.time_myr == library.labels["time"][row]


def test_the_clean_picture_decides_between_what_a_frame_shows_at_once(tmp_path):
    """Same z everywhere, and a frame with two pictures in it."""
    values = content()
    values["z"] = np.random.default_rng(0).normal(size=(N, D)) * 1e-3 + np.eye(N, D)
    write_library(tmp_path / "library.h5", **values)
    library = Library(tmp_path)
    frame = np.maximum(pictures()[3], pictures()[40])[None]
    matches = {}
    for row in (3, 40):
        clean = library.thumbnail(row)
        matches[row] = library.matches(np.zeros((1, D)), frame, k=1, n_candidates=N, picture_weight=1, clean=clean)[0]
        assert 0 <= matches[row].thumbnail.min() <= matches[row].thumbnail.max() <= 1
        # It is shown in the brightnesses of the clean picture.
        assert np.abs(np.sort(matches[row].thumbnail, axis=None) - np.sort(clean, axis=None)).mean() < 0.03
    alike = [[np.corrcoef(library.thumbnail(match.row).ravel(), library.thumbnail(row).ravel())[0, 1]
              for row in matches] for match in matches.values()]
    assert alike[0][0] > alike[1][0] and alike[1][1] > alike[0][1]
    # What is of another picture altogether is not asked.
    without, other = (library.matches(np.zeros((1, D)), frame, k=1, n_candidates=N, picture_weight=1, clean=clean)[0]
                      for clean in (None, 1 - library.thumbnail(3)))
    assert other.row == without.row


def test_activation_maps_decide_among_those_that_are_compared_last(tmp_path):
    """Every image is of an encounter of its own; the model is asked about the candidates, then about the picture."""
    values = content() | {"encounter": np.arange(N), "encounters": [f"encounter_{i:04d}" for i in range(N)]}
    write_library(tmp_path / "library.h5", **values)
    library, frame = Library(tmp_path), pictures(1, seed=5)
    usual = [match.row for match in library.matches(np.zeros((1, D)), frame, k=20)]

    def maps_of(favourite, seen):
        def see(shown):
            seen.append(shown)
            maps = np.ones((len(shown), 3, 2, 2))
            if len(seen) == 1:  # laid on the picture: those that are compared last, in their order
                maps[np.arange(len(shown)) != favourite] *= -1
            return maps
        return see

    for favourite in (0, 7, 19):
        seen = []
        rows = [match.row for match in library.matches(np.zeros((1, D)), frame, k=20, see=maps_of(favourite, seen))]
        assert rows == [usual[favourite], *(row for row in usual if row != usual[favourite])]
        assert [len(shown) for shown in seen] == [48, 1]
    # Who asks for z alone is not answered by pictures.
    by_z = [[match.row for match in library.matches(np.zeros((1, D)), frame, k=5, picture_weight=0, see=see)]
            for see in (None, maps_of(7, []))]
    assert by_z[0] == by_z[1]


def test_smoothing_leaves_what_is_bright_and_the_sum_of_what_is_faint():
    rng, pictures = np.random.default_rng(0), np.zeros((2, 64, 64), np.float32)
    pictures[0, 20:40, 20:40], pictures[1] = 0.8, 0.05 + 0.01 * rng.standard_normal((64, 64))
    smooth = smooth_faint(pictures)
    np.testing.assert_allclose(smooth[0, 24:36, 24:36], 0.8, atol=1e-3)
    assert smooth[1].std() < 0.6 * pictures[1].std()
    assert smooth[1].mean() == pytest.approx(pictures[1].mean(), rel=0.01)


def test_answers_decide_between_equals(tmp_path):
    """Same z and same picture everywhere: the best match is the one whose time and mass ratio are the likeliest."""
    values = content()
    values["z"] = np.random.default_rng(0).normal(size=(N, D)) * 1e-3 + np.eye(N, D)
    values["thumbnails"] = [values["thumbnails"][0]] * N
    write_library(tmp_path / "library.h5", **values)
    library = Library(tmp_path)
    for row in (3, 40):
        probability = {}
        for label in LABELS[:2]:
            position = label.position(library.labels[label.column][row:row + 1])
            probability[label.name] = np.exp(-0.5 * ((np.arange(label.n_bins) - np.floor(position)) / 3) ** 2)
        implausibility = library.implausibility(probability)
        assert implausibility[row] == 0 == implausibility.min()
        best = library.matches(np.zeros((1, D)), pictures(1), k=1, n_candidates=N, implausibility=implausibility,
                               posterior_weight=100)[0]
        for label in LABELS[:2]:
            found = label.position(library.labels[label.column][row])
            assert abs(label.position(getattr(best, {"time": "time_myr"}.get(label.column, label.column))) - found) < 2


def test_a_library_of_one_image_or_of_equal_ones_answers_with_numbers(tmp_path):
    for n in (1, N):
        values = content()
        values = {k: v if k in ("usual_features", "unseen_features", "encounters") else v[:n] for k, v in values.items()
                  if k != "labels"} | {"labels": {k: v[:n] for k, v in values["labels"].items()}}
        values["z"] = np.zeros((n, D))
        write_library(tmp_path / f"{n}.h5", **values)
        matches = Library(tmp_path / f"{n}.h5").matches(np.ones((1, D)), pictures(1), k=3)
        assert matches and all(np.isfinite(match.distance) for match in matches)


def test_images_of_unknown_label_are_not_implausible(tmp_path):
    values = content()
    values["labels"]["view_inclination"] = np.full(N, np.nan)
    write_library(tmp_path / "library.h5", **values)
    label = next(label for label in LABELS if label.column == "view_inclination")
    assert (Library(tmp_path).implausibility({label.name: np.eye(label.n_bins)[3]}) == 0).all()


@pytest.mark.parametrize("probability", [{}, {"stage": np.ones(6)}, {LABELS[0].name: np.ones(LABELS[0].n_bins)}])
def test_nothing_is_implausible_where_nothing_is_known(library, probability):
    assert (library.implausibility(probability) == 0).all()


@pytest.fixture(scope="module")
def plain(tiny_model):
    """The tiny model, with mirrored but without turned views: then a library image is at no distance from itself."""
    whole = load(tiny_model / "model.safetensors")
    return Predictor(whole.weights, whole.library, n_views=4)


def reduced(frame):
    return frame.reshape(16, 7, 16, 7).mean(axis=(1, 3)).ravel()


@pytest.mark.parametrize("mirror", [
    lambda x: x, lambda x: x[:, ::-1], lambda x: x[::-1], lambda x: x[::-1, ::-1]],
    ids=["as it is", "left-right", "up-down", "both"])
def test_a_mirrored_library_image_finds_itself_mirrored_back(plain, tiny_dataset, mirror):
    dataset = Dataset(tiny_dataset)
    for i in (18, 88, 116, 142):  # of the camera that sees the separation in full
        image = dataset.surface_density(i)
        story = plain.predict(np.ascontiguousarray(mirror(image)))
        best = story.matches[0]
        assert best.encounter == dataset.groups[dataset.group[i]]
        assert best.time_myr == pytest.approx(dataset.labels["time"][i])
        # z is stored in half precision, and `stretch` looks at other pixels of a mirrored frame.
        assert best.distance < (0.1 if mirror(image) is image else 0.8)
        thumbnail = best.thumbnail.reshape(16, 4, 16, 4).mean(axis=(1, 3)).ravel()
        assert np.corrcoef(thumbnail, reduced(story.frame))[0, 1] > 0.98
        assert [m.encounter for m in story.matches] == list(dict.fromkeys(m.encounter for m in story.matches))


@pytest.mark.parametrize("power", [1, 1.25, 1.5])
def test_a_stretched_library_image_finds_itself_in_its_own_brightnesses(plain, power):
    library = plain.library
    for row in (18, 88, 116):
        frame = library.thumbnail(row)[None] ** power
        [best] = library.matches(library.arrays["z"][row][None].astype(np.float32), frame, k=1, picture_weight=1.0)
        assert best.row == row
        np.testing.assert_allclose(np.sort(best.thumbnail, axis=None), np.sort(tidy(frame[0]), axis=None), atol=0.05)


def test_a_picture_without_light_gets_look_alikes_that_can_be_seen(plain):
    library = plain.library
    matches = library.matches(library.arrays["z"][:1].astype(np.float32), np.zeros((1, 112, 112), np.float32), k=3)
    assert len(matches) == 3 and all(match.thumbnail.max() > 0.5 for match in matches)


def test_images_like_the_library_are_more_familiar_than_noise(plain, tiny_dataset):
    dataset, rng = Dataset(tiny_dataset), np.random.default_rng(0)
    known = [plain.predict(dataset.surface_density(i)).familiarity for i in range(5, len(dataset), 20)]
    noise = [plain.predict(rng.standard_normal((64, 64))).familiarity for _ in range(6)]
    assert 0 <= min(known + noise) and max(known + noise) <= 1
    assert np.mean(known) > np.mean(noise)
    width = 2 * plain.weights.model.config.classifier_width
    assert plain.library.familiarity(np.full((4, width), 1e3)) == 0


def test_familiarity_is_unknown_without_images_to_compare_with(tmp_path):
    write_library(tmp_path / "library.h5", **{**content(), "unseen_features": np.zeros((0, 4))})
    assert np.isnan(Library(tmp_path).familiarity(np.zeros((1, 4))))


def test_strangeness_takes_every_direction_in_units_of_its_scatter(library):
    """Mahalanobis by numpy: features scatter 30 times as much along one axis as along another."""
    features = content()["usual_features"]
    scatter = np.cov(features.T)
    inverse = np.linalg.inv(scatter + 1e-3 * np.trace(scatter) / 4 * np.eye(4))  # no axis counts for more than that
    away = features - features.mean(axis=0)
    wanted = np.sqrt(np.einsum("ni,ij,nj->n", away, inverse, away))
    np.testing.assert_allclose(library.strangeness(features), wanted, rtol=1e-3)


def test_familiarity_is_the_share_that_lies_further_away(path):
    """Of the images that it is measured against, the i-th nearest has i/M nearer ones."""
    library, values = Library(path), content()
    found = np.sort([library.familiarity(one[None]) for one in values["unseen_features"]])
    np.testing.assert_allclose(found, np.arange(1, 41) / 40, atol=0.03)
