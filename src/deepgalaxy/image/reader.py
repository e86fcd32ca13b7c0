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

import io
import math
import os
import stat
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from ..errors import ImageError

__all__ = ["Picture", "from_array", "read"]

MAX_PIXELS = 64 * 2**20     # 8192 x 8192: 256 MiB as float32
MAX_BYTES = 2**30           # of a FITS file after gunzip
MIN_SIDE = 16               # px; below this there is nothing to measure
MAX_ASPECT = 20
DISPLAY_SIDE = 512          # px
MAX_HDUS = 1000             # a file may hold 370,000 empty extensions per GiB, a millisecond each
MAX_PIXEL_SCALE = 600.0     # arcsec; a header that forgets CDELT means 1 degree by default

_MAGIC = {
    b"SIMPLE": "FITS", b"\x1f\x8b": "gzip", b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF", b"GIF89a": "GIF",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"\x89HDF": "an HDF5 file", b"PK": "a zip archive",
    b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive",
}
_SEVERAL = "several images in the file: the first is used; choose with --ext"


@dataclass
class Picture:
    """One image as it was read."""

    name: str                      # the path as given
    pixels: np.ndarray             # (H, W) float32, finite; axis 0 is y, upwards (FITS: origin bottom left)
    mask: np.ndarray               # (H, W) bool, True without a valid value; there pixels hold the median
    display: np.ndarray            # (H', W', 3) uint8, y downwards, at most 512 px on the long side
    arcsec_per_pixel: float | None = None            # from a sound celestial WCS
    flags: list[str] = field(default_factory=list)   # short sentences for a person


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
            return _read_fits(name, _gunzip(file), ext)
        if kind == "FITS":
            return _read_fits(name, file, ext)
        if kind == "TIFF":
            return _read_tiff(name, file, ext)
        return _read_picture(name, file, kind, ext, head)


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
        _check_shape(*array.shape[:2])
        return _picture(name, array) if array.ndim == 2 else _colour(name, array)


# ---- one way out -----------------------------------------------------------------------------------------

@contextmanager
def _one_line_errors(name):
    """Silence warnings, put the file's name before each message, and turn every error into ours."""
    name = _printable(name)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error.__cause__
    except Exception as error:   # astropy, Pillow and tifffile raise a dozen unrelated types
        said = _printable(" ".join(str(error).split()))[:160] or "no reason given"
        raise ImageError(f"{name}: cannot be decoded, it is cut or damaged ({type(error).__name__}: {said}); "
                         "download or write it again") from error


def _printable(text):
    """Escape what would break a line or a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def _quiet(logger):
    """Keep a library's remarks off standard error."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


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


def _check_shape(height, width):
    """Refuse sizes that cannot be measured, before memory is taken."""
    if height < 1 or width < 1:
        raise ImageError(f"is empty ({width} x {height} px); give an image with pixels")
    if height * width > MAX_PIXELS:
        raise ImageError(f"claims {width} x {height} px, more than {MAX_PIXELS / 2**20:.4g} megapixels; "
                         "cut out the galaxies or bin it")
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"has {width} x {height} px, under {MIN_SIDE} px on a side; give a larger cut-out")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(f"has {width} x {height} px, longer than 1:{MAX_ASPECT}; cut out the galaxies")


# ---- from numbers to a picture ---------------------------------------------------------------------------

def _picture(name, values, invalid=None, display=None, scale=None, flags=()):
    """Mask, fill and cast the grey values (y upwards); draw the display if there is none."""
    mask = ~np.isfinite(values)
    if invalid is not None:
        mask |= invalid
    if mask.all():
        raise ImageError("has no valid pixel, all are NaN, blank or transparent; give an image with data")
    flags = list(flags)
    one = values.flat[int(np.argmin(mask))]   # a valid one, to start from
    low, high = (float(f(values, where=~mask, initial=one)) for f in (np.min, np.max))
    peak = max(-low, high)
    if peak >= 1e30:   # the largest numbers of float32, written where there is no value
        strange = ~mask & ((values <= -1e30) | (values >= 1e37))
        if 0 < 2 * strange.sum() < (~mask).sum():
            return _picture(name, values, mask | strange, display, scale, flags)
    if peak > 0 and not 1e-30 < peak < 1e30:   # erg/s, or W/Hz: beyond what float32 holds
        values = values / peak
        flags.append(f"the values were divided by {peak:.3g}")
    pixels = np.array(values, dtype=np.float32, order="C")
    if mask.any():
        pixels[mask] = np.median(pixels[~mask])
        flags.append(f"{100 * mask.mean():.2g} % of the pixels have no value")
    if pixels.min() == pixels.max():
        raise ImageError("is constant, there is no light to measure; give another image")
    display = _stretched(pixels) if display is None else display
    return Picture(name, pixels, mask, _small(display), scale, flags)


