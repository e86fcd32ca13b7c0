"""What a person gets to see: figures, pages and tables of the answers.

This file holds what they share: the wording, so that the terminal, the figure and the page say the same,
and the way files are written.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np

from ..errors import DeepGalaxyError
from ..files import write_whole
from ..inference.story import UNFAMILIAR, UNUSUAL
from ..labels import LABELS, Label


def printable(text: str) -> str:
    """Text of unknown origin without what a screen or a file cannot take (controls, lone surrogates)."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def short_name(image: str) -> str:
    """The last part of a path, printable."""
    return printable(re.split(r"[\\/]", image.rstrip("\\/"))[-1] or image)


def short_names(stories) -> dict[str, str]:
    """The shortest end of the path of each picture that no other one has, printable; of Stories or (image, error)."""
    images = [story[0] if isinstance(story, tuple) else story.image for story in stories]
    parts = {image: [part for part in re.split(r"[\\/]", image) if part] or [image] for image in images}
    names, n = {}, 1
    while len(names) < len(parts):
        ends = {image: tuple(own[-n:]) for image, own in parts.items()}
        alike = Counter(ends.values())
        names |= {image: printable("/".join(end)) for image, end in ends.items()
                  if image not in names and (alike[end] == 1 or n >= len(parts[image]))}
        n += 1
    return names


