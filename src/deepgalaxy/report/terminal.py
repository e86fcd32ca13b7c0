"""The answers as a table in a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from ..inference.story import UNUSUAL, Story
from ..labels import LABELS
from ..units import REFERENCE_STARS
from . import (
    coverage_error,
    familiarity_sentence,
    is_shipped,
    likely_stage,
    number,
    percent,
    printable,
    scale_sentence,
    short_name,
    short_names,
    shorten,
    unit,
)

__all__ = ["story_table", "matches_table", "evaluation_table", "order_sentence", "paper_table", "real_table"]

_TITLES = {"time_since_pericentre": "time since\npericentre", "mass_ratio": "mass\nratio",
           "size_ratio": "size\nratio", "view_inclination": "view"}


def story_table(stories: list[Story | tuple[str, str]]) -> Table:
    """One row per picture, at most 100 columns wide; intervals are p16…p84.

    Parameters
    ----------
    stories : list of Story or (image, error)
        A tuple is a picture that failed, with its line of error.

    Returns
    -------
    table : rich.table.Table
        Errors (red) and flags (dim) stand once each in the caption, numbered as in the rows.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False, caption_justify="left",
                  caption_style="", header_style="bold", show_edge=False)
    table.add_column("picture", max_width=24, overflow="fold")
    for label in LABELS:
        table.add_column(_TITLES.get(label.name, label.title), no_wrap=True)
    for title, width in (("stage", 13), ("famil-\niarity", 6), ("best match", 26)):
        table.add_column(title, max_width=width, overflow="fold")
    footnotes: dict[tuple[str, str], int] = {}
    names = short_names(stories)
    for story in stories:
        if isinstance(story, Story):
            table.add_row(_name(names[story.image], _marks(story, footnotes)), *_cells(story))
        else:
            image, error = story
            mark = footnotes.setdefault((printable(error), "red"), len(footnotes) + 1)
            table.add_row(_name(names[image], [mark]), "failed", style="red")
    lines = _lines(footnotes)
    scales = dict.fromkeys(scale_sentence(s.scale, s.clock, None, is_shipped(s), s.scale_used) for s in stories
                           if isinstance(s, Story))
    lines += [Text(text, style="dim") for text in scales]
    if lines:
        table.caption = Text("\n").join(lines)
    return table


def matches_table(stories: list[Story | tuple[str, str]]) -> Table:
    """One row per look-alike of the pictures that have an answer; flags stand in the caption, numbered."""
    table = Table("image", "match", "time (Myr)", "mass ratio", "size ratio", "view (deg)", "distance")
    names, footnotes = short_names(stories), {}
    for story in (story for story in stories if isinstance(story, Story)):
        for i, m in enumerate(story.matches):
            name = _name(names[story.image], _marks(story, footnotes)) if i == 0 else ""
            table.add_row(name, Text(printable(m.encounter)), f"{m.time_myr:+.0f}", f"{m.mass_ratio:.2f}",
                          f"{m.size_ratio:.2f}", f"{m.view:.0f}", f"{m.distance:.2f}")
    if table.rows:
        ours = all(is_shipped(story) for story in stories if isinstance(story, Story))
        primary = "those of the simulations, whose primary has" if ours else "for a primary of"
        times = Text(f"Times are {primary} {REFERENCE_STARS:.2g} Msun of stars.", style="dim")
        table.caption = Text("\n").join([*_lines(footnotes), times])
        table.caption_justify = "left"
    return table


def _marks(story: Story, footnotes: dict[tuple[str, str], int]) -> list[int]:
    """Numbers of what is to be noted of a story, under which it is added to (text, style) of all of them."""
    notes = [printable(flag) for flag in story.flags]
    if story.familiarity < UNUSUAL:
        notes.append(familiarity_sentence(story.familiarity))
    return [footnotes.setdefault((note, "dim"), len(footnotes) + 1) for note in notes]


def _lines(footnotes: dict[tuple[str, str], int]) -> list[Text]:
    return [Text(f"[{n}] {text}", style=style) for (text, style), n in footnotes.items()]


def _name(name: str, marks: list[int]) -> Text:
    name = Text(shorten(name, 40))  # Text, not markup: a name may hold [brackets]
    return name.append(f" [{','.join(map(str, marks))}]", "dim") if marks else name


