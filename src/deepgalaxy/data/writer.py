"""Write the file of images: whole or not at all, and resumable encounter by encounter.

The file grows as `suite.h5.partial` and gets its name at the end. HDF5 has no transactions: when the
links of one encounter were flushed straight to the disk in a loop, 2 of 100 kills left a file that
could not be listed, and all was lost. Hence `_Journal`, which changes nothing that is already on the
disk but in one step that is undone or done again after a kill.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ..errors import DatasetError, DeepGalaxyWarning
from . import schema

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None

__all__ = ["CameraImages", "DatasetWriter", "write_dummy_dataset"]

# v108 has checksums on its metadata, unlike the oldest format. v110 marks a file as "open for write":
# killed 15 times in mid-write, 15 times HDF5 refused it for good.
_LIBVER = ("v108", "v110")
_SLACK = 1 << 20  # bytes kept free for the metadata of one group
#: What h5py raises when it reads a damaged file.
_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)
_DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)


@dataclass
class CameraImages:
    """What one camera saw of one encounter at its T snapshots."""

    images: np.ndarray  #: (T, H, W) float16, log10(Msun/kpc^2); 0 where there is no light
    times: np.ndarray  #: (T,) Myr since the first pericentre
    pixel_scale: np.ndarray  #: (T,) kpc per pixel
    view: np.ndarray  #: (T, 3) unit vectors towards the observer in the orbital frame


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
        self._source = schema.one_line(path)
        self._config = config_json
        self._file: h5py.File | None = None
        self._journal: _Journal | None = None
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
            _sync_folder(self.path.parent)
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

    def write_encounter(self, name: str, attributes: dict, cameras: Sequence[CameraImages],
                        stage: np.ndarray, separation: np.ndarray) -> None:
        """Write one encounter, whole and synced to the disk when this returns.

        Parameters
        ----------
        name : str
            Of the group: letters, digits and ``_ . + -``.
        attributes : dict
            Scalars; mass_ratio, size_ratio and pericentre (kpc) must be among them.
        cameras : sequence of CameraImages
            At least one; all of the same T, H and W.
        stage : uint8, shape (T,)
            Index into `schema.STAGES`.
        separation : shape (T,)
            Of the two nuclei, kpc.

        Raises
        ------
        DatasetError
            If a value is not allowed, the name is taken or the disk is full.
        """
        self._check(name, attributes, cameras, stage, separation)
        try:
            self._journal.reserve(sum(2 * np.size(camera.images) + 4096 * len(camera.times)
                                      for camera in cameras))
            group = self._file.create_group(name)
            for key, value in {**attributes, "quantity": schema.LOG_SURFACE_DENSITY}.items():
                _set(group, key, value)
            for c, camera in enumerate(cameras):
                images = np.asarray(camera.images, np.float16)[..., None]
                # A chunk that got lost is then read as NaN, which nobody takes for an empty sky.
                group.create_dataset(schema.images_name(c), data=images, chunks=(1, *images.shape[1:]),
                                     fletcher32=True, fillvalue=np.nan)
                _table(group, f"t_myr_camera_{c:02d}", camera.times, np.float32)
                _table(group, f"pixel_scale_camera_{c:02d}", camera.pixel_scale, np.float32)
                _table(group, f"view_camera_{c:02d}", camera.view, np.float32)
            _table(group, "stage", stage, np.uint8)
            _table(group, "separation", separation, np.float32)
            group.attrs["complete"] = True
            self._file.flush()
            self._journal.commit()
        except (OSError, RuntimeError, ValueError) as error:
            self.close()
            raise self._error(error) from None
        self.done.add(name)

    def _check(self, name, attributes, cameras, stage, separation) -> None:
        where = f"{self._source}: group {schema.one_line(name)}"
        if self._file is None:
            raise DatasetError(f"{where}: the writer is closed; open a new one, it goes on")
        if not schema.ENCOUNTER_NAME.fullmatch(name):
            raise DatasetError(f"{where}: a name must be letters, digits and _ . + -, at most 200")
        if name in self.done:
            raise DatasetError(f"{where}: is written already; skip the names in writer.done")
        for key in schema.REQUIRED_ATTRIBUTES:
            if not (isinstance(attributes.get(key), (int, float, np.number)) and attributes[key] > 0):
                raise DatasetError(f"{where}: attribute '{key}' must be a positive number, "
                                   f"got {attributes.get(key)!r}")
        for key, value in attributes.items():
            scalar = isinstance(value, (str, bool, int, float, np.number, np.bool_))
            if not scalar or key in ("complete", "quantity"):
                raise DatasetError(f"{where}: attribute '{key}' must be a number, a text or a truth "
                                   f"value and not one of the writer's own, got {type(value).__name__}")
        if not cameras or np.ndim(cameras[0].images) != 3 or 0 in np.shape(cameras[0].images):
            raise DatasetError(f"{where}: needs at least one camera with images (T, H, W)")
        shape = np.shape(cameras[0].images)
        arrays = [("stage", stage, shape[:1]), ("separation", separation, shape[:1])]
        for c, camera in enumerate(cameras):
            arrays += [(f"images of camera {c}", camera.images, shape),
                       (f"times of camera {c}", camera.times, shape[:1]),
                       (f"pixel_scale of camera {c}", camera.pixel_scale, shape[:1]),
                       (f"view of camera {c}", camera.view, (shape[0], 3))]
        for what, values, wanted in arrays:
            if np.shape(values) != wanted:
                raise DatasetError(f"{where}: {what} must have shape {wanted}, got {np.shape(values)}")
            if not np.isfinite(values).all():
                raise DatasetError(f"{where}: {what} holds values that are not finite")

    def _resume(self) -> bool:
        """Go on with the partial file; False if it is unreadable and was set aside."""
        self._journal = _Journal(self.partial)
        try:
            self._journal.recover()
            self._file = h5py.File(self._journal, "r+", libver=_LIBVER)
            kind, config = (schema._text(self._file.attrs.get(key)) for key in ("format", "config"))
            if kind != schema.FORMAT:
                raise ValueError("no header")
            if config != self._config or self._file.attrs.get("format_version") != schema.FORMAT_VERSION:
                raise DatasetError(f"{self._source}: {self.partial.name} was begun with another "
                                   "configuration; remove it or choose another name")
            self.done = {name for name in self._file if self._is_whole(name)}
            for name in set(self._file) - self.done:  # the disk has changed what it was given
                del self._file[name]
            self._file.flush()
            self._journal.commit()
        except _ERRORS as error:
            if getattr(error, "errno", None) in _DISK_ERRORS:
                raise
            self.close()
            self.done = set()
            broken = self.partial.with_name(self.partial.name + ".broken")
            os.replace(self.partial, broken)
            warnings.warn(f"{self._source}: the partial file cannot be read "
                          f"({schema.one_line(error)}); kept as {broken.name}, starting anew",
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
            _Journal(self.partial).close()  # refuses if another process writes it
            self.partial.unlink()
        _journal_path(self.partial).unlink(missing_ok=True)
        new = self.partial.with_name(f"{self.partial.name}.{os.getpid()}.new")
        try:
            new.touch()
            self._journal = _Journal(new)
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
        self._journal = _Journal(self.partial)
        self._file = h5py.File(self._journal, "r+", libver=_LIBVER)

    def _error(self, error: Exception) -> DatasetError:
        if isinstance(error, BlockingIOError):
            return DatasetError(f"{self._source}: {self.partial.name} is being written by another process; "
                                "wait for it to end")
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return DatasetError(f"{self._source}: cannot be written ({schema.one_line(reason)}); free space or "
                            "choose another folder and start again, finished encounters are kept")


class _Journal:
    """A file for h5py whose committed bytes change only in `commit`, all of them or none.

    New bytes go to the end of the file at once; changes of old ones wait in memory. `commit` writes
    them to a journal beside the file, then to the file, then removes the journal. After a kill the file
    is as it was at the last commit (with a tail that is cut off), or the journal is whole and applied.
    """

    def __init__(self, path: Path):
        self._path = path
        self._journal = _journal_path(path)
        self._changes: dict[tuple[int, int], bytes] = {}  # (offset, length) -> bytes, oldest first
        self._position = 0
        self._descriptor = os.open(path, os.O_RDWR)
        try:
            self._lock()
        except BaseException:
            self.close()
            raise
        header = os.pread(self._descriptor, 36, 0)
        # Superblock 2: the end of the file as HDF5 knows it. What lies behind was not committed.
        known = len(header) == 36 and header[:9] == b"\x89HDF\r\n\x1a\n\x02"
        size = os.fstat(self._descriptor).st_size
        self._committed = self._size = min(size, int.from_bytes(header[28:], "little")) if known else size

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            return
        mine, now = os.fstat(self._descriptor), os.stat(self._path)
        if (mine.st_dev, mine.st_ino) != (now.st_dev, now.st_ino):
            raise BlockingIOError(errno.EAGAIN, "renamed by its writer")

    def recover(self) -> None:
        """Apply the journal of a commit that was cut short, if it is whole."""
        with suppress(FileNotFoundError):
            blob = self._journal.read_bytes()
            if hashlib.sha256(blob[32:]).digest() == blob[:32]:
                self._size, offset = struct.unpack_from("<Q", blob, 32)[0], 40
                while offset < len(blob):
                    start, length = struct.unpack_from("<QQ", blob, offset)
                    self._changes[start, length] = blob[offset + 16:offset + 16 + length]
                    offset += 16 + length
                self._apply()
            self._journal.unlink()

    def commit(self) -> None:
        os.fsync(self._descriptor)
        if self._changes or self._size != self._committed:
            body = struct.pack("<Q", self._size) + b"".join(
                struct.pack("<QQ", *key) + data for key, data in self._changes.items())
            try:
                with open(self._journal, "wb") as f:
                    f.write(hashlib.sha256(body).digest() + body)
                    f.flush()
                    os.fsync(f.fileno())
            except OSError:
                self._journal.unlink(missing_ok=True)
                raise
            self._apply()
            self._journal.unlink()

    def _apply(self) -> None:
        for (start, _), data in self._changes.items():
            self._pwrite(data, start)
        os.ftruncate(self._descriptor, self._size)
        os.fsync(self._descriptor)
        self._committed = self._size
        self._changes.clear()

    def reserve(self, n_bytes: int) -> None:
        """Take space now: on a full disk HDF5 fails late, and crashes when it closes the file."""
        if not hasattr(os, "posix_fallocate"):  # macOS
            return
        try:
            os.posix_fallocate(self._descriptor, self._size, n_bytes + _SLACK)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            if error.errno in _DISK_ERRORS:
                raise

    def close(self) -> None:
        """Forget what was not committed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _pwrite(self, data: bytes, offset: int) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    # What h5py asks of a file

    def write(self, data: bytes) -> int:
        view, start = memoryview(data).cast("B"), self._position
        n_old = min(max(self._committed - start, 0), len(view))
        if n_old:
            self._changes.pop((start, n_old), None)  # the newest goes last
            self._changes[start, n_old] = bytes(view[:n_old])
        self._pwrite(view[n_old:], start + n_old)
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def readinto(self, buffer: memoryview) -> int:
        view, start = memoryview(buffer).cast("B"), self._position
        stored = os.pread(self._descriptor, len(view), start)
        view[:len(stored)] = stored
        view[len(stored):] = bytes(len(view) - len(stored))
        for (offset, length), data in self._changes.items():
            low, high = max(offset, start), min(offset + length, start + len(view))
            if low < high:
                view[low - start:high - start] = data[low - offset:high - offset]
        self._position += len(view)
        return len(view)

    def read(self, n_bytes: int) -> bytes:
        buffer = bytearray(n_bytes)
        self.readinto(buffer)
        return bytes(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int) -> int:
        self._size = size  # on the disk with the next commit
        return size

    def flush(self) -> None:
        """Nothing: a flush of HDF5 is no commit."""


def _journal_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".journal")


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


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
