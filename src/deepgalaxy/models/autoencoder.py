"""The decoder of the fully convolutional autoencoder."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """From activation maps back to the image: doubled in size until the stride is undone.

    Sub-pixel convolutions (Shi et al. 2016, arXiv 1609.05158) do all the work at the smaller size;
    nothing is computed at the full size of the image, where a layer costs more than the encoder.

    Parameters
    ----------
    channels : of the maps.
    stride : a power of two.
    width : channels of the widest layer; halved with every doubling, at least 16.
    """

    def __init__(self, channels: int, stride: int, width: int = 96):
        super().__init__()
        layers, current = [], channels
        for _ in range(int(math.log2(stride)) - 1):
            after = max(16, width // 4 * 4)  # in four groups
            layers += [_factored(current, 4 * after), nn.PixelShuffle(2), nn.GroupNorm(4, after), nn.SiLU()]
            current, width = after, width // 2
        self.body = nn.Sequential(*layers, nn.Conv2d(current, 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, 1, H, W)."""
        return self.body(maps)


def _factored(channels: int, out: int) -> nn.Module:
    """3x3 depthwise, then 1x1: a fifth of the cost of a full convolution here."""
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.Conv2d(channels, out, 1))