def _cells(story: Story) -> list[Text | str]:
    cells = []
    for label in LABELS:
        quantiles = story.properties.get(label.name)
        if quantiles is None:
            cells.append("–")
            continue
        signed = label.unit == "Myr"
        low, high = number(label, quantiles["p16"]), number(label, quantiles["p84"])
        middle = number(label, quantiles["p50"], sign=signed)
        if signed:
            cells.append(Text(middle, "bold").append(f" ({low}…{high}){unit(label)}", "not bold"))
        else:
            cells.append(Text(middle + unit(label)).append(f"\n{low}…{high}", "dim"))
    stage, probability = likely_stage(story)
    cells.append(Text(stage).append(f"\n{percent(probability)}", "dim"))
    cells.append(Text(percent(story.familiarity), "yellow" if story.familiarity < UNUSUAL else ""))
    if story.matches:
        match = story.matches[0]
        cells.append(Text(shorten(short_name(match.encounter), 32))
                     .append(f"\nat {match.time_myr:+.0f} Myr", "dim"))
    else:
        cells.append("–")
    return cells


def evaluation_table(result: dict) -> Table:
    """Errors and coverage, and below them how the model does otherwise."""
    table = Table("label", "images", "median |error|", "guessing", "68 % covers", "95 % covers",
                  title=f"{result['n_images']} images of {result['n_encounters']} unseen encounters (so many know "
                        f"a coverage of 68 % to ± {percent(coverage_error(result['n_encounters']))})")
    for part in ("clean", "realism", "realism_without_scale", "realism_by_mass", "realism_other_light"):
        for name, v in result.get(part, {}).items():
            if "median_abs_error" in v:
                table.add_row(name, part, f"{v['median_abs_error']:.3g} {v['unit']}",
                              f"{v['prior_median_abs_error']:.3g}", f"{100 * v['coverage68']:.0f} %",
                              f"{100 * v['coverage95']:.0f} %")
    r = result["reconstruction"]
    table.caption = f"SSIM {r['ssim_fcae']:.3f} (FCAE), {r['ssim_vae']:.3f} (through z)"
    if "neighbours" in result:
        near = result["neighbours"]
        table.caption += (f"; 5 nearest in z: median |dt| {near['median_abs_dt_5']:.0f} Myr, the look-alike shown "
                          f"first: {near['median_abs_dt_shown']:.0f} Myr (clean "
                          f"{near['median_abs_dt_shown_clean']:.0f})")
    return table


def paper_table(result: dict) -> Table:
    """The classes of the paper, right and nearly right."""
    table = Table("classes", "really different", "right", "within one step", title=(
        f"{result['n_images']} images of {result['n_encounters']} encounters, split at random"))
    table.add_row(f"{result['n_classes']}", f"{result['n_distinct_classes']}", f"{100 * result['top1']:.2f} %",
                  f"{100 * result['within_one_step']:.2f} %")
    return table


def real_table(result: dict) -> Table:
    """Ours beside what was published."""
    table = Table("picture", "time, Myr (90 %)", "published", "within", "best match",
                  title=f"{result['n_images']} real pictures", caption_justify="left")
    familiar = result["familiar"] is not None
    if familiar:
        table.add_column("familiar")
    for row in result["images"]:
        if "error" in row:
            table.add_row(Text(printable(row["name"])), Text(printable(row["error"]), style="red"))
            continue
        t, match = row["time"], row["match"]
        published = "" if row["published_time"] is None else f"{row['published_time']:.0f}"
        table.add_row(Text(printable(row["name"])), f"{t['p50']:+.0f} ({t['p05']:.0f} to {t['p95']:.0f})", published,
                      {True: "yes", False: "no", None: ""}[row["within_90"]],
                      Text(f"{printable(match['encounter'])} {match['time_myr']:+.0f} Myr" if match else ""),
                      *([percent(row["familiarity"])] if familiar else []))
    table.caption = (f"{result['published_within_90']} of {result['n_published']} published times within our 90 % "
                     f"({result['published_within_90_without_mass_error']} for a primary that weighs what the "
                     f"simulated one does, exactly), {result['published_within_68']} within our 68 %, "
                     f"{result['published_ratio_within_90']} of {result['n_published_ratios']} mass ratios within our "
                     f"90 %; at most {result['most_systems_per_match']} pictures share a best match")
    if order := order_sentence(result):
        table.caption += f". {order}"
    return table


def order_sentence(result: dict) -> str:
    """How our times and mass ratios go with the published ones; empty where too few are published."""
    sentences = []
    if (apart := result["published_median_abs_difference"]) is not None:
        order, guess = (result[f"published_{name}"] for name in ("rank_correlation", "median_abs_difference_of_guess"))
        sentences.append(f"Our times beside the published ones: {_correlation(order)} (1 in the same order); "
                         f"{apart:.0f} Myr apart in the median, {guess:.0f} if one answers with the median of the "
                         "others.")
    if (ratios := result["published_ratio_rank_correlation"]) is not None:
        sentences.append(f"Mass ratios: {_correlation(ratios)}.")
    return " ".join(sentences)


def _correlation(value: float | None) -> str:
    return f"rank correlation {'?' if value is None else f'{value:.2f}'}"
