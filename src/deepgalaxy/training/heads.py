"""Training of the last layers alone, on what the rest makes of pictures that are always the same."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset as TorchDataset

from ..data.datamodule import EncounterImages
from ..image.observation import image_seeds, light_from_stored, mirror, observe_frames, told_or_asked
from ..labels import FRAME_SIDE
from ..models.deepgalaxy import DeepGalaxy

__all__ = ["Features", "freeze"]


class Features(TorchDataset):
    """What the classifier's last layers see of every image, computed once, and the labels.

    A pass over 28,000 images then takes a second of one core instead of minutes.

    Parameters
    ----------
    images : which.
    model : its weights stay as they are.
    framing : one of `preprocess.FRAMINGS` that puts a picture always the same way.
    scale_known : the scale of every picture is told, or of none.
    logarithmic : the data set stores log10 of the surface density.
    opposite : (C,) of each camera the one opposite to it: every image is there twice, once as that one sees it.
    """

    def __init__(self, images: EncounterImages, model: DeepGalaxy, framing: str, scale_known: bool,
                 logarithmic: bool = True, opposite: np.ndarray | None = None):
        training, parts = model.training, []
        model.eval()
        for mirrored in (False,) if opposite is None else (False, True):
            for start in range(0, len(images), 64):
                batch = images.__getitems__(range(start, min(start + 64, len(images))))
                light = light_from_stored(batch.pop("image"), logarithmic)
                pixel_scale, index, _ = (batch.pop(name) for name in ("pixel_scale", "index", "shines_by_mass"))
                if mirrored:
                    light, batch["time_camera"] = mirror(light, batch["time_camera"], opposite,
                                                         np.ones(len(light), bool))
                seen = observe_frames(light, pixel_scale, image_seeds(0, 0, index), None, framing=framing)
                scale, batch[FRAME_SIDE.name] = told_or_asked(seen.scale, torch.tensor(scale_known))
                with torch.no_grad():
                    batch["features"] = model.classifier.features(model.maps(seen.frames), scale)
                parts.append(batch)
        model.train(training)
        self.rows = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def __len__(self):
        return len(self.rows["features"])

    def __getitems__(self, positions):
        """One whole batch: features (B, 2 width + 2) and the labels (B,)."""
        at = torch.as_tensor(positions)
        return {name: values[at] for name, values in self.rows.items()}


def freeze(model: nn.Module) -> None:
    """Leave only the classifier's last layers to be trained."""
    model.requires_grad_(False)
    model.classifier.mix.requires_grad_(True)
    model.classifier.heads.requires_grad_(True)
