"""Pictures of snapshots: an adaptive splat of the stars onto a grid of surface density."""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
from numba import njit
from pydantic import Field

from ..config import Config
from ..errors import ViewError
from ..simulate.snapshot import Encounter
from .neighbours import neighbour_distances
from .view import CameraImages, View, cube_views, random_views

__all__ = ["RenderConfig", "smoothing_lengths", "render", "n_cameras", "render_encounter", "field_of_view_by_content"]

#: Msun/kpc^2 that counts as visible when a field of view is chosen: about 25 mag/arcsec^2.
_VISIBLE = 1e6


class RenderConfig(Config):
    """How a suite is photographed."""

    n_pixels: int = Field(160, ge=16, le=4096, description="on a side")
    cameras: Literal["cube", "random"] = Field("random", description="14 cube cameras, or directions drawn "
                                               "anew for every snapshot")
    n_cameras: int = Field(8, ge=1, le=100, description="for random directions")
    field_of_view: float | None = Field(None, gt=0, description="kpc on a side; without it, every image "
                                        "is framed by its visible light, with a margin")
    n_neighbours: int = Field(24, ge=2, le=256, description="a star is smeared to its n-th neighbour")
    n_undisturbed: int = Field(0, ge=0, le=1000, description="single galaxies, and as many chance pairs, made of the "
                               "galaxies of every encounter before they meet")
    light: Literal["mass", "both"] = Field("mass", description="stars shine by their mass, or every picture comes "
                                           "beside one in which they do not (see starlight.py)")
    seed: int = Field(0, ge=0, description="of the directions")


def smoothing_lengths(positions, n_neighbours: int = 24) -> np.ndarray:
    """Distance (N,) in kpc to the n-th nearest star, in space."""
    return neighbour_distances(positions, n_neighbours)


def render(positions, masses, view: View, n_pixels: int, field_of_view: float, smoothing=None,
           centre=(0.0, 0.0)) -> np.ndarray:
    """Project stars onto a square surface-density image.

    Parameters
    ----------
    positions : (N, 3) kpc.
    masses : (N,) Msun.
    view : line of sight.
    n_pixels : on a side.
    field_of_view : kpc on a side.
    smoothing : (N,) kpc, radius of the kernel (1 - r^2/h^2)^2; at least 1.5 pixels are used.
    centre : (2,) kpc on the sky, of the image.

    Returns
    -------
    image : float32 (n_pixels, n_pixels), Msun/kpc^2; axis 0 is y, increasing upwards.

    Raises
    ------
    ViewError
        If no star lies in the field of view.
    """
    pixel = field_of_view / n_pixels
    sky = np.asarray(positions, np.float64) @ view.rotation[:2].T - np.asarray(centre)
    pixels = sky / pixel + n_pixels / 2
    if smoothing is None:
        smoothing = smoothing_lengths(positions)
    image = _splat(pixels[:, 0], pixels[:, 1], np.asarray(masses, np.float64) / pixel**2,
                   np.maximum(np.asarray(smoothing, np.float64) / pixel, 1.5), n_pixels)
    if not image.any():
        raise ViewError(f"no star lies in the field of view of {field_of_view:g} kpc; widen it or move the centre")
    return image.astype(np.float32)


