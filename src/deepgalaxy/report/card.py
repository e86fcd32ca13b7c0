"""The model card: what weights are for, what they were trained on, how good they are, what they do not know."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from ..inference.posterior import N_VIEWS
from ..inference.predictor import n_encounters
from ..labels import HEADS, LABELS, STARLIGHT
from ..models.weights import Weights
from . import coverage_error
from .evaluation import where

__all__ = ["About", "model_card", "wrapped"]

_ALGORITHMS = {"muon": "Muon", "adamw": "AdamW"}
_WIDTH = 118
_KINDS = {"clean": "clean", "realism": "realism", "realism_without_scale": "realism, scale unknown",
          "realism_by_mass": "realism, light follows mass", "realism_other_light": "realism, it does not"}


@dataclass(frozen=True)
class About:
    """What no file can say about a model, as Markdown; empty parts are left out."""

    purpose: str = ("Pictures of two interacting galaxies: time since the first pericentre, mass and size ratio, angle "
                    "of the orbital plane to the sky, stage, each as a distribution.")
    data: str = ""  #: after what the recipe says of the data
    training: str = ""  #: after what the recipe says of the training
    figures: str = ""  #: after what the evaluation says
    limits: tuple[str, ...] = ()  #: after those that all models have


def model_card(weights: Weights, result: dict, library=None, about: About | None = None) -> str:
    """A model card as Markdown.

    Parameters
    ----------
    result : what `deepgalaxy evaluate --protocol unseen --json` holds, of these weights.
    library : the one of the evaluation, or None.
    about : what is to be said beyond what the files know.
    """
    about = about or About()
    head = f"sha256 `{weights.sha256}`"
    if library is not None:
        head += f"; library of {_library(library)}"
    sections = {"What it is for": [about.purpose], "Data": _data(weights, about), "Training": _training(weights, about),
                "Protocol and figures": [*_figures(weights, result), about.figures],
                "Limits": [_limits(weights, about)]}
    parts = [f"# Model card: {weights.name} {weights.version}", head]
    for title, blocks in sections.items():
        first, *rest = [wrapped(block.strip()) for block in blocks if block.strip()]
        parts += [f"## {title}\n{first}", *rest]
    return "\n\n".join(parts) + "\n"


def _library(library) -> str:
    return f"{len(library):,} images of {len(set(library.encounter.tolist())):,} encounters"


def wrapped(block: str) -> str:
    """A paragraph, or a list, at the width of this project's texts; a table as it is."""
    if block.startswith("|"):
        return block
    lines = block.split("\n- ") if block.startswith("- ") else [block]
    return "\n".join(textwrap.fill(" ".join((line if i == 0 else "- " + line).split()), _WIDTH, break_long_words=False,
                                   break_on_hyphens=False, subsequent_indent="  " if line is not block else "")
                     for i, line in enumerate(lines))


def _data(weights: Weights, about: About) -> list[str]:
    recipe = weights.metadata["training"]
    data = recipe.get("data", ())
    names = ", ".join(f"`{Path(name).name}`" for name in ([data] if isinstance(data, str) else data))
    trained, held = (n_encounters(weights.metadata.get(f"{key}_encounters", ())) for key in ("training", "validation"))
    others = ("images of every encounter were held out" if recipe.get("split") == "random" else
              "1 other was held out" if held == 1 else f"{held:,} others were held out")
    last = f", in the last part on those of {names}" if names else ""
    return [f"Trained on {_count(trained, 'encounter')}{last}; {others}.", about.data]


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _training(weights: Weights, about: About) -> list[str]:
    recipe, model = weights.metadata["training"], weights.model.config
    algorithm = recipe.get("optimiser", {}).get("algorithm", "adamw")
    text = (f"Backbone {model.backbone} at stride {model.stride}, activation maps of {model.channels} channels, z of "
            f"{model.latent_size}{', told the scale where it is known' if model.latent_scale else ''}. ")
    if model.fine_depth:
        text += f"The encoder has {model.fine_depth} blocks at half that stride. "
    if model.second_backbone:
        text += f"Beside it stands another backbone, {model.second_backbone}, whose maps are added. "
    if {"epochs", "images_per_epoch", "batch_size"} <= recipe.keys():
        text += (f"{_count(recipe['epochs'], 'epoch')} of {recipe['images_per_epoch']:,} images, batch "
                 f"{recipe['batch_size']}, {_ALGORITHMS.get(algorithm, algorithm)} with warm-up and cosine; averaged "
                 "weights are the result. ")
    if recipe.get("start_from"):
        text += "It went on from other weights. "
    share = recipe.get("loss", {}).get("realistic", 0.0) if recipe.get("realism") else 0.0
    lit = any(f"-{STARLIGHT}" in name for name in weights.metadata.get("training_encounters", ()))
    those = " whose light follows mass, and all others," if lit else ""
    return [f"{text}{100 * share:.0f} % of the images{those} pass through observational realism. {about.training}"]


def _figures(weights: Weights, e: dict) -> list[str]:
    (t0, t1), views = e["time_range"], weights.learnt.n_views(N_VIEWS)
    light = (" Images with realism are in equal parts of light that follows mass and of other light, here and below; "
             "the clean ones of the former." if "realism_by_mass" in e else "")
    return [f"`unseen`: {e['n_encounters']} whole encounters that were not trained on, {e['n_images']:,} images, "
            f"{t0:g} to {t1:g} Myr, frames found by content, {views} mirrored and turned views averaged. "
            '"Guessing" answers with the median of the truth; p is that the ranks of the truths are uniform, with one '
            "image of each encounter at a time (the median of many such draws: a test that hardly tells 68 % from 75), "
            "p of all that they are in all images together, in units of how encounters differ. Images of one encounter "
            "err together: "
            f"a coverage of 68 % is known to at worst {100 * coverage_error(e['n_encounters']):.1f} %.{light}",
            _labels(e), f"{_tarp(e)} {_stage(e)}", *_all_times(e), _familiarity(e), *_robustness(e), _breakdown(e),
            _neighbours(e)]


