"""Encounters that no shipped model has seen, simulated when they are first needed."""

from __future__ import annotations

import hashlib
import os
from importlib import resources
from pathlib import Path

from .. import __version__
from ..cluster import dask_client
from ..config import Config, read_yaml
from ..errors import DatasetError
from ..image.render import RenderConfig
from ..progress import progress
from ..simulate.snapshot import FORMAT_VERSION as ENCOUNTER_VERSION
from ..simulate.suite import SuiteConfig, run_suite
from . import schema
from .build import build_dataset

__all__ = ["cache_folder", "held_out_dataset", "make_dataset"]


class _HeldOut(Config):
    suite: SuiteConfig
    render: RenderConfig


def cache_folder() -> Path:
    """$DEEPGALAXY_CACHE, or deepgalaxy in the user's cache."""
    own = os.environ.get("DEEPGALAXY_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deepgalaxy"


def held_out_dataset(n_encounters: int | None = None) -> Path:
    """The data set of the shipped recipe's held-out encounters; made in minutes if it is not in the cache.

    Parameters
    ----------
    n_encounters : instead of the recipe's; the first ones are always the same.

    Raises
    ------
    DatasetError
        If an encounter fails, or the cache cannot be written.
    """
    recipe = resources.files("deepgalaxy") / "shipped" / "held_out.yaml"
    values = read_yaml(str(recipe))
    if n_encounters is not None:
        values["suite"]["design"]["n_encounters"] = n_encounters
    config = _HeldOut.parse(values, "held_out.yaml")
    made_by = f"{__version__} {ENCOUNTER_VERSION} {schema.FORMAT_VERSION}"
    name = hashlib.sha256(f"{made_by} {config.to_json()}".encode()).hexdigest()[:12]
    folder = cache_folder() / f"held-out-{name}"
    path = folder / "held_out.h5"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be written ({error.strerror}); set DEEPGALAXY_CACHE") from None
    with dask_client() as client:
        make_dataset(config.suite, config.render, folder / "runs", path, client, "held-out encounters")
    return path


def make_dataset(suite: SuiteConfig, render: RenderConfig, runs: Path, path: Path, client, title: str) -> None:
    """Simulate and render what is missing of a suite that is wanted whole.

    Parameters
    ----------
    runs : folder of the encounters.
    path : the data set.
    title : for the progress.

    Raises
    ------
    DatasetError
        If an encounter fails.
    """
    names = [e.name for e in suite.encounters()]
    with progress(f"simulate {title}", len(names), sum((runs / f"{name}.h5").exists() for name in names)) as advance:
        for name, error in run_suite(suite, runs, client):
            if error:
                raise DatasetError(f"{name}: cannot be simulated: {error}")
            advance()
    if path.exists():
        return
    with progress(f"render {title}", len(names)) as advance:
        for name, error in build_dataset(runs, path, render, client):
            if error:
                raise DatasetError(f"{name}: cannot be rendered: {error}")
            advance()
