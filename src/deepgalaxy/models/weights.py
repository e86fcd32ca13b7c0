"""Weights as a file: safetensors with the architecture, provenance and calibration in its header."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..config import Config
from ..errors import ConfigError, ModelError
from ..files import sha256_of, write_whole
from ..labels import HEADS, STAGES
from .deepgalaxy import DeepGalaxy, ModelConfig

__all__ = ["Learnt", "Weights", "load_weights", "save_weights", "update_metadata"]

_FORMAT = "deepgalaxy-weights"


@dataclass(frozen=True)
class Learnt:
    """What a training left in or out: parts that learnt nothing still answer, with whatever they began with."""

    scale: float = 0.5  #: share of the images whose scale was told; 0 where no image had one
    untrained: tuple[str, ...] = ()  #: labels whose weight was 0, or that no image had
    z: bool = True  #: the VAE and its labels had a weight
    images: bool = True  #: what is reconstructed had a weight
    unseen_stages: tuple[str, ...] = ()  #: that no image showed
    framing: str = "content"  #: one of `preprocess.FRAMINGS`: how pictures were framed

    @property
    def never_told(self) -> bool:
        """It has only ever seen pictures of unknown scale."""
        return self.scale == 0

    def told(self, scale: torch.Tensor) -> torch.Tensor:
        """A scale, or a size of pixels, as far as the model has learnt to use it: else NaN."""
        return torch.full_like(scale, torch.nan) if self.never_told else scale

    def n_views(self, wanted: int) -> int:
        """How many mirrored and turned views to average: pictures that were shown as they are never were."""
        return wanted if self.framing == "content" else 1

    def flags(self, scale_known: bool) -> list[str]:
        """What every answer of such a model has to say."""
        texts = [f"this model was not trained for {name.replace('_', ' ')}: its answer means nothing"
                 for name in self.untrained]
        if self.unseen_stages and "stage" not in self.untrained:  # of none at all, that says it
            names, many = ", ".join(self.unseen_stages), len(self.unseen_stages) > 1
            which, what = ("stages", "their probabilities mean") if many else ("stage", "its probability means")
            texts.append(f"no image of the training showed the {which} {names}: {what} nothing")
        if self.never_told and scale_known:
            texts.append("this model was trained without the size of a pixel, and uses neither it nor a mass")
        if self.scale == 1 and not scale_known:
            texts.append("this model was always told the size of a pixel: without it, its answers mean little")
        if not self.images:
            texts.append("this model was not trained to reconstruct: no picture without sky and stars")
        if not self.z:
            texts.append("the latent space of this model was not trained: look-alikes are found by their looks alone")
        return texts


@dataclass
class Weights:
    """A model ready to use."""

    model: DeepGalaxy
    name: str
    version: str
    sha256: str
    metadata: dict = field(default_factory=dict)  #: training recipe, calibration, held-out encounters, `never_seen`

    @property
    def identity(self) -> dict:
        """What answers say about the model that gave them."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256}

    @property
    def learnt(self) -> Learnt:
        """What the training left in or out, by its recipe and by its data."""
        recipe, never_seen = self.metadata["training"], set(self.metadata.get("never_seen", ()))
        loss = recipe.get("loss", {})
        untrained = {name for name, weight in loss.get("labels", {}).items() if weight == 0}
        unseen = tuple(name for name in STAGES if {"stage", f"stage: {name}"} & never_seen)
        untrained |= never_seen - {"pixel_scale"} - {f"stage: {name}" for name in unseen}
        latent = ("latent_labels", "latent_reconstruction", "maps", "kl")
        has_latent = any(loss.get(name, 1) != 0 for name in latent) or loss.get("latent_ranks", 0) != 0
        images = any(loss.get(name, 1) != 0 for name in ("reconstruction", "latent_reconstruction"))
        scale = 0.0 if "pixel_scale" in never_seen else loss.get("scale_known", 0.5)
        return Learnt(scale, tuple(sorted(untrained)), has_latent, images, unseen,
                      recipe.get("framing", "content"))