def _colour(name, array, flags=()):
    """Grey, mask and display of a colour array (H, W, 3|4), y downwards."""
    rgb = array[..., :3]
    invalid = array[::-1, :, 3] == 0 if array.shape[2] == 4 else None
    display = rgb
    if rgb.dtype != np.uint8:
        finite = np.nan_to_num(rgb.astype(np.float32), nan=0, posinf=0, neginf=0)
        top = 1 if array.dtype.kind in "bf" and finite.max() <= 1 else max(255, finite.max())
        display = np.clip(finite * (255 / top), 0, 255).astype(np.uint8)
    return _picture(name, rgb.mean(axis=2, dtype=np.float32)[::-1], invalid, display, flags=flags)


def _stretched(pixels):
    """Asinh stretch in grey, y downwards: the sky at about a tenth, the brightest 0.2 % white."""
    from PIL import Image

    height, width = pixels.shape
    step = max(1, math.ceil(max(height, width) / DISPLAY_SIDE))
    small = np.asarray(Image.fromarray(pixels).reduce(step))[::-1]
    low, sky, high = np.percentile(small, [1, 50, 99.8])
    if high <= low:
        low, high = small.min(), small.max()
    span = max(float(high) - float(low), 1e-38)
    soft = max(float(sky) - float(low), 0.01 * span)
    grey = np.arcsinh(np.clip((small - low) / soft, 0, span / soft)) / np.arcsinh(span / soft)
    return np.repeat(np.rint(255 * grey).astype(np.uint8)[..., None], 3, axis=2)


def _small(display):
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(display))
    image.thumbnail((DISPLAY_SIDE, DISPLAY_SIDE))
    return np.array(image)


# ---- FITS ------------------------------------------------------------------------------------------------

def _gunzip(file):
    import gzip

    content = io.BytesIO()
    with gzip.open(file) as stream:
        while block := stream.read(2**20):
            if content.tell() == 0 and _kind(block[:32]) != "FITS":
                raise ImageError("is gzipped and holds no FITS; unpack it first")
            if content.tell() + len(block) > MAX_BYTES:
                raise ImageError(f"unpacks to more than {MAX_BYTES / 2**20:.4g} MiB; "
                                 "unpack it and cut out the galaxies")
            content.write(block)
    content.seek(0)
    return content


def _read_fits(name, file, ext):
    from astropy import log
    from astropy.io import fits

    with _quiet(log), fits.open(file, memmap=False, uint=False) as hdus:   # uint=True would skip BLANK
        index, flags = _choose(hdus, ext)
        hdu = hdus[index]
        shape = _image_shape(hdu)
        _check_shape(*shape)
        if isinstance(hdu, fits.CompImageHDU):
            _check_tiles(file, index, hdu.tile_shape)
        values = (_unsigned(file, index, hdu.header) if _is_unsigned(hdu) else hdu.data).reshape(shape)
        scale = _pixel_scale(hdu.header, hdus, flags)
    return _picture(name, values, scale=scale, flags=flags)


def _is_unsigned(hdu) -> bool:
    """64-bit integers that are stored less 2^63, of which a float keeps steps of 1024 only."""
    header = hdu.header
    return header.get("BITPIX") == 64 and header.get("BZERO") == 2**63 and header.get("BSCALE", 1) == 1


def _unsigned(file, index, header):
    """Their values as floats, NaN where the file says BLANK."""
    from astropy.io import fits

    blank = header.get("BLANK")
    file.seek(0)
    with fits.open(file, memmap=False, do_not_scale_image_data=True) as hdus:
        stored = np.asarray(hdus[index].data, np.int64)
    values = (stored.view(np.uint64) ^ np.uint64(2**63)).astype(np.float64)
    return values if blank is None else np.where(stored == blank, np.nan, values)


