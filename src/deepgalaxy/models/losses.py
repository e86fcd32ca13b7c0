"""What is minimised."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F

from ..labels import HEADS, LABELS, NO_STAGE
from .classifier import soft_targets

__all__ = ["ssim", "image_loss", "kl_divergence", "class_targets", "label_loss", "rank_loss"]


def ssim(a: torch.Tensor, b: torch.Tensor, data_range: float = 1.0, window: int = 7) -> torch.Tensor:
    """Structural similarity (B,) of images (B, 1, H, W), with a uniform window.

    References
    ----------
    Wang et al. (2004), IEEE Trans. Image Process. 13, 600, eq. 13; K1 = 0.01, K2 = 0.03.
    """
    # Variances are small differences of large numbers: half precision would lose them.
    at_least_single = torch.promote_types(a.dtype, torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return _ssim(a.to(at_least_single), b.to(at_least_single), data_range, window)


def _ssim(a, b, data_range, window):
    n = window**2
    down, across = (_bands(size, window).to(a) for size in a.shape[-2:])

    def mean(x):  # a third of the time of avg_pool2d along one axis and then the other, on the CPU
        return down.T @ (x @ across)

    ma, mb = mean(a), mean(b)
    scale = n / (n - 1)  # sample variances
    va, vb, vab = (scale * (mean(p * q) - m) for p, q, m in ((a, a, ma * ma), (b, b, mb * mb), (a, b, ma * mb)))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    value = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    return value.flatten(1).mean(dim=1)


@lru_cache(maxsize=16)
def _bands(size: int, window: int) -> torch.Tensor:
    """(size, size - window + 1): x @ this is the mean of every `window` neighbours."""
    with torch.inference_mode(False):  # what is made in it could never be trained through
        offset = torch.arange(size)[:, None] - torch.arange(size - window + 1)
        return ((offset >= 0) & (offset < window)).float() / window


def image_loss(reconstruction: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """L1 + (1 - SSIM), a scalar."""
    return (reconstruction - image).abs().mean() + 1 - ssim(reconstruction, image).mean()


def kl_divergence(mu: torch.Tensor, logvar: torch.Tensor, free_bits: float = 0.0) -> torch.Tensor:
    """Of N(mu, exp(logvar)) from N(0, 1), in nats, summed over z, averaged over the batch.

    Each dimension's average counts only above free_bits (Kingma et al. 2016, arXiv 1606.04934).
    """
    per_dimension = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean(dim=0)
    return per_dimension.clamp(min=free_bits).sum()


def class_targets(classes: torch.Tensor, n_classes: int, n_cameras: int, blur: float) -> torch.Tensor:
    """Targets (B, n_classes) of classes (B,) snapshot x camera: each blurred over the snapshots beside it.

    blur : standard deviation in snapshots. In a random split both neighbours in time of a picture are known: without a
        blur, a model that remembers them answers with one of them, and never with what lies between.
    """
    every = torch.arange(n_classes, device=classes.device)
    distance = (classes[:, None] // n_cameras - every // n_cameras) / max(blur, 1e-3)
    target = torch.exp(-0.5 * distance.square()) * (classes[:, None] % n_cameras == every % n_cameras)
    return target / target.sum(dim=1, keepdim=True)


def label_loss(logits: dict[str, torch.Tensor], labels: dict[str, torch.Tensor], weights: dict[str, float],
               n_cameras: int = 1, class_blur: float = 0.0) -> torch.Tensor:
    """Weighted cross entropies; a label that is NaN (stage: NO_STAGE) for an image does not count there.

    The entropy of the soft targets is taken off, so that 0 is a perfect answer.

    n_cameras, class_blur : of the classes of time and camera, see `class_targets`.
    """
    total = next(iter(logits.values())).new_zeros(())
    for label in HEADS:
        if label.name not in labels:
            continue
        values = labels[label.name]
        known = ~torch.isnan(values)
        target = soft_targets(label, torch.where(known, values, torch.full_like(values, label.high)))
        divergence = F.kl_div(F.log_softmax(logits[label.name].float(), dim=1), target, reduction="none").sum(dim=1)
        total = total + weights.get(label.name, 1.0) * _mean_where(divergence, known)
    if "stage" in logits and "stage" in labels:
        known = labels["stage"] != NO_STAGE
        target = torch.where(known, labels["stage"], 0).long()
        loss = F.cross_entropy(logits["stage"].float(), target, reduction="none")
        total = total + weights.get("stage", 1.0) * _mean_where(loss, known)
    if "time_camera" in logits and "time_camera" in labels:
        found = F.log_softmax(logits["time_camera"].float(), dim=1)
        target = class_targets(labels["time_camera"], found.shape[1], n_cameras, class_blur)
        loss = F.kl_div(found, target, reduction="none").sum(dim=1)
        total = total + weights.get("time_camera", 1.0) * loss.mean()
    return total


def rank_loss(z: torch.Tensor, labels: dict[str, torch.Tensor], weights: dict[str, float]) -> torch.Tensor:
    """How far the order of distances in z (B, latent_size) is from that in the labels, a scalar.

    The labels' distance is Euclidean in units of their blur, each squared difference times its weight. A label that
    is NaN for all images is left out, and then an image of which another one is.

    References
    ----------
    Zha et al. (2023), arXiv 2210.01189, eq. 2 with distances in z in the place of similarities.
    """
    at = [weights.get(label.name, 1.0) ** 0.5 / label.blur * label.position(labels[label.name], torch.log)
          for label in LABELS if label.name in labels and weights.get(label.name, 1.0) > 0]
    at = torch.stack([values.float() for values in at if torch.isfinite(values).any()] or [z[:, 0] * torch.nan], dim=1)
    known = torch.isfinite(at).all(dim=1)
    at, z = at[known], z[known].float()
    if len(z) < 3:  # nothing can be out of order
        return z.sum() * 0
    # The gradient of a distance of 0, an image's from itself, is not finite.
    closeness = -(((z[:, None] - z).square().sum(dim=2) + 1e-6).sqrt())
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    order = torch.cdist(at, at).masked_fill(itself, -1.0).argsort(dim=1, descending=True)[:, :-1]
    closeness = closeness.gather(1, order)  # of the most different image first
    return (torch.logcumsumexp(closeness, dim=1) - closeness).mean()


def _mean_where(values, known):
    return (values * known).sum() / known.sum().clamp(min=1)
