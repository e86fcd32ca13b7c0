"""A recipe to weights: on one worker or many, from the start or from where it was left."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from ..config import Config
from ..data.schema import LOG_SURFACE_DENSITY
from ..data.splits import split_by_encounter, split_random
from ..errors import ConfigError, DatasetError, ModelError
from ..files import shipped
from ..image.realism import RealismConfig
from ..labels import FRAME_SIDE, LABELS, NO_STAGE, STAGES
from ..models.deepgalaxy import ModelConfig
from .module import LossConfig, OptimiserConfig

__all__ = ["TrainConfig", "fit", "leave", "read_recipe", "split", "world"]


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


def world() -> tuple[int, int]:
    """Rank and number of workers, as torchrun says."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ.get("RANK", 0)), int(os.environ["WORLD_SIZE"])
    return 0, 1


def leave() -> None:
    """End this worker's part in the group, once all is done.

    A group that is left to the interpreter's exit aborts the process now and then ("terminate called without an active
    exception"), and torchrun then reports a finished training as failed.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def fit(config: TrainConfig, say=print, progress: bool = False) -> Path:
    """Train, or go on training, and write the weights.

    Parameters
    ----------
    say : takes one line of text, on the first worker.
    progress : draw a progress bar.

    Returns
    -------
    path : of `model.safetensors`, the averaged weights with all that is needed to use them.

    Raises
    ------
    ConfigError
        If the recipe asks for what cannot be, or its output holds another training.
    DatasetError
        If the data are missing, too few or damaged.
    ModelError
        If the architecture cannot be, or is not that of the weights or checkpoint that it goes on from.
    KeyboardInterrupt
        If SIGTERM or SIGINT asked it to stop; a checkpoint of the running step is written.
    """
    from ..data.datamodule import EncounterImages
    from ..models.weights import save_weights
    from .begun import note_beginning, refuse_another_recipe, refuse_other_data
    from .callbacks import Checkpoints
    from .heads import Features, freeze

    rank, n_workers = world()
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
    start = None if config.start_from is None else _start(config)
    output = Path(config.output)
    path = output / "model.safetensors"
    newest = Checkpoints.newest(output / "checkpoints")
    if start is not None:
        config = config.model_copy(update={"model": _model(config, start, None if newest is None else output)})
    dataset = _open(config)
    (train, validate), (used, held) = split(config, dataset)
    if newest is not None:
        if (recipe := _begun(output)) is None:  # a stopped training may write its last one after the folder was deleted
            raise ConfigError(f"output = {output}: holds checkpoints, but no recipe.json that says of which recipe; "
                              "choose another output or delete its checkpoints")
        refuse_another_recipe(config, recipe)
        refuse_other_data(config, dataset)
        if Checkpoints.epoch(newest) + 1 >= config.epochs and _epochs_of(path) == config.epochs:
            say(f"{path}: all {config.epochs} epochs are done")
            return path  # as it is, with what calibration added
        if Checkpoints.epoch(newest) >= config.epochs:
            raise ConfigError(f"epochs = {config.epochs}: {newest} is of epoch {Checkpoints.epoch(newest) + 1}; "
                              "raise epochs or choose another output")
    try:
        note_beginning(config, dataset)
    except OSError as error:
        raise ConfigError(f"output = {output}: cannot be written ({error.strerror}); choose another folder") from None

    by_mass = dataset.shines_by_mass[held]  # as the figures are; the others know less
    held = held[by_mass] if by_mass.any() else held
    held = held[np.linspace(0, len(held) - 1, min(config.validation_images, len(held))).astype(int)]
    if len(held) < n_workers:
        raise ConfigError(f"validation_images: {len(held)} images cannot be shared by {n_workers} workers; raise "
                          "validation_images or validation_share")
    if rank == 0 and newest is None:
        for line in _what_is_learnt(config, dataset, train, validate, used):
            say(line)
    training, validation = (EncounterImages(dataset, images, config.bad_images == "skip") for images in (used, held))
    twice = config.train == "heads" and config.mirrored  # features are kept of both
    batches = _batches(config, len(training) * (1 + twice))
    trained_on, held_out = ({dataset.identities[g] for g in groups} for groups in (train, validate))
    module = _module(config, dataset, batches.steps, len(held))
    if start is not None:
        trained_on |= _begin_with(module, start, config, trained_on, held_out, len(dataset), newest is None)
    if config.train == "heads":
        freeze(module.model)
        if newest is not None:  # features are of what stays as it is, and that is needed before the trainer loads it
            _load(module, newest)
        training = Features(training, module.model, config.framing, config.loss.scale_known == 1, module.logarithmic,
                            module.opposite)
    if newest is not None:
        # Loaders with processes of their own begin to read before the trainer says what epoch it is.
        batches.set_epoch(Checkpoints.epoch(newest) + 1)
        batches.skip = Checkpoints.steps_into_epoch(newest)
        if rank == 0:
            say(f"going on from {newest.name}")
    with _quiet(), _signals():
        trainer = _trainer(config, say, progress)
        _run(trainer, module, training, validation, batches, config, newest)
    if trainer.is_global_zero:
        if start is not None and config.keep_of_start:
            _mix(module.averaged.module, start.model, config.keep_of_start)
        save_weights(path, module.averaged.module, name=config.name, training=config, store=config.store,
                     validation_encounters=[dataset.identities[g] for g in validate],
                     training_encounters=sorted(trained_on), n_images=len(dataset),
                     never_seen=_never_seen(dataset, used))
    return path


def _open(config: TrainConfig):
    """The data, if this recipe can be trained on them."""
    from ..data.joined import open_data

    dataset = open_data(config.data)
    if len(dataset.groups) < 2:
        raise DatasetError(f"{config.data}: holds {len(dataset.groups)} encounter; training needs at least 2, "
                           "one of them to validate")
    if min(dataset.shape) < 2 * config.model.stride:
        raise DatasetError(f"{config.data}: images of {dataset.shape[0]}x{dataset.shape[1]} pixels are too small for "
                           f"stride = {config.model.stride}; render larger ones or lower the stride")
    n_classes = (int(dataset.snapshot.max()) + 1) * (int(dataset.camera.max()) + 1)
    if 0 < config.model.n_classes < n_classes:
        raise ConfigError(f"model.n_classes = {config.model.n_classes}: {config.data} has {n_classes} classes of time "
                          "and camera; give at least as many, or 0 for none")
    return dataset


def _batches(config: TrainConfig, n_images: int):
    from ..data.datamodule import GlobalBatches

    return GlobalBatches(n_images, config.batch_size, config.images_per_epoch, config.seed, *world())


def _module(config: TrainConfig, dataset, steps_per_epoch: int, n_validation: int):
    """The model with its losses, as it is before the first step; every worker has the same."""
    import torch

    from ..data.datamodule import opposite_cameras
    from .module import TrainingModule

    opposite = opposite_cameras(dataset) if config.mirrored else None
    torch.manual_seed(config.seed)
    return TrainingModule(config.model, config.loss, config.optimiser, config.realism,
                          total_steps=config.epochs * steps_per_epoch, seed=config.seed,
                          logarithmic=dataset.quantity == LOG_SURFACE_DENSITY, n_validation=n_validation,
                          framing=config.framing, n_cameras=int(dataset.camera.max()) + 1, opposite=opposite)


def _begin_with(module, start, config: TrainConfig, trained_on: set, held_out: set, n_images: int,
                fresh: bool) -> set[str]:
    """Put the weights `start` into the module; the encounters that they saw, none of which may be held out now.

    fresh : there is no checkpoint, which would take their place.
    """
    before = set(start.metadata.get("training_encounters", []))
    if config.split == "random" and before & trained_on:
        _refuse_another_split(config, start, n_images)
    if before & held_out and config.split == "encounters":
        raise ConfigError(f"start_from = {config.start_from}: was trained on encounters that would be held out here "
                          f"({sorted(before & held_out)[0]}); give the split_seed and validation_share of its "
                          "recipe, or, if yours are others, other names (another seed to the design of a suite)")
    for model in (module.model, module.averaged.module) if fresh else ():
        ours = model.state_dict()
        # Theirs may have the head of the classes or a second backbone, which are left out here.
        model.load_state_dict({**ours, **{k: v for k, v in start.model.state_dict().items() if k in ours}})
    return before


def _mix(model, start, share: float) -> None:
    """Put a share of the weights that it started from into a model, where both have them.

    References
    ----------
    Wortsman et al. (2022), arXiv 2109.01903.
    """
    import torch

    before = start.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in before and tensor.is_floating_point():
                tensor.lerp_(before[name].to(tensor), share)


def _trainer(config: TrainConfig, say, progress: bool):
    import lightning
    import torch

    from .callbacks import Checkpoints, Throughput

    rank, n_workers = world()
    cuda = torch.cuda.is_available()
    strategy = "auto"
    if n_workers > 1:
        from lightning.pytorch.strategies import DDPStrategy
        # When a worker is lost the others stop after this time, and a restart goes on from the last checkpoint.
        strategy = DDPStrategy(process_group_backend="nccl" if cuda else "gloo", gradient_as_bucket_view=True,
                               timeout=timedelta(minutes=5))
    local, output = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), Path(config.output)
    return lightning.Trainer(
        accelerator="gpu" if cuda else "cpu", devices=local, num_nodes=max(1, n_workers // local),
        strategy=strategy, max_epochs=config.epochs, precision=config.precision,
        gradient_clip_val=config.optimiser.gradient_clip, use_distributed_sampler=False,
        check_val_every_n_epoch=config.validate_every, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=progress and rank == 0,
        callbacks=[Throughput(output, config.batch_size, say), Checkpoints(output / "checkpoints", say)])


def _run(trainer, module, training, validation, batches, config: TrainConfig, newest: Path | None) -> None:
    """Train; errors that come wrapped are unwrapped."""
    from ..data.datamodule import InMemory, loader

    rank, n_workers = world()
    share = np.arange(len(validation))[rank::n_workers]
    chunks = [share[i:i + 64].tolist() for i in range(0, len(share), 64)]
    workers = config.loader_workers
    try:
        if config.in_memory:
            device, workers = trainer.strategy.root_device, 0
            validation = InMemory(validation, device, config.loader_workers)
            if config.train == "all":  # features are kept already
                training = InMemory(training, device, config.loader_workers)
        checks = [loader(validation, chunks) for _ in range(2 if config.realism else 1)]  # clean, and with realism
        trainer.fit(module, loader(training, batches, workers), checks, ckpt_path=newest, weights_only=False)
    except DatasetError as error:  # of a loader's process it comes with the traceback as its text
        line = str(error).rstrip().splitlines()[-1]
        raise DatasetError(line.removeprefix("deepgalaxy.errors.DatasetError: ")) from None
    except SystemExit:  # what the trainer makes of KeyboardInterrupt
        raise KeyboardInterrupt from None
    except RuntimeError as error:
        if newest is not None and "state_dict" in str(error):
            raise _another_architecture(newest) from None
        raise


def _load(module, checkpoint: Path) -> None:
    """Put the weights of a checkpoint into the module."""
    import torch

    try:
        module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"])
    except RuntimeError:
        raise _another_architecture(checkpoint) from None


def _another_architecture(checkpoint: Path) -> ModelError:
    return ModelError(f"{checkpoint}: was trained with another architecture; choose another output or delete its "
                      "checkpoints")


@contextmanager
def _quiet():
    """Without Lightning's chatter about things that are as they should be here."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    before = [logging.getLogger(name).level for name in names]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*|.*LeafSpec.*")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in zip(names, before, strict=True):
                logging.getLogger(name).setLevel(level)


