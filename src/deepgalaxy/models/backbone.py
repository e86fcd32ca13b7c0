"""Any timm backbone, cut at a stride."""

from __future__ import annotations

import copy
import difflib

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ModelError
from ..image.preprocess import FRAME_PIXELS
from . import timm_families
from .blocks import idle_blocks, zeroed

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """A timm backbone up to a stride, and a 1x1 neck: the picture's activation maps.

    Small backbones hardly look at the picture before they shrink it; residual blocks at half the stride, whose result
    is added to the maps, see what is finer than a cell.

    Parameters
    ----------
    backbone : any name of timm with a feature pyramid.
    stride : pixels of the image per cell of the maps.
    channels : of the maps.
    pretrained : load timm's published weights (needs them in its cache).
    fine_depth : residual blocks at half the stride.
    argument : what the backbone is called where it was asked for.

    Raises
    ------
    ModelError
        If timm has no such backbone, or the backbone has no features at this stride.
    """

    def __init__(self, backbone: str, stride: int, channels: int, pretrained: bool = False,
                 fine_depth: int = 0, argument: str = "backbone"):
        super().__init__()
        create_model = timm_families.creator(backbone, pretrained)
        if create_model is None:
            known = timm_families.whole().list_models()
            close = difflib.get_close_matches(backbone, known, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else "; see timm.list_models()"
            raise ModelError(f"{argument} = {backbone}: timm has no model of this name{hint}")
        try:
            # Only the strides are asked for. On the meta device the first weights would be drawn by functions that
            # import torch's compiler: 4 seconds.
            with torch.random.fork_rng(devices=[]):
                pyramid = create_model(backbone, features_only=True, in_chans=3)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ModelError(f"{argument} = {backbone}: has no feature pyramid ({error}); choose another") from None
        reductions = pyramid.feature_info.reduction()
        strides = [stride // 2, stride] if fine_depth else [stride]
        for wanted in reversed(strides):
            if wanted not in reductions:
                raise ModelError(f"stride = {stride}: backbone {backbone} has features at strides "
                                 f"{sorted(set(reductions))}" + ("; choose one of them" if wanted == stride else
                                                                 f", not at {wanted}; set fine_depth: 0"))
        levels = tuple(max(i for i, r in enumerate(reductions) if r == wanted) for wanted in strides)
        try:
            self.body = create_model(backbone, features_only=True, in_chans=3, out_indices=levels,
                                     pretrained=pretrained)
        except RuntimeError as error:
            if "pretrained weights" not in str(error):
                raise
            raise ModelError(f"{argument} = {backbone}: pretrained: timm has no weights of it; set pretrained: false, "
                             "or choose another backbone") from None
        except OSError as error:
            raise ModelError(f"{argument} = {backbone}: pretrained: timm's weights are not in its cache and cannot be "
                             f"fetched ({str(error).splitlines()[0][:80]}); set pretrained: false, or fetch them once "
                             "where there is a network") from None
        self.stride, self.channels = stride, channels
        self.neck = nn.Conv2d(self.body.feature_info.channels()[-1], channels, 1)
        self.fine = self.fine_neck = None
        if fine_depth:
            width = self.body.feature_info.channels()[0]
            self.fine = idle_blocks(width, fine_depth)
            self.fine_neck = zeroed(nn.Conv2d(2 * width, channels, 1))
        self.eval()
        try:
            with torch.inference_mode(False), torch.enable_grad():
                self._answers_channels_last = self._probe(backbone, argument)
        except (AssertionError, RuntimeError) as error:
            raise ModelError(f"{argument} = {backbone}: does not take images of any size ({error}); choose a "
                             "convolutional one") from None
        self.memory_format = _memory_format(self.body)
        self.train()

    def _probe(self, backbone: str, argument: str) -> bool:
        """See that a frame gives the maps it should, and drop what they do not need; whether channels come last.

        What comes after the stride still runs in some families: it is cut off, unless that changes the maps.
        """
        frame = torch.rand(1, 3, FRAME_PIXELS, FRAME_PIXELS)
        features = self.body(frame)
        maps = features[-1]
        channels_last = maps.shape[1] != self.neck.in_channels
        cells, expected = tuple(maps.shape[1:3] if channels_last else maps.shape[2:]), -(-FRAME_PIXELS // self.stride)
        if cells != (expected, expected):
            raise ModelError(f"{argument} = {backbone}: its maps at stride {self.stride} are {cells[0]}x{cells[1]} of "
                             f"a frame of {FRAME_PIXELS}, not {expected}x{expected}; choose another")
        sum(level.sum() for level in features).backward()
        used = {name for name, parameter in self.body.named_parameters() if parameter.grad is not None}
        whole = copy.deepcopy(self.body)
        _cut_unused(self.body)
        try:
            same = all(map(torch.equal, self.body(frame), features))
        except RuntimeError:
            same = False
        if not same:  # a block that is passed by in part
            self.body = whole
        for name, parameter in self.body.named_parameters():
            parameter.requires_grad_(name in used)
            parameter.grad = None
        return channels_last

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Activation maps of grey images."""
        image = image.expand(-1, 3, -1, -1).contiguous(memory_format=self.memory_format)
        features = self.body(image)  # (B, 3, H, W) -> (B, K, h, w), before it one of twice the size where asked for
        if self._answers_channels_last:
            features = [level.permute(0, 3, 1, 2) for level in features]
        maps = self.neck(features[-1])  # -> (B, C, h, w)
        if self.fine is None:
            return maps
        fine, cells = self.fine(features[0]), maps.shape[2:]
        pooled = torch.cat([F.adaptive_avg_pool2d(fine, cells), F.adaptive_max_pool2d(fine, cells)], dim=1)
        return maps + self.fine_neck(pooled)


def _cut_unused(body: nn.Module) -> None:
    """Drop the trailing blocks that got no gradient."""
    def unused(module):
        parameters = list(module.parameters())
        return bool(parameters) and all(p.grad is None for p in parameters)

    for module in list(body.modules()):
        if isinstance(module, nn.Sequential):
            while len(module) > 1 and unused(module[-1]):
                del module[-1]


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
