"""What happens in one step of training."""

from __future__ import annotations

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch.optim.swa_utils import AveragedModel

from ..config import Config
from ..errors import ModelError
from ..image.observation import image_seeds, light_from_stored, mirror, observe_frames, told_or_asked
from ..image.realism import RealismConfig
from ..labels import FRAME_SIDE, HEADS, LABELS
from ..models.deepgalaxy import DeepGalaxy, ModelConfig
from ..models.losses import image_loss, kl_divergence, label_loss, rank_loss
from .optimiser import OptimiserConfig, make_optimiser

__all__ = ["LossConfig", "TrainingModule"]


class LossConfig(Config):
    """Weights of the parts of the loss."""

    labels: dict[str, float] = Field(
        {"time_since_pericentre": 1.0, "mass_ratio": 0.6, "size_ratio": 0.4, "view_inclination": 0.4, "stage": 0.3,
         "frame_side": 0.2},
        description="of each label's cross entropy; one that is not named keeps its own, 1 where it has none")
    latent_labels: float = Field(0.3, ge=0, description="of the same labels read off z")
    latent_ranks: float = Field(0.0, ge=0, description="of the order of distances in z, which is that of the labels'")
    reconstruction: float = Field(1.0, ge=0, description="of the FCAE's L1 + (1 - SSIM)")
    latent_reconstruction: float = Field(0.5, ge=0, description="of the same through z")
    maps: float = Field(0.2, ge=0, description="of the VAE's relative squared error on the activation maps")
    kl: float = Field(0.003, ge=0, description="of the KL divergence, after its warm-up")
    free_bits: float = Field(0.05, ge=0, description="nats per dimension of z that cost nothing")
    kl_warmup: int = Field(1000, ge=0, description="steps")
    decoded_share: float = Field(0.125, gt=0, le=1, description="of each batch that is reconstructed")
    scale_known: float = Field(0.5, ge=0, le=1, description="share of images whose scale is told")
    class_blur: float = Field(1.0, ge=0, description="standard deviation of the targets of the classes of time and "
                              "camera, in snapshots; 0 aims at one class alone")
    dropout: float = Field(0.1, ge=0, lt=1, description="of what the classifier's last layers see")
    realistic: float = Field(0.75, ge=0, le=1, description="share of images with observational realism")

    @field_validator("labels")
    @classmethod
    def _known(cls, weights):
        known = [label.name for label in HEADS] + ["stage", "time_camera"]
        for name, weight in weights.items():
            if name not in known or not weight >= 0:
                raise ValueError(f"{name}: {weight} is no weight of a label; labels are {', '.join(known)}, weights 0 "
                                 "or more")
        return {**cls.model_fields["labels"].default, **weights}


