"""Several data sets as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from ..progress import one_line
from .reader import Dataset

__all__ = ["JoinedDataset", "open_data"]


def open_data(paths: str | Path | Sequence[str | Path]) -> Dataset | JoinedDataset:
    """One data set, or several as one."""
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    return Dataset(paths[0]) if len(paths) == 1 else JoinedDataset([Dataset(path) for path in paths])


class JoinedDataset:
    """Data sets one after the other: what training, calibration and the library need of `Dataset`.

    Raises
    ------
    DatasetError
        If there are none, or their images differ in shape or quantity, or an encounter is in two of them.
    """

    def __init__(self, datasets: Sequence[Dataset]):
        if not datasets:
            raise DatasetError("data: is an empty list; name at least one data set")
        self._datasets = list(datasets)
        first = self._datasets[0]
        for other in self._datasets[1:]:
            for name in ("shape", "quantity"):
                if getattr(other, name) != getattr(first, name):
                    raise DatasetError(f"{other.path}: its images have {name} {getattr(other, name)}, those of "
                                       f"{first.path} {getattr(first, name)}; render them alike to train on both")
        self.path, self.shape, self.quantity, self.config = first.path, first.shape, first.quantity, first.config
        self.groups, self.identities, self.families, self.attributes = [], [], [], []
        for dataset in self._datasets:
            # The library keeps these names as lines of text.
            self.groups += [f"{one_line(dataset.path.stem)}:{name}" for name in dataset.groups]
            self.identities += dataset.identities
            self.attributes += dataset.attributes
            self.families += dataset.families  # suites name their encounters alike; such go to the same part
        if len(set(self.identities)) < len(self.identities):
            twice = next(name for name in self.identities if self.identities.count(name) > 1)
            raise DatasetError(f"{self._datasets[-1].path}: encounter {twice} is in two of the data sets; name each "
                               "once")
        self._starts = starts = np.cumsum([0, *(len(d.groups) for d in self._datasets)])[:-1]
        self.group = np.concatenate([d.group + start for d, start in zip(self._datasets, starts, strict=True)])
        self.camera, self.snapshot, self.view, self.is_encounter, self.shines_by_mass = (
            np.concatenate([getattr(d, name) for d in self._datasets])
            for name in ("camera", "snapshot", "view", "is_encounter", "shines_by_mass"))
        numbers = [d.encounter for d in self._datasets]
        firsts = np.cumsum([0, *(one.max(initial=-1) + 1 for one in numbers)])[:-1]
        self.encounter = np.concatenate([one + first for one, first in zip(numbers, firsts, strict=True)])
        self.labels = {name: np.concatenate([d.labels[name] for d in self._datasets]) for name in first.labels}
        self._first = np.cumsum([0, *(len(d) for d in self._datasets)])

    def __len__(self) -> int:
        return len(self.group)

    def path_of(self, group: int) -> Path:
        """The file that a group lies in."""
        return self._datasets[int(np.searchsorted(self._starts, group, side="right")) - 1].path

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """Images (B, H, W) float32 in the stored quantity."""
        indices = np.asarray(indices, np.int64)
        out = np.empty((len(indices), *self.shape), np.float32)
        which = np.searchsorted(self._first, indices, side="right") - 1
        for i in np.unique(which):
            out[which == i] = self._datasets[i].images(indices[which == i] - self._first[i])
        return out
