"""From logits to distributions, and from distributions to quantiles."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..labels import LABELS, STAGES, Label
from ..models.deepgalaxy import DeepGalaxy

__all__ = ["views_of", "distributions", "quantile", "coverage_level", "summarise"]


def views_of(frames: torch.Tensor, turn_degrees: float = 6.0, n_views: int = 8) -> list[torch.Tensor]:
    """The same frames mirrored and slightly turned: up to 8 tensors of the shape of frames.

    A frame's long axis lies horizontally but has no left and right, nor up and down, so that the
    four mirror images are equally good; the small turns stand for the error of the axis.
    """
    flips = [(), (3,), (2,), (2, 3)]
    turned = [frames]
    if n_views > 4:
        turned = [_turn(frames, turn_degrees), _turn(frames, -turn_degrees)]
    return [t.flip(axes) if axes else t for t in turned for axes in flips][:n_views]


def _turn(frames, degrees):
    angle = np.radians(degrees)
    c, s = float(np.cos(angle)), float(np.sin(angle))
    affine = torch.tensor([[c, -s, 0], [s, c, 0]]).expand(len(frames), 2, 3)
    grid = F.affine_grid(affine, frames.shape, align_corners=False)
    return F.grid_sample(frames, grid, align_corners=False, padding_mode="zeros")


@torch.inference_mode()
def distributions(model: DeepGalaxy, frames: torch.Tensor, scale: torch.Tensor,
                  temperatures: dict[str, float] | None = None, n_views: int = 8,
                  ) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    """Posterior of every label, averaged over mirrored and turned views.

    Parameters
    ----------
    frames : (B, 1, n, n).
    scale : (B,) log10(frame side / 100 kpc), NaN where unknown.
    temperatures : of each label, from calibration.

    Returns
    -------
    probability : {label: (B, n_bins)}, "stage" among them.
    mu : (min(n_views, 4), B, latent_size) latent means of the frames and their mirror images, not turned.
    """
    temperatures = temperatures or {}
    total, latents = {}, []
    for view in views_of(frames, n_views=n_views):
        encoding, logits = model(view, scale)
        latents.append(encoding.mu)
        for name, values in logits.items():
            p = F.softmax(values.float() / temperatures.get(name, 1.0), dim=1)
            total[name] = total.get(name, 0) + p / n_views
    if n_views > 4:  # the views were turned
        latents = [model.encode(mirrored).mu for mirrored in views_of(frames, n_views=4)]
    return {name: p.numpy() for name, p in total.items()}, torch.stack(latents)


def quantile(label: Label, probability: np.ndarray, q: float) -> np.ndarray:
    """The q-quantile (B,) of binned distributions (B, n_bins), in units of the label."""
    cdf = np.concatenate([np.zeros((len(probability), 1)), np.cumsum(probability, axis=1)], axis=1)
    cdf /= cdf[:, -1:]
    position = np.array([np.interp(q, row, np.arange(label.n_bins + 1)) for row in cdf])
    if label.log:
        return label.low * (label.high / label.low) ** (position / label.n_bins)
    return label.low + (label.high - label.low) * position / label.n_bins


def coverage_level(label: Label, probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The posterior's cumulative probability (B,) at the truth; uniform if it is calibrated."""
    cdf = np.concatenate([np.zeros((len(probability), 1)), np.cumsum(probability, axis=1)], axis=1)
    cdf /= cdf[:, -1:]
    position = np.clip(label.position(truth), 0, label.n_bins)
    return np.array([np.interp(x, np.arange(label.n_bins + 1), row) for x, row in zip(position, cdf, strict=True)])


def summarise(probability: dict[str, np.ndarray], row: int, quantiles: dict[str, float]):
    """Properties, stage and distributions of one image, as a Story holds them."""
    properties, curves = {}, {}
    for label in LABELS:
        p = probability[label.name][row:row + 1]
        values = {name: float(quantile(label, p, q)[0]) for name, q in quantiles.items()}
        properties[label.name] = {"unit": label.unit, **values}
        curves[label.name] = (label.edges, p[0])
    stage = dict(zip(STAGES, map(float, probability["stage"][row]), strict=True))
    return properties, stage, curves
