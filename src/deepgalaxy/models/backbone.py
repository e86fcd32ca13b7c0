"""Any timm backbone, cut at a stride."""

from __future__ import annotations

import difflib

import torch
from torch import nn

from ..errors import ModelError
from . import timm_families

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """A timm backbone up to a stride, and a 1x1 neck: the picture's activation maps.

    Parameters
    ----------
    backbone : any name of timm with a feature pyramid.
    stride : pixels of the image per cell of the maps.
    channels : of the maps.
    pretrained : load timm's published weights (needs them in its cache).

    Raises
    ------
    ModelError
        If timm has no such backbone, or the backbone has no features at this stride.
    """

    def __init__(self, backbone: str, stride: int, channels: int, pretrained: bool = False):
        super().__init__()
        create_model = timm_families.creator(backbone, pretrained)
        if create_model is None:
            known = timm_families.whole().list_models()
            close = difflib.get_close_matches(backbone, known, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else "; see timm.list_models()"
            raise ModelError(f"backbone = {backbone}: timm has no model of this name{hint}")
        try:
            # Only the strides are asked for. On the meta device the first weights would be drawn by functions that
            # import torch's compiler: 4 seconds.
            with torch.random.fork_rng(devices=[]):
                pyramid = create_model(backbone, features_only=True, in_chans=3)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ModelError(f"backbone = {backbone}: has no feature pyramid ({error}); choose another") from None
        reductions = pyramid.feature_info.reduction()
        if stride not in reductions:
            raise ModelError(f"stride = {stride}: backbone {backbone} has features at strides "
                             f"{sorted(set(reductions))}; choose one of them")
        index = max(i for i, r in enumerate(reductions) if r == stride)
        self.body = create_model(backbone, features_only=True, in_chans=3, out_indices=(index,), pretrained=pretrained)
        self.stride, self.channels = stride, channels
        self.neck = nn.Conv2d(self.body.feature_info.channels()[-1], channels, 1)
        # What comes after the stride still runs in some families; it is cut off here, once it is seen to be unused.
        # Some backbones answer with channels last, which is seen here too.
        self.eval()
        try:
            with torch.inference_mode(False), torch.enable_grad():
                probe = self.body(torch.rand(1, 3, 4 * stride, 4 * stride))[0]
                _cut_unused(self.body, probe)
        except (AssertionError, RuntimeError) as error:
            raise ModelError(f"backbone = {backbone}: does not take images of any size ({error}); choose a "
                             "convolutional one") from None
        self._answers_channels_last = probe.shape[1] != self.neck.in_channels
        self.memory_format = _memory_format(self.body)
        self.train()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Activation maps of grey images."""
        image = image.expand(-1, 3, -1, -1).contiguous(memory_format=self.memory_format)
        maps = self.body(image)[0]  # (B, 3, H, W) -> (B, K, h, w)
        if self._answers_channels_last:
            maps = maps.permute(0, 3, 1, 2)
        return self.neck(maps)  # -> (B, C, h, w)


def _cut_unused(body: nn.Module, output: torch.Tensor) -> None:
    """Drop the trailing blocks that the output does not depend on, and freeze what is left without a gradient."""
    output.sum().backward()

    def unused(module):
        parameters = list(module.parameters())
        return bool(parameters) and all(p.grad is None for p in parameters)

    for module in list(body.modules()):
        if isinstance(module, nn.Sequential):
            while len(module) > 1 and unused(module[-1]):
                del module[-1]
    for parameter in body.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def _memory_format(body: nn.Module) -> torch.memory_format:
    """Channels last trains mobilenetv4_conv_small twice as fast on the CPU (8 against 17 ms an image).

    But with it a 1x1 convolution of stride 2 with fewer than 16 channels, as in the stems of repvgg and mobileone,
    writes past the end of an array in the backward pass (torch 2.13 to 2.15).
    """
    for module in body.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1):
            if module.in_channels < 16:
                return torch.contiguous_format
    return torch.channels_last
