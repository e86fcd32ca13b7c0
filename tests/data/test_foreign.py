"""Snapshots of other programs and their labels: units, types, rotation, and what is refused."""

import csv
import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from deepgalaxy.data import schema
from deepgalaxy.data.build import build_dataset, encounter_files
from deepgalaxy.data.foreign import files_of, read_stars
from deepgalaxy.data.labelled import Labels, labels_file, orbit_rotation
from deepgalaxy.data.reader import Dataset
from deepgalaxy.data.schema import check_dataset
from deepgalaxy.data.writer import write_dummy_dataset
from deepgalaxy.errors import DatasetError
from deepgalaxy.image.render import RenderConfig
from deepgalaxy.labels import LABELS, NO_SEPARATION, NO_STAGE, Label
from deepgalaxy.training.recipe import read_recipe

KPC, MSUN = 3.0856775814913674e21, 1.988409870698051e33
TINY = RenderConfig(n_pixels=32, n_cameras=2)


def pair(n=600, seed=0):
    """Two blobs in the x-y plane, 30 kpc apart: positions in kpc, masses in Msun."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 3, (n, 3)) * [1, 1, 0.2]
    x[n // 2:, 0] += 30
    return x, rng.uniform(0.5, 1.5, n) * 1e10 / n


def counts(parts):
    table = np.zeros(7, np.uint32)
    for k, (x, _) in parts.items():
        table[k] = len(x)
    return table


def gadget(path, parts, length=KPC, mass=1e10 * MSUN, where="Units", h=1.0, a=None, mass_table=(), **header):
    """A snapshot as Gadget and AREPO write it; parts {type: (kpc, Msun)}; with `a`, of a cosmological run."""
    with h5py.File(path, "w") as f:
        f.create_group("Header").attrs.update({
            "NumPart_ThisFile": counts(parts)[:6], "NumPart_Total": counts(parts)[:6], "NumFilesPerSnapshot": 1,
            "MassTable": np.array([dict(mass_table).get(k, 0.0) for k in range(6)]) / (mass / MSUN) * h,
            "Time": a or 0.3, "Redshift": 1 / a - 1 if a else 0.0, "BoxSize": 0.0, "HubbleParam": h,
            "Omega0": 0.3 if a else 0.0, "OmegaLambda": 0.7 if a else 0.0, **header})
        if where:
            f.require_group(where).attrs.update({"UnitLength_in_cm": length, "UnitMass_in_g": mass,
                                                 "UnitVelocity_in_cm_per_s": 1e5})
        for k, (x, m) in parts.items():
            f[f"PartType{k}/Coordinates"] = (x * KPC / length * h / (a or 1)).astype(np.float32)
            f[f"PartType{k}/ParticleIDs"] = np.arange(len(x), dtype=np.uint32)
            if k not in dict(mass_table):
                f[f"PartType{k}/Masses"] = (m * MSUN / mass * h).astype(np.float32)
    return path


def arepo(path, parts, a=0.5, h=0.7):
    """As AREPO writes cosmological runs: the arrays say their own scaling, parameters have a group."""
    gadget(path, parts, h=h, a=a, where="Header")
    with h5py.File(path, "r+") as f:
        f.create_group("Parameters").attrs["ComovingIntegrationOn"] = 1
        f.create_group("Config").attrs["VORONOI"] = b""
        for k in parts:
            f[f"PartType{k}/Coordinates"].attrs.update({"a_scaling": 1.0, "h_scaling": -1.0, "length_scaling": 1.0,
                                                        "mass_scaling": 0.0, "velocity_scaling": 0.0, "to_cgs": KPC})
            f[f"PartType{k}/Masses"].attrs.update({"a_scaling": 0.0, "h_scaling": -1.0, "length_scaling": 0.0,
                                                   "mass_scaling": 1.0, "velocity_scaling": 0.0,
                                                   "to_cgs": 1e10 * MSUN})
    return path


def swift(path, parts, a=1.0, attributes=True, physical=False):
    """As SWIFT writes: Mpc, 1e10 Msun, no h, numbers in arrays of one."""
    length, mass = 1e3 * KPC, 1e10 * MSUN
    with h5py.File(path, "w") as f:
        f.create_group("Header").attrs.update({
            "Code": np.bytes_("SWIFT"), "NumPart_ThisFile": counts(parts), "NumPart_Total": counts(parts),
            "NumFilesPerSnapshot": np.array([1], np.int32), "MassTable": np.zeros(7), "BoxSize": np.ones(3),
            "Time": np.array([0.01]), "Redshift": np.array([1 / a - 1]), "Scale-factor": np.array([a]),
            "Virtual": np.array([0], np.int32)})
        f.create_group("Cosmology").attrs.update({"Cosmological run": np.array([int(a != 1)], np.int32),
                                                  "Scale-factor": np.array([a]), "h": np.array([0.68])})
        f.create_group("Units").attrs.update({
            "Unit length in cgs (U_L)": np.array([length]), "Unit mass in cgs (U_M)": np.array([mass]),
            "Unit time in cgs (U_t)": np.array([3.08568e19])})
        for k, (x, m) in parts.items():
            group = f.create_group(f"PartType{k}")
            group["Coordinates"] = x * KPC / length / (1 if physical else a)
            group["Masses"] = (m * MSUN / mass).astype(np.float32)
            group["SmoothingLengths"] = np.full(len(x), 0.5 * KPC / length / a, np.float32)
            for name, cgs, exponent in (("Coordinates", length, 1.0), ("Masses", mass, 0.0),
                                        ("SmoothingLengths", length, 1.0)) if attributes else ():
                group[name].attrs.update({
                    "Conversion factor to CGS (not including cosmological corrections)": np.array([cgs]),
                    "a-scale exponent": np.array([exponent], np.float32), "h-scale exponent": np.array([0.0]),
                    "Value stored as physical": np.array([int(physical and name == "Coordinates")], np.int32)})
    return path


def table(folder, rows, name="labels.csv"):
    """Write rows (dicts) as a CSV."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(folder / name, "w", newline="") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def row(snapshot, time=0.0, encounter="a", **more):
    return {"snapshot": snapshot, "encounter": encounter, "time": time, "mass_ratio": 0.5, "size_ratio": 0.7,
            "pericentre": 8.0, **more}


