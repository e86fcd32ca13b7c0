"""From logits to distributions, and from distributions to quantiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..labels import FRAME_SIDE, LABELS, STAGES, Label
from ..models.deepgalaxy import DeepGalaxy, Encoding

__all__ = ["N_VIEWS", "views_of", "n_turns", "distributions", "quantile", "coverage_level", "levels_together",
           "joint_samples", "mixed", "at_ranks", "ranks", "summarise", "tempered", "two_answers", "widths"]

#: Views of a picture that are averaged: its frame and two turned ones, with their mirror images.
N_VIEWS = 12

#: After a label's name: its temperature where nobody tells the scale; after either, how it goes with the width.
UNTOLD, SLOPE = ", scale unknown", ", by width"


def views_of(turned: Sequence[torch.Tensor], n_views: int = N_VIEWS) -> list[torch.Tensor]:
    """The same frames mirrored, and turned: tensors of the shape of frames, up to four for each turn.

    A frame's long axis lies horizontally but has no left and right, nor up and down, so that the
    four mirror images are equally good; the turns stand for the error of the axis.

    turned : frames (B, 1, n, n), and the same pictures in frames that are turned a little: cut anew, because a frame
        that is resampled is softer than what the model knows.
    """
    flips = [(), (3,), (2,), (2, 3)]
    return [frames.flip(axes) if axes else frames for frames in turned for axes in flips][:n_views]


def n_turns(n_views: int) -> int:
    """How many turned frames so many views take."""
    return -(-n_views // 4)


@torch.inference_mode()
def distributions(model: DeepGalaxy, turned: Sequence[torch.Tensor], scale: torch.Tensor,
                  temperatures: dict[str, float] | None = None, n_views: int = N_VIEWS,
                  ) -> tuple[dict[str, np.ndarray], list[Encoding]]:
    """Posterior of every label, averaged over mirrored and turned views.

    Parameters
    ----------
    turned : frames (B, 1, n, n), and turned ones, see `views_of`.
    scale : (B,) log10(frame side / 100 kpc), NaN where unknown.
    temperatures : of each label, from calibration; see `tempered`.

    Returns
    -------
    probability : {label: (B, n_bins)}, "stage" among them.
    encodings : of the frames and their mirror images, not turned, min(n_views, 4) of them; the frames first.
    """
    answers = [model(view, scale) for view in views_of(turned, n_views)]
    encodings = [encoding for encoding, _ in answers[:4]]
    return {name: tempered(torch.stack([logits[name].float() for _, logits in answers]), temperatures or {}, name,
                           scale).numpy() for name in answers[0][1]}, encodings


def tempered(logits: torch.Tensor, temperatures: dict[str, float], name: str, scale: torch.Tensor) -> torch.Tensor:
    """A label's calibrated distributions (B, n_bins): the mean over the views of its logits (V, B, n_bins).

    Logits are divided by a temperature, one where the scale (B,) is told, another where it is NaN, times a power of
    the width that the distribution has without (see `widths`): narrow ones are as wide as their targets were blurred in
    training, and have to be narrowed more.
    """
    told, slope = temperatures.get(name, 1.0), temperatures.get(name + SLOPE, 0.0)
    untold = temperatures.get(name + UNTOLD, told), temperatures.get(name + UNTOLD + SLOPE, slope)
    t, power = (torch.where(torch.isnan(scale), b, a) for a, b in zip((told, slope), untold, strict=True))
    if (power != 0).any():
        t = t * widths(logits) ** power
    return mixed(logits, t)


def mixed(logits: torch.Tensor, t: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Mean distributions (B, n_bins) over the views of logits (V, B, n_bins), at a temperature t (B,) each."""
    return F.softmax(logits / torch.as_tensor(t).reshape(-1, 1), dim=2).mean(dim=0)


def widths(logits: torch.Tensor) -> torch.Tensor:
    """Standard deviations (B,) of the mean distributions of logits (V, B, n_bins), in that of a flat one; a bin or
    more."""
    p, bins = mixed(logits), torch.arange(float(logits.shape[2]))
    variance = p @ bins**2 - (p @ bins) ** 2
    return variance.clamp(min=1).sqrt() / bins.std(correction=0)


def quantile(label: Label, probability: np.ndarray, q) -> np.ndarray:
    """The q-quantile (B,) of binned distributions (B, n_bins), in units of the label; q is one number or an array."""
    return np.array([at_ranks(label.edges, row, q, label.log) for row in probability])