@njit(fastmath=True, cache=True)
def _splat(u, v, weight, radius, n):
    image = np.zeros((n, n))  # in single precision the order of the stars would show: 1e-5 between mirror images
    kernel = np.empty(400)
    for s in range(len(u)):
        h = radius[s]
        x, y = u[s] - 0.5, v[s] - 0.5  # in pixel centres
        if x + h < 0 or y + h < 0 or x - h > n - 1 or y - h > n - 1:
            continue
        x0, x1 = int(np.ceil(x - h)), int(np.floor(x + h))
        y0, y1 = int(np.ceil(y - h)), int(np.floor(y + h))
        inverse = 1.0 / (h * h)
        analytic = weight[s] * 3.0 / np.pi * inverse
        if (x1 - x0 + 1) * (y1 - y0 + 1) > 400:
            # A wide kernel is sampled well: its integral pi h^2 / 3 holds to 1e-4.
            for j in range(max(y0, 0), min(y1, n - 1) + 1):
                dy = (j - y) ** 2 * inverse
                for i in range(max(x0, 0), min(x1, n - 1) + 1):
                    q = 1.0 - dy - (i - x) ** 2 * inverse
                    if q > 0:
                        image[j, i] += analytic * q * q
        else:
            # A narrow one is normalised by its own sum, so that mass is conserved.
            total, k = 0.0, 0
            for j in range(y0, y1 + 1):
                dy = (j - y) ** 2 * inverse
                for i in range(x0, x1 + 1):
                    q = max(1.0 - dy - (i - x) ** 2 * inverse, 0.0)
                    kernel[k] = q * q
                    total += q * q
                    k += 1
            scale, k = weight[s] / total, 0
            for j in range(y0, y1 + 1):
                for i in range(x0, x1 + 1):
                    if 0 <= i < n and 0 <= j < n:
                        image[j, i] += scale * kernel[k]
                    k += 1
    return image


def field_of_view_by_content(sky, masses, margin: float = 2.0, n: int = 64, extent: float = 400.0):
    """Centre (2,) and side in kpc of a square that holds the visible light with a margin.

    The side is 2 * margin * the radius that holds 97 % of the visible pixels, within 30..300 kpc.
    """
    cell = extent / n
    index = np.floor(sky / cell + n / 2).astype(int)
    inside = ((index >= 0) & (index < n)).all(axis=1)
    flat = np.bincount(index[inside, 1] * n + index[inside, 0], weights=masses[inside], minlength=n * n)
    # Of galaxies that are fainter throughout, what is bright for them.
    visible = np.flatnonzero(flat / cell**2 > min(_VISIBLE, 0.01 * flat.max() / cell**2))
    if len(visible) == 0:
        return np.zeros(2), 300.0
    points = (np.column_stack([visible % n, visible // n]) + 0.5 - n / 2) * cell
    centre = np.average(points, axis=0, weights=np.sqrt(flat[visible]))
    radius = np.quantile(np.linalg.norm(points - centre, axis=1), 0.97) + 0.5 * cell
    return centre, float(np.clip(2 * margin * radius, 30.0, 300.0))


def n_cameras(config: RenderConfig) -> int:
    """How many pictures are taken of every snapshot."""
    return 14 if config.cameras == "cube" else config.n_cameras


def render_encounter(encounter: Encounter, config: RenderConfig, first: int = 0, n_snapshots: int | None = None,
                     ) -> list[CameraImages]:
    """Pictures of one encounter, as log10 surface density (0 where there is no light).

    Parameters
    ----------
    first, n_snapshots : which snapshots; all without them. The pictures do not depend on how they are divided.
    """
    stop = len(encounter.time) if n_snapshots is None else min(first + n_snapshots, len(encounter.time))
    # The encounter's name seeds its directions, so that a suite can be rendered in any order.
    rng = np.random.default_rng([config.seed, zlib.crc32(encounter.name.encode())])
    views = [cube_views() if config.cameras == "cube" else random_views(config.n_cameras, rng) for _ in range(stop)]
    n, shape = config.n_pixels, (n_cameras(config), stop - first)
    images = np.zeros((*shape, n, n), np.float16)
    pixel_scale, direction = np.zeros(shape, np.float32), np.zeros((*shape, 3), np.float32)
    for i, t in enumerate(range(first, stop)):
        positions, masses, smoothing = encounter.stars(t)
        positions, masses = positions - np.median(positions, axis=0), masses.astype(np.float64)
        if smoothing is None:
            smoothing = smoothing_lengths(positions, config.n_neighbours)
        for c, view in enumerate(views[t]):
            centre, field = np.zeros(2), config.field_of_view
            if field is None:
                centre, field = field_of_view_by_content(positions @ view.rotation[:2].T, masses)
            image = render(positions, masses, view, n, field, smoothing, centre)
            images[c, i] = np.log10(np.maximum(image, 1.0))
            pixel_scale[c, i], direction[c, i] = field / n, view.unit
    return [CameraImages(images[c], encounter.time[first:stop], pixel_scale[c], direction[c])
            for c in range(len(images))]