@pytest.fixture
def folder(tmp_path):
    """Two encounters of two snapshots, with labels."""
    rows = []
    for encounter, q in (("run_1", 0.5), ("run_2", 0.8)):
        for i, time in enumerate((-50.0, 100.0)):
            x, m = pair(n=500 + 100 * i, seed=i)  # stars form
            gadget(tmp_path / f"{encounter}_{i}.hdf5", {2: (x, m)})
            rows.append(row(f"{encounter}_{i}.hdf5", time, encounter, mass_ratio=q, separation=30.0 - i))
    table(tmp_path, rows)
    return tmp_path


def refused(call, *words):
    with pytest.raises(DatasetError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), message


def assert_is_pair(stars, x, m):
    np.testing.assert_allclose(stars.positions, x, rtol=2e-6, atol=1e-5)
    np.testing.assert_allclose(stars.masses, m, rtol=1e-5)
    assert stars.positions.dtype == stars.masses.dtype == np.float32


@pytest.mark.parametrize("write", [
    gadget,
    lambda p, s: gadget(p, s, where="Header"),
    lambda p, s: gadget(p, s, where="Parameters"),
    lambda p, s: gadget(p, s, h=0.7),  # isolated, kpc/h
    lambda p, s: gadget(p, s, HubbleParam=0.0),  # makers of initial conditions leave it 0
    lambda p, s: gadget(p, s, length=1e3 * KPC, mass=MSUN),
    lambda p, s: gadget(p, s, h=0.7, a=0.5),
    lambda p, s: gadget(p, s, UnitLength_in_cm=np.array([KPC]), where="Units"),
    arepo,
    lambda p, s: swift(p, {4: s[2]}),
    lambda p, s: swift(p, {4: s[2]}, a=0.5),
    lambda p, s: swift(p, {4: s[2]}, a=0.5, attributes=False),
    lambda p, s: swift(p, {4: s[2]}, a=0.5, physical=True),
], ids=["units", "header", "parameters", "h", "no h", "Mpc", "comoving", "array", "arepo", "swift", "swift comoving",
        "swift units only", "swift physical"])
def test_same_stars_come_from_every_convention(write, tmp_path):
    x, m = pair()
    assert_is_pair(read_stars(write(tmp_path / "s.hdf5", {2: (x, m)})), x, m)


def in_files(folder, write, parts, n=3, **header):
    """A snapshot in n files, each with every n-th of the particles of {type: (kpc, Msun)}; the first is answered."""
    files = []
    for i in range(n):
        share = {k: (x[i::n], m[i::n]) for k, (x, m) in parts.items() if len(x[i::n])}
        files.append(write(folder / f"snap_012.{i}.hdf5", share, **header))
        with h5py.File(files[-1], "r+") as f:
            f["Header"].attrs.update({"NumFilesPerSnapshot": n, "NumPart_Total": counts(parts)[:6]})
    return files


@pytest.mark.parametrize("write, star", [(gadget, 2), (arepo, 4), (swift, 4)])
def test_snapshot_in_several_files_is_read_whole_whichever_is_named(tmp_path, write, star):
    x, m = pair()
    (tmp_path / "one").mkdir()
    whole = read_stars(write(tmp_path / "one" / "s.hdf5", {star: (x, m)}))
    files = in_files(tmp_path, write, {star: (x, m)})
    for file in files:
        stars = read_stars(file)
        for got, expected in ((stars.positions, whole.positions), (stars.masses[:, None], whole.masses[:, None])):
            np.testing.assert_array_equal(got[np.lexsort(stars.positions.T)],
                                          expected[np.lexsort(whole.positions.T)])


def test_some_files_of_a_snapshot_may_hold_no_stars(tmp_path):
    x, m = pair()
    files = in_files(tmp_path, gadget, {2: (x[:2], m[:2] * 300), 1: (x, m)})
    assert len(read_stars(files[2]).masses) == 2  # the third has dark matter alone


def test_files_of_a_snapshot_that_do_not_belong_together_are_one_line(tmp_path):
    files = in_files(tmp_path, gadget, {2: pair()})
    with h5py.File(files[1], "r+") as f:
        f["Header"].attrs["Time"] = 0.7
    refused(lambda: read_stars(files[0]), r"snap_012\.1\.hdf5: is of another snapshot")
    files[1].unlink()
    refused(lambda: read_stars(files[2]), r"snap_012\.1\.hdf5: no such")


def test_masses_may_come_from_the_table_of_the_header(tmp_path):
    x, _ = pair()
    stars = read_stars(gadget(tmp_path / "s.hdf5", {2: (x, None), 3: (x[:100], None)}, h=0.7,
                              mass_table={2: 1e7, 3: 3e6}))
    np.testing.assert_allclose(stars.masses, [1e7] * 600 + [3e6] * 100, rtol=1e-6)


