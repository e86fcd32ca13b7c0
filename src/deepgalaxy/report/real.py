"""Real pictures, their look-alikes and what others have published about them, on one page."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..labels import TIME
from . import make_folder, number, printable, shorten, write_file
from .figures import CMAP, THEME, png
from .page import fill
from .terminal import order_sentence

__all__ = ["write_real", "real_figure"]

_COLUMNS = 6  # picture, what the model sees, without sky, three matches
_PER_SHEET = 7


def write_real(result: dict, stories: list, folder) -> Path:
    """Write `real.html` and its sheets of pictures.

    Parameters
    ----------
    result, stories : from `inference.real.evaluate_real`.

    Returns
    -------
    page : Path

    Raises
    ------
    DeepGalaxyError
        If the folder cannot be written.
    """
    folder, sheets = make_folder(folder), []
    told = [(row, story) for row, story in zip(result["images"], stories, strict=True) if "error" not in row]
    for k in range(0, len(told), _PER_SHEET):
        image = png(real_figure(told[k:k + _PER_SHEET]))
        write_file(folder / f"real_{k // _PER_SHEET}.png", image)
        sheets.append("data:image/png;base64," + base64.b64encode(image).decode())
    page = fill(
        "real.html", "deepgalaxy: real pictures", result=result, sheets=sheets, printable=printable,
        order=order_sentence(result),
        failed=[row for row in result["images"] if "error" in row],
        outside=[row for row in result["images"] if row.get("within_90") is False])
    return write_file(folder / "real.html", page)


def real_figure(told: list[tuple[dict, object]]) -> Figure:
    """One row per picture: as read, as the model sees it, without sky, its three best matches, and the times."""
    figure = Figure(figsize=(16, 2.5 * max(len(told), 1)), dpi=100, facecolor=THEME["ground"])
    axes = figure.subplots(max(len(told), 1), _COLUMNS + 1, squeeze=False,
                           gridspec_kw={"width_ratios": [1] * _COLUMNS + [1.5]})
    figure.subplots_adjust(0.01, 0.14 / max(len(told), 1), 0.985, 1 - 0.12 / max(len(told), 1), 0.05, 0.3)
    for line, (row, story) in zip(axes, told, strict=False):
        pictures = [(story.display, shorten(printable(row["name"]), 30)), (story.frame, "framed"),
                    (story.reconstruction, "without sky")]
        pictures += [(m.thumbnail, f"{number(TIME, m.time_myr, sign=True)} Myr, {m.mass_ratio:.2f}")
                     for m in story.matches[:3]]
        for ax in line[:_COLUMNS]:
            ax.axis("off")
        for ax, (picture, title) in zip(line, pictures, strict=False):
            if picture is None:
                continue
            colour = np.ndim(picture) == 3
            ax.imshow(picture, cmap=None if colour else CMAP, origin="upper" if colour else "lower",
                      **({} if colour else {"vmin": 0, "vmax": 1}))
            ax.set_title(title, fontsize=10, color=THEME["text"], parse_math=False)
        _times(line[-1], row)
    return figure


def _times(ax, row):
    """Our interval, and the published one beside it."""
    t = row["time"]
    ax.set_facecolor(THEME["panel"])
    ax.plot([t["p05"], t["p95"]], [1, 1], color=THEME["accent"], lw=2)
    ax.plot([t["p16"], t["p84"]], [1, 1], color=THEME["accent"], lw=7, solid_capstyle="butt")
    ax.plot(t["p50"], 1, "|", color=THEME["ground"], ms=9, mew=2)
    if row["published_time"] is not None:
        error = row["published_error"] or 0
        ax.errorbar(row["published_time"], 0, xerr=error, fmt="o", color=THEME["frame"], ms=5, lw=2)
    low, high = ax.get_xlim()  # in Myr of a light system both may lie beyond the range of the label
    ax.set(xlim=(min(TIME.low, low), max(TIME.high, high)), ylim=(-0.7, 1.7), yticks=[])
    published = row["published_time"]
    said = "nothing published" if published is None else (
        f"published {number(TIME, published, sign=True)}, {'within' if row['within_90'] else 'outside of'} our 90 %")
    for height, whose in ((1, "ours"), (0, "published"))[:1 if published is None else 2]:
        ax.text(0.99, height, whose, transform=ax.get_yaxis_transform(), fontsize=8, color=THEME["muted"], ha="right",
                va="center")
    ax.set_title(f"{number(TIME, t['p50'], sign=True)} Myr; {said}", fontsize=10,
                 color=THEME["text" if row["within_90"] is not False else "error"])
    ax.tick_params(colors=THEME["muted"], labelsize=8)
    for spine in ax.spines.values():
        spine.set_color(THEME["line"])
