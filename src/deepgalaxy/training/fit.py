"""A recipe to weights: on one worker or many, from the start or from where it was left."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np

from ..data.schema import LOG_SURFACE_DENSITY
from ..errors import ConfigError, DatasetError, ModelError
from ..files import keep_others_out
from ..labels import FRAME_SIDE, LABELS, NO_STAGE, STAGES
from .recipe import TrainConfig, check_recipe, split

__all__ = ["fit", "leave", "world"]


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
    from .begun import is_of, note_beginning, refuse_another_training
    from .callbacks import Checkpoints
    from .heads import Features, freeze
    from .start import begin_with, filled_in, mix, weights_to_start_from

    rank, n_workers = world()
    check_recipe(config, n_workers)
    output = Path(config.output)
    path = output / "model.safetensors"
    newest = Checkpoints.newest(output / "checkpoints")
    start = None
    if config.start_from is not None:
        start = weights_to_start_from(config)
        config = filled_in(config, start, None if newest is None else output)
    dataset = _open(config)
    (train, validate), (used, held) = split(config, dataset)
    if newest is not None:
        refuse_another_training(config, dataset)
        if Checkpoints.epoch(newest) + 1 >= config.epochs and is_of(path, config):
            say(f"{path}: all {config.epochs} epochs are done")
            return path  # as it is, with what calibration added
        if Checkpoints.epoch(newest) >= config.epochs:
            raise ConfigError(f"epochs = {config.epochs}: {newest} is of epoch {Checkpoints.epoch(newest) + 1}; "
                              "raise epochs or choose another output")
    # The processes of a loader may live on for a moment after a worker that was killed.
    busy = "another training is at work there; wait for it to end, or choose another output"
    with keep_others_out(output, ConfigError, busy, f"output = {output}", 15) if rank == 0 else nullcontext():
        try:
            note_beginning(config, dataset)
            if rank == 0 and newest is None and (output / "metrics.jsonl").exists():  # of another training
                os.replace(output / "metrics.jsonl", output / "metrics_before.jsonl")
        except OSError as error:
            raise ConfigError(f"output = {output}: cannot be written ({error.strerror}); choose another "
                              "folder") from None
        held = _to_validate(config, dataset, held)
        if rank == 0 and newest is None:
            for line in _what_is_learnt(config, dataset, train, validate, used):
                say(line)
        training, validation = (EncounterImages(dataset, images, config.bad_images == "skip")
                                for images in (used, held))
        trained_on, held_out = ({dataset.identities[g] for g in groups} for groups in (train, validate))
        module = _module(config, dataset, len(held))
        if start is not None:
            trained_on |= begin_with(module, start, config, trained_on, held_out, len(dataset), newest is None)
        if config.train == "heads":
            freeze(module.model)
            if newest is not None:  # features are of what stays as it is, needed before the trainer loads it
                _load(module, newest)
            training = Features(training, module.model, config.framing, config.loss.scale_known == 1,
                                module.logarithmic, module.opposite)
        batches = _batches(config, len(training))
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
                mix(module.averaged.module, start.model, config.keep_of_start)
            save_weights(path, module.averaged.module, name=config.name, training=config, store=config.store,
                         validation_encounters=[dataset.identities[g] for g in validate],
                         training_encounters=sorted(trained_on), n_images=len(dataset),
                         never_seen=_never_seen(dataset, used))
        return path


def _open(config: TrainConfig):
    """The data, if this recipe can be trained on them."""
    from ..data.joined import open_data

    dataset = open_data(config.data)
    if (n := len(set(dataset.families))) < 2:
        raise DatasetError(f"{config.data}: holds {n} encounter; training needs at least 2, one of them to validate")
    if min(dataset.shape) < 2 * config.model.stride:
        raise DatasetError(f"{config.data}: images of {dataset.shape[0]}x{dataset.shape[1]} pixels are too small for "
                           f"stride = {config.model.stride}; render larger ones or lower the stride")
    n_classes = (int(dataset.snapshot.max()) + 1) * (int(dataset.camera.max()) + 1)
    if 0 < config.model.n_classes < n_classes:
        raise ConfigError(f"model.n_classes = {config.model.n_classes}: {config.data} has {n_classes} classes of time "
                          "and camera; give at least as many, or 0 for none")
    return dataset


def _to_validate(config: TrainConfig, dataset, held: np.ndarray) -> np.ndarray:
    """As many of the images that are held out as the recipe says, spread over all."""
    by_mass = dataset.shines_by_mass[held]  # as the figures are; the others know less
    held = held[by_mass] if by_mass.any() else held
    held = held[np.linspace(0, len(held) - 1, min(config.validation_images, len(held))).astype(int)]
    n_workers = world()[1]
    if len(held) < n_workers:
        raise ConfigError(f"validation_images: {len(held)} images cannot be shared by {n_workers} workers; raise "
                          "validation_images or validation_share")
    return held


def _batches(config: TrainConfig, n_images: int):
    from ..data.datamodule import GlobalBatches

    return GlobalBatches(n_images, config.batch_size, config.steps_per_epoch, config.seed, *world())


def _module(config: TrainConfig, dataset, n_validation: int):
    """The model with its losses, as it is before the first step; every worker has the same."""
    import torch

    from ..data.datamodule import opposite_cameras
    from .module import TrainingModule

    opposite = opposite_cameras(dataset) if config.mirrored else None
    torch.manual_seed(config.seed)
    return TrainingModule(config.model, config.loss, config.optimiser, config.realism,
                          total_steps=config.epochs * config.steps_per_epoch, seed=config.seed,
                          logarithmic=dataset.quantity == LOG_SURFACE_DENSITY, n_validation=n_validation,
                          framing=config.framing, n_cameras=int(dataset.camera.max()) + 1, opposite=opposite)


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
