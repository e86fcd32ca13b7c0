"""One page for a person, that works offline and on a phone, and the same answers as JSON."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from PIL import Image

from ..inference.story import QUANTILES, UNUSUAL, Story
from ..labels import LABELS, Label
from . import (
    answer_dict,
    errors,
    familiarity_sentence,
    familiarity_word,
    given_labels,
    headline,
    is_shipped,
    json_ready,
    likely_stage,
    make_folder,
    model_line,
    number,
    percent,
    printable,
    scale_sentence,
    short_name,
    short_names,
    shorten,
    twin,
    unit,
    write_file,
)
from .figures import CMAP, DISTANCE, N_MATCHES, match_lines, save_story, tick_text, tick_values
from .limits import limits, unknowns
from .page import fill

__all__ = ["write_report", "safe_name"]

_PICTURE_SIDE = 480  # px; the whole picture is in the figure


def write_report(stories: list[Story | tuple[str, str]], folder) -> Path:
    """Write `index.html`, one figure per picture and `stories.json` into a folder.

    Parameters
    ----------
    stories : list of Story or (image, error)
        In the order they shall appear; a tuple is a picture that failed, with its line of error.
    folder : path
        Made where it is missing. Files of the same names are replaced, each as a whole.

    Returns
    -------
    page : Path
        The page. It shows pictures inline and links to the figures beside it; about 100 KB per picture, and 1.5 MB
        for its twin.

    Raises
    ------
    DeepGalaxyError
        If the folder cannot be written.
    """
    folder = make_folder(folder)
    taken = {"index", "stories"}
    entries = []
    # A report may go where the pictures lie: they are not to be written over.
    pictures = {os.path.realpath(story.image) for story in stories if isinstance(story, Story)}
    names = short_names(stories)
    for story in stories:
        if isinstance(story, Story):
            figure = safe_name(story.image, taken) + "_story.png"
            while os.path.realpath(folder / figure) in pictures:
                figure = safe_name(story.image, taken) + "_story.png"
            save_story(story, folder / figure)
            entries.append(_entry(story, figure, names[story.image]))
        else:
            image, error = story
            entries.append({"name": shorten(names[image], 60), "path": printable(image),
                            "error": printable(error)})
    answers = json_ready([answer_dict(story) for story in stories])
    write_file(folder / "stories.json", json.dumps(answers, indent=1, allow_nan=False) + "\n")
    good = [story for story in stories if isinstance(story, Story)]
    page = fill(
        "stories.html", f"Colliding galaxies: {len(good)} {'story' if len(good) == 1 else 'stories'}", entries=entries,
        labels=[label for label in LABELS if any(label.name in s.properties for s in good)],
        models=list(dict.fromkeys((model_line(story.model), printable(str(story.model.get("sha256") or "")))
                                  for story in good)),
        n_good=len(good), n_bad=len(stories) - len(good), unknowns=unknowns(good), distance=DISTANCE,
        quantiles=list(QUANTILES), twin=twin.MEASURES, has_twin=any(story.twin for story in good))
    return write_file(folder / "index.html", page)


def safe_name(image: str, taken: set[str]) -> str:
    """A file name for every system, from an image's name; `taken` (lower case) grows by it."""
    stem = re.sub(r"\.(gz|fz|bz2)$", "", short_name(image), flags=re.IGNORECASE)
    stem = stem.rsplit(".", 1)[0] if "." in stem[1:] else stem
    ascii_stem = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    base = re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_stem).strip("_-")[:80] or "image"
    name, n = base, 1
    while name.lower() in taken:
        n += 1
        name = f"{base}_{n}"
    taken.add(name.lower())
    return name


def _entry(story: Story, figure: str, name: str) -> dict:
    """What the template shows of one story: words and images, nothing left to compute."""
    stage, probability = likely_stage(story)
    properties = []
    for label in given_labels(story):
        quantiles = story.properties[label.name]
        middle, plus, minus = (text.replace("-", "−") for text in errors(label, quantiles))
        properties.append({
            "label": label, "middle": middle, "plus": plus, "minus": minus, "unit": unit(label),
            "row": [number(label, quantiles[name]).replace("-", "−") for name in QUANTILES],
            "curve": _curve(label, quantiles, story.distributions.get(label.name)),
        })
    picture = None if story.display is None else Image.fromarray(np.asarray(story.display, np.uint8))
    return {
        "name": name, "path": printable(story.image), "figure": figure, "error": None,
        "headline": headline(story).replace("-", "−"), "properties": properties,
        "by_name": {p["label"].name: p for p in properties}, "brief": shorten(name, 60),
        "stage": stage, "stage_percent": percent(probability),
        "stages": [(name, percent(p), f"{100 * p:.1f}", p == probability) for name, p in story.stage.items()],
        "familiarity": familiarity_word(story.familiarity), "familiarity_percent": percent(story.familiarity),
        "usual": story.familiarity >= UNUSUAL, "notes": [printable(flag) for flag in story.flags],
        "plain": [scale_sentence(story.scale, story.clock, story.kpc_per_pixel_estimate, is_shipped(story),
                                 story.scale_used),
                  familiarity_sentence(story.familiarity)], "limits": limits(story),
        "small": _jpeg(picture, 96), "picture": _jpeg(picture, _PICTURE_SIDE), "box": _box(story),
        "frame": _thumbnail(story.frame), "reconstruction": _thumbnail(story.reconstruction),
        "matches": [{"name": shorten(short_name(match.encounter), 40), "lines": match_lines(match),
                     "image": _thumbnail(match.thumbnail)} for match in story.matches[:N_MATCHES]],
        "model": model_line(story.model), "twin": twin.twin_data(story),
    }


