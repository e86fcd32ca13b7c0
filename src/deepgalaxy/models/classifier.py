"""Labels from activation maps: a distribution over ordered bins for each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..labels import HEADS, STAGES, Label
from .blocks import Block, idle_blocks, scale_inputs, zeroed

__all__ = ["Classifier", "Heads", "soft_targets"]


class Heads(nn.Module):
    """One linear layer per label on a shared vector."""

    def __init__(self, features: int, labels: tuple[Label, ...] = HEADS, n_stages: int = len(STAGES),
                 n_classes: int = 0):
        super().__init__()
        sizes = {label.name: label.n_bins for label in labels}
        sizes["stage"] = n_stages
        if n_classes:
            sizes["time_camera"] = n_classes  # the original's classes: time x camera
        self.layers = nn.ModuleDict({name: nn.Linear(features, n) for name, n in sizes.items()})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, features) -> {label: (B, n_bins) logits}."""
        return {name: layer(x) for name, layer in self.layers.items()}


class Classifier(nn.Module):
    """Convolutions on the maps, told the scale all the way, a pooled vector, heads.

    The scale, log10 of the frame's side over 100 kpc, is masked at random in training, so that
    "unknown" is a value that the network has learnt.
    """

    def __init__(self, channels: int, width: int = 256, depth: int = 3, n_classes: int = 0):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.SiLU(), Block(width))
        # Most of the work is done at half the size, where it is cheap.
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        # A separation of so many pixels means another one in kpc: the scale multiplies the features of every block
        # (Perez et al. 2018, arXiv 1709.07871). Zeros at first: then it does nothing.
        self.modulate = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                                      nn.Linear(64, 2 * width * len(self.blocks)))
        zeroed(self.modulate[-1])
        self.deeper = idle_blocks(width, depth - len(self.blocks))
        self.mix = nn.Sequential(nn.Linear(2 * width + 2, width), nn.SiLU(), nn.Dropout(0.1),
                                 nn.Linear(width, width), nn.SiLU())
        self.heads = Heads(width, n_classes=n_classes)

    def features(self, maps: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """What the heads see: (B, 2 width + 2); for the arguments see `forward`."""
        beside = scale_inputs(scale, maps.dtype)
        x = F.avg_pool2d(self.first(maps), 2, ceil_mode=True)
        factors = self.modulate(beside)[:, :, None, None].chunk(2 * len(self.blocks), dim=1)
        for block, gain, shift in zip(self.blocks, factors[::2], factors[1::2], strict=True):
            x = block(x * (1 + gain) + shift)
        x = self.deeper(x)
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3)), beside], dim=1)

    def forward(self, maps: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits for every label.

        Parameters
        ----------
        maps : (B, C, h, w).
        scale : (B,) log10(frame side / 100 kpc), NaN where unknown.
        """
        return self.heads(self.mix(self.features(maps, scale)))


def soft_targets(label: Label, values: torch.Tensor) -> torch.Tensor:
    """Ordinal targets (B, n_bins): each value blurred over the bins beside it."""
    position = label.position(values, torch.log)
    centres = torch.arange(label.n_bins, device=values.device) + 0.5
    return F.softmax(-0.5 * ((position[:, None] - centres) / label.blur) ** 2, dim=1)
