"""What a training was begun with, so that it goes on with that and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from ..errors import ConfigError, ModelError
from ..files import write_whole
from ..models.weights import load_weights
from .recipe import TrainConfig

__all__ = ["is_of", "note_beginning", "recipe_of", "refuse_another_training"]

#: Of a recipe, what may change on the way: the machinery around the training.
_MAY_CHANGE = {"output", "epochs", "loader_workers", "validate_every", "bad_images", "store", "in_memory",
               "keep_of_start"}


def note_beginning(config: TrainConfig, dataset) -> None:
    """Write the recipe into its output, and beside it which files it names and what images they hold.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "data.json", json.dumps({**_files(config, Path.cwd()), **_content(dataset)}))
    write_whole(output / "recipe.json", config.to_json())


def recipe_of(output: Path) -> TrainConfig | None:
    """The recipe that a training in this output was begun with, if there is one; a ConfigError if it is damaged."""
    path = output / "recipe.json"
    return TrainConfig.from_json(path.read_text(), str(path)) if path.is_file() else None


def is_of(weights: Path, config: TrainConfig) -> bool:
    """Are there weights, and did this recipe make them? Its paths may lead there from elsewhere."""
    machinery = (_MAY_CHANGE | {"data", "start_from"}) - {"epochs", "store", "keep_of_start"}
    try:
        theirs = TrainConfig.parse(load_weights(weights).metadata["training"], str(weights))
    except (ModelError, ConfigError):
        return False
    return theirs.model_dump(exclude=machinery) == config.model_dump(exclude=machinery)


def refuse_another_training(config: TrainConfig, dataset) -> None:
    """Checkpoints in the recipe's output go on as they were begun, and on what they were begun with.

    Raises
    ------
    ConfigError, ModelError
        Naming what is another; what was begun before the data were noted goes on unasked about these.
    """
    recipe = recipe_of(Path(config.output))
    if recipe is None:  # a stopped training may write its last one after the folder was deleted
        raise ConfigError(f"output = {config.output}: holds checkpoints, but no recipe.json that says of which recipe; "
                          "choose another output or delete its checkpoints")
    _refuse_another_recipe(config, recipe)
    _refuse_other_data(config, dataset)


def _refuse_another_recipe(config: TrainConfig, recipe: TrainConfig) -> None:
    """Only the machinery around a training may change."""
    output = Path(config.output)
    before, now = (c.model_dump(exclude=_MAY_CHANGE) for c in (recipe, config))
    # A recipe's paths lead from where it was begun, and so does the path of its output: back from there is that place.
    there = os.path.normpath(os.path.join(os.path.abspath(output), os.path.relpath(os.curdir, recipe.output)))
    files, noted = _files(config, Path.cwd()), _noted(output) or _files(recipe, Path(there))
    changed = [key for key in now if now[key] != before[key]
               and not (key in files and files[key] == noted.get(key))]  # the same file by another path
    if changed == ["model"]:
        raise ModelError(f"{output}: its checkpoints are of another architecture; choose another output or delete them")
    if changed:
        raise ConfigError(f"{changed[0]} = {now[changed[0]]}: the training in {output} was begun with "
                          f"{before[changed[0]]}; choose another output or delete its checkpoints")


def _refuse_other_data(config: TrainConfig, dataset) -> None:
    """A data set that has grown, or was made anew, is divided otherwise: what was trained on would be held out."""
    now = _content(dataset)
    before = {**now, **_noted(Path(config.output))}
    if now["n_images"] != before["n_images"]:
        has = f"has {now['n_images']} images, and had {before['n_images']}"
    elif now["encounters_sha256"] != before["encounters_sha256"]:
        has = "holds other encounters than"
    elif now["labels_sha256"] != before["labels_sha256"]:
        has = "has other labels than"
    else:
        return
    raise ConfigError(f"data = {config.data}: {has} when the training in {config.output} was begun; give it what it "
                      "had, choose another output or delete its checkpoints")


def _files(config: TrainConfig, folder: Path) -> dict:
    """The files that a recipe names, its relative paths taken from a folder."""
    def whole(path):
        return os.path.realpath(folder / path)

    data = (config.data,) if isinstance(config.data, str) else config.data
    start = config.start_from
    return {"data": [whole(path) for path in data], "start_from": start if start in (None, "shipped") else whole(start)}


def _content(dataset) -> dict:
    labels = hashlib.sha256()
    for name in sorted(dataset.labels):
        labels.update(name.encode() + np.ascontiguousarray(dataset.labels[name]).tobytes())
    return {"n_images": len(dataset),
            "encounters_sha256": hashlib.sha256(json.dumps(dataset.identities).encode()).hexdigest(),
            "labels_sha256": labels.hexdigest()}


def _noted(output: Path) -> dict:
    """What `note_beginning` wrote about the data; nothing where the training was begun before there was such a note."""
    path = output / "data.json"
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); delete it to go on without what it says") from None