def save_weights(path: str | Path, model: DeepGalaxy, name: str, training: Config | None = None,
                 store: str = "float32", **metadata) -> None:
    """Write the weights, whole or not at all; the file carries a checksum of all that is in it.

    Parameters
    ----------
    store : "float32" or "float16", of matrices and kernels; they are read as single precision in any case. Vectors,
        among them the variances that BatchNorm keeps, may be too large or too small for half precision.
    """
    from .. import __version__

    tensors = {k: (v.to(getattr(torch, store)) if v.ndim > 1 else v).detach().cpu().contiguous()
               for k, v in model.state_dict().items()}
    header = {"format": _FORMAT, "name": name, "version": __version__, "model": model.config.to_json(),
              "bins": json.dumps(_bins()),
              "training": training.to_json() if training else "{}", "metadata": json.dumps(metadata)}
    _write(Path(path), tensors, header)


def load_weights(path: str | Path) -> Weights:
    """Read weights and build their model, in evaluation mode.

    Raises
    ------
    ModelError
        If the file is missing, no safetensors of ours, damaged, or holds NaN.
    """
    path = Path(path)
    tensors, header = _read(path)
    try:
        config = ModelConfig.from_json(header["model"], str(path))
        metadata = {**json.loads(header["metadata"]), "training": json.loads(header["training"])}
        name, version = header["name"], header["version"]
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ModelError(f"{path}: says nothing sensible about its architecture ({error})") from None
    _refuse_other_bins(path, header)
    try:
        with torch.inference_mode(False):  # weights made in it could never be trained on
            model = DeepGalaxy(config.model_copy(update={"pretrained": False}))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{path}: the weights do not fit the architecture they name, or labels were added or taken "
                         f"away since; train again ({' '.join(str(error).splitlines()[-1].split())})") from None
    model.eval().requires_grad_(False)
    return Weights(model, name, version, sha256_of(path), metadata)


def update_metadata(path: str | Path, output: str | Path | None = None, **metadata) -> None:
    """Add to what the header says, as calibration does; in place, or in a copy at `output`."""
    tensors, header = _read(Path(path))
    header["metadata"] = json.dumps({**json.loads(header["metadata"]), **metadata})
    _write(Path(output if output is not None else path), tensors, header)


def _bins() -> dict[str, list]:
    """Of each label, what its answers are counted in."""
    return {label.name: [label.low, label.high, label.n_bins, label.log] for label in HEADS}


def _refuse_other_bins(path: Path, header: dict[str, str]) -> None:
    """Bins that were moved would make other numbers of the same answers; weights from before they were noted pass."""
    now = _bins()
    for name, theirs in json.loads(header.get("bins", "{}")).items():
        if name in now and theirs != now[name]:
            told = [f"{n} bins from {low:g} to {high:g}{', logarithmic' if log else ''}"
                    for low, high, n, log in (theirs, now[name])]
            raise ModelError(f"{path}: was trained with {told[0]} of {name}, labels.py has {told[1]}; train again, or "
                             "put the label back")


def _read(path: Path):
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise ModelError(f"{path}: is a folder; give the file in it, usually model.safetensors")
    if not path.is_file():
        raise ModelError(f"{path}: no such weights; give a file that 'deepgalaxy train' wrote")
    try:
        with safe_open(path, framework="pt") as f:
            header = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: is not a readable safetensors file ({str(error).splitlines()[0][:100]}); "
                         "weights travel as safetensors, not as pickles") from None
    if header.get("format") != _FORMAT:
        raise ModelError(f"{path}: is a safetensors file, but not weights of deepgalaxy")
    if _digest(tensors, header) != header.get("sha256"):
        raise ModelError(f"{path}: is damaged, its checksum does not fit; fetch or train it again")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"{path}: tensor '{name}' holds values that are not finite; train again")
    return tensors, header


def _write(path: Path, tensors, header) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save

    header["sha256"] = _digest(tensors, header)
    try:
        # The library's own writer leaves a file that nobody else may read.
        write_whole(path, save(tensors, metadata=header))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be written ({error}); free space or choose another folder") from None


def _digest(tensors, header) -> str:
    """Of everything in the file but this digest itself."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in sorted(header.items()) if k != "sha256"}).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
