"""The public face: what is promised is there, and nothing heavy comes with it."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import deepgalaxy
from deepgalaxy import errors


def test_all_is_what_can_be_imported():
    assert sorted(deepgalaxy.__all__) == dir(deepgalaxy)
    assert len(set(deepgalaxy.__all__)) == len(deepgalaxy.__all__)
    for name in deepgalaxy.__all__:
        value = getattr(deepgalaxy, name)
        if name != "__version__":
            assert value.__module__ == deepgalaxy._PUBLIC[name] and value.__name__ == name
            assert value.__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = deepgalaxy.nonsense


def test_star_import_gives_the_public_names():
    space: dict = {}
    exec("from deepgalaxy import *", space)
    assert set(deepgalaxy.__all__) <= set(space)


def test_the_page_on_python_does_what_it_says(monkeypatch):
    root, space = Path(__file__).parents[1], {}
    monkeypatch.chdir(root)
    for block in re.findall(r"```python\n(.*?)```", (root / "docs/python.md").read_text("utf-8"), re.DOTALL):
        exec(block, space)
    story = space["story"]
    assert space["together"].sum() == pytest.approx(1)
    assert np.median(np.minimum(space["view"], 180 - space["view"])) == pytest.approx(
        story.properties["view_inclination"]["p50"], abs=3)
    assert [len(rows) for rows in space["rows"]] == [5] and len(story.matches) == 5


def test_version_is_that_of_the_package():
    from importlib.metadata import version

    assert deepgalaxy.__version__ == version("deepgalaxy")


@pytest.mark.parametrize("code", ["import deepgalaxy", "import deepgalaxy.cli",
                                  "from deepgalaxy import DeepGalaxyError"])
def test_import_loads_nothing_heavy(code):
    heavy = "torch timm lightning torchvision numpy scipy h5py numba astropy matplotlib dask distributed faiss PIL"
    code += f"; import sys; print(*sorted(set({heavy.split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_errors_are_drawn_in_their_docstring():
    classes = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    assert set(errors.__all__) == set(classes)
    assert classes.pop("DeepGalaxyWarning").__mro__[1] is UserWarning
    drawn = re.findall(r"[├└]── (\w+) +(.+)", errors.__doc__)
    assert {name for name, _ in drawn} | {"DeepGalaxyError"} == set(classes)
    for name, value in classes.items():
        assert value.__doc__ and (name == "DeepGalaxyError" or value.__mro__[1] is errors.DeepGalaxyError)


def test_every_module_has_a_docstring_and_what_it_exports():
    import importlib
    import pkgutil

    for module in pkgutil.walk_packages(deepgalaxy.__path__, "deepgalaxy."):
        if module.name == "deepgalaxy.__main__":
            continue
        loaded = importlib.import_module(module.name)
        assert loaded.__doc__, module.name
        for name in getattr(loaded, "__all__", ()):
            assert hasattr(loaded, name), f"{module.name}.__all__ names {name}"
