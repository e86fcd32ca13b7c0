"""Read one picture of the sky, whatever it came as.

FITS (plain, gzipped, tile-compressed), TIFF, PNG, JPEG, GIF and WebP become one :class:`Picture`: grey
numbers with y upwards, a mask, something to show, and the pixel scale where the file knows it. The format
is decided by the first bytes, never by the extension, and sizes are checked in the header before memory is
taken. Whatever is wrong ends as an :class:`~deepgalaxy.errors.ImageError` of one line:
"<file>: what is wrong; what to do".

Colour becomes grey by the plain mean of the channels as they are stored. Undoing a display gamma is not
tried: press images are asinh-stretched by hand, the stretch is unknown, and what comes after has an asinh
normalisation of its own.
"""

from __future__ import annotations

import os
import stat
import warnings
from contextlib import contextmanager

import numpy as np

from ..errors import ImageError
from ..progress import one_line
from .fits import gunzip, read_fits
from .picture import Picture, check_shape, colour, picture
from .raster import read_raster, read_tiff

__all__ = ["Picture", "from_array", "read"]

_MAGIC = {
    b"SIMPLE": "FITS", b"\x1f\x8b": "gzip", b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF", b"GIF89a": "GIF",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"\x89HDF": "an HDF5 file", b"PK": "a zip archive",
    b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive",
}


def read(path, ext: int | str | None = None) -> Picture:
    """Read an image file.

    Parameters
    ----------
    path : str or path
    ext : int or str, optional
        FITS extension by number (0 is the primary) or name; page of a TIFF by number.

    Returns
    -------
    Picture

    Raises
    ------
    ImageError
        If the file cannot be read, is too large or too small, or holds no light.
    """
    name = os.fsdecode(path)
    with _one_line_errors(name), _open_regular(name) as file:
        head = file.read(32)
        file.seek(0)
        kind = _kind(head)
        if kind == "gzip":
            return read_fits(name, gunzip(file), ext)
        if kind == "FITS":
            return read_fits(name, file, ext)
        if kind == "TIFF":
            return read_tiff(name, file, ext)
        return read_raster(name, file, kind, ext, head)


def from_array(array, name: str = "array") -> Picture:
    """Make a picture of numbers in memory.

    Parameters
    ----------
    array : (H, W) or (H, W, 3|4)
        Two axes are taken as in FITS, y upwards; NaN, infinite and masked values are masked. Three axes are
        a colour picture, y downwards; where a fourth channel (alpha) is 0 the pixel is masked.
    name : str
        For messages.

    Returns
    -------
    Picture

    Raises
    ------
    ImageError
        If the shape or the type does not fit, or there is no light.
    """
    with _one_line_errors(name):
        if isinstance(array, np.ma.MaskedArray):
            array = array.astype(np.float64).filled(np.nan)
        array = np.asarray(array)
        if array.dtype.kind not in "buif":
            raise ImageError(f"holds {array.dtype}, not real numbers; give integers or floats")
        if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
            raise ImageError(f"has shape {array.shape}; give (H, W), or (H, W, 3 or 4) for colour")
        check_shape(*array.shape[:2])
        return picture(name, array) if array.ndim == 2 else colour(name, array)


@contextmanager
def _one_line_errors(name):
    """Silence warnings, put the file's name before each message, and turn every error into ours."""
    name = one_line(name)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error.__cause__
    except Exception as error:   # astropy, Pillow and tifffile raise a dozen unrelated types
        said = one_line(" ".join(str(error).split()))[:160] or "no reason given"
        raise ImageError(f"{name}: cannot be decoded, it is cut or damaged ({type(error).__name__}: {said}); "
                         "download or write it again") from error


def _open_regular(path):
    """Open a file, but never wait on a FIFO or read a device."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("there is no such file; check the name") from None
    except (OSError, ValueError) as error:   # a loop of links, a NUL in the name, no permission
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"cannot be opened ({reason}); check the name") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError("is a directory; name the image files in it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("is not a regular file; copy its content to one first")
    if status.st_size == 0:
        raise ImageError("is empty (0 bytes); download or write it again")
    try:
        return open(path, "rb")
    except OSError as error:
        raise ImageError(f"cannot be opened ({error.strerror}); check its permissions") from error


def _kind(head):
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if kind is None and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ImageError("is an HTML or XML page, not an image; download the image itself")
    if kind is None:
        raise ImageError("is no FITS, TIFF, PNG, JPEG, GIF or WebP image; convert it to one of these")
    if " " in kind:
        raise ImageError(f"is {kind}, not an image; take the image out of it first")
    return kind
