"""One picture of the sky as numbers: what every format becomes, and what is refused."""

from __future__ import annotations

import math
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from ..errors import ImageError

__all__ = ["MAX_PIXELS", "Picture", "check_shape", "colour", "eight_bits", "inflates_past", "picture", "quiet",
           "several"]

MAX_PIXELS = 64 * 2**20     # 8192 x 8192: 256 MiB as float32
MIN_SIDE = 16               # px; below this there is nothing to measure
MAX_ASPECT = 20
DISPLAY_SIDE = 512          # px
_PADDING = 0.01             # of all pixels: from there on a region of one value at a corner is padding
_SKY = 0.75                 # of all pixels: above it, it is the sky that was cut off
_RIM = 4                    # px beyond the blocks beside padding that tell the sky
_BLOCK = 8                  # px of a block of a JPEG


@dataclass
class Picture:
    """One image as it was read."""

    name: str                      # the path as given
    pixels: np.ndarray             # (H, W) float32, finite; axis 0 is y, upwards (FITS: origin bottom left)
    mask: np.ndarray               # (H, W) bool, True without a valid value at the edge; there pixels hold the median
    display: np.ndarray            # (H', W', 3) uint8, y downwards, at most 512 px on the long side
    arcsec_per_pixel: float | None = None            # from a sound celestial WCS
    flags: list[str] = field(default_factory=list)   # short sentences for a person


def check_shape(height, width):
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


def picture(name, values, invalid=None, display=None, scale=None, flags=()):
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
            return picture(name, values, mask | strange, display, scale, flags)
    if peak > 0 and not 1e-30 < peak < 1e30:   # erg/s, or W/Hz: beyond what float32 holds
        values = values / peak
        flags.append(f"the values were divided by {peak:.3g}")
    pixels = np.array(values, dtype=np.float32, order="C")
    if mask.any():
        flags.append(f"{100 * mask.mean():.2g} % of the pixels have no value")
        mask = _fill_holes(pixels, mask, flags)
        pixels[mask] = np.median(pixels[~mask])
    if pixels.min() == pixels.max():
        raise ImageError("is constant, there is no light to measure; give another image")
    _fill_padding(pixels, mask, flags)
    if (display is not None or values.dtype == np.uint8) and _is_negative(pixels):
        pixels = pixels.max() - pixels
        display = None if display is None else display.max() - display
        flags.append("dark galaxies on a bright sky: taken as a negative, and inverted")
    display = _stretched(pixels) if display is None else display
    return Picture(name, pixels, mask, _small(display), scale, flags)


def _fill_holes(pixels, mask, flags):
    """Give masked pixels that do not hang together with the edge the nearest value; the mask of those that do.

    Holes in a galaxy are mostly saturated nuclei: with the value of the sky its light would be a ring.
    """
    from scipy.ndimage import distance_transform_edt, label

    pieces, n = label(mask)
    at_edge = np.zeros(n + 1, bool)
    at_edge[_edge(pieces)] = True
    outside = mask & at_edge[pieces]
    holes = mask & ~outside
    if holes.any():
        sky = np.median(pixels[~mask])
        spread = np.median(np.abs(pixels[~mask] - sky))
        rows, columns = distance_transform_edt(mask, return_distances=False, return_indices=True)
        pixels[holes] = pixels[rows[holes], columns[holes]]
        if (pixels[holes] > sky + 10 * spread).mean() > 0.1:
            flags.append("pixels without a value lie where it is bright: if they are nuclei, the ratios suffer")
    return outside