def _choose(hdus, ext):
    """Index of the image that is asked for, or of the first; flags."""
    seen, images, cubes = [], [], []
    for index in range(MAX_HDUS):
        try:
            hdu = hdus[index]
        except IndexError:
            break
        wanted = ext is None or ext == index or str(ext).strip().upper() in (hdu.name, str(index))
        seen.append(f"{index} {hdu.name}".strip())
        if wanted:
            n_axes = len(_image_shape(hdu))
            images += [index] * (n_axes == 2)
            cubes += [index] * (n_axes > 2)
        if len(images) == 2 or (images and ext is not None):
            break
    if images:
        return images[0], _several(ext, len(images))
    if cubes:
        raise ImageError(f"is a cube of shape {_image_shape(hdus[cubes[0]])}; "
                         "write the plane you want to a file of its own, or choose an image with --ext")
    have = _printable(", ".join(seen[:10]))
    if ext is not None:
        raise ImageError(f"has no image in extension {_printable(str(ext))!r}; it has {have}")
    raise ImageError(f"holds no image, only tables or headers ({have}); give a FITS file with an image")


def _image_shape(hdu):
    """(y, x) of an image, without leading axes of length 1; longer for a cube, () for all else."""
    from astropy.io import fits

    if not isinstance(hdu, fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU) or \
            isinstance(hdu, fits.GroupsHDU):
        return ()
    shape = tuple(int(n) for n in hdu.shape)
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _check_tiles(file, index, tile_shape):
    """Refuse compressed tiles that unpack to more than a tile: astropy puts no bound on gzip."""
    from astropy.io import fits

    n_pixels = math.prod(int(n) for n in tile_shape)
    if n_pixels > MAX_PIXELS:
        raise ImageError("claims compressed tiles of over 64 megapixels; write it again uncompressed")
    file.seek(0)
    table = fits.open(file, memmap=False, disable_image_compression=True)[index]   # not closed: it is shared
    for column in {"COMPRESSED_DATA", "GZIP_COMPRESSED_DATA"} & set(table.columns.names):
        for tile in table.data[column]:
            tile = bytes(tile)
            if tile[:2] == b"\x1f\x8b" and _inflates_past(tile, 8 * n_pixels, wbits=31):
                raise ImageError("has a compressed tile larger than it claims; write it again")


def _inflates_past(data, limit, wbits=15):
    return len(zlib.decompressobj(wbits).decompress(data, limit + 1)) > limit


def _pixel_scale(header, hdus, flags):
    """Arcsec per pixel of a celestial WCS whose pixels are square within 2 %, else None."""
    from astropy.wcs import WCS
    from astropy.wcs.utils import proj_plane_pixel_area, proj_plane_pixel_scales

    if not any(str(header.get(f"CTYPE{i}", "")).strip() for i in (1, 2)):
        return None
    try:
        sky = WCS(header, fobj=hdus).celestial
        x, y = 3600 * proj_plane_pixel_scales(sky)
        side = 3600 * math.sqrt(proj_plane_pixel_area(sky))   # smaller where the axes are not at right angles
    except Exception:   # wcslib and astropy raise many types
        x = y = side = math.nan
    scale = float(x + y) / 2
    if 0 < scale < MAX_PIXEL_SCALE and abs(x - y) <= 0.02 * scale and abs(side - scale) <= 0.02 * scale:
        return scale
    flags.append("the WCS gives no single pixel scale and is not used")
    return None


# ---- TIFF, PNG, JPEG, GIF, WebP --------------------------------------------------------------------------

def _page(ext, n_pages):
    """Index of the page that is asked for."""
    if ext is None:
        return 0
    if not str(ext).isdecimal() or int(ext) >= n_pages:
        raise ImageError(f"has no image {_printable(str(ext))!r}, only 0 to {n_pages - 1}; leave --ext out")
    return int(ext)


def _read_tiff(name, file, ext):
    """Sixteen bits and floats by tifffile; the rest, and what tifffile cannot decode, by Pillow."""
    import tifffile

    try:
        with _quiet(tifffile.logger()), tifffile.TiffFile(file) as tiff:
            array, flags = _deep_tiff(tiff, file, ext)
    except ImageError:
        raise
    except Exception:
        array = None
    if array is None:
        file.seek(0)
        return _read_picture(name, file, "TIFF", ext)
    return _picture(name, array[::-1], flags=flags) if array.ndim == 2 else _colour(name, array, flags)


