"""How good a model is, as a page: errors, coverage, predicted against true, calibration."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ..labels import HEADS, LABELS, STAGES, Label
from . import make_folder, unit, write_file
from .figures import CMAP, THEME, png, tick_values
from .page import fill

__all__ = ["write_evaluation", "confusion_figure", "evaluation_figure", "where"]

_KINDS = {"clean": "Clean images", "realism": "With observational realism",
          "realism_without_scale": "With observational realism, scale unknown",
          "realism_by_mass": "Of those with realism: light that follows mass",
          "realism_other_light": "Of those with realism: light that does not follow mass"}
_FIGURES = {
    "median_abs_error": "median |error|", "mean_abs_error": "mean |error|",
    "prior_median_abs_error": "median |error| of the prior",
    "coverage68": "68 % interval holds", "coverage95": "95 % interval holds",
    "rank_test_p": "ranks of the truth are uniform (p)", "rank_test_of_all_p": "the same, of all images together (p)",
}
_BREAKDOWNS = {"time": "Time since pericentre, Myr", "mass_ratio": "Mass ratio",
               "view_inclination": "Angle of view, degrees", "signal_to_noise": "Signal to noise per pixel",
               "stage": "Stage"}
_OTHERS = {
    "ssim_fcae": "SSIM of the autoencoder's reconstruction", "ssim_vae": "SSIM through the latent space",
    "tarp_clean": "TARP, clean: furthest from the promised coverage",
    "tarp_by_chance_clean": "what chance makes of 0 there, in the median",
    "tarp_realism": "TARP with realism", "tarp_by_chance_realism": "what chance makes of 0 there",
    "tarp_clean_all_times": "TARP of all times, clean", "tarp_realism_all_times": "TARP of all times, with realism",
    "stage_accuracy": "right stage, with realism", "auroc": "familiarity tells what is no merger (AUROC)",
    "flagged": "pictures of something else that are flagged as unfamiliar",
    "flagged_encounters": "unseen encounters that are, with realism",
    "auroc_single": "stage tells single galaxies from mergers (AUROC)",
    "auroc_chance": "stage tells chance pairs from mergers (AUROC)",
    "median_abs_dt_5": "median |time difference| to the five nearest neighbours in z, clean, Myr",
    "median_abs_dt_5_without_scale": "the same with realism, scale not told, Myr",
    "median_abs_dt_shown": "median |time difference| to the look-alike shown first, with realism, Myr",
    "median_abs_dt_shown_clean": "the same, clean, Myr",
    "top1": "right class of time and camera (top 1)", "within_one_step": "right within one step of time",
    "n_classes": "classes", "n_distinct_classes": "classes that are not mirror images of each other",
}


def write_evaluation(result: dict, samples: dict | None, folder) -> Path:
    """Write `evaluation.html` and its plots.

    Parameters
    ----------
    result : dict
        What `deepgalaxy evaluate --json` holds; what is missing is left out.
    samples : dict or None
        {"clean" | "realism" | "realism_without_scale": {label: {"truth", "p16", "p50", "p84", "pit": (N,)}}};
        without it, no plots; of all times under "all_times": the same.
    folder : path
        Made where it is missing.

    Returns
    -------
    page : Path

    Raises
    ------
    DeepGalaxyError
        If the folder cannot be written.
    """
    folder = make_folder(folder)
    kinds, plots, confusions = [], [], []
    for kind, title, table in _tables(result):
        labels = [label for label in HEADS if label.name in table]
        names = [name for name in _FIGURES if any(name in table[label.name] for label in labels)]
        if labels:
            kinds.append({"title": title, "columns": [_FIGURES[name] for name in names], "rows": [
                (label, [_show(label, name, table[label.name].get(name)) for name in names])
                for label in labels]})
        of_kind = (samples or {}).get(kind) or ((samples or {}).get("all_times") or {}).get(
            kind.removesuffix("_all_times"))
        if of_kind:
            image = png(evaluation_figure(of_kind))
            write_file(folder / f"evaluation_{kind}.png", image)
            plots.append((title, "data:image/png;base64," + base64.b64encode(image).decode()))
    for name, matrix, names in _confusions(result):
        image = png(confusion_figure(matrix, names))
        write_file(folder / f"confusion_{name.replace(' ', '_')}.png", image)
        confusions.append((name, "data:image/png;base64," + base64.b64encode(image).decode()))
    flat = {**result, **(result.get("reconstruction") or {}), **(result.get("neighbours") or {}),
            **(result.get("familiarity") or {})}
    for kind in ("clean", "realism"):
        for end, part in (("", result), ("_all_times", result.get("all_times") or {})):
            for name, value in ((part.get(kind) or {}).get("joint") or {}).items():
                flat[f"{name}_{kind}{end}"] = value
    flat["stage_accuracy"] = ((result.get("realism") or {}).get("stage") or {}).get("accuracy")
    others = [(title, f"{flat[name]:.4g}") for name, title in _OTHERS.items() if _is_number(flat.get(name))]
    page = fill("evaluation.html", f"deepgalaxy evaluation: {result.get('protocol') or 'unnamed'}", result=result,
                kinds=kinds, plots=plots, others=others, breakdowns=_breakdowns(result), labels=LABELS,
                confusions=confusions, robustness=_robustness(result))
    return write_file(folder / "evaluation.html", page)


def where(row: dict) -> str:
    """The limits of one row of a breakdown, for people."""
    if "stage" in row:
        return row["stage"]
    return f"{row['low']:g} and more" if row["high"] is None else f"{row['low']:g} to {row['high']:g}"


def _tables(result: dict) -> list[tuple[str, str, dict]]:
    """Kind, title and figures per label: in the main range of times, and of all snapshots."""
    tables = [(kind, title, result.get(kind) or {}) for kind, title in _KINDS.items()]
    if everything := result.get("all_times"):
        t0, t1 = everything["time_range"]
        tables += [(f"{kind}_all_times", f"{title}, all times ({t0:.0f} to {t1:.0f} Myr)", everything.get(kind) or {})
                   for kind, title in _KINDS.items()]
    return tables


def _confusions(result: dict) -> list[tuple[str, np.ndarray, list[str] | None]]:
    """Title, matrix and names of what was taken for what."""
    found = [(f"stage {kind}", ((result.get(kind) or {}).get("stage") or {}).get("confusion"), STAGES)
             for kind in ("clean", "realism")]
    found += [(name, matrix, None) for name, matrix in (result.get("confusion") or {}).items()]
    shown = []
    for name, matrix, names in found:
        matrix = np.asarray(matrix if matrix is not None else (), float)
        if matrix.ndim == 2 and matrix.any():
            there = (matrix.any(axis=0) | matrix.any(axis=1)) if names else np.ones(len(matrix), bool)
            shown.append((name, matrix[there][:, there],
                          [n for n, t in zip(names, there, strict=True) if t] if names else None))
    return shown


def confusion_figure(matrix: np.ndarray, names: list[str] | None) -> Figure:
    """What was taken for what: rows are the truth, each in shares of its own sum.

    Parameters
    ----------
    matrix : (n, n) counts.
    names : of the n classes, written beside and into their cells; without them, their numbers.
    """
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7.5, 6.5), dpi=100, facecolor=THEME["ground"], layout="constrained")
    ax = figure.subplots()
    ax.set_facecolor(THEME["panel"])
    ax.imshow(np.ma.masked_equal(share, 0), cmap=CMAP, vmin=0, vmax=1, origin="lower" if names is None else "upper")
    if names is not None:
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
        ax.set_yticks(range(len(names)), names)
        for (i, j), value in np.ndenumerate(share):
            if value:
                ax.text(j, i, f"{100 * value:.0f} %", ha="center", va="center", fontsize=11,
                        color=THEME["ground"] if value > 0.55 else THEME["text"])
    ax.set(xlabel="taken for", ylabel="true")
    ax.tick_params(colors=THEME["muted"], labelsize=10.5)
    for text in (ax.xaxis.label, ax.yaxis.label):
        text.set(color=THEME["text"], fontsize=11.5, fontfamily="DejaVu Sans")
    for spine in ax.spines.values():
        spine.set_color(THEME["line"])
    return figure


def _robustness(result: dict) -> list[tuple]:
    """Share of the images whose answer stays within half of its own 68 % interval, for each change and label."""
    return [(change, *(f"{100 * of[label.name]['within']:.0f} %" if label.name in of else "–" for label in LABELS))
            for change, of in (result.get("robustness") or {}).items()]


def _breakdowns(result: dict) -> list[dict]:
    """Tables of errors where something else is within limits."""
    tables = []
    for name, title in _BREAKDOWNS.items():
        rows = []
        for row in (result.get("by") or {}).get(name, ()):
            rows.append((where(row), row["n_images"],
                         *(_show(label, "median_abs_error", row.get(label.name)) for label in LABELS)))
        if rows:
            tables.append({"title": title, "rows": rows})
    return tables


def evaluation_figure(samples: dict) -> Figure:
    """One row per label: predicted against true, histogram of the PIT, and coverage against its promise.

    Parameters
    ----------
    samples : dict
        {label: {"truth", "p50", "pit": (N,)}} in the label's unit; what is not finite is left out.
    """
    labels = [label for label in LABELS if label.name in samples]
    figure = Figure(figsize=(16, 5.1 * max(len(labels), 1)), dpi=100, facecolor=THEME["ground"],
                    layout="constrained")
    figure.get_layout_engine().set(w_pad=0.2, h_pad=0.2)
    axes = figure.subplots(max(len(labels), 1), 3, squeeze=False)
    for row, label in zip(axes, labels, strict=False):
        values = {name: np.asarray(samples[label.name][name], float) for name in ("truth", "p50", "pit")}
        good = np.all([np.isfinite(value) for value in values.values()], axis=0)
        truth, predicted, pit = (values[name][good] for name in ("truth", "p50", "pit"))
        _against_truth(row[0], label, truth, predicted)
        _pit(row[1], pit)
        _coverage(row[2], pit)
    for ax in axes.flat:
        ax.set_facecolor(THEME["panel"])
        ax.tick_params(colors=THEME["muted"], labelsize=10.5)
        for text in (ax.xaxis.label, ax.yaxis.label, ax.title):
            text.set(color=THEME["text"], fontsize=11.5, fontfamily="DejaVu Sans")
        for spine in ax.spines.values():
            spine.set_color(THEME["line"])
    return figure


def _against_truth(ax, label: Label, truth, predicted):
    edges = label.edges
    counts, _, _ = np.histogram2d(truth, predicted, bins=(edges, edges))
    ax.set_box_aspect(1)
    if counts.any():
        ax.pcolormesh(edges, edges, np.ma.masked_equal(counts.T, 0), cmap=CMAP,
                      norm=LogNorm(0.4, max(counts.max(), 2)))
        bins = np.array_split(np.argsort(truth), min(20, max(1, len(truth) // 30)))
        centres = [np.median(truth[i]) for i in bins]
        low, middle, high = np.transpose([np.quantile(predicted[i], (0.16, 0.5, 0.84)) for i in bins])
        ax.fill_between(centres, low, high, color=THEME["frame"], alpha=0.18, lw=0)
        ax.plot(centres, middle, color=THEME["frame"], lw=1.8)
    ax.plot(edges[[0, -1]], edges[[0, -1]], color=THEME["text"], lw=1, ls=(0, (4, 3)))
    scale = "log" if label.log else "linear"
    ax.set(xscale=scale, yscale=scale, xlim=edges[[0, -1]], ylim=edges[[0, -1]])
    name = label.title + (f" / {label.unit}" if unit(label) else "")
    ax.set(xlabel="true", ylabel="predicted median", title=name)
    ticks = tick_values(label)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_ticklabels([f"{tick:g}" for tick in ticks])


def _pit(ax, pit, n_bins=20):
    ax.set(title="Where the truth lies in the posterior (PIT)", xlabel="quantile of the truth",
           ylabel="images / uniform", xlim=(0, 1))
    ax.set_box_aspect(1)
    ax.axhline(1, color=THEME["text"], lw=1, ls=(0, (4, 3)))
    if len(pit):
        counts, edges = np.histogram(np.clip(pit, 0, 1), bins=n_bins, range=(0, 1))
        level = counts * n_bins / len(pit)
        ax.stairs(level, edges, fill=True, color=THEME["accent"], alpha=0.5)
        ax.stairs(level, edges, color=THEME["accent"], lw=1.3)
        ax.set_ylim(0, max(2, 1.1 * level.max()))


def _coverage(ax, pit):
    ax.set(title="Coverage of central intervals", xlabel="promised", ylabel="found", xlim=(0, 1), ylim=(0, 1))
    ax.set_box_aspect(1)
    ax.plot([0, 1], [0, 1], color=THEME["text"], lw=1, ls=(0, (4, 3)))
    if len(pit):
        levels = np.linspace(0, 1, 101)
        found = np.searchsorted(np.sort(np.abs(2 * pit - 1)), levels, side="right") / len(pit)
        ax.fill_between(levels, levels, found, color=THEME["accent"], alpha=0.2, lw=0)
        ax.plot(levels, found, color=THEME["accent"], lw=1.8)
        for level in (0.68, 0.95):
            value = np.mean(np.abs(2 * pit - 1) <= level)
            ax.plot(level, value, "o", color=THEME["accent"], ms=6)
            ax.text(0.95, 0.19 - 0.1 * (level > 0.9), f"{100 * level:.0f} % holds {100 * value:.1f} %",
                    transform=ax.transAxes, ha="right", color=THEME["text"], fontsize=11)


def _is_number(value) -> bool:
    return isinstance(value, (int, float, np.number)) and np.isfinite(value)


def _show(label: Label, name: str, value) -> str:
    if not _is_number(value):
        return "–"
    if name.startswith("coverage"):
        return f"{100 * value:.1f} %"
    if name.startswith("rank_test"):
        return f"{value:.2f}" if value >= 0.01 else "< 0.01"
    return f"{value:.1f}{unit(label)}" if unit(label) else f"{value:.3f}"
