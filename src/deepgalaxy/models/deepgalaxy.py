"""The whole model: FCAE, VAE on its activation maps, classifier."""

from __future__ import annotations

from typing import NamedTuple

import torch
from pydantic import Field
from torch import nn

from ..config import Config
from .autoencoder import Decoder
from .backbone import Encoder
from .blocks import zeroed
from .classifier import Classifier, Heads
from .vae import VAE

__all__ = ["ModelConfig", "DeepGalaxy", "Encoding"]


class ModelConfig(Config):
    """The architecture."""

    backbone: str = Field("mobilenetv4_conv_small", description="any timm name with a feature pyramid")
    second_backbone: str | None = Field(None, description="another one beside it, whose maps are added to its; to "
                                        "weights without one it adds nothing at first")
    stride: int = Field(16, ge=2, le=32, description="pixels of the image per cell of the activation maps")
    channels: int = Field(64, ge=1, le=2048, description="of the activation maps")
    latent_size: int = Field(32, ge=1, le=1024, description="of z")
    latent_scale: bool = Field(False, description="z is told the scale too, where it is known; to weights whose z is "
                               "not, it adds nothing at first")
    classifier_width: int = Field(192, ge=8, le=4096)
    classifier_depth: int = Field(3, ge=3, le=32, description="blocks at half the size of the maps; from weights with "
                                  "fewer, training starts with blocks that do nothing yet")
    fine_depth: int = Field(0, ge=0, le=32, description="blocks at half the stride, whose result is added to the maps; "
                            "from weights with fewer, training starts with blocks that do nothing yet")
    decoder_width: int = Field(96, ge=12, le=2048)
    n_classes: int = Field(0, ge=0, description="of the time x camera head; 994 for the published files")
    pretrained: bool = Field(False, description="start from timm's published weights")


class Encoding(NamedTuple):
    """What the encoders make of B images."""

    maps: torch.Tensor  #: (B, C, h, w) activation maps
    mu: torch.Tensor  #: (B, latent_size)
    logvar: torch.Tensor  #: (B, latent_size)


class DeepGalaxy(nn.Module):
    """Images to activation maps, z, reconstructions and labels."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.backbone, config.stride, config.channels, config.pretrained,
                               config.fine_depth)
        self.second = None
        if config.second_backbone is not None:
            self.second = Encoder(config.second_backbone, config.stride, config.channels, config.pretrained,
                                  argument="second_backbone")
            zeroed(self.second.neck)
        self.decoder = Decoder(config.channels, config.stride, config.decoder_width)
        self.vae = VAE(config.channels, config.latent_size, told_scale=config.latent_scale)
        self.classifier = Classifier(config.channels, config.classifier_width, config.classifier_depth,
                                     config.n_classes)
        # Labels read off z while training: they make distance in z a distance between encounters.
        self.latent_heads = nn.Sequential(nn.Linear(config.latent_size, 128), nn.SiLU(), Heads(128))

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) frames -> activation maps (B, C, h, w)."""
        maps = self.encoder(image)
        return maps if self.second is None else maps + self.second(image)

    def encode(self, image: torch.Tensor, scale: torch.Tensor | None = None) -> Encoding:
        """(B, 1, H, W) frames -> activation maps and the distribution of z; for the scale see `classify`."""
        maps = self.maps(image)
        return Encoding(maps, *self.vae.encode(maps, scale))

    def reconstruct(self, maps: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """(B, C, h, w) -> (B, 1, H, W), cut to a size that is no multiple of the stride."""
        image = self.decoder(maps)
        return image if size is None else image[..., :size[0], :size[1]]

    def classify(self, maps: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits per label; scale (B,) is log10(frame side / 100 kpc), NaN where unknown."""
        return self.classifier(maps, scale)

    def unscaled_features(self, maps: torch.Tensor) -> torch.Tensor:
        """What the classifier sees in the maps (B, K) if nobody tells the scale; by these, pictures are familiar."""
        unknown = maps.new_full((len(maps),), torch.nan)
        return self.classifier.features(maps, unknown)[:, :-2]

    def forward(self, image: torch.Tensor, scale: torch.Tensor):
        """Encoding and logits of B images."""
        encoding = self.encode(image, scale)
        return encoding, self.classify(encoding.maps, scale)
