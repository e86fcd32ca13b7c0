"""The recipe of a training: what it says, what of it goes together, and what it holds out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from ..config import Config, read_yaml
from ..data.splits import split_by_encounter, split_random
from ..errors import ConfigError
from ..image.realism import RealismConfig
from ..models.deepgalaxy import ModelConfig
from .module import LossConfig, OptimiserConfig

__all__ = ["TrainConfig", "check_recipe", "read_recipe", "split"]


class TrainConfig(Config):
    """A recipe."""

    name: str = Field("model", min_length=1, max_length=80, pattern=r"^[\w.+-]+$")
    data: str | tuple[str, ...] = Field(description="the data set, or several that are taken as one; relative paths "
                                        "are taken from the recipe's folder")
    output: str = Field(min_length=1, description="folder for checkpoints, metrics and weights")
    epochs: int = Field(10, ge=1, le=1_000_000)
    images_per_epoch: int = Field(16384, ge=1, le=1_000_000_000, description="as many of them as fill whole batches")
    batch_size: int = Field(64, ge=2, le=1_000_000, description="of all workers together")
    framing: Literal["content", "whole"] = Field("content", description="the light that belongs together, however it "
                                                 "lies; or pictures as they are, of one field of view and orientation")
    mirrored: bool = Field(False, description="show half of the pictures mirrored, as what the opposite camera sees "
                           "(framing: whole; frames of a content are mirrored anyway)")
    split: Literal["encounters", "random"] = Field("encounters", description="what is held out: whole encounters; or "
                                                   "images at random, which leaks, to compare with DeepGalaxy")
    validation_share: float = Field(0.12, gt=0, lt=1, description="of the encounters (or images), held out for "
                                    "calibration")
    validation_images: int = Field(1024, ge=1)
    validate_every: int = Field(1, ge=1, description="epochs")
    seed: int = Field(0, ge=0, lt=2**63, description="of the first weights, the order of images and all that is "
                      "drawn")
    split_seed: int | None = Field(None, ge=0, lt=2**63, description="of the choice of held-out encounters; as seed "
                                   "without it")
    start_from: str | None = Field(None, description="weights to start from: a file, relative to the recipe's folder, "
                                   "or 'shipped'; without it, from nothing")
    keep_of_start: float = Field(0.0, ge=0, lt=1, description="share of the weights that it started from in the "
                                 "result: the mean of both is often better than either")
    train: Literal["all", "heads"] = Field("all", description="every weight; or the classifier's last layers alone, on "
                                           "features that are computed once, for pictures that are always the same "
                                           "(framing: whole, realism: null, scale_known: 0 or 1)")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    store: Literal["float32", "float16"] = Field("float32", description="of the weights; float16 takes half of the "
                                                 "space")
    bad_images: Literal["stop", "skip"] = Field("stop", description="what an image that is damaged or not finite does")
    loader_workers: int = Field(0, ge=0, description="processes that read images, per worker")
    in_memory: bool = Field(False, description="read all images once and keep them, in half precision, on the device "
                            "that trains (with several workers, each keeps all): 51 kB for each of 160 pixels")
    model: ModelConfig = Field(default_factory=ModelConfig, description="what is left out is as in the weights that "
                               "it starts from; a deeper classifier, finer blocks, a second backbone or classes may be "
                               "added to those")
    loss: LossConfig = Field(default_factory=LossConfig)
    optimiser: OptimiserConfig = Field(default_factory=OptimiserConfig)
    realism: RealismConfig | None = Field(default_factory=RealismConfig, description="null for clean images only")

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self.images_per_epoch // self.batch_size


def read_recipe(path: str | Path) -> TrainConfig:
    """A recipe from YAML; relative paths in it are taken from its folder, ~ is the home.

    Raises
    ------
    ConfigError
        Naming what of it is wrong.
    """
    def beside(name):
        return name and os.path.normpath(Path(path).parent / os.path.expanduser(name))

    tree = read_yaml(path)
    if isinstance(tree, dict):
        for key in ("data", "output", "start_from"):
            if isinstance(tree.get(key), str) and (key, tree[key]) != ("start_from", "shipped"):
                tree[key] = beside(tree[key])
        if isinstance(tree.get("data"), list):
            tree["data"] = [beside(str(one)) for one in tree["data"]]
    return TrainConfig.parse(tree, str(path))


def check_recipe(config: TrainConfig, n_workers: int) -> None:
    """Refuse what does not go together, before anything is opened.

    Raises
    ------
    ConfigError
        Naming the first of it.
    """
    if config.batch_size % n_workers:
        raise ConfigError(f"batch_size = {config.batch_size}: must be a multiple of the {n_workers} workers")
    if config.images_per_epoch < config.batch_size:
        raise ConfigError(f"images_per_epoch = {config.images_per_epoch}: must be at least batch_size = "
                          f"{config.batch_size}; raise it or lower batch_size")
    if config.train == "heads":
        _check_heads(config)
    if config.keep_of_start and config.start_from is None:
        raise ConfigError(f"keep_of_start = {config.keep_of_start:g}: needs weights to start from; give start_from, or "
                          "leave it out")
    if config.mirrored and config.framing != "whole":
        raise ConfigError(f"mirrored = True: framing = {config.framing}: must be whole; frames of a content are "
                          "mirrored anyway, leave mirrored out")


def _check_heads(config: TrainConfig) -> None:
    """Features can be kept only where a picture is the same in every pass."""
    for key, value, right, allowed in (
            ("start_from", config.start_from, config.start_from is not None, "weights, whose features are used"),
            ("framing", config.framing, config.framing == "whole", "whole"),
            ("realism", "given", config.realism is None, "null"),
            ("loss.scale_known", config.loss.scale_known, config.loss.scale_known in (0, 1), "0 or 1")):
        if not right:
            raise ConfigError(f"train = heads: {key} = {value}: must be {allowed}; or choose train: all")


def split(config: TrainConfig, dataset) -> tuple[tuple, tuple]:
    """What a recipe trains on and what it holds out: (groups, groups), (images, images), as indices.

    Split at random, all groups are in both parts.
    """
    shares = (1 - config.validation_share, config.validation_share)
    seed = config.seed if config.split_seed is None else config.split_seed
    if config.split == "random":
        everything = np.arange(len(dataset.groups))
        return (everything, everything), split_random(len(dataset), shares, seed)
    groups = split_by_encounter(dataset.families, shares, seed)
    return groups, tuple(np.flatnonzero(np.isin(dataset.group, part)) for part in groups)
