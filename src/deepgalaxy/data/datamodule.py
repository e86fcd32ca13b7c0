"""Batches for training: split by encounter, in an order that does not depend on the number of workers."""

from __future__ import annotations

import math
import signal

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from ..errors import ConfigError, DatasetError
from ..image.view import opposite_views
from ..labels import LABELS
from ..progress import say
from . import schema
from .reader import Dataset

__all__ = ["EncounterImages", "InMemory", "GlobalBatches", "camera_views", "loader", "opposite_cameras",
           "read_images"]


class EncounterImages(TorchDataset):
    """Images and labels as tensors.

    Parameters
    ----------
    dataset : the file.
    indices : (n,) which of its images.
    skip_bad : an image that is damaged or not finite is replaced by another of its batch, and said; else it is an
        error.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray, skip_bad: bool = False):
        self.dataset, self.indices, self.skip_bad = dataset, np.asarray(indices), skip_bad
        n_cameras, self.shines_by_mass = int(dataset.camera.max()) + 1, dataset.shines_by_mass
        self.labels = {label.name: dataset.labels[label.column].astype(np.float32) for label in LABELS}
        self.labels["stage"] = dataset.labels["stage"]
        self.labels["time_camera"] = (dataset.snapshot * n_cameras + dataset.camera).astype(np.int64)

    def __len__(self):
        return len(self.indices)

    def __getitems__(self, positions):
        """One whole batch: image (B, H, W), pixel_scale, index, shines_by_mass (B,) and the labels (B,)."""
        index, images = self._sound(self.indices[np.asarray(positions)])
        batch = {"image": torch.from_numpy(images),
                 "pixel_scale": torch.from_numpy(self.dataset.labels["pixel_scale"][index].astype(np.float32)),
                 "index": torch.from_numpy(index.astype(np.int64)),
                 "shines_by_mass": torch.from_numpy(self.shines_by_mass[index])}
        batch.update({name: torch.from_numpy(values[index]) for name, values in self.labels.items()})
        return batch

    def _sound(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (B, H, W) of these indices, or of others of the batch in the place of bad ones."""
        try:
            return index, read_images(self.dataset, index)
        except DatasetError as error:
            if not self.skip_bad:
                raise DatasetError(f"{error}, or train with bad_images: skip") from None
        images, bad = np.zeros((len(index), *self.dataset.shape), np.float32), np.zeros(len(index), bool)
        for k in range(len(index)):
            try:
                images[k] = read_images(self.dataset, index[k:k + 1])[0]
            except DatasetError:
                bad[k] = True
        where = _where(self.dataset, index[np.argmax(bad)])
        if bad.all():
            raise DatasetError(f"{where}, as are all others of its batch; make the file again")
        say(f"{where}; skipped" + (f", and {bad.sum() - 1} more of its batch" if bad.sum() > 1 else ""))
        good = np.flatnonzero(~bad)
        place = np.where(bad, good[np.cumsum(bad) % len(good)], np.arange(len(index)))
        return index[place], images[place]


