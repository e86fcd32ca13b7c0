"""A file under HDF5 that a kill leaves as it was at the last commit.

HDF5 has no transactions: when the links of one encounter were flushed straight to the disk in a loop,
2 of 100 kills left a file that could not be listed, and all was lost.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from contextlib import suppress
from pathlib import Path

from ..files import lock

__all__ = ["DISK_ERRORS", "Journal", "journal_path"]

_SLACK = 1 << 20  # bytes kept free for the metadata of one group
DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)


class Journal:
    """A file for h5py whose committed bytes change only in `commit`, all of them or none.

    New bytes go to the end of the file at once; changes of old ones wait in memory. `commit` writes
    them to a journal beside the file, then to the file, then removes the journal. After a kill the file
    is as it was at the last commit (with a tail that is cut off), or the journal is whole and applied.
    """

    def __init__(self, path: Path):
        self._path = path
        self._journal = journal_path(path)
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
        if not lock(self._descriptor):
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
            if error.errno in DISK_ERRORS:
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


def journal_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".journal")
