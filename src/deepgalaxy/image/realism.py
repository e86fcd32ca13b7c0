"""Observational realism: what lies between a simulated galaxy and its picture.

All images of a batch are treated at once, each with random numbers of its own: on the CPU, image i of epoch e
looks the same on one worker and on five hundred. 160-pixel canvases cost about 2 ms each on one core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from ..config import Config
from .preprocess import asinh, quantile

__all__ = ["RealismConfig", "Draws", "add_detail", "draw", "noise_strength", "observe"]

_STARS, _NEIGHBOURS, _TEXTURE, _POINTS = 80, 3, 40, 240


class RealismConfig(Config):
    """How strongly images are disturbed; each strength is drawn between nothing and this."""

    zoom: float = Field(1.35, ge=1, le=4, description="largest factor, up or down")
    shift: float = Field(0.12, ge=0, le=1, description="of the canvas's half side")
    psf: float = Field(1.2, ge=0, le=5, description="largest Gaussian sigma, canvas pixels")
    clumps: float = Field(0.5, ge=0, le=2, description="of the logarithm of the light")
    dust: float = Field(1.5, ge=0, le=5, description="optical depth of the darkest lanes")
    stars: int = Field(60, ge=0, le=_STARS, description="most foreground stars")
    neighbours: float = Field(0.3, ge=0, le=1, description="probability of each of three background galaxies")
    noise_faintest: float = Field(0.05, gt=0, le=1, description="largest sky noise over the peak")
    stretched: float = Field(0.8, ge=0, le=1, description="probability of a display stretch and 8 bits")
    borders: float = Field(0.2, ge=0, le=1, description="probability of black borders")
    detail: float = Field(0.5, ge=0, le=1, description="probability that noise, faint sources and knots are as fine as "
                          "the frame, whatever the canvas resolves")
    knots: float = Field(4.0, ge=0, le=20, description="brightest knots of star formation, over the light around them")


@dataclass
class Draws:
    """Random numbers for B images, uniform in 0..1 or standard normal."""

    u: torch.Tensor  #: (B, 32) uniform
    stars: torch.Tensor  #: (B, 80, 3) uniform
    neighbours: torch.Tensor  #: (B, 3, 6) uniform
    noise: torch.Tensor  #: (B, 1, S, S) normal
    texture: torch.Tensor  #: (B, 2, 40, 40) normal
    points: torch.Tensor  #: (B, 240, 3) uniform


def draw(seeds, size: int, device="cpu") -> Draws:
    """Random numbers from one seed per image, for canvases of size pixels.

    On a GPU, where one generator after the other would cost more than the network, they follow from the first seed.
    """
    uniform, normal = [], []
    sizes = [32, _STARS * 3, _NEIGHBOURS * 6, _POINTS * 3]
    n_normal = size * size + 2 * _TEXTURE**2
    generator = torch.Generator(device)
    together = 1 if generator.device.type == "cpu" else len(seeds)
    for seed in seeds[::together]:
        generator.manual_seed(int(seed))
        uniform.append(torch.rand(together, sum(sizes), generator=generator, device=device))
        normal.append(torch.randn(together, n_normal, generator=generator, device=device))
    u, n = torch.cat(uniform), torch.cat(normal)
    b = len(u)
    u, stars, neighbours, points = u.split(sizes, dim=1)
    noise, texture = n[:, :size * size], n[:, size * size:]
    return Draws(u, stars.reshape(b, _STARS, 3), neighbours.reshape(b, _NEIGHBOURS, 6), noise.reshape(b, 1, size, size),
                 texture.reshape(b, 2, _TEXTURE, _TEXTURE), points.reshape(b, _POINTS, 3))


def observe(light: torch.Tensor, draws: Draws, config: RealismConfig):
    """Make observations of simulated light.

    Parameters
    ----------
    light : (B, 1, S, S) linear surface density.

    Returns
    -------
    observed : (B, 1, S, S), the picture.
    ideal : (B, 1, S, S), the same part of the sky, from the same side, without anything but galaxies.
    zoom : (B,) the factor by which the galaxies were enlarged.
    """
    b, _, size, _ = light.shape
    u = [draws.u[:, i].reshape(b, 1, 1, 1) for i in range(draws.u.shape[1])]
    ideal, zoom = _move(light, draws.u[:, :6], config)
    peak = quantile(ideal, 0.995).clamp(min=1e-12).reshape(b, 1, 1, 1)
    x = (ideal / peak).clamp(min=1e-9)
    # Profiles are steeper or shallower than the simulated ones. exp and log are vectorised on the CPU, pow is not.
    x = torch.exp((0.55 + 0.5 * u[6]) * torch.log(x))
    clumps, lanes = (F.interpolate(draws.texture[:, i:i + 1], size=(size, size), mode="bilinear") for i in (0, 1))
    x = x * torch.exp(config.clumps * u[7] * clumps)
    x = x * torch.exp(-config.dust * u[8] * (u[9] < 0.4) * (lanes - 0.4).clamp(min=0))
    x = x + _neighbours(draws.neighbours, size, config)
    x = x + _stars(draws.stars, u[10], size, config)
    narrowest = min(0.35, config.psf)
    x = _blur(x, narrowest + (config.psf - narrowest) * draws.u[:, 11], max(5, math.ceil(3 * config.psf)))
    x = x + _sky(draws, u, size)
    fine = draws.noise
    smooth = fine + fine.roll(1, 2)  # drizzled or resampled sky: neighbours go together
    smooth = (smooth + smooth.roll(1, 3)) / 2
    noise = torch.where(u[12] < 0.5, fine, smooth)
    strength = noise_strength(draws, config).reshape(b, 1, 1, 1)
    x = x + torch.where(u[25] < config.detail, 0.3, 1.0) * strength * noise
    shown = torch.nonzero(draws.u[:, 14] < config.stretched)[:, 0]
    x[shown] = _display(x[shown], strength[shown], [v[shown] for v in u])
    return _borders(x, draws.u[:, 20:25], config), ideal, zoom


def add_detail(frames: torch.Tensor, draws: Draws, config: RealismConfig) -> torch.Tensor:
    """What a sharper picture would show: noise, faint stars and knots of the size of a frame's own pixels.

    A frame often magnifies the canvas; what is drawn there comes out as blobs, by which simulated pictures are known.

    Parameters
    ----------
    frames : (B, 1, n, n) linear, cut out of what `observe` made of these draws.
    """
    b, _, size, _ = frames.shape
    sharp, crowded, wide, knotty = (draws.u[:, i].reshape(b, 1, 1, 1) for i in range(25, 29))
    sky = frames.flatten(1).median(dim=1).values.reshape(b, 1, 1, 1)
    peak = (quantile(frames, 0.995).reshape(b, 1, 1, 1) - sky).clamp(min=1e-12)
    x, y, bright = draws.points.unbind(2)
    index = (y * size).long() * size + (x * size).long()
    number = torch.arange(_POINTS, device=frames.device)
    present = number < _POINTS * crowded.reshape(b, 1) ** 1.5
    # Two of three points are stars, the others are knots, as bright as the light that they lie in.
    is_knot = number % 3 == 0
    nothing = frames.new_zeros(b, size * size)
    star, knot = (nothing.scatter_add(1, index, flux * present * kind).reshape(b, 1, size, size)
                  for flux, kind in ((10 ** (2.2 * bright**4 - 2.6), ~is_knot), (bright**2, is_knot)))
    points = _soften(peak * star + config.knots * knotty * knot * (frames - sky).clamp(min=0))
    points = torch.lerp(points, _soften(points), wide)
    times = -(-size // draws.noise.shape[-1])
    noise = draws.noise.repeat(1, 1, times, times)[..., :size, :size]
    noise = noise_strength(draws, config).reshape(b, 1, 1, 1) * peak * noise
    # Beyond the picture's edge, and where its background was lost, there is nothing.
    flat = F.max_pool2d(frames, 4) <= -F.max_pool2d(-frames, 4)
    flat = F.interpolate(flat.float(), size=(size, size)) > 0.5
    return torch.where(flat | (sharp >= config.detail), frames, frames + points + noise)


def _soften(images):
    """Binomial kernel of 3 x 3 pixels; a point keeps half of its peak."""
    for axis, pad in ((-1, (1, 1, 0, 0)), (-2, (0, 0, 1, 1))):
        padded, n = F.pad(images, pad), images.shape[axis]
        images = padded.narrow(axis, 0, n) + 2 * images + padded.narrow(axis, 2, n)
    return images / 8


def noise_strength(draws: Draws, config: RealismConfig) -> torch.Tensor:
    """Standard deviation (B,) of the sky noise over the galaxies' brightest half percent."""
    return config.noise_faintest * 10 ** (-1.8 * draws.u[:, 13])