def at_ranks(edges: np.ndarray, probability: np.ndarray, q, log: bool = False):
    """Quantiles of one binned distribution (n_bins,) between edges (n_bins + 1,), as many as q has."""
    cdf = np.concatenate([[0.0], np.cumsum(probability, dtype=float)])
    values = np.interp(q, cdf / cdf[-1], np.log(edges) if log else edges)
    return np.exp(values) if log else values


def two_answers(edges: np.ndarray, probability: np.ndarray, share: float = 0.2, depth: float = 0.4,
                ) -> list[tuple[float, float]] | None:
    """Where one binned distribution (n_bins,) has two separate peaks, whose common median may lie where nothing is.

    Parameters
    ----------
    share : of the probability that each of the two has to have.
    depth : the valley between them is at most as high as this share of the lower peak.

    Returns
    -------
    [(median, share), (median, share)] : of both, the likelier one first; None if there is one peak alone.
    """
    edges, p = np.asarray(edges, float), np.asarray(probability, float) / np.sum(probability, dtype=float)
    height = np.convolve(np.pad(p, 1, "edge"), (0.25, 0.5, 0.25), "valid")
    below = np.cumsum(p) - 0.5 * p
    # The valley that both sides rise most from: heights of the peaks on either side of every bin.
    left, right = np.maximum.accumulate(height), np.maximum.accumulate(height[::-1])[::-1]
    rise = np.where((below > share) & (below < 1 - share), np.minimum(left, right) / np.maximum(height, 1e-12), 0)
    valley = int(np.argmax(rise))
    if rise[valley] * depth < 1:
        return None
    sides = (slice(None, valley + 1), slice(valley + 1, None))
    found = [(float(at_ranks(edges[side.start:None if side.stop is None else side.stop + 1], p[side], 0.5)),
              float(p[side].sum())) for side in sides]
    return sorted(found, key=lambda answer: -answer[1])


def coverage_level(label: Label, probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The posterior's cumulative probability (B,) at the truth; uniform if it is calibrated."""
    cdf = np.cumsum(probability, axis=1, dtype=float)
    position = np.clip(label.position(truth), 0, label.n_bins)
    bins = np.minimum(position.astype(int), label.n_bins - 1)
    rows = np.arange(len(cdf))
    return (cdf[rows, bins] - (bins + 1 - position) * probability[rows, bins]) / cdf[:, -1]


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
                  never_told: bool = False) -> dict[str, np.ndarray]:
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
    never_told : the model never saw a scale: nothing hangs on it then.

    Returns
    -------
    samples : {label: (n,)}, and "kpc_per_pixel" (n,).
    """
    rng = np.random.default_rng(0)  # the same picture, the same answer
    if torch.isnan(scale).any():
        strata = 16
        middle = quantile(FRAME_SIDE, probability[FRAME_SIDE.name], (np.arange(strata) + 0.5) / strata)[0]
        scales, stratum = torch.from_numpy(np.log10(middle / 100).astype(np.float32)), rng.integers(0, strata, n)
        within = np.random.default_rng(1).random(n)  # anywhere in their stratum
        side = quantile(FRAME_SIDE, probability[FRAME_SIDE.name], (stratum + within) / strata)[0]
    else:
        scales, stratum = scale, np.zeros(n, int)
        side = np.full(n, 100 * 10 ** float(scale[0]))
    samples, levels = {}, levels_together(rng, (n,), correlation)
    if never_told:
        scales = torch.full_like(scales, torch.nan)
    logits = [model.classify(maps, one.expand(len(maps))) for one in scales]
    for label, u in zip(LABELS, levels.T, strict=True):
        at_scale = np.concatenate([tempered(one[label.name].float()[:, None], temperatures, label.name, scales[:1])
                                   for one in logits])
        drawn = np.empty(n)
        for k in range(len(at_scale)):
            drawn[stratum == k] = at_ranks(label.edges, at_scale[k], u[stratum == k], label.log)
        samples[label.name] = quantile(label, probability[label.name], ranks(drawn))[0]
    mirrored = rng.random(n) < 0.5
    view = samples["view_inclination"]
    samples["view_inclination"] = np.where(mirrored, 180 - view, view)
    samples["kpc_per_pixel"] = side / side_pixels
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