@contextmanager
def _signals():
    """What asks a training to stop does afterwards what it did before, however the training ends."""
    from .callbacks import STOPS

    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # of another language than Python
                    signal.signal(number, handler)


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


def _epochs_of(path: Path) -> int | None:
    """How many epochs weights were meant to be trained; None if there are none, or none that can be read."""
    from ..models.weights import load_weights

    try:
        return load_weights(path).metadata["training"].get("epochs")
    except ModelError:
        return None


def _what_is_learnt(config: TrainConfig, dataset, train: np.ndarray, validate: np.ndarray,
                    used: np.ndarray) -> list[str]:
    """What a person should know before a long training: how much is held out, and what the data do not tell."""
    n, held = (len({dataset.families[g] for g in groups}) for groups in (train, validate))
    lines = []
    if config.split == "encounters":
        lines.append(f"trains on {n} of {n + held} encounters, holds out {held}")
        # Which are held out hangs on their names, so that those that are added later change nothing; few scatter.
        if abs(held / (n + held) - config.validation_share) > 0.1:
            lines[0] += f" (validation_share = {config.validation_share:g}; another split_seed holds out others)"
    if missing := _never_seen(dataset, used):
        lines.append(f"no image to train on tells: {', '.join(missing)}; answers about that will mean nothing")
    return lines


