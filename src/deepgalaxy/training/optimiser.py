"""What goes downhill, and how fast."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from ..config import Config

__all__ = ["OptimiserConfig", "make_optimiser"]


class OptimiserConfig(Config):
    """The optimiser, with warm-up and a cosine."""

    algorithm: Literal["muon", "adamw"] = Field("muon", description="Muon for matrices and convolutions, AdamW for the "
                                                "rest; or AdamW for everything")
    learning_rate: float = Field(8e-3, gt=0)
    weight_decay: float = Field(0.02, ge=0)
    warmup: int = Field(200, ge=0, description="steps")
    gradient_clip: float = Field(2.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the averaged weights, which are the result")


def make_optimiser(model: nn.Module, config: OptimiserConfig, total_steps: int):
    """The optimiser of a model's parameters and its schedule over so many steps.

    References
    ----------
    Muon: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/; its step in units of AdamW's: Liu et al.
    (2025), arXiv 2502.16982.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay}
    rest = {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}
    if config.algorithm == "muon":
        # After as many images the loss is that of AdamW after twice as many, for a fifth more time per step.
        optimiser = _muon()([matrices, {**rest, "use_fallback": True}], lr=config.learning_rate, nesterov=True,
                            ns_steps=4, betas=(0.9, 0.99))
    else:
        # Fused, it would be refused beside half precision, because gradients are clipped.
        optimiser = torch.optim.AdamW([matrices, rest], lr=config.learning_rate, foreach=True)
    warmup = max(config.warmup, 1)

    def rate(step):
        progress = min(1.0, step / max(total_steps, 1))
        return min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * progress)) + 1e-3

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def _muon():
    import timm.optim.muon as library

    if not torch.cuda.is_available() and not isinstance(library.zeropower_via_newtonschulz, partial):
        # It orthogonalises in bfloat16, which most CPUs only emulate: 2.4 s a step instead of 0.1 s.
        library.zeropower_via_newtonschulz = partial(library.zeropower_via_newtonschulz, dtype=torch.float32)
    return library.Muon
