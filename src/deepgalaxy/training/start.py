"""The weights that a training starts from: what they allow, what they fill in, and what is kept of them."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import ConfigError, ModelError
from ..files import shipped
from ..models.deepgalaxy import DeepGalaxy, ModelConfig
from ..models.weights import Weights, load_weights
from .begun import recipe_of
from .recipe import TrainConfig

__all__ = ["begin_with", "filled_in", "mix", "weights_to_start_from"]


def weights_to_start_from(config: TrainConfig) -> Weights:
    """Those that the recipe names, if its model can begin with them.

    Raises
    ------
    ModelError
        If there are none, or they are of another architecture.
    """
    path = shipped("model.safetensors") if config.start_from == "shipped" else Path(config.start_from)
    try:
        weights = load_weights(path)
    except ModelError as error:
        raise ModelError(f"start_from = {config.start_from}: {str(error).removeprefix(f'{path}: ')}") from None
    theirs, ours = weights.model.config, config.model
    unlike = [name for name in ModelConfig.model_fields if name in ours.model_fields_set
              if name != "pretrained" and getattr(theirs, name) != getattr(ours, name)]
    # What may be added: blocks and a backbone that do nothing at first, and the head of the classes. These two may be
    # left out as well; maps that lack what a second backbone added have to be learnt anew.
    for name, may in (("classifier_depth", ours.classifier_depth > theirs.classifier_depth),
                      ("fine_depth", ours.fine_depth > theirs.fine_depth),
                      ("second_backbone", None in (theirs.second_backbone, ours.second_backbone)),
                      ("latent_scale", ours.latent_scale),
                      ("n_classes", 0 in (theirs.n_classes, ours.n_classes))):
        if may and name in unlike:
            unlike.remove(name)
    if unlike:
        raise ModelError(f"start_from = {config.start_from}: is of another architecture "
                         f"({unlike[0]} {getattr(theirs, unlike[0])}, not {getattr(ours, unlike[0])}); "
                         "leave it out of 'model' to take theirs, or leave start_from out")
    return weights


def filled_in(config: TrainConfig, start: Weights, begun: Path | None) -> TrainConfig:
    """The recipe with what it does not say of the model taken from the weights `start`.

    begun : the output of a training that has checkpoints; the rest is theirs then, whatever became of the weights.
    """
    theirs = start.model.config
    if begun is not None and (recipe := recipe_of(begun)) is not None:
        theirs = recipe.model
    said = {key: getattr(config.model, key) for key in config.model.model_fields_set}
    return config.model_copy(update={"model": theirs.model_copy(update=said)})


def begin_with(module, start: Weights, config: TrainConfig, trained_on: set, held_out: set, n_images: int,
               fresh: bool) -> set[str]:
    """Put the weights `start` into the module.

    Parameters
    ----------
    module : TrainingModule, as it is before the first step.
    trained_on, held_out : identities of encounters, of this training.
    n_images : of its data.
    fresh : there is no checkpoint, which would take their place.

    Returns
    -------
    before : the encounters that the weights saw.

    Raises
    ------
    ConfigError
        If they saw what is held out now.
    """
    before = set(start.metadata.get("training_encounters", []))
    if config.split == "random" and before & trained_on:
        _refuse_another_split(config, start, n_images)
    if before & held_out and config.split == "encounters":
        raise ConfigError(f"start_from = {config.start_from}: was trained on encounters that would be held out here "
                          f"({sorted(before & held_out)[0]}); give the split_seed and validation_share of its "
                          "recipe, or, if yours are others, other names (another seed to the design of a suite)")
    for model in (module.model, module.averaged.module) if fresh else ():
        ours = model.state_dict()
        # Theirs may have the head of the classes or a second backbone, which are left out here.
        model.load_state_dict({**ours, **{k: v for k, v in start.model.state_dict().items() if k in ours}})
    return before


def mix(model: DeepGalaxy, start: DeepGalaxy, share: float) -> None:
    """Put a share of the weights that it started from into a model, where both have them.

    References
    ----------
    Wortsman et al. (2022), arXiv 2109.01903.
    """
    before = start.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in before and tensor.is_floating_point():
                tensor.lerp_(before[name].to(tensor), share)


def _refuse_another_split(config: TrainConfig, start: Weights, n_images: int) -> None:
    """Weights that saw this data set may go on with it only where the same images are held out."""
    theirs = TrainConfig.parse(start.metadata["training"], "recipe of the weights")
    before, now = ((c.split, c.validation_share, c.seed if c.split_seed is None else c.split_seed)
                   for c in (theirs, config))
    if start.metadata.get("n_images", n_images) != n_images:
        raise ConfigError(f"start_from = {config.start_from}: was trained on a random split of "
                          f"{start.metadata['n_images']} images, {config.data} has {n_images}: some that would be held "
                          "out here were trained on; give the same data")
    if before != now:
        raise ConfigError(f"start_from = {config.start_from}: was trained on images that would be held out here (split "
                          f"{before[0]}, validation_share {before[1]:g}, split_seed {before[2]}; here {now[0]}, "
                          f"{now[1]:g}, {now[2]}); give its values")
