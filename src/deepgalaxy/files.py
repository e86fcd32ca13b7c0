"""Where files are; and HDF5 files that are whole or not there, and show when any byte of them has changed.

A checksum of all that HDF5 wrote stands in the block before it. It is looked at before HDF5 sees the file,
because damaged text can crash the whole process there.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import time
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path

import h5py
import numpy as np

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None

__all__ = ["BrokenSeal", "has_seal", "keep_others_out", "lock", "open_sealed", "read_arrays", "sealed_hdf5",
           "sha256_of", "shipped", "sync_folder", "temporary_beside", "write_whole"]

_BLOCK = 512  # bytes before the content, where HDF5 lets others write (its "user block")
_MARK = b"sha256 of what follows byte 512: "


def lock(descriptor: int) -> bool:
    """Keep an open file or folder to this process until it is closed; False where there are no locks.

    Raises
    ------
    BlockingIOError
        If another one has it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
    return True


@contextmanager
def keep_others_out(folder: str | Path, error: type[Exception], busy: str, name: str = "", seconds: float = 0.0):
    """Keep a folder, which is made if it is not there, to this process meanwhile.

    Parameters
    ----------
    error : what is raised if another one has it, with `busy` after the name, or if it cannot be made.
    name : of the folder, for people; its path without it.
    seconds : to wait for another one, which may be ending.
    """
    name = name or str(folder)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        descriptor = None if os.name == "nt" else os.open(folder, os.O_RDONLY)  # Windows opens no folder
    except OSError as problem:
        raise error(f"{name}: cannot be written ({problem.strerror}); choose another folder") from None
    if descriptor is None:
        yield
        return
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                lock(descriptor)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise error(f"{name}: {busy}") from None
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def sha256_of(path: str | Path) -> str:
    """Of a whole file, in hexadecimal."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class BrokenSeal(OSError):
    """A file without a checksum, or with one that does not fit."""


@contextmanager
def sealed_hdf5(path: str | Path):
    """An h5py.File to write to; it gets its name, synced, once all is written, and vanishes if something fails.

    Raises
    ------
    OSError
        If it cannot be written; the file that was there before is still whole.
    """
    content = io.BytesIO()  # in memory first: on a full disk HDF5 crashes when it closes a file
    with h5py.File(content, "w", userblock_size=_BLOCK) as f:
        yield f
    content.seek(0)
    content.write(_head(hashlib.sha256(content.getbuffer()[_BLOCK:])))
    write_whole(path, content.getbuffer())


@contextmanager
def open_sealed(path: str | Path):
    """An h5py.File to read from.

    Raises
    ------
    BrokenSeal
        If its checksum is missing or does not fit.
    """
    with open(path, "rb") as f:
        if f.read(_BLOCK) != _head(hashlib.file_digest(f, "sha256")):
            raise BrokenSeal("its checksum is missing or does not fit")
    with h5py.File(path, "r") as f:
        yield f


def read_arrays(f: h5py.File, names) -> dict[str, np.ndarray]:
    """Arrays of an open file, each of which lies in it and is as large as it claims to be.

    Raises
    ------
    OSError
        Naming the first that is missing, lies in another file, or claims more than this one holds.
    """
    for name in names:
        inside = isinstance(f.get(name, getlink=True), h5py.HardLink) and isinstance(f[name], h5py.Dataset)
        if not inside or f[name].is_virtual or f[name].external:
            raise OSError(f"'{name}' is missing or lies outside the file")
        if f[name].id.get_storage_size() < f[name].nbytes:
            raise OSError(f"'{name}' claims more than the file holds")
    return {name: f[name][()] for name in names}


def has_seal(path: str | Path) -> bool:
    """Does the file carry a checksum, right or wrong?"""
    with open(path, "rb") as f:
        return f.read(len(_MARK)) == _MARK


def _head(digest) -> bytes:
    """The block that belongs before what has this digest."""
    return (_MARK + digest.hexdigest().encode() + b"\n").ljust(_BLOCK, b"\0")


def shipped(name: str) -> Path:
    """Path of a file that ships with the package: model.safetensors or library.h5."""
    return Path(str(resources.files("deepgalaxy") / "shipped" / name))


def write_whole(path: str | Path, data: str | bytes | memoryview) -> None:
    """Write a file, whole or not at all, and synced; a pipe or device is written to as it is.

    Raises
    ------
    OSError
        If it cannot be written; the file that was there before is still whole.
    """
    path, data = Path(path), data.encode() if isinstance(data, str) else data
    if path.is_dir() or not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    temporary = temporary_beside(path)
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def temporary_beside(path: Path) -> Path:
    """A name that nobody else uses, also on another machine; what is left behind is known by its `.tmp`."""
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")


def sync_folder(folder: str | Path) -> None:
    """The names in a folder to the disk, where the system lets one."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