def _labels(e: dict) -> str:
    """Figures per label and kind of image."""
    rows = [(label.name, title, f"{v['median_abs_error']:.3g} {v['unit']}", f"{v['mean_abs_error']:.3g}",
             f"{v['prior_median_abs_error']:.3g}", f"{100 * v['coverage68']:.1f} %", f"{100 * v['coverage95']:.1f} %",
             f"{v['rank_test_p']:.2g}", "" if (p := v["rank_test_of_all_p"]) is None else f"{p:.2g}")
            for kind, title in _KINDS.items() for label in HEADS if (v := e.get(kind, {}).get(label.name))]
    head = "label", "images", "median error", "mean error", "guessing", "68 % covers", "95 % covers", "p", "p of all"
    return _table(head, rows)


def _breakdown(e: dict) -> str:
    rows = [(f"{what.replace('_', ' ')} {where(row)}", row["n_images"],
             *(f"{row[label.name]:.3g}" if label.name in row else "" for label in LABELS))
            for what, table in e.get("by", {}).items() for row in table]
    titles = (f"{label.title.lower()}, {label.unit}" for label in LABELS)
    return _table(("with realism, where", "images", *titles), rows) if rows else ""


def _table(head, rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def _all_times(e: dict) -> list[str]:
    everything = e["all_times"]
    t0, t1 = everything["time_range"]
    text = (f"The same of all times, {t0:.0f} to {t1:.0f} Myr ({everything['n_images']:,} images). No picture says "
            "that its time lies in the range above, so that error bars promise for all times: of true times in the "
            f"range more or fewer may lie within them. {_tarp(everything)}")
    return [text, _labels(everything)]


def _stage(e: dict) -> str:
    stage = e["realism"].get("stage")
    return f"Right stage with realism: {100 * stage['accuracy']:.0f} %." if stage else ""


def _tarp(e: dict) -> str:
    joint = [e[kind].get("joint") for kind in ("clean", "realism")]
    if not all(joint):
        return ""
    found, chance = ([pair[name] for pair in joint] for name in ("tarp", "tarp_by_chance"))
    return (f"TARP of the labels together: {found[0]:.3f} clean, {found[1]:.3f} with realism; of 0, so few encounters "
            f"make {chance[0]:.3f} and {chance[1]:.3f} by chance.")


def _familiarity(e: dict) -> str:
    figures = e.get("familiarity")
    if not figures:
        return ""
    kinds = ", ".join(f"{kind} ({value:.2f})" for kind, value in figures["by_kind"].items())
    text = (f"Familiarity tells {kinds} from unseen encounters with realism with an AUROC of {figures['auroc']:.3f} "
            "(0.5 is chance). ")
    if figures["flagged_by_kind"]:
        flagged = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in figures["flagged_by_kind"].items())
        text += (f"Flagged as unlike anything simulated are {100 * figures['flagged']:.0f} % of them ({flagged}), and "
                 f"{100 * figures['flagged_encounters']:.0f} % of the unseen encounters. ")
    for name, what in (("auroc_single", "single galaxies"), ("auroc_chance", "chance pairs")):
        if figures.get(name) is not None:
            text += f"The stage tells {what} from mergers with an AUROC of {figures[name]:.3f}. "
    return text


def _robustness(e: dict) -> list[str]:
    rows = [(change, *(f"{100 * labels[label.name]['within']:.0f} %" if label.name in labels else ""
                       for label in LABELS)) for change, labels in (e.get("robustness") or {}).items()]
    head = ("the same picture", *(label.title.lower() for label in LABELS))
    return ["Medians that move less than half of their own 68 % interval, of images with realism but for what a "
            "display, black borders and a sharper picture would add:", _table(head, rows)] if rows else []


def _neighbours(e: dict) -> str:
    text = ""
    if ssim := e.get("reconstruction"):
        text += (f"SSIM of the reconstruction on unseen clean images: {ssim['ssim_fcae']:.3f} from the activation "
                 f"maps, {ssim['ssim_vae']:.3f} through z. ")
    if near := e.get("neighbours"):
        text += ("The 5 nearest library images in z of an unseen clean image: median |dt| "
                 f"{near['median_abs_dt_5']:.0f} Myr, the nearest {near['median_abs_dt_1']:.0f} Myr. ")
        if (unscaled := near.get("median_abs_dt_5_without_scale")) is not None:
            text += f"With realism, and without its scale: {unscaled:.0f} Myr. "
        if near.get("median_abs_dt_shown") is not None:
            text += ("The look-alike that is shown first for an image with realism at a known scale, chosen by z, by "
                     f"looks and by whether it agrees with the answers: {near['median_abs_dt_shown']:.0f} Myr, "
                     f"for a clean one {near['median_abs_dt_shown_clean']:.0f} Myr.")
    return text


def _limits(weights: Weights, about: About) -> str:
    limits = ["Times are those of the simulations. With lengths fixed, a system four times as heavy runs twice as fast "
              "and looks the same; `predict --mass` turns times into those of the system.",
              "Without a pixel scale the frame is scaled by its content, and error bars widen; the answer says so.",
              "A figure from simulated observations is no promise for real ones."]
    limits += [text[0].upper() + text[1:] + "." for text in weights.learnt.flags(True)]
    if "temperatures" not in weights.metadata:
        limits.append("Its error bars are not calibrated; `deepgalaxy index` does that.")
    return "\n".join(f"- {text}" for text in (*limits, *about.limits))