def test_stars_are_the_types_2_3_4_of_gadget_and_4_of_swift(tmp_path):
    x, m = pair()
    parts = {k: (x[:100 * k], m[:100 * k]) for k in (1, 2, 3, 4, 5)}
    file = gadget(tmp_path / "g.hdf5", parts)
    assert len(read_stars(file).masses) == 900
    assert len(read_stars(file, types=(4,)).masses) == 400
    assert len(read_stars(swift(tmp_path / "s.hdf5", parts)).masses) == 400  # 2 is dark matter, 3 are sinks


@pytest.mark.parametrize("write", [gadget, swift])
@pytest.mark.parametrize("corner", [(0, 0, 0), (-15, 0, 80), (90, -3, -1)])
@pytest.mark.parametrize("side", [140, 35000 / 0.6774])  # single precision rounds some of the latter beyond the box
def test_a_pair_across_the_edge_of_a_periodic_box_is_made_whole(tmp_path, write, corner, side):
    x, m = pair(60_000)
    there = (x + corner) % side
    path = write(tmp_path / "a.hdf5", {4: (there, m)})
    with h5py.File(path, "r+") as f:
        per_kpc = f["PartType4/Coordinates"][:].max() / there.max()
        f["Header"].attrs["BoxSize"] = np.full(3 if write is swift else 1, side * per_kpc)
    found = read_stars(path).positions
    np.testing.assert_allclose(found - found[0], x - x[0], atol=1e-6 * side + 1e-4)
    if write is swift and side == 140:
        with h5py.File(path, "r+") as f:
            f.require_group("Parameters").attrs["InitialConditions:periodic"] = b"0"
        np.testing.assert_allclose(read_stars(path).positions, there, atol=1e-6 * side)


def test_the_box_counts_where_the_first_file_of_several_holds_no_stars(tmp_path):
    x, m = pair()
    for k, part in enumerate(({1: (x[:9], m[:9])}, {4: ((x - [15, 0, 0]) % 100, m)})):
        gadget(tmp_path / f"snap.{k}.hdf5", part, NumFilesPerSnapshot=2, BoxSize=100.0,
               NumPart_Total=np.array([0, 9, 0, 0, len(x), 0], np.uint32))
    found = read_stars(tmp_path / "snap.0.hdf5").positions
    np.testing.assert_allclose(found - found[0], x - x[0], atol=1e-4)


def test_positions_stay_where_no_box_is_periodic(tmp_path):
    x, m = pair()
    # Beyond the box; in a box without a size; across more than half of it.
    for shift, stretch, box in ((0, 1, 100.0), (200, 1, 0.0), (50, 3, 180.0)):
        there = x * stretch + shift
        path = gadget(tmp_path / "a.hdf5", {4: (there, m)}, BoxSize=box)
        np.testing.assert_allclose(read_stars(path).positions, there, atol=1e-3)


def test_wind_of_arepo_is_no_star(tmp_path):
    x, m = pair()
    file = arepo(tmp_path / "s.hdf5", {4: (x, m)})
    with h5py.File(file, "r+") as f:
        f["PartType4/GFM_StellarFormationTime"] = np.where(np.arange(600) < 50, -1.0, 0.4).astype(np.float32)
    assert_is_pair(read_stars(file), x[50:], m[50:])


def test_stars_that_were_there_from_the_start_have_no_time_of_birth(tmp_path):
    x, m = pair()
    formed = np.where(np.arange(600) < 50, -1.0, np.where(np.arange(600) < 400, 0.0, 0.4)).astype(np.float32)
    alone, universe = gadget(tmp_path / "alone.hdf5", {4: (x, m)}), arepo(tmp_path / "universe.hdf5", {4: (x, m)})
    for file in (alone, universe):
        with h5py.File(file, "r+") as f:
            f["PartType4/GFM_StellarFormationTime"] = formed
    assert_is_pair(read_stars(alone), x[50:], m[50:])
    assert_is_pair(read_stars(universe), x[400:], m[400:])  # there the time is the scale factor, and 0 is wind
    with h5py.File(alone, "r+") as f:
        f["PartType4/GFM_StellarFormationTime"][7] = np.nan
    refused(lambda: read_stars(alone), "GFM_StellarFormationTime' of 1 particles is NaN")


def test_snapshots_that_leave_open_whether_they_are_comoving_are_refused(tmp_path):
    x, m = pair()
    file = gadget(tmp_path / "s.hdf5", {2: (x, m)}, a=0.5, h=0.7, Time=1.2)  # no scale factor of redshift 1
    refused(lambda: read_stars(file), "s.hdf5: has Omega0 and Redshift = 1", "labels.yaml")
    assert_is_pair(read_stars(file, units=(0.5 / 0.7, 1e10 / 0.7)), x, m)


def test_arrays_that_swift_wrote_with_fewer_digits_are_read(tmp_path):
    x, m = pair()
    file = swift(tmp_path / "s.hdf5", {4: (x, m)})
    with h5py.File(file, "r+") as f:
        old = f["PartType4/Coordinates"]
        values, attributes = old[()], dict(old.attrs)
        del f["PartType4/Coordinates"]
        f.create_dataset("PartType4/Coordinates", data=values, scaleoffset=6).attrs.update(attributes)
    np.testing.assert_allclose(read_stars(file).positions, x, atol=1e-3)  # six digits of Mpc


def test_smoothing_lengths_are_read_where_all_stars_have_them(tmp_path):
    x, m = pair()
    file = gadget(tmp_path / "a.hdf5", {4: (x, m)})
    with h5py.File(file, "r+") as f:
        f["PartType4/SmoothingLength"] = np.full(len(x), 0.5)
    np.testing.assert_allclose(read_stars(file, smoothing=True).smoothing, 0.5, rtol=1e-5)
    assert read_stars(file).smoothing is None  # nobody asked
    assert read_stars(gadget(tmp_path / "g.hdf5", {2: (x, m)}), smoothing=True).smoothing is None


