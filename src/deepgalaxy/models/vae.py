"""The variational autoencoder between activation maps and the latent vector z."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["VAE"]

_GRID = 4  # maps of any size are pooled to this many cells on a side


class VAE(nn.Module):
    """Compresses activation maps into z and back.

    Parameters
    ----------
    channels : of the maps.
    latent_size : of z.
    width : channels inside.
    """

    def __init__(self, channels: int, latent_size: int = 32, width: int = 96):
        super().__init__()
        self.latent_size, self.width = latent_size, width
        self.squeeze = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1), nn.SiLU())
        self.to_latent = nn.Linear(width * _GRID**2, 2 * latent_size)
        self.from_latent = nn.Sequential(nn.Linear(latent_size, 256), nn.SiLU(),
                                         nn.Linear(256, width * _GRID**2))
        self.expand = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, channels, 3, padding=1))

    def encode(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of z: (B, C, h, w) -> two of (B, latent_size)."""
        x = F.adaptive_avg_pool2d(self.squeeze(maps), _GRID)
        mu, logvar = self.to_latent(x.flatten(1)).chunk(2, dim=1)
        return mu, logvar.clamp(-8, 8)

    @staticmethod
    def sample(mu: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Reparametrised z = mu + exp(logvar / 2) noise (Kingma & Welling 2014)."""
        return mu + torch.exp(0.5 * logvar) * noise

    def decode(self, z: torch.Tensor, size: tuple[int, int] = (8, 8)) -> torch.Tensor:
        """Maps of a size: (B, latent_size) -> (B, C, h, w)."""
        x = self.from_latent(z).reshape(-1, self.width, _GRID, _GRID)
        return self.expand(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
