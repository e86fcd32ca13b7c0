"""One figure that tells a story: the picture, what the model saw, what it says, and what it resembles.

Matplotlib's objects only, no pyplot: nothing global, so a server may draw in many threads.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from itertools import accumulate, takewhile

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Polygon
from matplotlib.ticker import FixedLocator, NullLocator

from ..inference.story import Story
from ..labels import Label
from . import (
    errors,
    familiarity_sentence,
    given_labels,
    is_shipped,
    model_line,
    percent,
    scale_sentence,
    short_name,
    shorten,
    unit,
    write_file,
)
from .limits import limits

__all__ = ["story_figure", "save_story", "THEME", "CMAP", "N_MATCHES"]

#: One palette for figures and pages.
THEME = {
    "ground": "#0f1218", "panel": "#171b24", "line": "#2c3340", "text": "#ecebe7", "muted": "#9ba4b3",
    "accent": "#f3b267", "frame": "#7fd6ff", "error": "#ff8a80",
}
CMAP = "magma"
N_MATCHES = 5
WIDTH = 1600  # px
_DPI = 100
_FONT = "DejaVu Sans"  # ships with matplotlib: the same figure on every machine
_MARGIN = 48
_INNER = WIDTH - 2 * _MARGIN
_TICKS = {"Myr": (-200, 0, 200, 400, 600, 800, 1000), "deg": (0, 30, 60, 90),
          "secondary/primary": (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4)}
DISTANCE = "distance 1: as near as neighbours in the library usually are"


def save_story(story: Story, path):
    """Write the figure of one story as PNG, 1600 px wide.

    Raises
    ------
    DeepGalaxyError
        If the file cannot be written.
    """
    return write_file(path, png(story_figure(story)))


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def story_figure(story: Story) -> Figure:
    """Draw one story.

    Parameters
    ----------
    story : Story
        Whatever it does not hold (picture, frame, thumbnails, curves) leaves an empty panel that says so.

    Returns
    -------
    figure : Figure
        1600 px wide at 100 dpi; as high as its notes need.
    """
    title = _wrap(shorten(short_name(story.image), 150), 26, _INNER, bold=True)[:2]
    notes = [(text, "accent") for text in story.flags]
    notes += [(scale_sentence(story.scale, story.clock, story.kpc_per_pixel_estimate, is_shipped(story),
                              story.scale_used), "text"),
              (familiarity_sentence(story.familiarity), "text"),
              (limits(story), "muted")]
    lines = [(line, colour, i == 0) for text, colour in notes
             for i, line in enumerate(_wrap(text, 15, _INNER - 20))]
    top = 60 + 34 * len(title) + 34
    middle = top + 690
    bottom = middle + 372
    page = _Page(bottom + 24 * len(lines) + 36)

    for i, line in enumerate(title):
        page.text(_MARGIN, 62 + 34 * i, line, 26, bold=True)
    subtitle = f"The story of this picture as told by {model_line(story.model)}"
    page.text(_MARGIN, 62 + 34 * len(title) - 4, _wrap(subtitle, 15, _INNER)[0], 15, "muted")

    _picture(page, story, top)
    seen = _square(page, 728, top, 297, story.frame)
    for spine in seen.spines.values():
        spine.set(visible=True, color=THEME["frame"], linewidth=1.2)
    page.text(728, top + 319, "As the model sees it", 14, "muted")
    _square(page, 728, top + 343, 297, story.reconstruction)
    page.text(728, top + 662, "Without sky and stars", 14, "muted")
    _posteriors(page, story, 1080, top, WIDTH - _MARGIN - 1080)
    _matches(page, story, middle)
    _stages(page, story, 1240, middle, WIDTH - _MARGIN - 1240)

    page.rule(bottom - 22)
    for i, (line, colour, first) in enumerate(lines):
        if first:
            page.text(_MARGIN, bottom + 10 + 24 * i, "•", 15, colour)
        page.text(_MARGIN + 20, bottom + 10 + 24 * i, line, 15, colour)
    return page.figure


class _Page:
    """A figure addressed in pixels from the top left, as a person lays it out."""

    def __init__(self, height: int):
        self.height = height
        self.figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor=THEME["ground"])

    def axes(self, x, y, width, height, colour="panel"):
        axes = self.figure.add_axes((x / WIDTH, 1 - (y + height) / self.height,
                                     width / WIDTH, height / self.height), facecolor=THEME[colour])
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def text(self, x, y, text, size, colour="text", bold=False, align="left", maths=False):
        """`y` is the base line; `size` is in pixels. `maths` is for our own text only: names may hold $."""
        self.figure.text(x / WIDTH, 1 - y / self.height, text if maths else _drawable(text), ha=align,
                         va="baseline", color=THEME[colour], parse_math=maths, **_font(size, bold))

    def rule(self, y):
        self.axes(_MARGIN, y, _INNER, 1, "line")


def _picture(page, story, y, side=640):
    page.axes(_MARGIN, y, side, side)  # stays visible beside a picture that is not square
    axes = page.axes(_MARGIN, y, side, side)
    caption = "The picture as read"
    if story.display is None:
        _empty(axes, "no picture kept")
    else:
        height, width = story.display.shape[:2]
        axes.imshow(story.display, interpolation="lanczos" if max(height, width) < 4 * side else "nearest")
        low, high = np.array([-0.5, -0.5]), np.array([width, height]) - 0.5
        if story.frame_box is not None:
            box = np.asarray(story.frame_box, float)
            axes.add_patch(Polygon(box, fill=False, edgecolor=THEME["frame"], linewidth=1.6))
            # A frame may reach beyond the picture: show it where is room, hardly at the picture's expense.
            longest, size = max(width, height), np.array([width, height])
            room = np.maximum(0.08 * longest, (longest - size) / 2)
            low = np.maximum(np.minimum(low, box.min(0) - 2), low - room)
            high = np.minimum(np.maximum(high, box.max(0) + 2), high + room)
            caption += "; the box is what the model looks at"
        axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]))
        axes.patch.set_visible(False)
    page.text(_MARGIN, y + side + 22, caption, 14, "muted")


def _square(page, x, y, side, image):
    axes = page.axes(x, y, side, side)
    if image is None:
        _empty(axes, "none")
    else:
        axes.imshow(np.asarray(image, np.float32), cmap=CMAP, vmin=0, vmax=1, origin="lower",
                    interpolation="bilinear")
    return axes


def _posteriors(page, story, x, y, width):
    labels = given_labels(story)
    pitch = 664 // max(4, len(labels))
    for i, label in enumerate(labels):
        quantiles = story.properties[label.name]
        middle, plus, minus = errors(label, quantiles)
        top = y + i * pitch
        page.text(x, top + 15, label.title, 15)
        page.text(x + width, top + 15, rf"$\mathbf{{{middle}}}^{{+{plus}}}_{{-{minus}}}$"
                  + unit(label).replace("°", " deg"), 18, "accent", align="right", maths=True)
        axes = page.axes(x, top + 34, width, max(pitch - 80, 12), "ground")
        _posterior(axes, label, quantiles, story.distributions.get(label.name))
    page.text(x, y + 662, "Line: median. Dark: 68 %, light: 90 %. Dashed: first pericentre.", 14, "muted")


def _posterior(axes, label: Label, quantiles: dict, distribution):
    """The whole curve; 68 % dark, 90 % light, the median as a line."""
    axes.set_xscale("log" if label.log else "linear")
    axes.set_xlim(label.low, label.high)
    peak = 1.0
    if distribution is None:  # quantiles only
        for low, high, alpha in (("p05", "p95", 0.3), ("p16", "p84", 0.55)):
            axes.axvspan(quantiles[low], quantiles[high], 0.2, 0.7, color=THEME["accent"], alpha=alpha, lw=0)
    else:
        edges, probability = (np.asarray(values, float) for values in distribution)
        # In Myr of a system the curve has a range of its own, which may hold none of the round numbers.
        axes.set_xlim(min(label.low, edges[0]), max(label.high, edges[-1]))
        peak = max(probability.max(), 1e-9)
        xs, ys = np.repeat(edges, 2)[1:-1], np.repeat(probability, 2)
        axes.fill_between(xs, ys, color=THEME["accent"], alpha=0.10, lw=0)
        for low, high, alpha in (("p05", "p95", 0.25), ("p16", "p84", 0.5)):
            inside = np.clip(xs, quantiles[low], quantiles[high])
            axes.fill_between(inside, ys, color=THEME["accent"], alpha=alpha, lw=0)
        axes.plot(xs, ys, color=THEME["accent"], lw=1.3)
    axes.set_ylim(0, 1.08 * peak)
    if label.unit == "Myr":
        axes.axvline(0, color=THEME["muted"], lw=0.8, ls=(0, (3, 3)))
    axes.axvline(quantiles["p50"], color=THEME["text"], lw=1.8)
    _ticks(axes.xaxis, label)
    axes.spines["bottom"].set(visible=True, color=THEME["line"])


def tick_values(label: Label) -> list[float]:
    """Round numbers within the range of a label."""
    ticks = _TICKS.get(label.unit, (label.low, label.high))
    if label.log and label.unit not in _TICKS:
        decades = range(math.floor(math.log10(label.low)), math.ceil(math.log10(label.high)) + 1)
        ticks = [digit * 10.0**n for n in decades for digit in (1, 2, 5)]
    return [tick for tick in ticks if label.low <= tick <= label.high]


def tick_text(label: Label, value: float) -> str:
    """A round number as it stands at an axis."""
    return f"{value:g}".replace("-", "−") + ("°" if label.unit == "deg" else "")


def _ticks(axis, label: Label):
    values = tick_values(label)
    axis.set_major_locator(FixedLocator(values))
    axis.set_minor_locator(NullLocator())
    texts = axis.set_ticklabels([tick_text(label, value) for value in values])
    axis.set_tick_params(color=THEME["line"], labelcolor=THEME["muted"])
    for text in texts:
        text.set(**_font(13))


def _matches(page, story, y, side=200, pitch=232):
    page.text(_MARGIN, y + 12, "Best matches in the library", 17, bold=True)
    if not story.matches:
        page.text(_MARGIN, y + 56, "None: no library was searched.", 15, "muted")
        return
    page.text(_MARGIN + 290, y + 12, DISTANCE, 13, "muted")
    for i, match in enumerate(story.matches[:N_MATCHES]):
        x = _MARGIN + i * pitch
        _square(page, x, y + 30, side, match.thumbnail)
        name = _wrap(shorten(short_name(match.encounter), 25), 14, side + 24, bold=True)[0]
        page.text(x, y + 253, name, 14, bold=True)
        for j, line in enumerate(match_lines(match)):
            page.text(x, y + 275 + 21 * j, line, 14, "text" if j == 0 else "muted")


def match_lines(match) -> list[str]:
    """What stands under a look-alike."""
    return [f"{match.time_myr:+.0f} Myr".replace("-", "−"),
            f"mass {match.mass_ratio:.2f}, size {match.size_ratio:.2f}",
            f"view {match.view:.0f}°, distance {match.distance:.1f}"]


def _stages(page, story, x, y, width):
    page.text(x, y + 12, "Stage", 17, bold=True)
    for i, (name, probability) in enumerate(story.stage.items()):
        top = y + 36 + 50 * i
        best = probability == max(story.stage.values())
        page.text(x, top + 14, name, 15, "text" if best else "muted", bold=best)
        page.text(x + width, top + 14, percent(probability), 15, "text" if best else "muted", best, "right")
        axes = page.axes(x, top + 23, width, 11)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.barh(0.5, probability, 1, color=THEME["accent"], alpha=1 if best else 0.5)


def _empty(axes, text):
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=THEME["muted"],
              **_font(14))


def _font(size, bold=False) -> dict:
    return {"fontsize": size * 72 / _DPI, "fontfamily": _FONT, "fontweight": "bold" if bold else "normal"}


@lru_cache
def _face(bold):
    return findfont(FontProperties(family=_FONT, weight="bold" if bold else "normal"))


def _drawable(text: str) -> str:
    """Text in the characters of the font: a missing glyph would be a warning for each draw."""
    characters = get_font(_face(False)).get_charmap()
    return "".join(c if ord(c) in characters else "▯" for c in text)


@lru_cache(4096)
def _advance(character: str, size, bold) -> float:
    font = get_font(_face(bold))
    font.set_size(size * 72 / _DPI, _DPI)
    return font.load_char(ord(character)).horiAdvance / 64  # hinted, as it will be drawn


def _width(text: str, size, bold=False) -> float:
    """In pixels, without kerning; by character, since to lay out each candidate line took seconds."""
    return sum(_advance(character, size, bold) for character in text)


def _wrap(text: str, size, width, bold=False) -> list[str]:
    """Lines that fit into `width` pixels; a word that is too long is cut, since file names have no spaces."""
    lines, line = [], ""
    for word in _drawable(text).split():
        candidate = f"{line} {word}" if line else word
        if _width(candidate, size, bold) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        while _width(word, size, bold) > width:
            ends = accumulate(_advance(character, size, bold) for character in word)
            cut = max(1, sum(1 for _ in takewhile(lambda end: end <= width, ends)))
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    return [*lines, line] if line or not lines else lines
