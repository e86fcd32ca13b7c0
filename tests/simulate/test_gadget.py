"""Gadget snapshots: what other programs find in them, and that a folder of them is whole or not there."""

import errno
import os

import h5py
import numpy as np
import pytest

from deepgalaxy.data.build import build_dataset, encounter_files
from deepgalaxy.data.labelled import Labels
from deepgalaxy.data.reader import Dataset
from deepgalaxy.errors import SimulationError
from deepgalaxy.image.render import RenderConfig, render_encounter
from deepgalaxy.simulate.encounter import EncounterConfig, initial_conditions, is_finished, simulate, simulate_to_file
from deepgalaxy.simulate.gadget import PARTICLE_TYPES, SECONDARY_IDS, SnapshotFolder, write_snapshot
from deepgalaxy.simulate.galaxy import DISC
from deepgalaxy.simulate.snapshot import CannotWrite, Encounter
from deepgalaxy.units import KM_S


def tiny(**options):
    return EncounterConfig.parse({
        "name": "s_0.70_m_0.50", "start_time": 50.0, "mass_ratio": 0.5, "size_ratio": 0.7, "resolution": {
            "n_particles": 512, "snapshot_interval": 10.0, "first_time": -20.0, "last_time": 30.0}, **options})


@pytest.fixture(scope="module")
def particles():
    return initial_conditions(tiny())