class InMemory(TorchDataset):
    """Images and labels that were read once: the images on a device, in half precision.

    Parameters
    ----------
    images : what is read.
    device : of torch.
    workers : processes that read; 0 for this one.

    Raises
    ------
    ConfigError
        If the device has no room for them.
    DatasetError
        If one of them is bad, and bad ones are not skipped.
    """

    def __init__(self, images: EncounterImages, device="cpu", workers: int = 0):
        needed, free = 2 * len(images) * math.prod(images.dataset.shape), _free_memory(torch.device(device))
        if needed > 0.9 * free:
            raise ConfigError(f"in_memory = True: {len(images)} images need {needed / 1e9:.1f} GB, {device} has "
                              f"{free / 1e9:.1f} GB free; set in_memory: false")
        self._image = torch.empty((len(images), *images.dataset.shape), dtype=torch.float16, device=device)
        # In any order, so that what takes the place of a bad image is not another of a bad encounter.
        order = np.random.default_rng(0).permutation(len(images))
        places = [place.tolist() for place in np.array_split(order, -(-len(order) // 256))]
        rows = []
        for place, batch in zip(places, loader(_InHalfPrecision(images), places, workers), strict=True):
            self._image[place] = batch.pop("image").to(device)
            # What a process of the loader sends lies in an open file of its own, of which there are not many.
            rows.append({name: values.clone() for name, values in batch.items()})
        back = torch.from_numpy(np.argsort(order))
        self._row = {name: torch.cat([row[name] for row in rows])[back] for name in rows[0]}

    def __len__(self):
        return len(self._image)

    def __getitems__(self, positions):
        """One whole batch, as that of `EncounterImages`."""
        positions = torch.as_tensor(positions)
        return {"image": self._image[positions.to(self._image.device)],
                **{name: values[positions] for name, values in self._row.items()}}


class _InHalfPrecision(TorchDataset):
    """Half as much to send from a process that reads."""

    def __init__(self, images: EncounterImages):
        self._images = images

    def __getitems__(self, positions):
        batch = self._images.__getitems__(positions)
        return {**batch, "image": batch["image"].half()}


def _free_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def read_images(dataset: Dataset, index: np.ndarray) -> np.ndarray:
    """Images (B, H, W) float32 of a data set, as stored.

    Raises
    ------
    DatasetError
        Naming the first that is damaged or holds what no picture can.
    """
    images = dataset.images(index)
    low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
    bad = ~((low >= 0) & (high <= schema.BRIGHTEST))  # of NaN too
    if bad.any():
        raise DatasetError(f"{_where(dataset, index[np.argmax(bad)])}; make the file again")
    return images


def camera_views(dataset: Dataset) -> np.ndarray:
    """Where each camera stood (C, 3) when it took its first picture."""
    cameras, first = np.unique(dataset.camera, return_index=True)
    views = np.full((int(cameras.max()) + 1, 3), np.nan, np.float32)
    views[cameras] = dataset.view[first]
    return views


def opposite_cameras(dataset: Dataset) -> np.ndarray:
    """For each camera the index (C,) of the one opposite to it, whose pictures are the mirror images of its own.

    Raises
    ------
    DatasetError
        If a camera has none, or does not stand still, or their pictures are no mirror images.
    """
    views = camera_views(dataset)
    opposite = opposite_views(views)
    moved = ~np.isclose(dataset.view, views[dataset.camera], atol=1e-3).all(axis=1)
    if moved.any() or (opposite < 0).any():
        camera = dataset.camera[np.argmax(moved)] if moved.any() else np.argmin(opposite)
        why = "does not stand still" if moved.any() else "has none opposite to it"
        raise DatasetError(f"{dataset.path}: camera {camera} {why}: a mirrored picture is that of no camera; render "
                           "with cameras: cube, or leave out mirrored")
    first = np.flatnonzero((dataset.group == dataset.group[0]) & (dataset.snapshot == dataset.snapshot[0]))
    image_of = dict(zip(dataset.camera[first].tolist(), first, strict=True))
    for camera, image in image_of.items():
        if camera < opposite[camera]:
            pair = read_images(dataset, np.array([image, image_of[opposite[camera]]]))
            if np.corrcoef(pair[0].ravel(), pair[1, :, ::-1].ravel())[0, 1] < 0.99:
                raise DatasetError(f"{dataset.path}: cameras {camera} and {opposite[camera]} are opposite to each "
                                   "other, and their pictures are no mirror images; leave out mirrored")
    return opposite


def _where(dataset: Dataset, i: int) -> str:
    group = dataset.group[i]
    return (f"{dataset.path_of(group)}: group {dataset.groups[group]}, camera {dataset.camera[i]}, snapshot "
            f"{dataset.snapshot[i]}: is damaged, or holds values that are not finite or not in 0..{schema.BRIGHTEST}")


class GlobalBatches(Sampler):
    """Batches of positions, cut from an endless stream of permutations.

    Step k of epoch e takes the same images whatever the number of workers; worker r has every
    world-th of them from r on.
    """

    def __init__(self, n: int, batch_size: int, steps: int, seed: int, rank: int = 0, world: int = 1):
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} must be a multiple of {world} workers")
        self.n, self.batch_size, self.steps, self.seed = n, batch_size, steps, seed
        self.rank, self.world, self.epoch = rank, world, 0
        self.skip = 0  #: batches that were taken before, of the epoch that is gone on with
        self.sampler = self  # where the trainer looks for something whose epoch it can set

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before every epoch."""
        self.epoch = epoch

    def __len__(self):
        return self.steps

    def __iter__(self):
        first = self.epoch * self.steps * self.batch_size
        wanted = np.arange(first, first + self.steps * self.batch_size)
        stream = np.empty(len(wanted), np.int64)
        for turn in np.unique(wanted // self.n):
            permutation = np.random.default_rng([self.seed, int(turn)]).permutation(self.n)
            here = wanted // self.n == turn
            stream[here] = permutation[wanted[here] % self.n]
        done, self.skip = self.skip, 0
        for k in range(done, self.steps):
            yield stream[k * self.batch_size:(k + 1) * self.batch_size][self.rank::self.world].tolist()


def loader(images: EncounterImages, batches, workers: int = 0) -> DataLoader:
    """A DataLoader over batches of positions."""
    return DataLoader(images, batch_sampler=batches, num_workers=workers, collate_fn=_as_it_is,
                      persistent_workers=workers > 0, worker_init_fn=_leave_ctrl_c)


def _as_it_is(batch):  # not a lambda: processes that are spawned get it by its name
    return batch


def _leave_ctrl_c(_):
    """Ctrl-C reaches these processes too; the one that trains still needs them for its last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