class TrainingModule(lightning.LightningModule):
    """The model, its losses and its optimiser.

    Parameters
    ----------
    total_steps : length of the cosine.
    seed : of everything that is drawn; step k of a resumed run draws what it would have drawn.
    logarithmic : the data set stores log10 of the surface density.
    n_validation : images that all workers together validate on.
    framing : one of `preprocess.FRAMINGS`; frames of a content are mirrored and misplaced a little, whole ones are not.
    n_cameras : of the data set, for the classes of time and camera.
    opposite : (C,) of each camera the one opposite to it: half of the pictures are shown mirrored, as seen from there.
    """

    def __init__(self, model: ModelConfig, loss: LossConfig, optimiser: OptimiserConfig,
                 realism: RealismConfig | None, total_steps: int, seed: int = 0, logarithmic: bool = True,
                 n_validation: int = 0, framing: str = "content", n_cameras: int = 1,
                 opposite: np.ndarray | None = None):
        super().__init__()
        self.model = DeepGalaxy(model)
        self.model.to(memory_format=self.model.encoder.memory_format)
        if self.model.second is not None:
            self.model.second.to(memory_format=self.model.second.memory_format)
        for layer in self.model.classifier.mix:
            if isinstance(layer, torch.nn.Dropout):
                layer.p = loss.dropout
        self.averaged = AveragedModel(self.model, multi_avg_fn=_moving_average(optimiser.ema), use_buffers=True)
        self.averaged.requires_grad_(False)
        self.loss, self.optimiser, self.realism = loss, optimiser, realism
        self.total_steps, self.seed, self.logarithmic = total_steps, seed, logarithmic
        self.n_validation, self.validation, self.framing = n_validation, [], framing
        self.n_cameras, self.opposite = n_cameras, opposite

    def on_before_batch_transfer(self, batch, dataloader_idx):
        """The images' numbers stay here, seeds are made of them; and what decides whether they are observed."""
        for name in ("index", "shines_by_mass"):
            if name in batch:
                batch[name] = batch[name].numpy()
        return batch

    @torch.no_grad()
    def on_after_batch_transfer(self, batch, dataloader_idx):
        """Observe and frame the images on the device that trains: a GPU would wait for what cores can observe."""
        training = self.trainer.training
        if training:
            # Dropout and sampling restart from the step's own number, so that a resumed run repeats itself.
            torch.manual_seed(hash((self.seed, self.global_step, self.global_rank)) & 0x7FFFFFFFFFFF)
        if "features" in batch:
            return {"features": batch.pop("features"), "labels": batch}
        light = light_from_stored(batch.pop("image"), self.logarithmic)
        pixel_scale, index, by_mass = (batch.pop(name) for name in ("pixel_scale", "index", "shines_by_mass"))
        if training:
            if self.opposite is not None:
                mirrored = image_seeds(self.seed + 2, self.current_epoch, index) % 2 == 1
                light, batch["time_camera"] = mirror(light, batch["time_camera"], self.opposite, mirrored)
            n_decoded = max(1, int(self.loss.decoded_share * len(light)))
            # Clean pictures are those whose light follows mass.
            realistic = np.where(by_mass, self.loss.realistic, 1.0)
            seen = observe_frames(light, pixel_scale, image_seeds(self.seed, self.current_epoch, index), self.realism,
                                  realistic, jitter=self.framing == "content", n_ideal=n_decoded,
                                  framing=self.framing)
            told = torch.rand(len(light), device=light.device) < self.loss.scale_known
            scale, batch[FRAME_SIDE.name] = told_or_asked(seen.scale, told)
        else:
            seen = observe_frames(light, pixel_scale, image_seeds(self.seed + 1, 0, index),
                                  self.realism if dataloader_idx else None, framing=self.framing)
            scale = seen.scale if self.loss.scale_known > 0 else torch.full_like(seen.scale, torch.nan)
        return {"frames": seen.frames, "scale": scale, "ideal": seen.ideal, "labels": batch}

    def training_step(self, batch, _):
        parts = self.head_losses(**batch) if "features" in batch else self.losses(**batch)
        total = sum(parts.values())
        if not torch.isfinite(total):
            raise ModelError(f"the loss is {float(total.detach())} at step {self.global_step}: nothing of it is kept; "
                             "lower optimiser.learning_rate, or run 'deepgalaxy check' on the data")
        self.log_dict({"loss": total.detach(), **{k: v.detach() for k, v in parts.items()}},
                      on_step=False, on_epoch=True, sync_dist=True, batch_size=len(next(iter(batch.values()))))
        return total

    def head_losses(self, features, labels) -> dict[str, torch.Tensor]:
        """The loss where only the classifier's last layers are trained; for features see `heads.Features`."""
        logits = self.model.classifier.heads(self.model.classifier.mix(features))
        return {"labels": label_loss(logits, labels, self.loss.labels, self.n_cameras, self.loss.class_blur)}

    def losses(self, frames, scale, ideal, labels) -> dict[str, torch.Tensor]:
        """The weighted parts of the loss; the first K frames are reconstructed towards ideal (K, 1, H, W)."""
        w, n = self.loss, len(ideal)
        encoding, logits = self.model(frames, scale)
        z = self.model.vae.sample(encoding.mu, encoding.logvar, torch.randn_like(encoding.mu))
        maps = self.model.vae.decode(z[:n], encoding.maps.shape[2:])
        target = encoding.maps[:n].detach()
        images = self.model.reconstruct(torch.cat([encoding.maps[:n], maps]), ideal.shape[2:]).float()
        kl_weight = w.kl * min(1.0, self.global_step / max(w.kl_warmup, 1))
        parts = {
            "labels": label_loss(logits, labels, w.labels, self.n_cameras, w.class_blur),
            "latent_labels": w.latent_labels * label_loss(self.model.latent_heads(z), labels, w.labels),
            "reconstruction": w.reconstruction * image_loss(images[:n], ideal),
            "latent_reconstruction": w.latent_reconstruction * image_loss(images[n:], ideal),
            "maps": w.maps * (maps.float() - target).square().mean() / target.float().var().clamp(min=1e-6),
            "kl": kl_weight * kl_divergence(encoding.mu.float(), encoding.logvar.float(), w.free_bits),
        }
        if w.latent_ranks:
            parts["latent_ranks"] = w.latent_ranks * rank_loss(z, labels, w.labels)
        return parts

    def optimizer_step(self, *arguments, **options):
        super().optimizer_step(*arguments, **options)
        self.averaged.update_parameters(self.model)  # before callbacks, which may save all

    @torch.no_grad()
    def validation_step(self, batch, _, dataloader_idx=0):
        _, logits = self.averaged.module(batch["frames"], batch["scale"])
        row = {"realism": bool(dataloader_idx)}
        for label in LABELS:
            # The median of the distribution, to the nearest bin.
            cdf = logits[label.name].float().softmax(1).cumsum(1)
            bin_ = (cdf < 0.5).sum(1).clamp(max=label.n_bins - 1)
            edges = torch.as_tensor(label.edges, dtype=torch.float32, device=bin_.device)
            row[label.name] = (0.5 * (edges[bin_] + edges[bin_ + 1]) - batch["labels"][label.name]).abs()
        self.validation.append(row)

    def on_validation_epoch_end(self):
        for realism in (False, True):
            rows = [r for r in self.validation if r["realism"] == realism]
            for label in LABELS if rows else ():
                errors = torch.cat([r[label.name] for r in rows])
                if self.trainer.world_size > 1:  # shares differ by one image at most; NaN does not count
                    longest = -(-self.n_validation // self.trainer.world_size)
                    errors = F.pad(errors, (0, longest - len(errors)), value=torch.nan)
                    errors = self.all_gather(errors).flatten()
                self.log(f"{'realism' if realism else 'clean'}_{label.name}", errors.nanmedian(), rank_zero_only=False)
        self.validation.clear()

    def configure_optimizers(self):
        optimiser, schedule = make_optimiser(self.model, self.optimiser, self.total_steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _moving_average(decay: float):
    """Exponential average that forgets the first, random weights quickly."""

    @torch.no_grad()
    def update(averaged, current, n):
        weight = 1 - min(decay, (1 + float(n)) / (10 + float(n)))
        floating = [i for i, p in enumerate(averaged) if p.is_floating_point()]
        if floating:
            torch._foreach_lerp_([averaged[i] for i in floating], [current[i] for i in floating], weight)
        for i in set(range(len(averaged))) - set(floating):
            averaged[i].copy_(current[i])

    return update
