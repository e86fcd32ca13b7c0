"""Labels from activation maps: a distribution over ordered bins for each."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from ..labels import HEADS, STAGES, Label

__all__ = ["Classifier", "Depthwise", "Heads", "soft_targets"]


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
        self.first = nn.Sequential(nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.SiLU(), _Block(width))
        # Most of the work is done at half the size, where it is cheap.
        self.blocks = nn.ModuleList(_Block(width) for _ in range(3))
        # A separation of so many pixels means another one in kpc: the scale multiplies the features of every block
        # (Perez et al. 2018, arXiv 1709.07871). Zeros at first: then it does nothing.
        self.modulate = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                                      nn.Linear(64, 2 * width * len(self.blocks)))
        nn.init.zeros_(self.modulate[-1].weight)
        nn.init.zeros_(self.modulate[-1].bias)
        self.deeper = nn.Sequential(*(_Block(width) for _ in range(depth - len(self.blocks))))
        for block in self.deeper:
            nn.init.zeros_(block.body[-1].weight)
            nn.init.zeros_(block.body[-1].bias)
        self.mix = nn.Sequential(nn.Linear(2 * width + 2, width), nn.SiLU(), nn.Dropout(0.1),
                                 nn.Linear(width, width), nn.SiLU())
        self.heads = Heads(width, n_classes=n_classes)

    def features(self, maps: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """What the heads see: (B, 2 width + 2); for the arguments see `forward`."""
        known = ~torch.isnan(scale)
        beside = torch.stack([torch.where(known, 3 * scale, torch.zeros_like(scale)), known.to(maps.dtype)], dim=1)
        beside = beside.to(maps.dtype)
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


class _Block(nn.Module):
    """Residual: 5x5 depthwise, then a bottleneck turned inside out."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            Depthwise(width, width, 5, padding=2, groups=width), nn.BatchNorm2d(width),
            nn.Conv2d(width, 2 * width, 1), nn.SiLU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, x):
        return x + self.body(x)


class Depthwise(nn.Conv2d):
    """On maps that are hardly larger than the kernel, as matrices: a third of the time in training, on the CPU."""

    def forward(self, x):
        b, c, h, w = x.shape
        if x.is_cuda or h * w > 36:
            return super().forward(x)
        taps, inside = _taps(h, w, self.kernel_size[0])
        matrices = self.weight.reshape(c, -1)[:, taps].reshape(c, h * w, h * w) * inside
        y = torch.bmm(matrices, x.permute(1, 2, 3, 0).reshape(c, h * w, b))
        return (y.reshape(c, h, w, b) + self.bias[:, None, None, None]).permute(3, 0, 1, 2)


@lru_cache(maxsize=64)
def _taps(h: int, w: int, kernel: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which weight of the kernel leads from one cell (second) to another (first), and whether there is one."""
    with torch.inference_mode(False):  # what is made in it could never be trained through
        rows, columns = (torch.arange(n) - torch.arange(n)[:, None] + kernel // 2 for n in (h, w))
        rows, columns = rows[:, None, :, None], columns[None, :, None, :]
        inside = (rows >= 0) & (rows < kernel) & (columns >= 0) & (columns < kernel)
        taps = rows.clamp(0, kernel - 1) * kernel + columns.clamp(0, kernel - 1)
        return taps.flatten(), inside.reshape(h * w, h * w).float()


def soft_targets(label: Label, values: torch.Tensor) -> torch.Tensor:
    """Ordinal targets (B, n_bins): each value blurred over the bins beside it."""
    position = label.position(values, torch.log)
    centres = torch.arange(label.n_bins, device=values.device) + 0.5
    return F.softmax(-0.5 * ((position[:, None] - centres) / label.blur) ** 2, dim=1)
