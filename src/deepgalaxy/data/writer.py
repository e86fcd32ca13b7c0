"""Write the file of images: whole or not at all, and resumable encounter by encounter.

The file grows as `suite.h5.partial` and gets its name at the end. `Journal` changes nothing that is
already on the disk but in one step that is undone or done again after a kill. Images go to the disk as
they come, so that memory never holds more than a few.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np

from ..errors import DatasetError, DeepGalaxyWarning
from ..files import sync_folder, temporary_beside
from ..image.view import CameraImages
from ..labels import ENCOUNTER_NAME
from ..progress import one_line
from . import schema
from .journal import DISK_ERRORS, Journal, journal_path

__all__ = ["DatasetWriter", "extend_dataset", "write_dummy_dataset"]

# v108 has checksums on its metadata, unlike the oldest format. v110 marks a file as "open for write":
# killed 15 times in mid-write, 15 times HDF5 refused it for good.
_LIBVER = ("v108", "v110")
#: What h5py raises when it reads a damaged file.
_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)


class DatasetWriter:
    """Writes encounters one by one; the file appears under its name when all went well.

    Parameters
    ----------
    path : str or Path
        The data set to make; until then its encounters gather in `path` + ".partial".
    config_json : str
        The configuration that makes it; a partial file of another configuration is refused.
    resume : bool
        Go on from a partial file; otherwise it is overwritten.

    Raises
    ------
    DatasetError
        If the folder is missing or read-only, the disk is full, or another process writes the file.

    Examples
    --------
    >>> with DatasetWriter("suite.h5", config.to_json()) as writer:
    ...     for encounter in encounters:
    ...         if encounter.name not in writer.done:
    ...             writer.write_encounter(encounter.name, parameters, cameras, stage, separation)
    """

    def __init__(self, path: str | Path, config_json: str, resume: bool = True):
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.done: set[str] = set()  #: names of the encounters that are whole in the file
        self._source = one_line(path)
        self._config = config_json
        self._file: h5py.File | None = None
        self._journal: Journal | None = None
        if not self.path.parent.is_dir():
            raise DatasetError(f"{self._source}: the folder does not exist; make it first")
        if self.path.is_dir():
            raise DatasetError(f"{self._source}: is a folder; choose another name")
        try:
            if not (resume and self.partial.exists() and self._resume()):
                self._start()
        except (OSError, RuntimeError, ValueError) as error:
            self.close()
            raise self._error(error) from None
        except DatasetError:
            self.close()
            raise

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None or not self.done:
            self.close()
        if kind is not None:
            return
        if not self.done:
            raise DatasetError(f"{self._source}: no encounter was written; a data set needs at least one")
        try:
            self._file.close()
            self._journal.commit()
            os.replace(self.partial, self.path)
            sync_folder(self.path.parent)
        except (OSError, RuntimeError, ValueError) as error:
            raise self._error(error) from None
        finally:
            self.close()

    def close(self) -> None:
        """Stop; the encounters that are whole stay in the partial file for the next run."""
        if self._file is not None:
            with suppress(Exception):
                self._file.close()
        if self._journal is not None:
            self._journal.close()
        self._file = self._journal = None

    def attributes(self, name: str) -> dict:
        """Those of an encounter that is whole in the file."""
        return schema.attributes(self._file[name], self._source)

    def write_encounter(self, name: str, attributes: dict, cameras: Sequence[CameraImages],
                        stage: np.ndarray, separation: np.ndarray) -> None:
        """Write one encounter, whole and synced to the disk when this returns; for the arguments see `encounter`."""
        shape = np.shape(cameras[0].images) if len(cameras) else ()
        if len(shape) == 3:
            self._check_cameras(f"{self._source}: group {one_line(name)}", cameras, len(cameras), 0, shape)
        with self.encounter(name, attributes, len(cameras), shape, stage, separation) as write:
            write(0, cameras)

    @contextmanager
    def encounter(self, name: str, attributes: dict, n_cameras: int, shape: tuple[int, int, int], stage: np.ndarray,
                  separation: np.ndarray) -> Iterator[Callable[[int, Sequence[CameraImages]], None]]:
        """Write one encounter piece by piece; it is whole and synced to the disk at the end of the block.

        Parameters
        ----------
        name : str
            Of the group: letters, digits and ``_ . + -``.
        attributes : dict
            Scalars; mass_ratio, size_ratio and pericentre (kpc) must be among them.
        n_cameras : int
            At least one.
        shape : (T, H, W)
            Of the images of one camera.
        stage : uint8, shape (T,)
            Index into `schema.STAGES`.
        separation : shape (T,)
            Of the two nuclei, kpc.

        Yields
        ------
        write : takes the number of a snapshot, and for every camera what it saw from there on.

        Raises
        ------
        DatasetError
            If a value is not allowed, a snapshot is missing, the name is taken or the disk is full.
        """
        where = f"{self._source}: group {one_line(name)}"
        self._check(where, name, attributes, n_cameras, shape, stage, separation)
        n = shape[0]
        times, pixel_scale = np.full((2, n_cameras, n), np.nan, np.float32)
        view = np.full((n_cameras, n, 3), np.nan, np.float32)

        def write(first: int, cameras: Sequence[CameraImages]) -> None:
            self._check_cameras(where, cameras, n_cameras, first, shape)
            here = slice(first, first + len(cameras[0].times))
            for c, camera in enumerate(cameras):
                with self._writing():
                    group[schema.images_name(c)][here] = np.asarray(camera.images, np.float16)[..., None]
                times[c, here], pixel_scale[c, here], view[c, here] = camera.times, camera.pixel_scale, camera.view

        with self._writing():
            self._journal.reserve(n_cameras * (2 * int(np.prod(shape)) + 4096 * n))
            group = self._file.create_group(name)
            for key, value in {**attributes, "quantity": schema.LOG_SURFACE_DENSITY}.items():
                _set(group, key, value)
            for c in range(n_cameras):
                # A chunk that got lost is then read as NaN, which nobody takes for an empty sky.
                group.create_dataset(schema.images_name(c), (*shape, 1), np.float16, chunks=(1, *shape[1:], 1),
                                     fletcher32=True, fillvalue=np.nan)
        try:
            yield write
            missing = np.flatnonzero(np.isnan(times).any(axis=0))
            if len(missing):
                raise DatasetError(f"{where}: snapshot {missing[0]} was not written; write all {n}")
        except BaseException:
            with suppress(Exception):  # others can still be written
                del self._file[name]
            raise
        with self._writing():
            for c in range(n_cameras):
                _table(group, f"t_myr_camera_{c:02d}", times[c], np.float32)
                _table(group, f"pixel_scale_camera_{c:02d}", pixel_scale[c], np.float32)
                _table(group, f"view_camera_{c:02d}", view[c], np.float32)
            _table(group, "stage", stage, np.uint8)
            _table(group, "separation", separation, np.float32)
            group.attrs["complete"] = True
            self._file.flush()
            self._journal.commit()
        self.done.add(name)

    @contextmanager
    def _writing(self):
        """What goes wrong here is the disk's fault; nothing can be written after it."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            self.close()
            raise self._error(error) from None

    def _check(self, where, name, attributes, n_cameras, shape, stage, separation) -> None:
        if self._file is None:
            raise DatasetError(f"{where}: the writer is closed; open a new one, it goes on")
        if not re.fullmatch(ENCOUNTER_NAME, name):
            raise DatasetError(f"{where}: a name must be letters, digits and _ . + -, at most 200")
        if name in self.done:
            raise DatasetError(f"{where}: is written already; skip the names in writer.done")
        needed = schema.REQUIRED_ATTRIBUTES if attributes.get("kind", "encounter") == "encounter" else ()
        for key in schema.POSITIVE_ATTRIBUTES:
            if (key in needed or key in attributes) and not (
                    isinstance(attributes.get(key), (int, float, np.number)) and 0 < attributes[key] < np.inf):
                raise DatasetError(f"{where}: attribute '{key}' must be a positive number, "
                                   f"got {attributes.get(key)!r}")
        for key, value in attributes.items():
            scalar = isinstance(value, (str, bool, int, float, np.number, np.bool_))
            if not scalar or key in ("complete", "quantity"):
                raise DatasetError(f"{where}: attribute '{key}' must be a number, a text or a truth "
                                   f"value and not one of the writer's own, got {type(value).__name__}")
        if n_cameras < 1 or len(shape) != 3 or 0 in shape:
            raise DatasetError(f"{where}: needs at least one camera with images (T, H, W)")
        if shape[1] != shape[2]:
            raise DatasetError(f"{where}: images must be square, got {shape[1]} x {shape[2]} pixels; cut or pad them")
        self._check_arrays(where, [("stage", stage, shape[:1]), ("separation", separation, shape[:1])])

    def _check_cameras(self, where, cameras, n_cameras, first, shape) -> None:
        if len(cameras) != n_cameras:
            raise DatasetError(f"{where}: got {len(cameras)} cameras, {n_cameras} were announced")
        n = len(cameras[0].times)
        if not 0 <= first <= first + n <= shape[0]:
            raise DatasetError(f"{where}: snapshots {first} to {first + n - 1} do not exist, there are {shape[0]}")
        for c, camera in enumerate(cameras):
            self._check_arrays(where, [(f"images of camera {c}", camera.images, (n, *shape[1:])),
                                       (f"times of camera {c}", camera.times, (n,)),
                                       (f"pixel_scale of camera {c}", camera.pixel_scale, (n,)),
                                       (f"view of camera {c}", camera.view, (n, 3))])

    @staticmethod
    def _check_arrays(where, arrays) -> None:
        for what, values, wanted in arrays:
            if np.shape(values) != wanted:
                raise DatasetError(f"{where}: {what} must have shape {wanted}, got {np.shape(values)}")
            if not np.isfinite(values).all():
                raise DatasetError(f"{where}: {what} holds values that are not finite")

    def _resume(self) -> bool:
        """Go on with the partial file; False if it is to be begun anew, set aside where it is unreadable."""
        self._journal = Journal(self.partial)
        try:
            self._journal.recover()
            self._file = h5py.File(self._journal, "r+", libver=_LIBVER)
            kind, config = (schema._text(self._file.attrs.get(key)) for key in ("format", "config"))
            if kind != schema.FORMAT:
                raise ValueError("no header")
            self.done = {name for name in self._file if self._is_whole(name)}
            if config != self._config or self._file.attrs.get("format_version") != schema.FORMAT_VERSION:
                if not self.done:  # nothing could be made of what there was then
                    self.close()
                    return False
                raise DatasetError(f"{self._source}: {self.partial.name} was begun with another "
                                   "configuration; remove it or choose another name")
            for name in set(self._file) - self.done:  # the disk has changed what it was given
                del self._file[name]
            self._file.flush()
            self._journal.commit()
        except _ERRORS as error:
            if getattr(error, "errno", None) in DISK_ERRORS:
                raise
            self.close()
            self.done = set()
            broken = self.partial.with_name(self.partial.name + ".broken")
            os.replace(self.partial, broken)
            warnings.warn(f"{self._source}: the partial file cannot be read "
                          f"({one_line(error)}); kept as {broken.name}, starting anew",
                          DeepGalaxyWarning, stacklevel=4)
            return False
        return True

    def _is_whole(self, name: str) -> bool:
        problems: list[str] = []
        try:
            schema.check_group(self._file[name], False, self._source, problems.append)
        except (DatasetError, *_ERRORS):
            return False
        return not problems

    def _start(self) -> None:
        """Make an empty partial file, under its name once its header is whole."""
        from .. import __version__

        if self.partial.exists():
            Journal(self.partial).close()  # refuses if another process writes it
            self.partial.unlink()
        journal_path(self.partial).unlink(missing_ok=True)
        new = temporary_beside(self.partial)
        try:
            new.touch()
            self._journal = Journal(new)
            self._journal.reserve(len(self._config))
            with h5py.File(self._journal, "w", libver=_LIBVER) as f:
                header = {"format": schema.FORMAT, "format_version": schema.FORMAT_VERSION,
                          "deepgalaxy_version": __version__, "config": self._config,
                          "units": json.dumps(schema.UNITS)}
                for key, value in header.items():
                    _set(f, key, value)
            self._journal.commit()
            self._journal.close()
            os.replace(new, self.partial)
        finally:
            new.unlink(missing_ok=True)
        self._journal = Journal(self.partial)
        self._file = h5py.File(self._journal, "r+", libver=_LIBVER)

    def _error(self, error: Exception) -> DatasetError:
        if isinstance(error, BlockingIOError):
            return DatasetError(f"{self._source}: {self.partial.name} is being written by another process; "
                                "wait for it to end")
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return DatasetError(f"{self._source}: cannot be written ({one_line(reason)}); free space or "
                            "choose another folder and start again, finished encounters are kept")