def _fill_padding(pixels, mask, flags):
    """Where one value fills a corner, as beside a rotated picture or a mosaic, put the sky that lies near it.

    Filled, and not masked: of a picture whose sky was cut off at black this may be the sky, and what lies near is
    nearly black too.
    """
    from scipy.ndimage import binary_erosion, distance_transform_cdt, label

    regions = []
    for value in {float(pixels[y, x]) for y in (0, -1) for x in (0, -1) if not mask[y, x]}:
        same = (pixels == value) & ~mask
        # Padding is solid; in a noisy sky that was cut off, each black pixel has others beside it.
        solid = binary_erosion(same, np.ones((3, 3)), border_value=1)
        if solid.mean() < _PADDING / 2:
            continue
        pieces, n = label(same)
        sizes, inner = (np.bincount(pieces[where], minlength=n + 1) for where in (same, solid))
        regions += [pieces == piece for piece in np.unique(_edge(pieces))
                    if piece > 0 and sizes[piece] > _PADDING * pixels.size and inner[piece] > 0.5 * sizes[piece]]
    if not regions:
        return
    padded = np.logical_or.reduce(regions)
    if padded.mean() > _SKY:
        return
    filled, bright = 0, np.median(pixels[~padded]) + 0.5 * np.ptp(pixels)
    for region in regions:
        value = pixels[region][0]
        # JPEG smears the rim of a white margin over its blocks. Into black a galaxy may fade, and into the white of a
        # negative: there is nothing to be gained from further away.
        smeared = _BLOCK if value > bright else 0
        away = distance_transform_cdt(~region, "chessboard")
        beside = pixels[(away > smeared) & (away <= smeared + _RIM) & ~padded & ~mask]
        levels = np.unique(beside)
        if len(levels) < 2:
            continue
        sky = np.median(beside)
        noise, level = np.median(np.abs(beside - sky)), np.diff(levels).min()
        # One level beside another is a smooth sky in few of them.
        if abs(sky - value) > max(0.5 * noise, 1.5 * level):
            region |= (away <= smeared) & ~mask & (np.abs(pixels - value) < np.abs(pixels - sky))
            pixels[region] = sky
            filled += region.sum()
    if filled:
        flags.append(f"{100 * filled / pixels.size:.2g} % of the picture is padding of one value: taken as the sky "
                     "beside it")


def _is_negative(pixels):
    """Is this a print, galaxies dark on a bright sky? Of pictures for the eye only: dead pixels are dark as well."""
    low, middle, high = np.percentile(pixels, [0.5, 50, 99.5])
    depth, edge = middle - low, np.median(_edge(pixels))
    return bool(depth > max(2.5 * (high - middle), 0.3 * np.ptp(pixels)) and edge > middle - depth / 4)


def _edge(image):
    """The outermost pixels, in a row."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def colour(name, array, flags=()):
    """Grey, mask and display of a colour array (H, W, 3|4), y downwards."""
    rgb = array[..., :3]
    invalid = array[::-1, :, 3] == 0 if array.shape[2] == 4 else None
    display = rgb
    if rgb.dtype != np.uint8:
        finite = np.nan_to_num(rgb.astype(np.float32), nan=0, posinf=0, neginf=0)
        top = 1 if array.dtype.kind in "bf" and finite.max() <= 1 else max(255, finite.max())
        display = np.clip(finite * (255 / top), 0, 255).astype(np.uint8)
    return picture(name, rgb.mean(axis=2, dtype=np.float32)[::-1], invalid, display, flags=flags)


def _stretched(pixels):
    """A display (H', W', 3), y downwards."""
    from PIL import Image

    height, width = pixels.shape
    step = max(1, math.ceil(max(height, width) / DISPLAY_SIDE))
    grey = eight_bits(np.asarray(Image.fromarray(pixels).reduce(step))[::-1])
    return np.repeat(grey[..., None], 3, axis=2)


def eight_bits(pixels):
    """Asinh stretch (H, W) uint8: the sky at about a tenth, the brightest 0.2 % white."""
    low, sky, high = np.percentile(pixels, [1, 50, 99.8])
    if high <= low:
        low, high = pixels.min(), pixels.max()
    span = max(float(high) - float(low), 1e-38)
    soft = max(float(sky) - float(low), 0.01 * span)
    grey = np.arcsinh(np.clip((pixels - low) / soft, 0, span / soft)) / np.arcsinh(span / soft)
    return np.rint(255 * grey).astype(np.uint8)


def _small(display):
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(display))
    image.thumbnail((DISPLAY_SIDE, DISPLAY_SIDE))
    return np.array(image)


def several(ext, n_pages):
    """The flag of a file that holds several images, where none was asked for."""
    return ["several images in the file: the first is used; choose with --ext"] if n_pages > 1 and ext is None else []


def inflates_past(data, limit, wbits=15) -> bool:
    """Do deflated bytes hold more than so many? No more than these are unpacked to see it."""
    return len(zlib.decompressobj(wbits).decompress(data, limit + 1)) > limit


@contextmanager
def quiet(logger):
    """Keep a library's remarks off standard error."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