def _data_uri(image: Image.Image, kind: str, **options) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _jpeg(picture, side: int):
    if picture is None:
        return None
    picture = picture.copy()
    picture.thumbnail((side, side))
    return _data_uri(picture, "jpeg", quality=88)


def _thumbnail(image):
    """(P, P) 0..1, y upwards -> a PNG of 256 colours, y downwards."""
    if image is None:
        return None
    grey = np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    picture = Image.fromarray(np.round(255 * np.clip(grey, 0, 1)).astype(np.uint8)[::-1])
    picture.putpalette((colormaps[CMAP](np.arange(256), bytes=True)[:, :3]).tobytes())
    return _data_uri(picture, "png", optimize=True)


def _box(story: Story):
    """The frame's box as a path over the picture."""
    if story.display is None or story.frame_box is None:
        return None
    height, width = story.display.shape[:2]
    points = " ".join(f"{x + 0.5:.1f},{y + 0.5:.1f}" for x, y in np.asarray(story.frame_box, float))
    return Markup(f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
                  f'<polygon points="{points}" vector-effect="non-scaling-stroke"/></svg>')


def _curve(label: Label, quantiles: dict, distribution) -> Markup:
    """The posterior as SVG, numbers only: 320 x 100 units."""
    width, base, top = 320.0, 78.0, 4.0
    # In Myr of a system the curve may reach beyond the range of the label.
    edges = (label.low, label.high) if distribution is None else distribution[0]
    left, right = min(0.0, label.position(edges[0])), max(label.n_bins, label.position(edges[-1]))

    def x_of(value):
        fraction = np.clip((label.position(np.asarray(value, float)) - left) / (right - left), 0, 1)
        return 10 + (width - 20) * float(fraction)

    parts = []
    if distribution is None:
        for low, high, name in (("p05", "p95", "light"), ("p16", "p84", "dark")):
            x = x_of(quantiles[low])
            parts.append(f'<rect class="{name}" x="{x:.1f}" y="30" '
                         f'width="{x_of(quantiles[high]) - x:.1f}" height="36"/>')
    else:
        edges, probability = (np.asarray(values, float) for values in distribution)
        heights = base - (base - top) * probability / max(probability.max(), 1e-9)
        xs, ys = [x_of(edge) for edge in np.repeat(edges, 2)[1:-1]], np.repeat(heights, 2)
        for low, high, name in ((None, None, "all"), ("p05", "p95", "light"), ("p16", "p84", "dark")):
            inside = xs if low is None else np.clip(xs, x_of(quantiles[low]), x_of(quantiles[high]))
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(inside, ys, strict=True))
            parts.append(f'<polygon class="{name}" points="{inside[0]:.1f},{base} {points} '
                         f'{inside[-1]:.1f},{base}"/>')
    if label.unit == "Myr":
        parts.append(f'<line class="zero" x1="{x_of(0):.1f}" x2="{x_of(0):.1f}" y1="{top}" y2="{base}"/>')
    x = x_of(quantiles["p50"])
    parts.append(f'<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{base}"/>'
                 f'<line class="axis" x1="10" x2="{width - 10}" y1="{base}" y2="{base}"/>')
    for tick in tick_values(label):
        x, anchor = x_of(tick), ""
        if not 22 <= x <= width - 22:  # else half of it lies outside
            x, anchor = (0, ' style="text-anchor:start"') if x < 22 else (width, ' style="text-anchor:end"')
        parts.append(f'<text x="{x:.1f}" y="94"{anchor}>{tick_text(label, tick)}</text>')
    return Markup(f'<svg class="curve" viewBox="0 0 {width:.0f} 100" aria-hidden="true">'
                  f'{"".join(parts)}</svg>')