@pytest.mark.parametrize("kernel, end", [(None, 1.825742), ("Cubic spline (M4)", 1.825742),
                                         ("Quartic spline (M5)", 2.018932), ("Wendland C2", 1.936492)])
def test_smoothing_lengths_of_swift_are_widths_of_its_kernel(tmp_path, kernel, end):
    file = swift(tmp_path / "s.hdf5", {4: pair()}, a=0.5)
    if kernel:
        with h5py.File(file, "r+") as f:
            f.create_group("HydroScheme").attrs["Kernel function"] = np.bytes_(kernel)
    np.testing.assert_allclose(read_stars(file, smoothing=True).smoothing, 0.5 * end, rtol=1e-5)


def test_units_given_by_the_user_win(tmp_path):
    x, m = pair()
    file = gadget(tmp_path / "s.hdf5", {2: (x / 2, m / 3)}, where=None)
    refused(lambda: read_stars(file), "s.hdf5", "unit of length", "labels.yaml")
    assert_is_pair(read_stars(file, units=(2.0, 3e10)), x, m)


def test_user_snapshots_become_a_sound_data_set(folder, run):
    done = run("render", folder, "-o", folder / "suite.h5", "--pixels", 32, "--cameras", 2, "--workers", 1)
    assert done.status == 0, done.err
    assert check_dataset(folder / "suite.h5") == []
    dataset = Dataset(folder / "suite.h5")
    assert dataset.groups == ["run_1", "run_2"] and len(dataset) == 8
    np.testing.assert_allclose(sorted(set(dataset.labels["time"])), [-50, 100])
    np.testing.assert_allclose(sorted(set(dataset.labels["mass_ratio"])), [0.5, 0.8])
    assert set(dataset.labels["stage"][dataset.labels["time"] < 0]) == {0}
    for i in range(len(dataset)):  # the mass is in the picture
        mass = dataset.surface_density(i).sum() * dataset.labels["pixel_scale"][i] ** 2
        assert mass == pytest.approx(1e10, rel=0.1)


def test_changed_labels_are_another_data_set(folder):
    data = folder / "suite.h5"
    list(build_dataset(folder, data, TINY))
    before = data.stat().st_mtime_ns
    list(build_dataset(folder, data, TINY))
    assert data.stat().st_mtime_ns == before
    labels = folder / "labels.csv"
    labels.write_text(labels.read_text().replace(",100.0,", ",120.0,"))
    assert list(build_dataset(folder, data, TINY)) == [("run_1", None), ("run_2", None)]
    assert 120 in Dataset(data).labels["time"]


def test_a_finished_data_set_is_not_replaced_by_one_of_another_configuration(folder, run):
    data, labels = folder / "suite.h5", folder / "labels.csv"
    list(build_dataset(folder, data, TINY))
    before = data.read_bytes()
    labels.write_text(labels.read_text().replace(",100.0,", ",120.0,"))  # whether or not the labels have changed too
    done = run("render", folder, "-o", data, "--pixels", 16, "--cameras", 2, "--workers", 1)
    assert done.status == 2 and data.read_bytes() == before
    assert re.fullmatch(r"DatasetError: .*suite.h5: was rendered with n_pixels = 32, here 16; choose another output, "
                        r"or delete it to photograph them anew", done.err.strip().splitlines()[-1])


@pytest.mark.parametrize("labels_first", [True, False])
def test_pictures_of_labelled_snapshots_and_of_encounters_are_not_taken_for_each_other(folder, tmp_path, labels_first):
    path = write_dummy_dataset(tmp_path / "suite.h5")
    if labels_first:
        path.unlink()
        list(build_dataset(folder, path, TINY))
        (folder / "labels.csv").rename(folder / "other.csv")
        (folder / "run_1.h5").touch()
    else:
        with h5py.File(path, "r+") as f:
            f.attrs["config"] = TINY.to_json()
    before = path.read_bytes()
    words = "with a file of labels, which is not there" if labels_first else "without a file of labels, which is there"
    refused(lambda: list(build_dataset(folder, path, TINY)), f"was rendered {words} now; choose another output")
    assert path.read_bytes() == before


def test_labels_of_other_encounters_do_not_replace_a_data_set(folder):
    data, labels = folder / "suite.h5", folder / "labels.csv"
    list(build_dataset(folder, data, TINY))
    labels.write_text(labels.read_text().replace(",run_1,", ",mine_1,"))
    assert dict(build_dataset(folder, data, TINY)) == {"mine_1": None, "run_2": None}  # one has another name
    before = data.read_bytes()
    labels.write_text(labels.read_text().replace(",mine_1,", ",a,").replace(",run_2,", ",b,"))
    refused(lambda: list(build_dataset(folder, data, TINY)), "suite.h5: holds mine_1, which is not in the folder")
    assert data.read_bytes() == before


def test_a_snapshot_of_which_any_file_was_written_again_is_another(tmp_path):
    x, m = pair()
    for k in range(2):
        gadget(tmp_path / f"s.{k}.hdf5", {4: (x, m)}, NumFilesPerSnapshot=2)
    (tmp_path / "labels.csv").write_text("snapshot,encounter,time,mass_ratio,size_ratio,pericentre\n"
                                         "s.0.hdf5,a,0,1,1,8\n")
    before = Labels(tmp_path / "labels.csv").digest
    gadget(tmp_path / "t.1.hdf5", {4: (x, m)})
    assert Labels(tmp_path / "labels.csv").digest == before
    assert files_of(tmp_path / "s.0.hdf5") == [tmp_path / "s.0.hdf5", tmp_path / "s.1.hdf5"]
    gadget(tmp_path / "t.0.hdf5", {4: (x, m)})  # numbered by time, each of one file
    assert files_of(tmp_path / "t.0.hdf5") == [tmp_path / "t.0.hdf5"]
    os.utime(tmp_path / "s.1.hdf5", ns=(0, 0))
    assert Labels(tmp_path / "labels.csv").digest != before


