"""Put the figures of an evaluation into the README: python scripts/readme_figures.py evaluation.json"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

TITLES = {"time_since_pericentre": "time since pericentre", "mass_ratio": "mass ratio", "size_ratio": "size ratio",
          "view_inclination": "viewing angle"}
README = Path(__file__).resolve().parents[1] / "README.md"


def table(e: dict) -> str:
    """The figures as Markdown."""
    lines = [f"On {e['n_images']:,} images of {e['n_encounters']} encounters that the shipped model never saw, "
             f"{e['time_range'][0]:+.0f} to {e['time_range'][1]:+.0f} Myr; median error, and how often the 68 %",
             "interval holds the truth (with sky, stars and noise, half of them in light that does not follow mass):",
             "",
             "| | clean, scale known | sky, stars, noise | and scale unknown | guessing |", "|---|---|---|---|---|"]
    for label, title in TITLES.items():
        cells = []
        for part in ("clean", "realism", "realism_without_scale"):
            v = e[part][label]
            cells.append(f"{_short(v['median_abs_error'])} ({100 * v['coverage68']:.0f} %)")
        v = e["clean"][label]
        unit = {"Myr": ", Myr", "deg": ", degrees"}.get(v["unit"], "")
        lines.append(f"| {title}{unit} | {' | '.join(cells)} | {_short(v['prior_median_abs_error'])} |")
    everything = e["all_times"]
    (t0, t1), *held = everything["time_range"], *(everything["realism"][label]["coverage68"] for label in TITLES)
    *first, last = (f"{100 * share:.0f}" for share in held)
    lines += ["", f"Over all times, {t0:+.0f} to {t1:+.0f} Myr, for which error bars are made, 68 % intervals hold "
              f"{', '.join(first)} and {last} %", "with sky, stars and noise, in the order of the table."]
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def main(path: str) -> None:
    """Replace what stands between the heading and the line about the model card."""
    figures = table(json.loads(Path(path).read_text()))
    new, n = re.subn(r"(## How good it is\n).*?(\n\nThe \[model card\])",
                     lambda m: m.group(1) + figures + m.group(2), README.read_text(), flags=re.DOTALL)
    assert n == 1, "README.md has no place for the figures"
    README.write_text(new)


if __name__ == "__main__":
    main(sys.argv[1])