def _check_heads(config: TrainConfig) -> None:
    """Features can be kept only where a picture is the same in every pass."""
    for key, value, right, allowed in (
            ("start_from", config.start_from, config.start_from is not None, "weights, whose features are used"),
            ("framing", config.framing, config.framing == "whole", "whole"),
            ("realism", "given", config.realism is None, "null"),
            ("loss.scale_known", config.loss.scale_known, config.loss.scale_known in (0, 1), "0 or 1")):
        if not right:
            raise ConfigError(f"train = heads: {key} = {value}: must be {allowed}; or choose train: all")


def _begun(output: Path) -> TrainConfig | None:
    """The recipe that a training in this output was begun with, if there is one."""
    path = output / "recipe.json"
    return TrainConfig.from_json(path.read_text(), str(path)) if path.is_file() else None


def _never_seen(dataset, images: np.ndarray) -> list[str]:
    """What none of these images tells, so that nothing learns it: labels, and "pixel_scale".

    One stage alone tells no stages apart; where there are more, those that are missing are named "stage: NAME".
    """
    labels = {name: values[images] for name, values in dataset.labels.items()}
    names = [label.name for label in LABELS if not np.isfinite(labels[label.column]).any()]
    stages = set(labels["stage"].tolist()) - {NO_STAGE}
    if len(stages) < 2:
        names.append("stage")
    else:
        names += [f"stage: {title}" for k, title in enumerate(STAGES) if k not in stages]
    if not np.isfinite(labels["pixel_scale"]).any():
        names += [FRAME_SIDE.name, "pixel_scale"]
    return names