@pytest.fixture
def gas_label(monkeypatch):
    """A label of a user's own, as docs/extending.md says."""
    label = Label("gas_fraction", "gas_fraction", "gas/baryons", 0, 1, 20, 1.0, title="Gas fraction")
    monkeypatch.setattr(schema, "LABELS", (*LABELS, label))


@pytest.mark.parametrize("name", ["labels.csv", "labels.yaml"])
def test_a_label_of_ones_own_comes_in_through_the_labels(folder, gas_label, name):
    rows = list(csv.DictReader(open(folder / "labels.csv")))
    plain = Labels(folder / "labels.csv").digest
    rows = [{**r, "gas_fraction": "0.3" if r["encounter"] == "run_1" else ""} for r in rows]
    if name == "labels.csv":
        table(folder, rows)
    else:
        rows = [{k: v if k in ("snapshot", "encounter") else float(v) for k, v in r.items() if v} for r in rows]
        (folder / name).write_text(yaml.safe_dump({"snapshots": rows}))
    assert Labels(folder / name).digest != plain
    list(build_dataset(folder, folder / "suite.h5", TINY))
    assert check_dataset(folder / "suite.h5") == []
    data = Dataset(folder / "suite.h5")
    first = data.group == data.groups.index("run_1")
    np.testing.assert_array_equal(data.labels["gas_fraction"][first], np.float32(0.3))
    assert np.isnan(data.labels["gas_fraction"][~first]).all()  # not known


def test_a_label_on_a_logarithmic_scale_is_positive(folder, monkeypatch):
    label = Label("gas_fraction", "gas_fraction", "gas/baryons", 0.01, 1, 20, 1.0, True, title="Gas fraction")
    monkeypatch.setattr(schema, "LABELS", (*LABELS, label))
    rows = list(csv.DictReader(open(folder / "labels.csv")))
    table(folder, [{**r, "gas_fraction": "0" if r["encounter"] == "run_1" else "0.3"} for r in rows])
    list(build_dataset(folder, folder / "suite.h5", TINY))
    refused(lambda: Dataset(folder / "suite.h5"), "group run_1, camera 0, snapshot 0: gas_fraction = 0 cannot be")


def test_labels_without_it_are_the_same_as_before_there_was_such_a_label(folder, request):
    plain = Labels(folder / "labels.csv").digest
    request.getfixturevalue("gas_label")
    assert Labels(folder / "labels.csv").digest == plain


@pytest.mark.parametrize("values, words", [
    (("much",) * 4, "line 2: gas_fraction: .*number.*'much'"), (("inf",) * 4, "line 2: gas_fraction: .*finite"),
    ((0.3, 0.4, 1, 1), "'run_1': gas_fraction must be the same .*0.3 and 0.4")])
def test_a_label_of_ones_own_is_one_number_per_encounter(folder, gas_label, values, words):
    rows = list(csv.DictReader(open(folder / "labels.csv")))
    table(folder, [{**r, "gas_fraction": v} for r, v in zip(rows, values, strict=True)])
    refused(lambda: Labels(folder / "labels.csv"), "labels.csv", words)


@pytest.mark.parametrize("sign", [";", "\t"])
def test_columns_that_are_not_separated_by_commas_are_said_to_be_so(folder, sign):
    labels = folder / "labels.csv"
    labels.write_text(labels.read_text().replace(",", sign))
    refused(lambda: Labels(labels), "labels.csv: column 'snapshot' is missing.*columns are separated by commas")


def test_a_snapshot_that_was_written_again_is_photographed_again(folder):
    out = folder / "suite.h5"
    for seed in (0, 5):
        gadget(folder / "run_1_0.hdf5", {2: pair(seed=seed)})
        assert dict(build_dataset(folder, out, TINY)) == {"run_1": None, "run_2": None}
        images = Dataset(out).images([0])
    x, m = pair(seed=5)
    gadget(folder / "run_1_0.hdf5", {2: (x, m)})
    assert dict(build_dataset(folder, folder / "fresh.h5", TINY)) == {"run_1": None, "run_2": None}
    np.testing.assert_array_equal(images, Dataset(folder / "fresh.h5").images([0]))


def test_labels_may_be_a_link_and_may_end_in_yml(folder):
    (folder / "labels.csv").rename(folder / "mine_v2.csv")
    (folder / "labels.csv").symlink_to("mine_v2.csv")
    assert dict(build_dataset(folder, folder / "suite.h5", TINY)) == {"run_1": None, "run_2": None}
    (folder / "labels.yml").write_text("star_types: [4]\n")
    assert Labels(labels_file(folder)).reading.star_types == (4,)


def test_times_are_those_of_the_reference_whatever_the_primary_weighs(folder):
    rows = list(csv.DictReader(open(folder / "labels.csv")))
    table(folder, [{**r, "primary_stars": 1.5e10 if r["encounter"] == "run_1" else ""} for r in rows])
    list(build_dataset(folder, folder / "suite.h5", TINY))
    data = Dataset(folder / "suite.h5")
    light = data.group == data.groups.index("run_1")  # a quarter of the mass: all goes half as fast
    assert set(data.labels["time"][light]) == {-25, 50} and set(data.labels["time"][~light]) == {-50, 100}