def _deep_tiff(tiff, file, ext):
    """Array (H, W) or (H, W, 3|4), y downwards, of more than 8 bits, else None; flags."""
    page = tiff.pages[_page(ext, len(tiff.pages))]
    flags = _several(ext, len(tiff.pages))
    _check_shape(page.imagelength, page.imagewidth)
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if any(offset + count > os.fstat(file.fileno()).st_size for offset, count in segments):
        raise ImageError("is cut, the TIFF promises more data than there is; download or write it again")
    deep = page.dtype is not None and page.dtype.kind in "uif" and page.dtype.itemsize > 1
    if not deep or page.compression not in (1, 8, 32773, 32946):   # none, deflate, packbits: bounded below
        return None, flags
    n_bytes = page.dtype.itemsize * page.samplesperpixel * (
        page.tilewidth * page.tilelength if page.is_tiled else MAX_PIXELS)
    for offset, count in segments if page.compression in (8, 32946) else ():
        file.seek(offset)
        if _inflates_past(file.read(count), n_bytes):
            raise ImageError("has compressed strips larger than they claim; write it again")
    if page.axes not in ("YX", "YXS", "SYX") or page.samplesperpixel not in (1, 2, 3, 4):
        raise ImageError(f"is a TIFF with axes {page.axes}; write one plane to a file of its own")
    array = page.asarray()
    array = np.moveaxis(array, 0, -1) if page.axes == "SYX" else array
    if array.ndim == 3 and array.shape[2] < 3:   # grey and alpha
        array = np.repeat(array[..., :1], 3, axis=2) if array.shape[2] == 1 else array[..., [0, 0, 0, 1]]
    if page.photometric == 0 and array.dtype.kind == "u":   # white is zero
        array = np.iinfo(array.dtype).max - array
    tag = page.tags.get(274)
    return _oriented(array, tag.value if tag else 1), flags


def _oriented(array, orientation):
    """Apply the EXIF orientation 1 to 8."""
    array = array.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else array
    array = array[::-1] if orientation in (3, 4, 7, 8) else array
    return array[:, ::-1] if orientation in (2, 3, 6, 7) else array


def _several(ext, n_pages):
    return [_SEVERAL] if n_pages > 1 and ext is None else []


def _read_picture(name, file, kind, ext, head=b""):
    """Whatever Pillow reads. Sixteen-bit grey keeps its depth, all else becomes 8-bit RGB(A)."""
    from PIL import Image, ImageOps

    try:
        image = Image.open(file, formats=[kind])
    except Image.DecompressionBombError as error:
        raise ImageError("claims more than 64 megapixels; cut out the galaxies or bin it") from error
    _check_shape(image.height, image.width)
    flags = []
    if kind == "TIFF":
        flags = _several(ext, image.n_frames)
        image.seek(_page(ext, image.n_frames))
        _check_shape(image.height, image.width)
    elif _page(ext, 1) == 0 and getattr(image, "is_animated", False) and kind != "JPEG":
        flags.append("animated: the first frame is used")
    if kind == "PNG" and head[24] == 16 and head[25] != 0:
        flags.append("16-bit colour PNG, read with 8 bits; a TIFF or FITS would keep them")
    if kind == "TIFF" and max(image.tag_v2.get(258, (8,))) > 8 and image.mode in ("RGB", "RGBA", "LA"):
        flags.append("16-bit colour TIFF in a compression that is read with 8 bits; without compression it keeps them")
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:
        flags.append("its EXIF is damaged: taken as it lies")
    transparent = image.info.get("transparency")
    if image.mode.startswith("I") or image.mode == "F":
        array = np.asarray(image)
        invalid = (array == transparent)[::-1] if isinstance(transparent, int) else None
        return _picture(name, array[::-1], invalid, flags=flags)
    has_alpha = "a" in image.mode.lower() and image.mode != "LAB" or transparent is not None
    return _colour(name, np.asarray(image.convert("RGBA" if has_alpha else "RGB")), flags)
