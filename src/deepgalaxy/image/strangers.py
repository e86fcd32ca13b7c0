"""Pictures that show no merger, to test whether a model notices.

All are made here, of nothing but random numbers and a font; y points upwards and values are linear or 0..1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["STRANGERS", "strangers"]


def strangers(n: int, size: int = 160, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    """n pictures (size, size) float32, in turn of each kind of `STRANGERS`."""
    rng, kinds = np.random.default_rng(seed), list(STRANGERS)
    return [(kinds[i % len(kinds)], STRANGERS[kinds[i % len(kinds)]](size, rng).astype(np.float32)) for i in range(n)]


def _noise(size, rng):
    """White, or smooth on some scale."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(rng.standard_normal((size, size)), rng.choice([0, 0.7, 1.5, 3, 8]))


def _star_field(size, rng):
    """Many stars of all fluxes under one point spread function, with noise."""
    from scipy.ndimage import gaussian_filter

    image = np.zeros((size, size))
    n = int(rng.integers(20, 400))
    np.add.at(image, tuple(rng.integers(0, size, (2, n))), rng.pareto(1.0, n) + 0.2)
    image = gaussian_filter(image, rng.uniform(0.7, 1.8))
    return image + image.max() * 10 ** rng.uniform(-3.5, -2) * rng.standard_normal(image.shape)


def _spiked_star(size, rng):
    """One bright star with diffraction spikes, a halo, and saturation."""
    y, x = np.mgrid[:size, :size] - size / 2 + rng.uniform(-size / 10, size / 10, (2, 1, 1))
    r = np.hypot(x, y) + 0.5
    core = rng.uniform(0.01, 0.04) * size
    image = np.exp(-((r / core) ** 2)) + 0.02 * (core / r) ** 2
    angle, arms = rng.uniform(0, np.pi), int(rng.choice([2, 3]))
    for k in range(arms):
        a = angle + k * np.pi / arms
        across, along = x * np.sin(a) - y * np.cos(a), x * np.cos(a) + y * np.sin(a)
        image += 0.4 * np.exp(-((across / (0.006 * size)) ** 2)) / (1 + np.abs(along) / core) ** 1.2
    image = np.minimum(image, rng.uniform(0.2, 1))
    return image + 10 ** rng.uniform(-3.5, -2) * rng.standard_normal(image.shape)


def _text(size, rng):
    """A few lines of letters."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("L", (size, size), int(rng.choice([0, 20, 255])))
    draw = ImageDraw.Draw(picture)
    ink = 255 if picture.getpixel((0, 0)) < 128 else 0
    height = int(rng.integers(size // 14, size // 4))
    font = ImageFont.load_default(size=height)
    for row in range(int(rng.integers(1, max(2, size // (height + 4))))):
        word = "".join(rng.choice(list("ABCDEFGHIKLMNOPRSTUVWXYZabcdefghiklmnoprst 0123456789"), 40))
        corner = int(rng.integers(-5, size // 4)), row * (height + 4)
        draw.text(corner, word[:int(rng.integers(2, 40))], fill=ink, font=font)
    return np.asarray(picture, float)[::-1] / 255


def _gradient(size, rng):
    """A uniform slope, or a soft vignette, with a little noise."""
    y, x = np.mgrid[-1:1:size * 1j, -1:1:size * 1j]
    a = rng.uniform(0, 2 * np.pi)
    image = np.cos(a) * x + np.sin(a) * y if rng.random() < 0.6 else -np.hypot(x, y) ** rng.uniform(1, 3)
    return image + 10 ** rng.uniform(-4, -1) * rng.standard_normal(image.shape)


def _scene(size, rng):
    """What a photograph of indoors or outdoors has: hard edges, flat areas, shading, texture."""
    from scipy.ndimage import gaussian_filter

    y, x = np.mgrid[-1:1:size * 1j, -1:1:size * 1j]
    image = 0.5 + 0.3 * y + 0.1 * gaussian_filter(rng.standard_normal((size, size)), 12) * 12
    for _ in range(int(rng.integers(4, 14))):
        a, (cx, cy) = rng.uniform(0, np.pi), rng.uniform(-1, 1, 2)
        u, v = (x - cx) * np.cos(a) + (y - cy) * np.sin(a), (y - cy) * np.cos(a) - (x - cx) * np.sin(a)
        w, h = rng.uniform(0.05, 0.7, 2)
        inside = (np.abs(u) < w) & (np.abs(v) < h) if rng.random() < 0.6 else (u / w) ** 2 + (v / h) ** 2 < 1
        image = np.where(inside, rng.uniform(0, 1) + rng.uniform(-0.3, 0.3) * u, image)
    texture = gaussian_filter(rng.standard_normal((size, size)), rng.uniform(0.5, 2))
    return np.clip(gaussian_filter(image, 0.7) + rng.uniform(0, 0.1) * texture, 0, 1)


#: What there is, by name.
STRANGERS: dict[str, Callable] = {
    "noise": _noise, "star field": _star_field, "spiked star": _spiked_star, "text": _text, "gradient": _gradient,
    "scene": _scene}
