"""The encounters that `evaluate` simulates for itself."""

from importlib import resources
from pathlib import Path

import pytest

from deepgalaxy.config import read_yaml
from deepgalaxy.data.held_out import _HeldOut
from deepgalaxy.simulate.suite import SuiteConfig

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(scope="module")
def held_out():
    return _HeldOut.parse(read_yaml(str(resources.files("deepgalaxy") / "shipped" / "held_out.yaml")), "held_out.yaml")


def test_held_out_encounters_are_in_no_recipe(held_out):
    suites = [path for path in sorted(RECIPES.glob("*.yaml")) if "design" in read_yaml(path)]
    assert RECIPES / "test_suite.yaml" in suites
    ours = held_out.suite.encounters()
    for path in suites:
        theirs = SuiteConfig.from_yaml(path).encounters()
        assert not {e.seed for e in ours} & {e.seed for e in theirs}, path.name
        assert not {_orbit(e) for e in ours} & {_orbit(e) for e in theirs}, path.name


def _orbit(encounter):
    return encounter.model_dump_json(exclude={"name", "seed", "primary", "secondary", "resolution"})


def test_held_out_encounters_are_those_that_figures_are_measured_on_but_for_their_seed(held_out):
    suite, render = (read_yaml(RECIPES / f"test_{name}.yaml") for name in ("suite", "render"))
    test = _HeldOut.parse({"suite": suite, "render": render}, "recipes")
    design = {"n_encounters": 16, "seed": held_out.suite.design.seed}
    wanted = test.model_dump()
    wanted["suite"]["name"] = held_out.suite.name
    wanted["suite"]["design"] |= design
    wanted["render"]["seed"] = held_out.render.seed
    assert held_out.model_dump() == wanted