def _move(light, u, config):
    """Turn, mirror, zoom and shift."""
    angle = 2 * np.pi * u[:, 0]
    zoom = config.zoom ** (2 * u[:, 1] - 1)
    mirror = torch.where(u[:, 2] < 0.5, -1.0, 1.0)
    c, s = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    shift = (2 * u[:, 3:5] - 1) * config.shift
    affine = torch.stack([torch.stack([c * mirror, -s, shift[:, 0]], 1),
                          torch.stack([s * mirror, c, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(affine, light.shape, align_corners=False)
    return F.grid_sample(light, grid, align_corners=False, padding_mode="zeros"), zoom


def _neighbours(u, size, config):
    """Exponential discs seen at any angle, on a grid of half the pixels."""
    half = size // 2
    axis = torch.linspace(-1, 1, half, device=u.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    total = u.new_zeros(len(u), half, half)
    for k in range(u.shape[1]):
        v = u[:, k, :, None, None]
        dx, dy = x - (2 * v[:, 0] - 1), y - (2 * v[:, 1] - 1)
        c, s = torch.cos(np.pi * v[:, 2]), torch.sin(np.pi * v[:, 2])
        flat = 0.25 + 0.75 * v[:, 3]
        # Presence and brightness come from one number.
        present = v[:, 4] < config.neighbours
        radius = 0.012 * 10 ** (0.9 * v[:, 5])
        r = torch.sqrt((c * dx + s * dy) ** 2 + ((c * dy - s * dx) / flat) ** 2)
        bright = 10 ** (1.8 * (v[:, 4] / max(config.neighbours, 1e-6)).clamp(max=1) - 1.6)
        total += present * bright * torch.exp(-r / radius)
    return F.interpolate(total[:, None], size=(size, size), mode="bilinear")


def _stars(u, density, size, config):
    """Points with a steep range of brightness, and the wide wings of the brightest."""
    b, n, _ = u.shape
    number = config.stars * density.reshape(b, 1) ** 3
    present = torch.arange(n, device=u.device) < number
    flux = present * 10 ** (4.2 * u[..., 2] ** 3 - 1.2)
    index = (u[..., 0] * size).long() * size + (u[..., 1] * size).long()
    image = u.new_zeros(b, size * size).scatter_add_(1, index, flux).reshape(b, 1, size, size)
    wings = _blur(F.avg_pool2d(image, 4), u.new_full((b,), 1.2))
    return image + 0.12 * F.interpolate(wings, size=(size, size), mode="bilinear")


def _blur(images, sigma, reach=5):
    """Gaussian of a width (B,) in pixels for each image (B, 1, H, W), cut off after so many pixels."""
    b = len(images)
    offsets = torch.arange(-reach, reach + 1.0, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.reshape(b, 1).clamp(min=1e-3)) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    x = images.reshape(1, b, *images.shape[2:])
    x = F.conv2d(x, kernel.reshape(b, 1, 1, -1), padding=(0, reach), groups=b)
    x = F.conv2d(x, kernel.reshape(b, 1, -1, 1), padding=(reach, 0), groups=b)
    return x.reshape(images.shape)


def _sky(draws, u, size):
    """A level and a slope."""
    axis = torch.linspace(-1, 1, size, device=draws.u.device)
    slope = (u[15] - 0.5) * axis.reshape(1, 1, 1, size) + (u[16] - 0.5) * axis.reshape(1, 1, size, 1)
    return 0.06 * draws.u[:, 17].reshape(-1, 1, 1, 1) ** 3 * slope


def _display(x, strength, u):
    """What a press image went through: pedestal, stretch, saturation, 8 bits."""
    low = strength * (3 * u[17] - 2)  # a high pedestal loses the background
    gain = 10 ** (0.8 + 1.4 * u[18])
    white = 10 ** (0.5 * u[19] - 0.2)
    y = asinh((x - low).clamp(min=0) * gain) / asinh(white * gain)
    return torch.round(y.clamp(0, 1) * 255) / 255


def _borders(x, u, config):
    """Black strips along the sides."""
    size = x.shape[-1]
    width = torch.where(u[:, 0] < config.borders, 1.0, 0.0)[:, None] * (u[:, 1:5] - 0.4).clamp(min=0) * 0.5 * size
    axis = torch.arange(size, device=x.device)
    left, right, top, bottom = (width[:, i, None] for i in range(4))
    column = (axis >= left) & (axis < size - right)
    row = (axis >= top) & (axis < size - bottom)
    return x * (row[:, None, :, None] & column[:, None, None, :])
