"""FITS: plain, gzipped, tile-compressed."""

from __future__ import annotations

import io
import math

import numpy as np

from ..errors import ImageError
from ..progress import one_line
from .picture import MAX_PIXELS, check_shape, inflates_past, picture, quiet, several

__all__ = ["gunzip", "read_fits"]

MAX_BYTES = 2**30           # of a FITS file after gunzip
MAX_HDUS = 1000             # a file may hold 370,000 empty extensions per GiB, a millisecond each
MAX_PIXEL_SCALE = 600.0     # arcsec; a header that forgets CDELT means 1 degree by default


def gunzip(file):
    import gzip

    content = io.BytesIO()
    with gzip.open(file) as stream:
        while block := stream.read(2**20):
            if content.tell() == 0 and not block.startswith(b"SIMPLE"):
                raise ImageError("is gzipped and holds no FITS; unpack it first")
            if content.tell() + len(block) > MAX_BYTES:
                raise ImageError(f"unpacks to more than {MAX_BYTES / 2**20:.4g} MiB; "
                                 "unpack it and cut out the galaxies")
            content.write(block)
    content.seek(0)
    return content


def read_fits(name, file, ext):
    from astropy import log
    from astropy.io import fits

    with quiet(log), fits.open(file, memmap=False, uint=False) as hdus:   # uint=True would skip BLANK
        index, flags = _choose(hdus, ext)
        hdu = hdus[index]
        shape = _image_shape(hdu)
        check_shape(*shape)
        if isinstance(hdu, fits.CompImageHDU):
            _check_tiles(file, index, hdu.tile_shape)
        values = (_unsigned(file, index, hdu.header) if _is_unsigned(hdu) else hdu.data).reshape(shape)
        scale = _pixel_scale(hdu.header, hdus, flags)
    return picture(name, values, scale=scale, flags=flags)


def _is_unsigned(hdu) -> bool:
    """64-bit integers that are stored less 2^63, of which a float keeps steps of 1024 only."""
    header = hdu.header
    return header.get("BITPIX") == 64 and header.get("BZERO") == 2**63 and header.get("BSCALE", 1) == 1


def _unsigned(file, index, header):
    """Their values as floats, NaN where the file says BLANK."""
    from astropy.io import fits

    blank = header.get("BLANK")
    file.seek(0)
    hdus = fits.open(file, memmap=False, do_not_scale_image_data=True)   # not closed: it is shared
    stored = np.asarray(hdus[index].data, np.int64)
    values = (stored.view(np.uint64) ^ np.uint64(2**63)).astype(np.float64)
    return values if blank is None else np.where(stored == blank, np.nan, values)


def _choose(hdus, ext):
    """Index of the image that is asked for, or of the first, and before it of one named SCI; flags."""
    seen, images, cubes, science = [], [], [], None
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
            if n_axes == 2 and hdu.name == "SCI" and science is None:
                science = index
        if images and (ext is not None or science is not None and len(images) > 1):
            break
    if images and science not in (None, images[0]):
        return science, ["several images in the file: SCI is used; choose with --ext"]
    if images:
        return images[0], several(ext, len(images))
    if cubes:
        raise ImageError(f"is a cube of shape {_image_shape(hdus[cubes[0]])}; write the plane you want to a file of "
                         "its own" + ("" if ext is None else ", or choose another extension"))
    have = one_line(", ".join(seen[:10]))
    if ext is not None:
        raise ImageError(f"has no image in extension {one_line(str(ext))!r}; it has {have}")
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
            if tile[:2] == b"\x1f\x8b" and inflates_past(tile, 8 * n_pixels, wbits=31):
                raise ImageError("has a compressed tile larger than it claims; write it again")


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
    if scale >= MAX_PIXEL_SCALE:
        flags.append(f"the WCS says {scale:.0f} arcsec per pixel, as where CDELT is missing, and is not used")
    else:
        flags.append("the WCS gives no single pixel scale and is not used")
    return None
