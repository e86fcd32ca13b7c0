"""The variational autoencoder between activation maps and the latent vector z."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .blocks import scale_inputs, zeroed

__all__ = ["VAE"]

_GRID = 4  # maps of any size are pooled to this many cells on a side


class VAE(nn.Module):
    """Compresses activation maps into z and back.

    Parameters
    ----------
    channels : of the maps.
    latent_size : of z.
    width : channels inside.
    told_scale : z depends on the scale where it is known. A pair in half of the space is another encounter, though its
        frame may look the same.
    """

    def __init__(self, channels: int, latent_size: int = 32, width: int = 96, told_scale: bool = False):
        super().__init__()
        self.latent_size, self.width, self.told_scale = latent_size, width, told_scale
        self.squeeze = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1), nn.SiLU())
        self.to_latent = nn.Linear(width * _GRID**2, 2 * latent_size)
        self.from_latent = nn.Sequential(nn.Linear(latent_size, 256), nn.SiLU(),
                                         nn.Linear(256, width * _GRID**2))
        self.expand = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1))
        if told_scale:  # nothing at first: weights of a VAE that was never told a scale can go on with it
            self.modulate = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), zeroed(nn.Linear(64, 2 * width)))
            self.beside = nn.Sequential(nn.Linear(width * _GRID**2 + 2, 256), nn.SiLU(),
                                        zeroed(nn.Linear(256, 2 * latent_size)))

    def encode(self, maps: torch.Tensor, scale: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of z: (B, C, h, w) -> two of (B, latent_size).

        scale : (B,) log10(frame side / 100 kpc), NaN where unknown, as without it.
        """
        x = self.squeeze[:2](maps)
        if self.told_scale:
            told = scale_inputs(maps.new_full((len(maps),), torch.nan) if scale is None else scale, maps.dtype)
            gain, shift = self.modulate(told)[:, :, None, None].chunk(2, dim=1)
            x = x * (1 + gain) + shift
        x = F.adaptive_avg_pool2d(self.squeeze[2:](x), _GRID).flatten(1)
        parameters = self.to_latent(x)
        if self.told_scale:
            parameters = parameters + self.beside(torch.cat([x, told], dim=1))
        mu, logvar = parameters.chunk(2, dim=1)
        return mu, logvar.clamp(-8, 8)

    @staticmethod
    def sample(mu: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Reparametrised z = mu + exp(logvar / 2) noise (Kingma & Welling 2014)."""
        return mu + torch.exp(0.5 * logvar) * noise

    def decode(self, z: torch.Tensor, size: tuple[int, int] = (8, 8)) -> torch.Tensor:
        """Maps of a size: (B, latent_size) -> (B, C, h, w)."""
        x = self.from_latent(z).reshape(-1, self.width, _GRID, _GRID)
        return self.expand(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
