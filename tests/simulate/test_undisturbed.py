"""Single galaxies and chance pairs out of an encounter."""

import dataclasses

import numpy as np
import pytest

from deepgalaxy.data.build import build_dataset
from deepgalaxy.data.reader import Dataset
from deepgalaxy.data.schema import check_dataset
from deepgalaxy.data.splits import split_by_encounter
from deepgalaxy.errors import DatasetError, SimulationError
from deepgalaxy.image.render import RenderConfig
from deepgalaxy.labels import STAGES
from deepgalaxy.simulate.encounter import EncounterConfig, simulate
from deepgalaxy.simulate.snapshot import Encounter
from deepgalaxy.simulate.undisturbed import Undisturbed


@pytest.fixture(scope="module")
def encounter():
    return simulate(EncounterConfig.parse({
        "name": "pair", "mass_ratio": 0.5, "size_ratio": 0.7, "pericentre": 10, "start_time": 130, "seed": 3,
        "resolution": {"n_particles": 2048, "first_time": -120, "last_time": 20}}))


def test_a_single_galaxy_has_the_stars_of_one(encounter):
    alone = Undisturbed(encounter, "single", 4)
    for t in range(4):
        x, m, _ = alone.stars(t)
        assert m.sum() == pytest.approx(encounter.masses[encounter.galaxy == t % 2].sum(), rel=1e-6)
        assert np.quantile(np.linalg.norm(x, axis=1), 0.9) < 15  # the other one is 50 kpc away
    assert "mass_ratio" not in alone.parameters and "mass_ratio" in Undisturbed(encounter, "chance", 1).parameters


def test_a_chance_pair_keeps_both_galaxies_whole_and_turns_the_second(encounter):
    pair = Undisturbed(encounter, "chance", 6)
    size = {}
    offsets = []
    for t in range(6):
        x, m, _ = pair.stars(t)
        assert m.sum() == pytest.approx(encounter.masses.sum(), rel=1e-6)
        n = int((encounter.galaxy == 0).sum())
        offsets.append(np.linalg.norm(np.median(x[n:], axis=0) - np.median(x[:n], axis=0)))
        second = x[n:] - np.median(x[n:], axis=0)
        size.setdefault("radius", []).append(np.sqrt((second**2).sum(axis=1)).mean())
    assert 3 < min(offsets) and max(offsets) < 75 and np.ptp(offsets) > 1
    assert np.std(size["radius"]) < 0.1 * np.mean(size["radius"])  # turned, not bent
    again = Undisturbed(encounter, "chance", 6).stars(2)[0]
    np.testing.assert_array_equal(again, pair.stars(2)[0])


def test_the_second_of_a_chance_pair_is_turned_in_every_way(encounter):
    first = dataclasses.replace(encounter, **{name: getattr(encounter, name)[:1] for name in (
        "time", "positions", "separation", "stage")})
    before = first.positions[0][first.galaxy == 1].astype(float)
    before -= before.mean(axis=0)
    pair, turns = Undisturbed(first, "chance", 400), []
    for t in range(pair.n):
        after = pair.stars(t)[0][-len(before):]
        turns.append(np.linalg.lstsq(before, after - after.mean(axis=0), rcond=None)[0].T)
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-4)
    assert np.abs(np.mean(turns, axis=0)).max() < 0.12  # four standard errors


def test_they_come_into_the_data_set_with_labels_that_say_what_they_are(encounter, tmp_path):
    (tmp_path / "runs").mkdir()
    encounter.write(tmp_path / "runs" / "pair.h5")
    path, config = tmp_path / "suite.h5", RenderConfig(n_pixels=32, n_cameras=2, n_undisturbed=3)
    assert list(build_dataset(tmp_path / "runs", path, config)) == [("pair", None)]
    assert check_dataset(path) == []
    data = Dataset(path)
    assert data.groups == ["pair", "pair-chance", "pair-single"] and data.families == ["pair"] * 3
    for kind, stage, ratio in (("pair-single", "single", np.nan), ("pair-chance", "chance pair", 0.5)):
        here = data.group == data.groups.index(kind)
        assert here.sum() == 6 and not data.is_encounter[here].any()
        assert (data.labels["stage"][here] == STAGES.index(stage)).all()
        assert np.isnan(data.labels["time"][here]).all() and np.isnan(data.labels["view_inclination"][here]).all()
        np.testing.assert_allclose(data.labels["mass_ratio"][here], ratio)
    assert np.isfinite(data.labels["time"][data.is_encounter]).all()
    # Their galaxies were seen where their encounter was: they are never divided.
    assert sorted(map(len, split_by_encounter([*data.families, "other"], (0.5, 0.5), seed=1))) == [1, 3]
    # A second start finds all of it done.
    assert list(build_dataset(tmp_path / "runs", path, config)) == [("pair", None)]


def test_an_encounter_that_begins_too_late_has_no_undisturbed_galaxies(encounter, tmp_path):
    late = Encounter(**{**vars(encounter), "name": "late"})
    keep = late.time > -50
    for name in ("time", "positions", "separation", "stage"):
        setattr(late, name, getattr(late, name)[keep])
    with pytest.raises(SimulationError, match="late: begins .*first_time <= -60"):
        Undisturbed(late, "single", 2)
    (tmp_path / "runs").mkdir()
    late.write(tmp_path / "runs" / "late.h5")
    config = RenderConfig(n_pixels=32, n_cameras=2, n_undisturbed=3)
    said = [error for _, error in build_dataset(tmp_path / "runs", tmp_path / "suite.h5", config)]
    assert len(said) == 1 and "first_time <= -60" in said[0]  # named once, though two kinds are missing
    assert Dataset(tmp_path / "suite.h5").groups == ["late"]


def test_a_users_own_snapshots_are_refused_because_nobody_knows_whose_stars_they_are(tmp_path):
    (tmp_path / "labels.csv").write_text("snapshot,encounter,time,mass_ratio,size_ratio,pericentre\na.hdf5,x,0,1,1,5\n")
    (tmp_path / "a.hdf5").touch()
    with pytest.raises(DatasetError, match="n_undisturbed = 2"):
        list(build_dataset(tmp_path, tmp_path / "suite.h5", RenderConfig(n_undisturbed=2)))