def _refuse_another_split(config: TrainConfig, start, n_images: int) -> None:
    """Weights that saw this data set may go on with it only where the same images are held out."""
    theirs = TrainConfig.parse(start.metadata["training"], "recipe of the weights")
    before, now = ((c.split, c.validation_share, c.seed if c.split_seed is None else c.split_seed)
                   for c in (theirs, config))
    if start.metadata.get("n_images", n_images) != n_images:
        raise ConfigError(f"start_from = {config.start_from}: was trained on a random split of "
                          f"{start.metadata['n_images']} images, {config.data} has {n_images}: some that would be held "
                          "out here were trained on; give the same data")
    if before != now:
        raise ConfigError(f"start_from = {config.start_from}: was trained on images that would be held out here (split "
                          f"{before[0]}, validation_share {before[1]:g}, split_seed {before[2]}; here {now[0]}, "
                          f"{now[1]:g}, {now[2]}); give its values")


def _model(config: TrainConfig, start, begun: Path | None) -> ModelConfig:
    """What the recipe says of the model, and for the rest that of the weights `start`.

    begun : the output of a training that has checkpoints; the rest is theirs then, whatever became of the weights.
    """
    theirs = start.model.config
    if begun is not None and (recipe := _begun(begun)) is not None:
        theirs = recipe.model
    return theirs.model_copy(update={key: getattr(config.model, key) for key in config.model.model_fields_set})


def _start(config: TrainConfig):
    """The weights to start from, if the recipe's model can begin with them."""
    from ..models.weights import load_weights

    path = shipped("model.safetensors") if config.start_from == "shipped" else Path(config.start_from)
    try:
        weights = load_weights(path)
    except ModelError as error:
        raise ModelError(f"start_from = {config.start_from}: {str(error).removeprefix(f'{path}: ')}") from None
    theirs, ours = weights.model.config, config.model
    unlike = [name for name in ModelConfig.model_fields if name in ours.model_fields_set
              if name != "pretrained" and getattr(theirs, name) != getattr(ours, name)]
    # What may be added: blocks and a backbone that do nothing at first, and the head of the classes. These two may be
    # left out as well; maps that lack what a second backbone added have to be learnt anew.
    for name, may in (("classifier_depth", ours.classifier_depth > theirs.classifier_depth),
                      ("fine_depth", ours.fine_depth > theirs.fine_depth),
                      ("second_backbone", None in (theirs.second_backbone, ours.second_backbone)),
                      ("latent_scale", ours.latent_scale),
                      ("n_classes", 0 in (theirs.n_classes, ours.n_classes))):
        if may and name in unlike:
            unlike.remove(name)
    if unlike:
        raise ModelError(f"start_from = {config.start_from}: is of another architecture "
                         f"({unlike[0]} {getattr(theirs, unlike[0])}, not {getattr(ours, unlike[0])}); "
                         "leave it out of 'model' to take theirs, or leave start_from out")
    return weights


def read_recipe(path: str | Path) -> TrainConfig:
    """A recipe from YAML; relative paths in it are taken from its folder, ~ is the home."""
    from ..config import read_yaml

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
