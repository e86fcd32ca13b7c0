"""TIFF, PNG, JPEG, GIF and WebP."""

from __future__ import annotations

import os

import numpy as np

from ..errors import ImageError
from ..progress import one_line
from .picture import MAX_PIXELS, check_shape, colour, inflates_past, picture, quiet, several

__all__ = ["read_raster", "read_tiff"]


def _page(ext, n_pages):
    """Index of the page that is asked for."""
    if ext is None:
        return 0
    if not str(ext).isdecimal() or int(ext) >= n_pages:
        raise ImageError(f"has no image {one_line(str(ext))!r}, only 0 to {n_pages - 1}; leave --ext out")
    return int(ext)


def read_tiff(name, file, ext):
    """Sixteen bits and floats by tifffile; the rest, and what tifffile cannot decode, by Pillow."""
    import tifffile

    try:
        with quiet(tifffile.logger()), tifffile.TiffFile(file) as tiff:
            array, flags = _deep_tiff(tiff, file, ext)
    except ImageError:
        raise
    except Exception:
        array = None
    if array is None:
        file.seek(0)
        return read_raster(name, file, "TIFF", ext)
    return picture(name, array[::-1], flags=flags) if array.ndim == 2 else colour(name, array, flags)


def _deep_tiff(tiff, file, ext):
    """Array (H, W) or (H, W, 3|4), y downwards, of more than 8 bits, else None; flags."""
    page = tiff.pages[_page(ext, len(tiff.pages))]
    flags = several(ext, len(tiff.pages))
    check_shape(page.imagelength, page.imagewidth)
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
        if inflates_past(file.read(count), n_bytes):
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


def read_raster(name, file, kind, ext, head=b""):
    """Whatever Pillow reads. Sixteen-bit grey keeps its depth, all else becomes 8-bit RGB(A)."""
    from PIL import Image, ImageOps

    try:
        image = Image.open(file, formats=[kind])
    except Image.DecompressionBombError as error:
        raise ImageError("claims more than 64 megapixels; cut out the galaxies or bin it") from error
    check_shape(image.height, image.width)
    flags = []
    if kind == "TIFF":
        flags = several(ext, image.n_frames)
        image.seek(_page(ext, image.n_frames))
        check_shape(image.height, image.width)
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
        return picture(name, array[::-1], invalid, flags=flags)
    has_alpha = "a" in image.mode.lower() and image.mode != "LAB" or transparent is not None
    return colour(name, np.asarray(image.convert("RGBA" if has_alpha else "RGB")), flags)
