"""Read the file of images: tables of labels at once, images one by one, in any process."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from ..errors import DatasetError
from ..labels import NO_STAGE, STAGES, UNDISTURBED
from ..progress import one_line
from ..units import REFERENCE_STARS
from . import schema

__all__ = ["Dataset"]

_MAX_HANDLES = 4096  # open arrays; a thousand encounters with 14 cameras have 14,000


class Dataset:
    """The images of a file and their labels, addressed by one flat index.

    Opening reads all labels and no image. A Dataset can be pickled and survives `fork`: each process
    opens the file for itself, because an HDF5 handle that crosses a fork returns wrong data.

    Parameters
    ----------
    path : str or Path
        A data set of ours or of the published DeepGalaxy layout (docs/data_format.md).

    Raises
    ------
    DatasetError
        If it is missing, broken, of another layout, or leads outside the file.

    Attributes
    ----------
    groups : list of str
        Names of the encounters.
    attributes : list of dict
        Parameters of each encounter, in the order of `groups`.
    group, camera, snapshot : int32, shape (n,)
        Where each image lies.
    view : float32, shape (n, 3)
        Unit vectors towards the observer; NaN if not known.
    labels : dict of arrays of shape (n,)
        float32 "time" (Myr), "mass_ratio", "size_ratio", "view_inclination" (degrees, 0..90),
        "separation" (kpc), "pericentre" (kpc), "pixel_scale" (kpc per pixel), NaN where not known,
        as are times and views of single galaxies and chance pairs;
        uint8 "stage", `labels.NO_STAGE` where not known.
    shape : (H, W), the same number twice: images are square
    quantity : str
        `schema.LOG_SURFACE_DENSITY` or `schema.STRETCHED`.
    config : str
        JSON of the configuration that made the file; "{}" if not known.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._source = one_line(path)
        self._forget()
        with schema.open_file(self.path) as file:
            self._identity = self._stat()
            self._index(file)
        _OPEN.add(self)

    def __len__(self) -> int:
        return len(self.group)

    def __repr__(self) -> str:
        return f"<Dataset {self._source}: {len(self)} images of {len(self.groups)} encounters>"

    @property
    def identities(self) -> list[str]:
        """Name and seed of each encounter, which tell encounters of different suites apart."""
        return [f"{name}#{int(row['seed'])}" if "seed" in row else name
                for name, row in zip(self.groups, self.attributes, strict=True)]

    @property
    def families(self) -> list[str]:
        """The encounter whose galaxies each group shows: what must not be divided among training and testing."""
        return [str(row.get("encounter", name)) for name, row in zip(self.groups, self.attributes, strict=True)]

    @property
    def encounter(self) -> np.ndarray:
        """Number (n,) of the encounter whose galaxies each image shows, in whatever light."""
        return np.unique(self.families, return_inverse=True)[1][self.group]

    @property
    def is_encounter(self) -> np.ndarray:
        """Mask (n,) of the images that show an encounter, and no single galaxy or chance pair."""
        return np.array([row.get("kind") not in UNDISTURBED for row in self.attributes])[self.group]

    @property
    def shines_by_mass(self) -> np.ndarray:
        """Mask (n,) of the images whose light follows mass; see image/starlight.py for the others."""
        return np.array([row.get("light") != "varied" for row in self.attributes])[self.group]

    def image(self, i: int) -> np.ndarray:
        """Image `i` in the stored quantity.

        Returns
        -------
        image : float32, shape (H, W)
            log10(Msun/kpc^2) with 0 for no light, or for published files a stretched value in 0..1
            (uint8 is divided by 255).
        """
        out = np.empty(self.shape, np.float32)
        with _LOCK:
            self._read(i, out)
        return out

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """Images (B, H, W) float32 in the stored quantity (see `image`)."""
        indices = np.asarray(indices, dtype=np.int64)
        out = np.empty((len(indices), *self.shape), np.float32)
        with _LOCK:
            for i, image in zip(indices, out, strict=True):
                self._read(int(i), image)
        return out

    def path_of(self, group: int) -> Path:
        """The file that a group lies in."""
        return self.path

    def surface_density(self, i: int) -> np.ndarray:
        """Image `i` in Msun/kpc^2, float32 (H, W).

        Published images were stretched by an unknown function and are returned as they are, in 0..1.
        """
        image = self.image(i)
        if self.quantity == schema.STRETCHED:
            return image
        return np.where(image > 0, np.float32(10) ** image, np.float32(0))

    def close(self) -> None:
        """Close the file; the next image opens it again."""
        with _LOCK:
            file, mine = self._file, self._pid == os.getpid()
            self._forget()
            if file is not None and mine:
                file.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_handles": {}, "_pid": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        _OPEN.add(self)

    def _forget(self) -> None:
        self._file: h5py.File | None = None
        self._handles: dict[tuple[int, int], h5py.Dataset] = {}
        self._pid: int | None = None

    def _read(self, i: int, out: np.ndarray) -> None:
        group, camera, snapshot = self.group[i], self.camera[i], self.snapshot[i]
        handle = self._handle(int(group), int(camera))
        try:
            stored = handle[int(snapshot)][..., 0]
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise DatasetError(
                f"{self._source}: group {self.groups[group]}: '{schema.images_name(camera)}', snapshot "
                f"{snapshot}, is damaged ({one_line(error)}); run 'deepgalaxy check {self._source}'"
            ) from None
        if stored.dtype == np.uint8:
            np.divide(stored, np.float32(255), out=out)
        else:
            out[...] = stored

    def _handle(self, group: int, camera: int) -> h5py.Dataset:
        if self._pid != os.getpid():
            self._forget()
            if self._stat() != self._identity:
                raise DatasetError(f"{self._source}: was changed or removed since it was opened; "
                                   "open it again")
            self._file, self._pid = schema.open_file(self.path), os.getpid()
        handle = self._handles.get((group, camera))
        if handle is None:
            if len(self._handles) >= _MAX_HANDLES:
                self._handles.clear()
            with schema.guard(f"{self._source}: group {self.groups[group]}"):
                parent = self._file[self.groups[group]]
            handle = self._handles[group, camera] = schema.image_set(parent, camera, self._source)
        return handle

    def _stat(self) -> tuple | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def _index(self, file: h5py.File) -> None:
        """Read all labels."""
        published, self.groups = schema.encounters(file, self._source)
        self.published = published
        self.quantity = schema.STRETCHED if published else schema.LOG_SURFACE_DENSITY
        with schema.guard(self._source):
            self.config = schema._text(file.attrs.get("config")) or "{}"
        self.attributes: list[dict] = []
        shapes: set[tuple[int, int]] = set()
        rows = [row for g in range(len(self.groups)) for row in self._index_group(file, g, shapes)]
        if len(shapes) > 1:
            raise DatasetError(f"{self._source}: all images must have the same shape, got {sorted(shapes)}; "
                               "make one file for each")
        self.shape = shapes.pop()

        def column(key: str, dtype: type) -> np.ndarray:
            return np.concatenate([np.broadcast_to(np.asarray(row[key], dtype), row["snapshot"].shape)
                                   for row in rows])

        self.group, self.camera, self.snapshot = (
            column(key, np.int32) for key in ("group", "camera", "snapshot"))
        self.view = np.concatenate([row["view"] for row in rows]).astype(np.float32)
        self.labels = {key: column(key, np.float32) for key in (
            "time", "mass_ratio", "size_ratio", "separation", "pericentre", "pixel_scale")}
        for name in schema.label_attributes():
            of_group = np.array([row.get(name, np.nan) for row in self.attributes], np.float32)
            self.labels[name] = of_group[self.group]
        # A heavier primary's clock runs faster: here all times are those of the reference.
        stars = np.array([row.get("primary_stars", REFERENCE_STARS) for row in self.attributes], float)
        self.labels["time"] *= np.sqrt(stars / REFERENCE_STARS).astype(np.float32)[self.group]
        wrong = {name: np.isinf(values) for name, values in self.labels.items()}  # the loss would be nan
        for name in ("pixel_scale", *(label.column for label in schema.LABELS if label.log)):
            wrong[name] |= self.labels[name] <= 0
        self.labels["stage"] = column("stage", np.uint8)
        unknown = (self.labels["stage"] >= len(STAGES)) & (self.labels["stage"] != NO_STAGE)
        for name, bad in {**wrong, "stage": unknown}.items():
            if bad.any():
                i = int(np.argmax(bad))
                raise DatasetError(f"{self._source}: group {one_line(self.groups[self.group[i]])}, camera "
                                   f"{self.camera[i]}, snapshot {self.snapshot[i]}: "
                                   f"{'t_myr' if name == 'time' else name} = {self.labels[name][i]:g} cannot be; make "
                                   "the file again")
        cosine = np.clip(np.abs(self.view[:, 2]), 0, 1)
        self.labels["view_inclination"] = np.degrees(np.arccos(cosine)).astype(np.float32)

    def _index_group(self, file: h5py.File, g: int, shapes: set) -> list[dict]:
        """One row of labels per camera of a group; notes the shape of its images in `shapes`."""
        source, name = self._source, self.groups[g]
        with schema.guard(f"{source}: group {name}"):
            group = file[name]
        if self.published:
            mass_ratio, size_ratio = schema.published_ratios(name)
            parameters = {"mass_ratio": mass_ratio, "size_ratio": size_ratio, "pericentre": np.nan}
        else:
            parameters = schema.attributes(group, source)
            schema.require_numbers(parameters, name, source)
        self.attributes.append(parameters)
        labels = {key: parameters.get(key, np.nan) for key in schema.REQUIRED_ATTRIBUTES}
        meeting = parameters.get("kind") not in UNDISTURBED
        labels |= {"group": g, "stage": NO_STAGE, "separation": np.nan, "pixel_scale": np.nan}
        rows = []
        for camera in schema.cameras(group, source):
            images = schema.image_set(group, camera, source)
            n = images.shape[0]
            shapes.add(images.shape[1:3])
            row = {**labels, "camera": camera, "snapshot": np.arange(n),
                   "time": schema.table(group, f"t_myr_camera_{camera:02d}", (n,), source)}
            if self.published:
                known = camera < len(schema.PUBLISHED_VIEWS)
                view = schema.PUBLISHED_VIEWS[camera] if known else np.full(3, np.nan)
                row["view"] = np.tile(view, (n, 1))
            else:
                row["pixel_scale"] = schema.table(group, f"pixel_scale_camera_{camera:02d}", (n,), source)
                row["view"] = schema.table(group, f"view_camera_{camera:02d}", (n, 3), source)
                row["stage"] = schema.table(group, "stage", (n,), source)
                separation = schema.table(group, "separation", (n,), source)
                row["separation"] = np.where(separation < 0, np.nan, separation)  # NO_SEPARATION
                if not meeting:
                    row["time"], row["view"] = np.full(n, np.nan), np.full((n, 3), np.nan)
            rows.append(row)
        return rows


# The process that forks closes its files first, holding the lock, so that no handle crosses the fork;
# parent and child open anew when they read.
_LOCK = threading.RLock()
_OPEN: weakref.WeakSet[Dataset] = weakref.WeakSet()


def _before_fork() -> None:
    _LOCK.acquire()
    for dataset in list(_OPEN):
        dataset.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)
