"""Checkpoints that are whole or not there, and what is said after every epoch."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import lightning
import torch

from ..errors import DeepGalaxyWarning, ModelError

__all__ = ["Checkpoints", "Throughput", "read_metrics"]

#: What asks a training to stop: a scheduler's end of a job, and Ctrl-C.
STOPS = (signal.SIGTERM, signal.SIGINT)


class Checkpoints(lightning.Callback):
    """Writes a checkpoint after every epoch and keeps the newest two; on SIGTERM and SIGINT also at once, after the
    running step.

    The training then ends with KeyboardInterrupt. Whoever calls the trainer puts the handlers back: when it is
    interrupted, it does not tear its callbacks down.

    Lightning's own writer does not sync and can lose an error, so the file is written under another
    name, read back, synced and renamed. Training goes on from it to the bit.
    """

    def __init__(self, folder: str | Path, say=print, keep: int = 2):
        self.folder, self.say, self.keep = Path(folder), say, keep
        self._stop: str | None = None  # the signal that asked

    def setup(self, trainer, module, stage):
        self.folder.mkdir(parents=True, exist_ok=True)
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            for number in STOPS:
                signal.signal(number, self._on_stop)

    def _on_stop(self, number, frame):
        self._stop = signal.Signals(number).name

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        # After the last batch the checkpoint of the epoch comes next.
        if self._asked(trainer) and batch_idx + 1 < trainer.num_training_batches:
            self._save(trainer, f"epoch_{trainer.current_epoch:05d}_step_{batch_idx + 1:07d}.ckpt")
            self._leave(trainer)

    def on_train_epoch_end(self, trainer, module):
        self._save(trainer, f"epoch_{trainer.current_epoch:05d}.ckpt")
        if trainer.is_global_zero:
            for part in self.folder.glob("epoch_*_step_*.ckpt"):
                part.unlink(missing_ok=True)
        if self._asked(trainer) and trainer.current_epoch + 1 < trainer.max_epochs:
            self._leave(trainer)

    def _asked(self, trainer) -> bool:
        """To stop, whichever worker was told: a checkpoint is written by all together."""
        if trainer.world_size == 1:
            return self._stop is not None
        return trainer.strategy.reduce_boolean_decision(self._stop is not None, all=False)

    def _leave(self, trainer):
        if trainer.is_global_zero:
            self.say(f"asked to stop ({self._stop or 'by another worker'}): a checkpoint is written, start again to go "
                     "on from it")
        trainer.should_stop = True
        raise KeyboardInterrupt

    def _save(self, trainer, name: str):
        path = self.folder / name
        temporary = path.with_suffix(".tmp")
        try:
            self._write(trainer, path, temporary)
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and "PytorchStreamWriter" not in str(error):
                raise
            temporary.unlink(missing_ok=True)
            raise _cannot_write(path, error) from None

    def _write(self, trainer, path: Path, temporary: Path):
        trainer.save_checkpoint(temporary)  # all ranks take part, rank 0 writes
        if trainer.is_global_zero:
            torch.load(temporary, map_location="cpu", weights_only=False)  # our own file, written just now
            with open(temporary, "rb") as f:
                os.fsync(f.fileno())
            os.replace(temporary, path)
            for old in sorted(self.folder.glob("epoch_?????.ckpt"))[:-self.keep]:
                old.unlink(missing_ok=True)

    @staticmethod
    def epoch(path: Path) -> int:
        """The last epoch, from 0, that was finished when a checkpoint was written; -1 if none was."""
        return int(path.stem.split("_")[1]) - ("_step_" in path.stem)

    @staticmethod
    def steps_into_epoch(path: Path) -> int:
        """How many steps of the next epoch are in a checkpoint."""
        return int(path.stem.rsplit("_", 1)[1]) if "_step_" in path.stem else 0

    @staticmethod
    def newest(folder: str | Path) -> Path | None:
        """The newest checkpoint that can be read; a damaged one is passed over with a warning."""
        paths = Path(folder).glob("epoch_*.ckpt")
        for path in sorted(paths, key=lambda p: (Checkpoints.epoch(p), Checkpoints.steps_into_epoch(p)), reverse=True):
            try:
                state = torch.load(path, map_location="cpu", weights_only=False)
                if "state_dict" not in state:
                    raise ModelError("holds no weights")
                return path
            except Exception as error:  # torch raises many kinds on damaged files
                text = str(error).splitlines()[0] if str(error) else type(error).__name__
                warnings.warn(f"{path.name}: damaged checkpoint ({text[:80]}); the one before is used",
                              DeepGalaxyWarning, stacklevel=2)
        return None


class Throughput(lightning.Callback):
    """One line per epoch: losses, errors, images per second of a worker and of all; also as JSON lines."""

    def __init__(self, folder: str | Path, batch_size: int, say=print):
        self.path, self.batch_size, self.say = Path(folder) / "metrics.jsonl", batch_size, say

    def on_train_start(self, trainer, module):
        self.on_train_epoch_start(trainer, module)  # which is not called for an epoch that is gone on with

    def on_train_epoch_start(self, trainer, module):
        self._start, self._steps, self._waited, self._mark = time.perf_counter(), 0, 0.0, time.perf_counter()

    def on_train_batch_start(self, *_):
        self._waited += time.perf_counter() - self._mark

    def on_train_batch_end(self, *_):
        self._steps += 1
        self._mark = time.perf_counter()
        self._elapsed = self._mark - self._start

    def on_train_epoch_end(self, trainer, module):
        measured = trainer.callback_metrics  # reading it sums over all workers, so every one of them must
        if not trainer.is_global_zero:
            return
        rate = self._steps * self.batch_size / self._elapsed
        # The trainer keeps what an earlier epoch's validation found.
        validated = (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0
        metrics = {k: round(float(v), 5) for k, v in measured.items()
                   if not k.endswith("_step") and (validated or not k.startswith(("clean_", "realism_")))}
        row = {"epoch": trainer.current_epoch, "steps": trainer.global_step, "workers": trainer.world_size,
               "images_per_second": round(rate, 2), "images_per_second_per_worker": round(rate / trainer.world_size, 2),
               "input_wait": round(self._waited / self._elapsed, 4), **metrics}
        try:
            _append(self.path, json.dumps(row))
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        text = f"epoch {row['epoch'] + 1}/{trainer.max_epochs}: loss {row.get('loss', float('nan')):.4f}"
        if self._steps < trainer.num_training_batches:  # of an epoch that was gone on with
            text += f" (of its last {self._steps} steps)"
        for name, unit in (("clean_time_since_pericentre", "clean |dt| {:.0f} Myr"),
                           ("realism_time_since_pericentre", "realism |dt| {:.0f} Myr")):
            if name in row:
                text += ", " + unit.format(row[name])
        self.say(f"{text}, {row['images_per_second_per_worker']:.0f} images/s per worker, "
                 f"{rate:.0f} in all ({trainer.world_size} workers)")


def read_metrics(path: str | Path) -> list[dict]:
    """The rows that `Throughput` wrote, one per epoch; lines that cannot be read are left out.

    A full disk may have cut one. An epoch that was killed before its checkpoint was written is there twice: the later
    row counts.
    """
    rows = {}
    for line in Path(path).read_text(errors="replace").splitlines():
        with suppress(ValueError, TypeError, KeyError):
            row = json.loads(line)
            rows[row["epoch"]] = row
    return list(rows.values())


def _append(path: Path, line: str) -> None:
    """A line of its own, whatever became of the one before."""
    with open(path, "ab+") as f:
        if f.tell():
            f.seek(-1, os.SEEK_END)
            line = line if f.read(1) == b"\n" else "\n" + line
        f.write(line.encode() + b"\n")


def _cannot_write(path: Path, error: Exception) -> ModelError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:100]
    return ModelError(f"{path}: cannot be written ({reason}); free space and start again, the last checkpoint is kept")