def extend_dataset(path: str | Path) -> None:
    """Let the next writer of this finished data set begin with what it holds; the file stays whole until that ends.

    Raises
    ------
    DatasetError
        If the disk is full.
    """
    path = Path(path)
    new = temporary_beside(path)
    try:
        shutil.copyfile(path, new)
        os.replace(new, path.with_name(path.name + ".partial"))
    except OSError as error:
        raise DatasetError(f"{one_line(path)}: cannot be extended ({error.strerror}): its "
                           f"{path.stat().st_size / 1e9:.1f} GB are copied first; free space, or render the new "
                           "encounters into a file of their own") from None
    finally:
        new.unlink(missing_ok=True)


def write_dummy_dataset(path: str | Path, n_encounters: int = 2, n_snapshots: int = 3, n_cameras: int = 2,
                        n_pixels: int = 32, published: bool = False, seed: int = 0) -> Path:
    """Write a tiny legal data set: two Gaussian blobs whose distance depends on the time.

    Parameters
    ----------
    published : bool
        Lay it out as the published DeepGalaxy files (at most 36 encounters, no attributes).

    Returns
    -------
    path : Path
    """
    rng = np.random.default_rng(seed)
    path = Path(path)
    grid = [(s, m) for s in np.arange(1, 7) / 4 for m in np.arange(1, 7) / 4]
    times = np.linspace(-100, 400, n_snapshots)
    separation = 5 + 30 * np.abs(np.sin(times / 150)) * np.exp(-times / 400)
    stage = np.where(times < 0, 0, np.where(times < 235, 1, 2)).astype(np.uint8)
    encounters = []
    for e in range(n_encounters):
        size, mass = grid[int(rng.integers(36))] if not published else grid[e]
        views = schema.PUBLISHED_VIEWS[np.arange(n_cameras) % 14]
        cameras = [CameraImages(
            images=_blobs(separation, view, 150 / n_pixels, n_pixels, mass, size), times=times,
            pixel_scale=np.full(n_snapshots, 150 / n_pixels, np.float32),
            view=np.tile(view, (n_snapshots, 1))) for view in views]
        encounters.append((size, mass, cameras))
    if published:
        new = path.with_name(path.name + ".new")
        with h5py.File(new, "w") as f:
            for size, mass, cameras in encounters:
                group = f.create_group(f"s_{size:.2f}_m_{mass:.2f}")
                for c, camera in enumerate(cameras):
                    group[schema.images_name(c)] = (camera.images / 12).astype(np.float16)[..., None]
                    group[f"t_myr_camera_{c:02d}"] = camera.times
        os.replace(new, path)
        return path
    with DatasetWriter(path, json.dumps({"dummy": True, "seed": seed}), resume=False) as writer:
        for e, (size, mass, cameras) in enumerate(encounters):
            parameters = {"mass_ratio": float(mass), "size_ratio": float(size),
                          "pericentre": float(rng.uniform(5, 25))}
            writer.write_encounter(f"encounter_{e:04d}", parameters, cameras, stage, separation)
    return path


