"""From logits to distributions, and from distributions to quantiles."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..labels import FRAME_SIDE, LABELS, STAGES, Label
from ..models.deepgalaxy import DeepGalaxy, Encoding

__all__ = ["views_of", "resampled", "distributions", "quantile", "coverage_level", "levels_together", "joint_samples",
           "at_ranks", "ranks", "summarise"]


#: After a label's name: its temperature where nobody tells the scale.
UNTOLD = ", scale unknown"


def views_of(frames: torch.Tensor, turn_degrees: float = 6.0, n_views: int = 8) -> list[torch.Tensor]:
    """The same frames mirrored and slightly turned: up to 8 tensors of the shape of frames.

    A frame's long axis lies horizontally but has no left and right, nor up and down, so that the
    four mirror images are equally good; the small turns stand for the error of the axis.
    """
    flips = [(), (3,), (2,), (2, 3)]
    turned = [frames]
    if n_views > 4:
        turned = [resampled(frames, turn_degrees), resampled(frames, -turn_degrees)]
    return [t.flip(axes) if axes else t for t in turned for axes in flips][:n_views]


def resampled(images: torch.Tensor, degrees: float, zoom: float = 1.0, outside: str = "zeros") -> torch.Tensor:
    """Images (B, 1, H, W) turned and enlarged about their middle; `outside` is torch's `padding_mode`."""
    angle = np.radians(degrees)
    c, s = float(np.cos(angle)) / zoom, float(np.sin(angle)) / zoom
    affine = torch.tensor([[c, -s, 0], [s, c, 0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(affine, images.shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode=outside)


@torch.inference_mode()
def distributions(model: DeepGalaxy, frames: torch.Tensor, scale: torch.Tensor,
                  temperatures: dict[str, float] | None = None, n_views: int = 8,
                  ) -> tuple[dict[str, np.ndarray], list[Encoding]]:
    """Posterior of every label, averaged over mirrored and turned views.

    Parameters
    ----------
    frames : (B, 1, n, n).
    scale : (B,) log10(frame side / 100 kpc), NaN where unknown.
    temperatures : of each label, from calibration; see `temperature`.

    Returns
    -------
    probability : {label: (B, n_bins)}, "stage" among them.
    encodings : of the frames and their mirror images, not turned, min(n_views, 4) of them; the frames first.
    """
    temperatures = temperatures or {}
    total, encodings = {}, []
    for view in views_of(frames, n_views=n_views):
        encoding, logits = model(view, scale)
        encodings.append(encoding)
        for name, values in logits.items():
            p = F.softmax(values.float() / temperature(temperatures, name, scale), dim=1)
            total[name] = total.get(name, 0) + p / n_views
    if n_views > 4:  # the views were turned
        encodings = [model.encode(mirrored) for mirrored in views_of(frames, n_views=4)]
    return {name: p.numpy() for name, p in total.items()}, encodings


def temperature(temperatures: dict[str, float], name: str, scale: torch.Tensor) -> torch.Tensor:
    """What a label's logits are divided by (B, 1): one temperature where the scale is told, another where it is not."""
    told = temperatures.get(name, 1.0)
    untold = temperatures.get(f"{name}{UNTOLD}", told)
    return torch.where(torch.isnan(scale), untold, told)[:, None]


def quantile(label: Label, probability: np.ndarray, q) -> np.ndarray:
    """The q-quantile (B,) of binned distributions (B, n_bins), in units of the label; q is one number or an array."""
    return np.array([at_ranks(label.edges, row, q, label.log) for row in probability])


def at_ranks(edges: np.ndarray, probability: np.ndarray, q, log: bool = False):
    """Quantiles of one binned distribution (n_bins,) between edges (n_bins + 1,), as many as q has."""
    cdf = np.concatenate([[0.0], np.cumsum(probability, dtype=float)])
    values = np.interp(q, cdf / cdf[-1], np.log(edges) if log else edges)
    return np.exp(values) if log else values


def coverage_level(label: Label, probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The posterior's cumulative probability (B,) at the truth; uniform if it is calibrated."""
    cdf = np.concatenate([np.zeros((len(probability), 1)), np.cumsum(probability, axis=1)], axis=1)
    cdf /= cdf[:, -1:]
    position = np.clip(label.position(truth), 0, label.n_bins)
    return np.array([np.interp(x, np.arange(label.n_bins + 1), row) for x, row in zip(position, cdf, strict=True)])


def levels_together(rng: np.random.Generator, shape: tuple[int, ...], correlation=None) -> np.ndarray:
    """Cumulative probabilities (*shape, L) at which the labels are drawn, uniform each: a Gaussian copula.

    correlation : (L, L) of the labels' errors, in the order of LABELS; without it, they are independent.
    """
    if correlation is None:
        return rng.random((*shape, len(LABELS)))
    from scipy.special import ndtr

    return ndtr(rng.multivariate_normal(np.zeros(len(LABELS)), np.asarray(correlation, float), shape))


def joint_samples(model: DeepGalaxy, maps: torch.Tensor, scale: torch.Tensor, probability: dict[str, np.ndarray],
                  temperatures: dict[str, float], side_pixels: float, n: int = 1024, correlation=None,
                  ) -> dict[str, np.ndarray]:
    """Draws of all labels together, of one picture.

    Where no scale is told, a time goes with a scale: a larger pair is a later or an earlier one. Scales are drawn
    from what the picture suggests, the other labels from what the model says at that scale; then each label's
    draws are moved onto its own calibrated posterior, rank by rank (a copula). At one scale the labels go together as
    their errors did on held-out encounters: who takes the secondary for too heavy takes it for too large. Views come
    with their mirror image: 0..180 degrees, 90 is edge-on.

    Parameters
    ----------
    maps : (V, C, h, w) of the picture, and of its mirror images if they are to count too.
    scale : (1,) log10(frame side / 100 kpc), NaN where unknown.
    probability : the posteriors, from `distributions`, of one picture.
    side_pixels : of the frame, in pixels of the picture.
    correlation : (L, L) of the labels' errors at a known scale, from calibration; without it, none.

    Returns
    -------
    samples : {label: (n,)}, and "kpc_per_pixel" (n,).
    """
    rng = np.random.default_rng(0)  # the same picture, the same answer
    if torch.isnan(scale).any():
        strata = 16
        side = quantile(FRAME_SIDE, probability[FRAME_SIDE.name], (np.arange(strata) + 0.5) / strata)[0]
        scales, stratum = torch.from_numpy(np.log10(side / 100).astype(np.float32)), rng.integers(0, strata, n)
    else:
        scales, stratum = scale, np.zeros(n, int)
        side = 100 * 10 ** scale.numpy()
    samples, levels = {}, levels_together(rng, (n,), correlation)
    logits = [model.classify(maps, one.expand(len(maps))) for one in scales]
    for label, u in zip(LABELS, levels.T, strict=True):
        t = temperature(temperatures, label.name, scales[:1])
        at_scale = np.stack([torch.softmax(one[label.name].float() / t, dim=1).mean(dim=0).numpy() for one in logits])
        drawn = np.empty(n)
        for k in range(len(at_scale)):
            drawn[stratum == k] = at_ranks(label.edges, at_scale[k], u[stratum == k], label.log)
        samples[label.name] = quantile(label, probability[label.name], ranks(drawn))[0]
    mirrored = rng.random(n) < 0.5
    view = samples["view_inclination"]
    samples["view_inclination"] = np.where(mirrored, 180 - view, view)
    samples["kpc_per_pixel"] = side[stratum] / side_pixels
    return samples


def ranks(samples: np.ndarray) -> np.ndarray:
    """Where each of the samples (n,) stands among them, in 0..1."""
    return (np.argsort(np.argsort(samples)) + 0.5) / len(samples)


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