def shorten(text: str, length: int) -> str:
    """At most `length` characters; the middle goes, because names differ at their ends."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[:length - 1 - tail]}…{text[len(text) - tail:]}"


def given_labels(story) -> list[Label]:
    """Labels that this story answers, in the order of `LABELS`."""
    return [label for label in LABELS if label.name in story.properties]


def number(label: Label, value: float, sign: bool = False) -> str:
    """A value as it is shown: ratios to 0.01, times to 1 Myr, angles to 1 degree."""
    if value is None or not math.isfinite(value):
        return "?"
    digits = 2 if label.log else 0
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # + 0.0: never "-0"


def unit(label: Label) -> str:
    """What stands behind a number; ratios have no unit."""
    return {"deg": "°", "secondary/primary": ""}.get(label.unit, f" {label.unit}")


def errors(label: Label, quantiles: dict) -> tuple[str, str, str]:
    """Median, and how far p84 is above and p16 below it."""
    middle = quantiles["p50"]
    return (number(label, middle), number(label, quantiles["p84"] - middle),
            number(label, middle - quantiles["p16"]))


def percent(fraction: float) -> str:
    """`0.724` -> `72 %`; what is small but not nothing stays visible."""
    if not math.isfinite(fraction):
        return "? %"
    if 0 < fraction < 0.01:
        return "<1 %"
    if 0.99 < fraction < 1:
        return ">99 %"
    return f"{100 * fraction:.0f} %"


def coverage_error(n_encounters: int) -> float:
    """Standard error of a coverage of 68 % on so many encounters, whose images err together: its upper limit."""
    return math.sqrt(0.68 * 0.32 / max(n_encounters, 1))


def likely_stage(story) -> tuple[str, float]:
    """The most probable stage and its probability."""
    return max(story.stage.items(), key=lambda item: item[1]) if story.stage else ("?", math.nan)


def familiarity_word(familiarity: float) -> str:
    """How usual the picture is for the model; NaN is "not known"."""
    for limit, word in ((UNFAMILIAR, "unfamiliar"), (UNUSUAL, "unusual"), (0.2, "somewhat unusual")):
        if familiarity < limit:
            return word
    return "familiar" if familiarity <= 1 else "not known"


def familiarity_sentence(familiarity: float) -> str:
    """What the number means and what to make of it."""
    word = familiarity_word(familiarity)
    if word == "not known":
        return "Familiarity is not known: the picture was not compared with a library."
    advice = {"unfamiliar": " The model has hardly seen the like.",
              "unusual": " Trust the numbers less than their error bars say."}.get(word, "")
    share = percent(familiarity).replace("<", "less than ").replace(">", "more than ")
    return f"{word.capitalize()}: {share} of mock observations of other encounters are less usual.{advice}"


def scale_sentence(scale: dict, clock: dict | None = None, estimate: dict | None = None, shipped: bool = True,
                   used: bool = True) -> str:
    """Where the physical scale is from, and what the times hold for.

    shipped : the shipped weights answer.
    used : the model was told the scale, if there is one.
    """
    value, clock = scale.get("kpc_per_pixel"), clock or {}
    known = {"given": "as given", "wcs": "from the file's coordinates"}.get(scale.get("source"), "estimated")
    if clock.get("basis") == "mass":
        return (f"Scale {value:.3g} kpc per pixel, {known}; times are in Myr of this system, for "
                f"{clock['stellar_mass']:.2g} Msun of stars in both galaxies (± {clock['stellar_mass_dex']:.2g} dex); "
                "the matches keep the times of their simulations.")
    ticks = f"; the dynamical time of its disc is {clock['dynamical_time_myr']:.0f} Myr" if clock else ""
    if value is None or not used:
        guess = f" (the picture suggests {estimate['p50']:.2g} kpc per pixel, {estimate['p16']:.2g} to " \
            f"{estimate['p84']:.2g})" if estimate else ""
        primary = "like the Milky Way in mass and size" if shipped else \
            "of the Milky Way's mass, as large as those of its training"
        what = f"No physical scale given{guess}" if value is None else \
            f"Scale {value:.3g} kpc per pixel, {known}, is not used"
        return f"{what}: times are for a primary {primary}{ticks}."
    return (f"Scale {value:.3g} kpc per pixel, {known}; times are for a primary of the Milky Way's mass{ticks}. "
            "Another mass moves them (--mass).")


def is_shipped(story) -> bool:
    """Do the shipped weights answer? Of their training more is known than of another."""
    return story.training.get("shipped", False)


def headline(story) -> str:
    """The answer in one sentence."""
    parts = []
    stage, probability = likely_stage(story)
    if math.isfinite(probability):
        parts.append(f"Most likely stage: {stage} ({percent(probability)})")
    for label in given_labels(story):
        q = story.properties[label.name]
        low, high = number(label, q["p16"]), number(label, q["p84"])
        if label.unit == "Myr":
            when = "before" if q["p50"] < 0 else "after"
            ticks = story.clock.get("time_in_dynamical_times", {}).get("p50")
            also = f", {abs(ticks):.1f} dynamical times of the primary's disc" if ticks is not None else ""
            parts.append(f"{number(label, abs(q['p50']))} Myr {when} the first pericentre ({low} to {high}){also}")
        elif label.log:
            parts.append(f"{label.title.lower()} {number(label, q['p50'])} ({low} to {high})")
    return "; ".join(parts) + "." if parts else "No answer."


def model_line(model: dict) -> str:
    """`name version (sha 0123456789ab)`"""
    sha = str(model.get("sha256") or "")[:12]
    words = [printable(str(model.get(key) or "")) for key in ("name", "version")]
    return " ".join(filter(None, [*words, f"(sha {sha})" if sha else ""])) or "unnamed model"


def answer_dict(story) -> dict:
    """What `--json` holds of a Story, or of (image, error)."""
    return {"image": story[0], "error": story[1]} if isinstance(story, tuple) else story.to_dict()


def json_ready(value):
    """numpy to Python; NaN and infinity, which JSON has not, to null."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [json_ready(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")  # names of files may hold lone surrogates
    return value


def make_folder(folder) -> Path:
    """The folder, made where it is missing."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    return folder


def write_file(path, data: bytes | str) -> Path:
    """Write a whole file or leave what was there."""
    try:
        write_whole(path, data)
    except OSError as error:
        raise _cannot_write(path, error) from None
    return Path(path)


def _cannot_write(path, error: OSError) -> DeepGalaxyError:
    reason = (error.strerror or str(error)).lower()
    return DeepGalaxyError(f"{printable(str(path))}: cannot be written ({reason}); choose another folder")