def _blobs(separation, view, pixel_scale, n_pixels, mass, size) -> np.ndarray:
    """(T, n_pixels, n_pixels) float16, log10(Msun/kpc^2) of two Gaussians in the field of view."""
    axis = (np.arange(n_pixels) - (n_pixels - 1) / 2) * pixel_scale
    y, x = np.meshgrid(axis, axis, indexing="ij")
    shift = separation * np.sqrt(max(1 - float(view[0]) ** 2, 0.05)) / 2  # the pair lies along x
    log = np.empty((len(separation), n_pixels, n_pixels))
    for t, d in enumerate(shift):
        density = 1e9 * np.exp(-((x + d) ** 2 + y**2) / 2 / 6**2)
        density += 1e9 * mass / size**2 * np.exp(-((x - d) ** 2 + y**2) / 2 / (6 * size) ** 2)
        log[t] = np.where(density > 1e3, np.log10(np.maximum(density, 1e3)), 0)
    return log.astype(np.float16)


def _table(group: h5py.Group, name: str, values: np.ndarray, dtype: type) -> None:
    values = np.asarray(values, dtype)
    group.create_dataset(name, data=values, chunks=values.shape, fletcher32=True)


def _set(target: h5py.Group, key: str, value: object) -> None:
    # Text of fixed length lies in the checksummed header; of variable length, in a heap without checksum.
    if isinstance(value, str):
        data = value.encode()
        target.attrs.create(key, np.bytes_(data), dtype=h5py.string_dtype("utf-8", max(len(data), 1)))
    else:
        target.attrs[key] = value