@pytest.fixture(scope="module")
def file(particles, tmp_path_factory):
    path = tmp_path_factory.mktemp("gadget") / "snapshot_007.hdf5"
    write_snapshot(path, particles, 70.0)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with one encounter and its snapshots."""
    folder = tmp_path_factory.mktemp("runs")
    simulate_to_file(tiny().to_json(), str(folder), gadget=True)
    return folder


def moments(p, component):
    """Number, mass (Msun), centre of mass (kpc) and mean velocity (km/s)."""
    mine = p.component == component
    m = p.masses[mine]
    return (mine.sum(), m.sum(), np.average(p.positions[mine], axis=0, weights=m),
            np.average(p.velocities[mine], axis=0, weights=m) / KM_S)


def test_header_and_arrays_follow_the_convention(file, particles):
    with h5py.File(file) as f:
        header = f["Header"].attrs
        counts = [0, *((particles.component == c).sum() for c in PARTICLE_TYPES), 0, 0]
        np.testing.assert_array_equal(header["NumPart_ThisFile"], counts)
        np.testing.assert_array_equal(header["NumPart_Total"], counts)
        assert header["Time"] * f["Units"].attrs["UnitLength_in_cm"] / f["Units"].attrs["UnitVelocity_in_cm_per_s"] \
            == pytest.approx(70 * 3.15576e13, rel=1e-5)  # seconds
        for key, value in {"Redshift": 0, "BoxSize": 0, "NumFilesPerSnapshot": 1, "HubbleParam": 1, "Omega0": 0,
                           "OmegaLambda": 0, "Flag_Sfr": 0, "Flag_Cooling": 0}.items():
            assert header[key] == value
        assert f.userblock_size == 0 and set(f) == {"Header", "Units", "PartType1", "PartType2", "PartType3"}
        for component, number in PARTICLE_TYPES.items():
            mine = particles.component == component
            group = f[f"PartType{number}"]
            np.testing.assert_allclose(group["Coordinates"], particles.positions[mine], rtol=1e-6, atol=1e-5)
            np.testing.assert_allclose(group["Velocities"][()] * KM_S, particles.velocities[mine], rtol=1e-5, atol=1e-8)
            np.testing.assert_allclose(group["Masses"][()] * 1e10, particles.masses[mine], rtol=1e-6)


@pytest.mark.parametrize("component, number", PARTICLE_TYPES.items())
def test_yt_finds_the_same_particles(file, particles, component, number):
    yt = pytest.importorskip("yt")
    yt.set_log_level("error")
    snapshot = yt.load(str(file))
    sphere = snapshot.all_data()
    assert snapshot.current_time.to("Myr").d == pytest.approx(70, rel=1e-4)
    n, mass, centre, velocity = moments(particles, component)
    kind = f"PartType{number}"
    m = sphere[kind, "particle_mass"].to("Msun").d
    assert len(m) == n and m.sum() == pytest.approx(mass, rel=1e-3)  # the solar masses differ by 3e-4
    x, v = (np.average(sphere[kind, f"particle_{name}"].to(unit).d, axis=0, weights=m)
            for name, unit in (("position", "kpc"), ("velocity", "km/s")))
    np.testing.assert_allclose(x, centre, atol=1e-3)
    np.testing.assert_allclose(v, velocity, atol=1e-2)


def test_pynbody_finds_the_same_particles(file, particles):
    pynbody = pytest.importorskip("pynbody")
    snapshot = pynbody.load(str(file))
    assert snapshot.properties["time"].in_units("Myr") == pytest.approx(70)
    assert len(snapshot) == len(particles.masses)
    ids = np.asarray(snapshot["iord"])
    for component, number in PARTICLE_TYPES.items():  # pynbody makes one family of the types 1 to 3
        with h5py.File(file) as f:
            part = snapshot[np.isin(ids, f[f"PartType{number}/ParticleIDs"])]
        n, mass, centre, velocity = moments(particles, component)
        m = np.asarray(part["mass"].in_units("Msol"))
        assert len(m) == n and m.sum() == pytest.approx(mass, rel=1e-3)
        np.testing.assert_allclose(np.average(part["pos"].in_units("kpc"), axis=0, weights=m), centre, atol=1e-3)
        np.testing.assert_allclose(np.average(part["vel"].in_units("km s**-1"), axis=0, weights=m), velocity, atol=1e-2)


def test_ids_tell_the_galaxies_apart_and_stay_with_their_particles(runs, particles):
    config = tiny()
    encounter = Encounter.read(runs / f"{config.name}.h5")
    # Stars in the order of the run, with the ids that the rule gives them.
    galaxy = particles.galaxy
    ids = np.empty(len(galaxy), int)
    for k in (0, 1):
        ids[galaxy == k] = k * SECONDARY_IDS + 1 + np.arange((galaxy == k).sum())
    ids = ids[particles.stars]
    np.testing.assert_array_equal(encounter.galaxy, ids > SECONDARY_IDS)
    labelled = Labels(runs / config.name / "labels.csv").encounter(config.name)
    for t, path in enumerate(labelled.files):
        with h5py.File(path) as f:
            found = np.concatenate([f[f"PartType{k}/ParticleIDs"] for k in (2, 3)])
            positions = np.concatenate([f[f"PartType{k}/Coordinates"] for k in (2, 3)])
            everything = np.concatenate([f[f"PartType{k}/ParticleIDs"] for k in (1, 2, 3)])
            assert f["PartType2"]["ParticleIDs"].shape == ((encounter.component == DISC).sum(),)
        assert len(np.unique(everything)) == len(everything) == 512
        order, back = np.argsort(found), np.argsort(ids)
        np.testing.assert_array_equal(found[order], ids[back])
        np.testing.assert_array_equal(positions[order], encounter.positions[t][back])


def test_folder_is_complete_and_changes_nothing_in_the_encounter(runs):
    config = tiny()
    with_snapshots = Encounter.read(runs / f"{config.name}.h5")
    alone = simulate(config)
    np.testing.assert_array_equal(with_snapshots.positions, alone.positions)
    names = sorted(p.name for p in (runs / config.name).iterdir())
    assert names == ["labels.csv", *(f"snapshot_{i:03d}.hdf5" for i in range(len(names) - 1))]
    assert sorted(p.name for p in runs.iterdir()) == [config.name, f"{config.name}.h5"]
    with h5py.File(runs / config.name / "snapshot_000.hdf5") as f:
        assert f["Header"].attrs["Time"] == 0  # from the start on, not from the first one kept


def test_folder_of_snapshots_gives_the_pictures_of_the_encounter_file(runs, tmp_path):
    config = tiny()
    encounter = Encounter.read(runs / f"{config.name}.h5")
    [path] = encounter_files(runs / config.name)
    labelled = Labels(path.parent).encounter(path.stem)
    np.testing.assert_allclose(labelled.time, encounter.time, atol=1e-3)
    np.testing.assert_array_equal(labelled.stage, encounter.stage)
    np.testing.assert_allclose(labelled.separation, encounter.separation, atol=1e-3)
    settings = RenderConfig(n_pixels=32, n_cameras=2)
    for ours, theirs in zip(render_encounter(encounter, settings), render_encounter(labelled, settings), strict=True):
        np.testing.assert_array_equal(ours.view, theirs.view)
        np.testing.assert_allclose(ours.pixel_scale, theirs.pixel_scale, rtol=1e-5)
        lit = (ours.images > 3) & (theirs.images > 3)
        np.testing.assert_allclose(ours.images[lit], theirs.images[lit], atol=0.02)
    assert list(build_dataset(runs / config.name, tmp_path / "suite.h5", settings)) == [(config.name, None)]


def test_snapshots_of_a_heavier_primary_run_on_its_clock(tmp_path):
    """Masses times four, times over two: the same pictures, and the same label."""
    heavy = tiny(primary={"disc_mass": 2e11, "bulge_mass": 4e10, "halo_mass": 2.4e12})
    simulate_to_file(heavy.to_json(), str(tmp_path), gadget=True)
    settings, times = RenderConfig(n_pixels=32, n_cameras=1), []
    for folder, path in ((tmp_path, tmp_path / "files.hdf5"), (tmp_path / heavy.name, tmp_path / "snapshots.hdf5")):
        assert list(build_dataset(folder, path, settings)) == [(heavy.name, None)]
        times.append(Dataset(path).labels["time"])
    np.testing.assert_allclose(*times, atol=1e-3)
    raw = Encounter.read(tmp_path / f"{heavy.name}.h5").time
    np.testing.assert_allclose(times[0], 2 * raw, atol=1e-3)


def test_finished_encounter_is_left_alone_and_missing_snapshots_are_made(runs, tmp_path):
    config = tiny()
    path, folder = runs / f"{config.name}.h5", runs / config.name
    before = path.stat().st_mtime_ns, folder.stat().st_mtime_ns
    assert is_finished(config.name, runs, gadget=True) and is_finished(config.name, runs)
    simulate_to_file(config.to_json(), str(runs), gadget=True)
    assert (path.stat().st_mtime_ns, folder.stat().st_mtime_ns) == before

    (tmp_path / path.name).write_bytes(path.read_bytes())
    assert is_finished(config.name, tmp_path) and not is_finished(config.name, tmp_path, gadget=True)
    simulate_to_file(config.to_json(), str(tmp_path), gadget=True)
    assert sorted(p.name for p in (tmp_path / config.name).iterdir()) == sorted(p.name for p in folder.iterdir())


def test_campaign_keeps_snapshots_when_asked_and_clears_away_half_of_them(tmp_path, run):
    suite, runs = tmp_path / "suite.yaml", tmp_path / "runs"
    suite.write_text("""