def test_damaged_snapshot_costs_its_encounter_and_is_named(folder):
    whole = (folder / "run_1_1.hdf5").read_bytes()
    (folder / "run_1_1.hdf5").write_bytes(whole[:len(whole) // 2])
    done = dict(build_dataset(folder, folder / "suite.h5", TINY))
    assert done["run_2"] is None and "run_1_1.hdf5" in done["run_1"] and "\n" not in done["run_1"]
    assert Dataset(folder / "suite.h5").groups == ["run_2"]


def test_orbit_normal_is_turned_to_z(tmp_path):
    x, m = pair()
    turn = orbit_rotation((1, 2, -0.5)).T  # from the orbit's axes to those of the file
    gadget(tmp_path / "s.hdf5", {2: (x @ turn.T, m)})
    normal = 3 * turn @ [0, 0, 1]
    table(tmp_path, [row("s.hdf5", **{f"orbit_normal_{k}": v for k, v in zip("xyz", normal, strict=True)})])
    positions, masses, smoothing = Labels(tmp_path / "labels.csv").encounter("a").stars(0)
    np.testing.assert_allclose(positions, x, atol=1e-4)
    assert smoothing is None and len(masses) == 600


@pytest.mark.parametrize("normal", [(0, 0, 1), (0, 0, -1), (1, 0, 0), (1, -2, 3), (1e-9, 0, -1)])
def test_orbit_rotation_is_a_rotation(normal):
    r = orbit_rotation(normal)
    np.testing.assert_allclose(r @ r.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(r) == pytest.approx(1)
    np.testing.assert_allclose(r @ normal / np.linalg.norm(normal), [0, 0, 1], atol=1e-8)


def test_snapshots_come_in_the_order_of_time_with_the_stages_that_are_known(tmp_path):
    x, m = pair()
    for i in range(4):
        gadget(tmp_path / f"{i}.hdf5", {2: (x, m)})
    table(tmp_path, [row("2.hdf5", 90), row("0.hdf5", -10), row("1.hdf5", 30, stage="First passage"),
                     row("3.hdf5", 200, stage=3, separation=0.5)])
    e = Labels(tmp_path / "labels.csv").encounter("a")
    assert [p.name for p in e.files] == [f"{i}.hdf5" for i in range(4)]
    np.testing.assert_array_equal(e.time, [-10, 30, 90, 200])
    np.testing.assert_array_equal(e.stage, [0, 1, NO_STAGE, 3])  # before the pericentre it is an approach
    np.testing.assert_array_equal(e.separation, np.float32([NO_SEPARATION] * 3 + [0.5]))


def test_stages_follow_from_the_separations_where_all_are_given(tmp_path):
    x, m = pair()
    track = [30, 6, 20, 30, 24, 10, 1, 1]
    for i in range(8):
        gadget(tmp_path / f"{i}.hdf5", {2: (x, m)})
    table(tmp_path, [row(f"{i}.hdf5", 60 * i - 60, separation=s) for i, s in enumerate(track)])
    np.testing.assert_array_equal(Labels(tmp_path / "labels.csv").encounter("a").stage, [0, 1, 1, 2, 2, 2, 3, 3])


def test_galaxies_that_do_not_meet_have_no_time(tmp_path):
    x, m = pair()
    for i in range(3):
        gadget(tmp_path / f"{i}.hdf5", {2: (x, m)})
    table(tmp_path, [row("0.hdf5", 50, stage="single"), row("1.hdf5", 60, stage=4),
                     {**row("2.hdf5", 70, stage="chance pair"), "encounter": "b"}])
    assert dict(build_dataset(tmp_path, tmp_path / "suite.h5", TINY)) == {"a": None, "b": None}
    assert check_dataset(tmp_path / "suite.h5") == []
    data = Dataset(tmp_path / "suite.h5")
    assert not data.is_encounter.any() and np.isnan(data.labels["time"]).all()
    single = data.group == data.groups.index("a")
    assert np.isnan(data.labels["mass_ratio"][single]).all() and (data.labels["stage"][single] == 4).all()
    assert np.isfinite(data.labels["mass_ratio"][~single]).all() and (data.labels["stage"][~single] == 5).all()

    table(tmp_path, [row("0.hdf5", 50, stage="single"), row("1.hdf5", 60)])
    with pytest.raises(DatasetError, match="encounter 'a': stage must be single"):
        Labels(tmp_path / "labels.csv")


def test_labels_that_were_mended_count_in_a_process_that_read_them_before(tmp_path):
    x, m = pair()
    gadget(tmp_path / "0.hdf5", {2: (x, m)})
    (tmp_path / "labels.yaml").write_text("smoothing: neighbours\n")  # the rows stand in the table beside it
    for k, time in enumerate((50, 300)):
        table(tmp_path, [row("0.hdf5", time)])
        os.utime(tmp_path / "labels.csv", ns=(k, k))
        assert dict(build_dataset(tmp_path, tmp_path / f"{time}.h5", TINY)) == {"a": None}
        assert (Dataset(tmp_path / f"{time}.h5").labels["time"] == time).all()


def test_yaml_says_the_same_as_the_table_and_how_to_read(folder):
    with open(folder / "labels.csv") as f:
        rows = [{k: v if k in ("snapshot", "encounter") else float(v) for k, v in r.items()} for r in csv.DictReader(f)]
    from_csv = Labels(folder / "labels.csv")
    settings = {"star_types": [2], "units": {"length_in_kpc": 2.0, "mass_in_msun": 1e10}}
    (folder / "labels.yaml").write_text(yaml.safe_dump({"snapshots": rows}))
    assert labels_file(folder).name == "labels.yaml"
    assert Labels(folder / "labels.yaml").digest == from_csv.digest
    (folder / "labels.yaml").write_text(yaml.safe_dump(settings))  # the rows from the table beside it
    labels = Labels(folder / "labels.yaml")
    assert labels.names == from_csv.names and labels.digest != from_csv.digest
    doubled, plain = (k.encounter("run_1").stars(0)[0] for k in (labels, from_csv))
    np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-6)
    assert [p.name for p in encounter_files(folder)] == ["run_1.h5", "run_2.h5"]


def test_smoothing_of_the_file_is_used_when_asked_for(tmp_path):
    x, m = pair()
    swift(tmp_path / "s.hdf5", {4: (x, m)})
    table(tmp_path, [row("s.hdf5")])
    (tmp_path / "labels.yaml").write_text("smoothing: file\n")
    np.testing.assert_allclose(Labels(tmp_path / "labels.yaml").encounter("a").stars(0)[2], 0.5 * 1.825742, rtol=1e-5)
    gadget(tmp_path / "s.hdf5", {4: (x, m)})
    refused(lambda: Labels(tmp_path / "labels.yaml").encounter("a").stars(0), "s.hdf5", "no smoothing lengths")


def break_snapshot(file, how):
    with h5py.File(file, "r+") as f:
        part, header = f["PartType2"], f["Header"].attrs
        n = len(part["Coordinates"])
        if how in ("masses", "masses as text"):
            del part["Masses"]
            if how == "masses as text":
                part["Masses"] = np.array([b"heavy"] * n)
        elif how == "nan":
            part["Coordinates"][3, 1] = np.nan
        elif how == "infinite mass":
            part["Masses"][3] = np.inf
        elif how == "negative mass":
            part["Masses"][3] = -1
        elif how == "coordinates":
            del part["Coordinates"]
        elif how == "count":
            header["NumPart_ThisFile"] = np.array([0, 0, n + 1, 0, 0, 0], np.uint32)
        elif how == "shape":
            del part["Masses"]
            part["Masses"] = np.ones(n - 1, np.float32)
        elif how == "many files":
            header["NumFilesPerSnapshot"] = 8
        elif how == "unit":
            f["Units"].attrs["UnitLength_in_cm"] = "kpc"
        elif how == "unit nan":
            f["Units"].attrs["UnitMass_in_g"] = np.nan
        elif how == "wrong unit":
            f["Units"].attrs["UnitLength_in_cm"] = KPC * 1e6
        elif how == "header":
            del f["Header"]
        elif how == "birth":
            part["GFM_StellarFormationTime"] = np.ones(n + 1)
        elif how == "no stars":
            f.move("PartType2", "PartType1")
            header["NumPart_ThisFile"] = np.array([0, n, 0, 0, 0, 0], np.uint32)


@pytest.mark.parametrize("how, words", [
    ("masses", "PartType2 has no 'Masses'.*MassTable"), ("masses as text", "numbers"), ("nan", "1 particles are not"),
    ("infinite mass", "'Masses' of 1"), ("negative mass", "negative"), ("coordinates", "no 'Coordinates'"),
    ("count", "header says 601.*not whole"), ("shape", r"must have shape \(600,\)"),
    ("many files", "one of 8 files.*NAME.0.hdf5"), ("unit", "UnitLength_in_cm.*one number"),
    ("unit nan", "UnitMass_in_g"), ("wrong unit", "no pair of galaxies.*units"), ("header", "no group 'Header'"),
    ("birth", r"GFM_StellarFormationTime' must have shape \(600,\)"), ("no stars", "holds no stars.*star_types")])
def test_unsound_snapshot_is_one_line_that_says_why(tmp_path, how, words):
    file = gadget(tmp_path / "s.hdf5", {2: pair()})
    break_snapshot(file, how)
    refused(lambda: read_stars(file), "s.hdf5", words)


@pytest.mark.parametrize("name", ["Coordinates", "Masses"])
@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual", "group"])
def test_data_outside_the_snapshot_are_refused(tmp_path, name, kind):
    file, secret = gadget(tmp_path / "s.hdf5", {2: pair()}), gadget(tmp_path / "secret.hdf5", {2: pair(seed=1)})
    with h5py.File(file, "r+") as f:
        part = f["PartType2"]
        shape = part[name].shape
        del part[name]
        if kind == "external link":
            part[name] = h5py.ExternalLink("secret.hdf5", f"/PartType2/{name}")
        elif kind == "soft link":
            part[name] = h5py.SoftLink("/PartType2/ParticleIDs")
        elif kind == "external storage":
            part.create_dataset(name, shape, np.float32, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, np.float32)
            layout[:] = h5py.VirtualSource(str(secret), f"PartType2/{name}", shape)
            part.create_virtual_dataset(name, layout)
        else:
            part.create_group(name)
    refused(lambda: read_stars(file), "s.hdf5", name)


@pytest.mark.parametrize("group", ["PartType2", "Header", "Units"])
def test_group_that_is_a_link_is_refused(tmp_path, group):
    file, _ = gadget(tmp_path / "s.hdf5", {2: pair()}), gadget(tmp_path / "secret.hdf5", {2: pair(seed=1)})
    with h5py.File(file, "r+") as f:
        del f[group]
        f[group] = h5py.ExternalLink("secret.hdf5", f"/{group}")
    refused(lambda: read_stars(file), "s.hdf5", f"'{group}' is a link")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_cut_snapshot_is_one_line(tmp_path, share):
    file = gadget(tmp_path / "s.hdf5", {2: pair()})
    whole = file.read_bytes()
    file.write_bytes(whole[:int(share * len(whole))])
    refused(lambda: read_stars(file), "s.hdf5")


def test_flipped_bytes_give_one_line_or_stars(tmp_path):
    file = gadget(tmp_path / "s.hdf5", {2: pair(n=64)})
    whole = file.read_bytes()
    for where in np.random.default_rng(0).integers(0, len(whole), 80):
        damaged = bytearray(whole)
        damaged[where] ^= 0xFF
        file.write_bytes(damaged)
        try:
            assert np.isfinite(read_stars(file).positions).all()
        except DatasetError as error:
            assert "\n" not in str(error) and "s.hdf5" in str(error)


def test_missing_snapshot_and_other_files_are_one_line(tmp_path):
    refused(lambda: read_stars(tmp_path / "no.hdf5"), "no.hdf5: no such file", "a snapshot")
    (tmp_path / "text.hdf5").write_text("hello")
    refused(lambda: read_stars(tmp_path / "text.hdf5"), "text.hdf5", "not an HDF5 file", "a snapshot")


@pytest.mark.parametrize("change, words", [
    (("pericentre", "pericenter"), "column 'pericentre' is missing; needed are snapshot, encounter, time"),
    (("separation", "seperation"), "column 'seperation' is not known.*allowed are.*separation"),
    (("separation", "time"), "'time' is not known or there twice"),
    (("run_1_0.hdf5", "run_9.hdf5"), "line 2: snapshot = run_9.hdf5: no such file"),
    (("run_1_0.hdf5", "../run_1_0.hdf5"), "line 2.*must lie in the folder"),
    (("run_1_0.hdf5", "/run_1_0.hdf5"), "line 2.*must lie in the folder"),
    (("-50.0", "early"), "line 2: time: .*number.*'early'"),
    (("-50.0", "nan"), "line 2: time: .*'nan'"),
    (("-50.0", ""), "line 2: 'time' is missing"),
    (("-50.0", "100.0"), "'run_1': time = 100.0 is there 2 times"),
    (("run_1_0.hdf5", "run_1_1.hdf5"), "'run_1': snapshot = run_1_1.hdf5 is there 2 times"),
    (("0.5", "-1"), "line 2: mass_ratio: .*greater than 0"),
    (("0.5", "0.6"), "'run_1': mass_ratio must be the same .*0.6 and 0.5"),
    ((",run_1,", ",run 1,"), "line 2: encounter: "),
    ((",30.0", ",30.0,1"), "line 2 has 8 cells, the first line 7"),
    (("8.0", '"8.0'), "labels.csv"),
])
def test_mistake_in_the_labels_is_one_line_that_names_it(folder, change, words):
    labels = folder / "labels.csv"
    labels.write_text(labels.read_text().replace(*change, 1))
    refused(lambda: encounter_files(folder), "labels.csv", words)


@pytest.mark.parametrize("more, words", [
    ({"stage": "flyby"}, "stage must be 0..5 or one of approach"), ({"stage": 7}, "stage must be"),
    ({"orbit_normal_x": 1}, "must be given together"),
    ({"orbit_normal_x": 0, "orbit_normal_y": 0, "orbit_normal_z": 0}, "not be all 0"),
    ({"separation": -3}, "separation")])
def test_optional_labels_are_checked_as_well(tmp_path, more, words):
    gadget(tmp_path / "s.hdf5", {2: pair()})
    refused(lambda: Labels(table(tmp_path, [row("s.hdf5", **more)])), "line 2", words)


@pytest.mark.parametrize("text, words", [
    ("[1, 2]", "mapping"), ("snapshots: 3", "must be a list"), ("snapshots: []", "names no snapshots"),
    ("snapshots: [3]", r"snapshots\[0\].*mapping"), ("star_types: [two]", "star_types"), ("a: [", "not valid YAML"),
    ("units: {length_in_kpc: 0, mass_in_msun: 1}", "units.length_in_kpc"), ("colour: red", "unknown key 'colour'"),
    ("smoothing: much", "smoothing"), ("", "snapshots.*missing")])
def test_mistake_in_the_yaml_is_one_line_that_names_it(tmp_path, text, words):
    (tmp_path / "labels.yaml").write_text(text)
    if words in ("star_types", "units.length_in_kpc", "unknown key 'colour'", "smoothing"):
        gadget(tmp_path / "s.hdf5", {2: pair()})
        table(tmp_path, [row("s.hdf5")])
    refused(lambda: Labels(tmp_path / "labels.yaml"), "labels.yaml", words)


def test_examples_of_the_tutorial_are_legal(tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "your_simulations.md").read_text(encoding="utf-8")
    labels, recipe = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    rows = re.search(r"(    snapshot,encounter,.*?)\n\n", text, flags=re.DOTALL)[1]
    for name in set(re.findall(r"q\d\d/snap_\d+.hdf5", text)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "labels.csv").write_text("\n".join(line.strip() for line in rows.splitlines()))
    assert Labels(tmp_path / "labels.csv").names == ["q05", "q08"]
    (tmp_path / "labels.yaml").write_text(labels)
    assert Labels(tmp_path / "labels.yaml").reading.star_types == (4,)
    (tmp_path / "mine.yaml").write_text(recipe)
    assert read_recipe(tmp_path / "mine.yaml").start_from == "shipped"


def test_mistake_of_a_user_is_one_line_on_the_command_line(folder, run):
    (folder / "run_1_0.hdf5").unlink()
    done = run("render", folder, "-o", folder / "suite.h5")
    assert done.status == 2
    assert re.fullmatch(r"DatasetError: .*labels.csv: line 2: snapshot = run_1_0.hdf5: no such file .*\n", done.err)
