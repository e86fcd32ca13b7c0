"""Suites: which encounters, and the campaign that runs what is missing."""

import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from deepgalaxy.cluster import dask_client
from deepgalaxy.errors import ConfigError, SimulationError
from deepgalaxy.image.render import RenderConfig, n_cameras
from deepgalaxy.simulate.encounter import Resolution
from deepgalaxy.simulate.galaxy import GalaxyConfig
from deepgalaxy.simulate.snapshot import Encounter
from deepgalaxy.simulate.suite import SuiteConfig, alone_in, run_suite

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted([*FOLDER.glob("*_suite.yaml"), FOLDER / "gallery.yaml", FOLDER / "grid.yaml"])
TINY = {"n_particles": 512, "snapshot_interval": 10.0, "first_time": -20.0, "last_time": 20.0}


def sobol(**design):
    return SuiteConfig.parse({"design": {"kind": "sobol", **design}})


def test_sobol_suite_is_the_same_every_time():
    assert sobol(n_encounters=20, seed=3).encounters() == sobol(n_encounters=20, seed=3).encounters()
    assert sobol(n_encounters=20, seed=3).encounters() != sobol(n_encounters=20, seed=4).encounters()


@pytest.mark.parametrize("n", [1, 7, 16, 100])
def test_smaller_sobol_suite_is_the_start_of_a_larger_one(n):
    assert sobol(n_encounters=n, seed=1).encounters() == sobol(n_encounters=256, seed=1).encounters()[:n]


def test_sobol_suite_keeps_to_its_ranges_and_fills_them():
    suite = sobol(n_encounters=256)
    encounters = suite.encounters()
    assert len({e.name for e in encounters}) == len({e.seed for e in encounters}) == 256
    for name in ("mass_ratio", "pericentre", "orbital_energy", "start_time"):
        values = np.array([getattr(e, name) for e in encounters])
        wanted = getattr(suite.design, name)
        assert wanted.low <= values.min() and values.max() <= wanted.high
        u = np.log(values / wanted.low) / np.log(wanted.high / wanted.low) if wanted.log else (
            (values - wanted.low) / (wanted.high - wanted.low))
        # A Sobol net of 256 puts one point into each of 256 equal intervals.
        assert len(np.unique(np.floor(u * 256 * (1 - 1e-9)))) >= 250
    excess = np.array([e.size_ratio / np.sqrt(e.mass_ratio) for e in encounters])
    assert excess.min() >= 0.7 - 1e-9 and excess.max() <= 1.4 + 1e-9


def test_in_a_sobol_suite_nothing_goes_with_anything():
    """What goes together in a suite a network takes for granted: here once larger discs with larger mass ratios."""
    wide = {"disc_size": {"low": 0.7, "high": 1.35}, "bulge_share": {"low": 0.03, "high": 0.45}, "long_share": 0.33}

    def correlations(**design):
        rows = [(e.mass_ratio, e.size_ratio / e.mass_ratio**0.5, e.pericentre, e.orbital_energy, e.start_time,
                 e.primary_disc_inclination, e.primary_disc_node, e.secondary_disc_inclination, e.secondary_disc_node,
                 e.primary.disc_scale_length, e.primary.bulge_mass / e.primary.disc_mass,
                 e.secondary.bulge_mass / e.secondary.disc_mass, e.resolution.last_time)
                for e in sobol(n_encounters=256, **wide, **design).encounters()]
        return np.abs(spearmanr(rows).statistic - np.eye(13))

    for seed in range(5):
        assert correlations(seed=seed).max() < 0.15
    assert correlations(seed=3, galaxies_follow_orbits=True)[0, 9] > 0.9  # as wide-2 was


def test_sobol_orientations_are_isotropic():
    encounters = sobol(n_encounters=1024).encounters()
    for galaxy in ("primary", "secondary"):
        cosine = np.cos(np.radians([getattr(e, f"{galaxy}_disc_inclination") for e in encounters]))
        node = np.array([getattr(e, f"{galaxy}_disc_node") for e in encounters])
        np.testing.assert_allclose(np.quantile(cosine, [0.25, 0.5, 0.75]), [-0.5, 0, 0.5], atol=0.01)
        np.testing.assert_allclose(np.quantile(node, [0.25, 0.5, 0.75]), [90, 180, 270], atol=2)


def test_grid_has_the_36_groups_of_the_original():
    encounters = SuiteConfig.parse({"design": {"kind": "grid"}}).encounters()
    assert len(encounters) == len({e.name for e in encounters}) == 36
    ratios = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    assert {e.name for e in encounters} == {f"s_{s:.2f}_m_{m:.2f}" for s in ratios for m in ratios}
    one = next(e for e in encounters if e.name == "s_0.25_m_1.50")
    assert (one.size_ratio, one.mass_ratio) == (0.25, 1.5)