design: {kind: grid, mass_ratios: [0.5], size_ratios: [0.7], start_time: 50}
resolution: {n_particles: 512, snapshot_interval: 10, first_time: -20, last_time: 20}
""")
    stale = runs / ".s_0.70_m_0.50.12345.tmp"
    stale.mkdir(parents=True)
    (stale / "snapshot_000.hdf5").write_bytes(b"half a run")
    os.utime(stale, (0, 0))
    done = run("simulate", suite, "-o", runs, "--workers", 1, "--gadget")
    assert done.status == 0, done.err
    assert sorted(p.name for p in runs.iterdir()) == ["s_0.70_m_0.50", "s_0.70_m_0.50.h5", "suite.json"]
    assert (runs / "s_0.70_m_0.50" / "labels.csv").is_file()


def test_snapshots_of_a_killed_run_are_replaced(particles, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "snapshot_099.hdf5").write_bytes(b"half a run")
    with SnapshotFolder(tmp_path / "a") as snapshots:
        assert (tmp_path / "a" / "snapshot_099.hdf5").exists()  # until the new ones are whole
        snapshots.write(0.0, particles)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["snapshot_000.hdf5"]


def test_failed_run_leaves_nothing(particles, tmp_path):
    with pytest.raises(SimulationError, match="no pericentre"), SnapshotFolder(tmp_path / "a") as snapshots:
        snapshots.write(0.0, particles)
        raise SimulationError("no pericentre")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_somebody_else_made_is_not_touched(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("chapter 1")
    with pytest.raises(SimulationError, match="in the way.*another folder") as caught, SnapshotFolder(tmp_path / "a"):
        pass
    assert "\n" not in str(caught.value) and (tmp_path / "a" / "thesis.tex").exists()


def test_full_disk_is_one_line_and_leaves_the_old_file(particles, tmp_path, monkeypatch):
    path = tmp_path / "snapshot_000.hdf5"
    path.write_bytes(b"before")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match="No space left.*free space") as caught:
        write_snapshot(path, particles, 0.0)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"before"