@pytest.mark.parametrize("tree, key", [
    ({"desing": {}}, "desing"),
    ({"design": {"kind": "grid", "pericenter": 3}}, "pericenter"),
    ({"resolution": {"n_particle": 3}}, "n_particle"),
    ({"design": {"kind": "grid", "pericentre": 0}}, "pericentre"),
    ({"design": {"kind": "sobol", "n_encounters": 0}}, "n_encounters"),
    ({"design": {"kind": "sobol", "mass_ratio": {"low": 2, "high": 1}}}, "mass_ratio"),
    ({"design": {"kind": "sobol", "mass_ratio": {"low": 0, "high": 1, "log": True}}}, "mass_ratio"),
    ({"design": {"kind": "spiral"}}, "kind"),
    ({"resolution": {"n_particles": 100}}, "n_particles"),
    ({"primary": {"disc_mass": -1}}, "disc_mass"),
    ({"name": "a/b"}, "name"),
    ({"resolution": {"disc_fraction": 0.9, "bulge_fraction": 0.1}}, "disc_fraction"),
    ({"resolution": {"disc_fraction": 0.05, "bulge_fraction": 0.01}}, "disc_fraction"),
    ({"resolution": {"disc_fraction": 0.9, "bulge_fraction": 0.09}}, "disc_fraction .*none for its halo"),
    ({"resolution": {"first_time": 60, "last_time": 20}}, "first_time"),
    ({"design": {"long_share": 0.3, "long_time": 50}, "resolution": {"first_time": 60}},
     r"design.long_time = 50: must be after resolution.first_time = 60$"),
    ({"resolution": {"last_time": float("inf")}}, "last_time"),
    ({"design": {"kind": "sobol", "bulge_share": {"low": 0, "high": 0}}}, "bulge_share"),
    ({"design": {"kind": "sobol", "bulge_share": {"low": 0.1, "high": 1.4}}}, "bulge_share"),
    ({"design": {"kind": "sobol", "disc_size": {"low": -1, "high": 1}}}, "disc_size"),
    ({"design": {"kind": "list", "encounters": [{"name": "Mäuse"}]}}, "name"),
    ({"design": {"kind": "list", "encounters": [{"name": ".hidden"}]}}, "name"),
    ([1, 2], "mapping"),
])
def test_mistake_in_a_suite_is_one_line_that_names_it(tree, key, tmp_path):
    import yaml

    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=key) as caught:
        SuiteConfig.from_yaml(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("design, key", [
    ({"kind": "grid", "mass_ratios": [1, 5]}, "mass_ratio"),
    ({"kind": "grid", "size_ratios": [-1]}, "size_ratio"),
    ({"kind": "sobol", "n_encounters": 4, "pericentre": {"low": 300, "high": 400}}, "pericentre"),
    ({"kind": "sobol", "n_encounters": 4, "mass_ratio": {"low": 5, "high": 9}}, "mass_ratio"),
])
def test_design_that_leads_to_impossible_encounters_is_one_line_that_names_the_parameter(design, key):
    with pytest.raises(ConfigError, match=key) as caught:
        SuiteConfig.parse({"design": design}).encounters()
    assert "\n" not in str(caught.value)


def test_unknown_key_in_a_design_is_answered_with_the_keys_of_that_design():
    with pytest.raises(ConfigError, match="allowed here:.*start_time"):
        SuiteConfig.parse({"design": {"kind": "grid", "pericenter": 3}})


def test_grid_whose_names_collide_is_refused():
    with pytest.raises(ConfigError, match="mass_ratios"):
        SuiteConfig.parse({"design": {"kind": "grid", "mass_ratios": [0.251, 0.252]}}).encounters()


def listed(*encounters, **suite):
    return SuiteConfig.parse({"design": {"kind": "list", "encounters": list(encounters)}, **suite}, "suite")


def test_listed_encounters_are_those_that_were_written_down():
    suite = listed({"name": "first", "pericentre": 12.0, "seed": 4},
                   {"name": "second", "mass_ratio": 0.4, "primary": {"toomre_q": 2.0},
                    "resolution": {"n_particles": 1024}},
                   resolution=TINY, primary={"disc_mass": 4e10})
    first, second = suite.encounters()
    assert (first.name, first.pericentre, first.seed) == ("first", 12.0, 4)
    assert (first.resolution, first.primary) == (suite.resolution, suite.primary)
    assert first.resolution.n_particles == 512 and first.primary.disc_mass == 4e10
    # What an encounter brings of its own counts instead of the suite's, as a whole.
    assert second.primary == GalaxyConfig(toomre_q=2.0)
    assert second.resolution == Resolution(n_particles=1024)
    assert second.mass_ratio == 0.4 and second.pericentre == first.model_fields["pericentre"].default
    assert SuiteConfig.from_json(suite.to_json()) == suite
    assert SuiteConfig.from_json(suite.to_json()).encounters() == suite.encounters()


@pytest.mark.parametrize("encounters, key", [
    ([], "encounters"),
    ([{"pericentre": 3}], "name"),
    ([{"name": "a"}, {"name": "a"}], "'a' stands twice"),
    ([{"name": "a"}, {"name": "b", "pericenter": 3}], "unknown key 'design.list.encounters.1.pericenter'; allowed "
                                                      "here:.*pericentre"),
    ([{"name": "a", "mass_ratio": 9}], "mass_ratio"),
    ([{"name": "a", "pericentre": 0}], r"encounters.0.pericentre: .*greater than 0, got 0$"),
    ([{"name": "a/b"}], "name"),
    ([{"name": "a", "resolution": {"n_particle": 3}}], "n_particle"),
])
def test_mistake_in_a_list_of_encounters_is_one_line_that_names_it(encounters, key):
    with pytest.raises(ConfigError, match=key) as caught:
        listed(*encounters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_is_read(path):
    from deepgalaxy.training.recipe import read_recipe

    if path.stem.endswith("_render"):
        assert RenderConfig.from_yaml(path).n_pixels >= 128
    elif path.stem.startswith(("shipped", "paper")):
        assert read_recipe(path).epochs > 1
    else:
        assert SuiteConfig.from_yaml(path).encounters()


def test_the_grid_of_the_recipes_is_that_of_the_original():
    """36 groups of 71 snapshots, 5 Myr apart, seen by 14 cameras."""
    suite = SuiteConfig.from_yaml(FOLDER / "grid.yaml")
    r = suite.resolution
    assert len(suite.encounters()) == 36 and (r.last_time - r.first_time) / r.snapshot_interval + 1 == 71
    assert n_cameras(RenderConfig.from_yaml(FOLDER / "grid_render.yaml")) == 14


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_published_recipes_are_sound(path):
    config = SuiteConfig.from_yaml(path)
    encounters = config.encounters()
    assert encounters and len({e.name for e in encounters}) == len(encounters)
    assert SuiteConfig.from_json(config.to_json()) == config


def test_there_are_published_recipes():
    assert RECIPES


@pytest.mark.parametrize("tree, words", [
    ({"primary": {"disc_mass": float("inf")}}, "primary.disc_mass: .*finite"),
    ({"design": {"kind": "grid", "mass_ratios": []}}, "mass_ratios"),
    ({"design": {"kind": "list", "encounters": [{"name": "a", "mass_ratio": 0.001}]},
      "resolution": {"n_particles": 2048}}, "mass_ratio = 0.001: leaves the smaller galaxy 2 of 2048 particles")])
def test_suites_that_cannot_be_are_one_line_before_any_work(tree, words):
    with pytest.raises(ConfigError, match=words) as caught:
        SuiteConfig.parse(tree).encounters()
    assert "\n" not in str(caught.value)


def test_a_design_without_a_kind_is_a_sobol_design():
    assert SuiteConfig.parse({"design": {"n_encounters": 3}}).design.kind == "sobol"


def test_scheduler_that_does_not_answer_is_one_line():
    with pytest.raises(ConfigError, match="scheduler = nonsense://here"), dask_client("nonsense://here"):
        pass


def _pages_mapped(n):
    """By the second half of n turns of making an array of 4 MiB."""
    for k in range(n):
        if k == n // 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.zeros(2**19).fill(k)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_workers_take_freed_memory_for_the_next_array():
    # Else all of its 1024 pages are mapped anew each time.
    with dask_client(n_workers=1) as client:
        assert client.submit(_pages_mapped, 100).result() < 5 * 1024


def test_campaign_runs_what_is_missing_and_nothing_else(tmp_path):
    config = SuiteConfig.parse({"name": "pair", "resolution": TINY, "design": {
        "kind": "sobol", "n_encounters": 3, "start_time": {"low": 50, "high": 60},
        "orbital_energy": {"low": 0, "high": 0}}})
    names = [e.name for e in config.encounters()]
    folder = tmp_path / "runs"
    folder.mkdir()
    stale = folder / f".{names[0]}.h5.12345.tmp"
    stale.write_bytes(b"half an encounter")
    os.utime(stale, (0, 0))
    young = folder / f".{names[1]}.h5.12346.tmp"  # perhaps another campaign is writing it
    young.write_bytes(b"half an encounter")
    Encounter(names[2], *(np.zeros(1) for _ in range(7))).write(folder / f"{names[2]}.h5")
    before = (folder / f"{names[2]}.h5").read_bytes()
    with dask_client(n_workers=2) as client:
        done = dict(run_suite(config, folder, client))
        assert done == {names[0]: None, names[1]: None}
        assert not stale.exists() and young.exists()
        young.unlink()
        for name in names[:2]:
            encounter = Encounter.read(folder / f"{name}.h5")
            assert encounter.name == name and len(encounter.time) == 5
            assert -25 <= encounter.time[0] < 0 < encounter.time[-1] < 25
        assert (folder / f"{names[2]}.h5").read_bytes() == before
        assert SuiteConfig.from_json((folder / "suite.json").read_text()) == config
        assert list(run_suite(config, folder, client)) == []
        assert sorted(p.name for p in folder.iterdir()) == [*(f"{n}.h5" for n in names), "suite.json"]

        # Its encounters would have the same names.
        other = config.model_copy(update={"design": config.design.model_copy(update={"seed": 1})})
        with pytest.raises(ConfigError, match="another suite .*'design' differs"):
            list(run_suite(other, folder, client))

        # One encounter that cannot be does not stop the others, and is named with its reason.
        bad = SuiteConfig.parse({"name": "bad", "resolution": TINY, "design": {
            "kind": "sobol", "n_encounters": 1, "start_time": {"low": 1900, "high": 1900},
            "orbital_energy": {"low": -0.4, "high": -0.4}}})
        [(name, message)] = run_suite(bad, tmp_path / "bad", client)
        assert name == "encounter_0000" and "start_time = 1900" in message and "\n" not in message
        assert not list((tmp_path / "bad").glob("*.h5"))

        (tmp_path / "file").write_text("")
        with pytest.raises(SimulationError, match="cannot be written"):
            list(run_suite(config, tmp_path / "file", client))


def test_two_campaigns_in_one_folder_do_not_run_the_same_encounters(tmp_path, run):
    import yaml

    suite, runs = tmp_path / "suite.yaml", tmp_path / "runs"
    suite.write_text(yaml.safe_dump({"design": {"kind": "grid", "mass_ratios": [0.5], "size_ratios": [0.7],
                                                "start_time": 50}, "resolution": TINY}))
    with alone_in(runs):
        done = run("simulate", suite, "-o", runs, "--workers", 1)
        assert done.status == 2 and f"{runs}: another 'deepgalaxy simulate' is at work there" in done.err
        assert list(runs.iterdir()) == []
    assert run("simulate", suite, "-o", runs, "--workers", 1).status == 0


def test_a_seed_that_no_file_could_hold_is_refused():
    """A time stamp is one: encounters have its millionfold."""
    with pytest.raises(ConfigError, match="design.*seed.*less than 9223372036854"):
        SuiteConfig.parse({"design": {"kind": "sobol", "seed": 20261127212400}}, "suite.yaml")


def test_a_value_that_takes_long_to_come_back_comes(monkeypatch):
    """However often it is asked for, and it is not there yet."""
    from deepgalaxy import cluster

    monkeypatch.setattr(cluster, "_FETCH_SECONDS", 0.001)
    with dask_client(n_workers=1) as client:
        assert len(cluster.begin_task(client, bytes, 200_000_000)()) == 200_000_000


def test_a_secondary_of_its_own_has_the_ratios_that_are_written():
    """They are what a model learns: a label of 1 for a secondary of a tenth would be wrong."""
    tenth = {"disc_mass": 5e9, "bulge_mass": 1e9, "halo_mass": 6e10}
    with pytest.raises(ConfigError, match="mass_ratio = 1: .* 0.1 .*write mass_ratio: 0.1"):
        listed({"name": "a", "secondary": tenth}).encounters()
    with pytest.raises(ConfigError, match="size_ratio = 0.5: .*write size_ratio: 1$") as caught:
        listed({"name": "a", "mass_ratio": 0.1, "size_ratio": 0.5, "secondary": tenth}).encounters()
    assert "got" not in str(caught.value)
    [encounter] = listed({"name": "a", "mass_ratio": 0.1, "secondary": tenth}).encounters()
    assert encounter.secondary.disc_mass == 5e9
