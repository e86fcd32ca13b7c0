"""The table of figures in the README: python scripts/readme_figures.py evaluation.json"""

from __future__ import annotations

import json
import sys

TITLES = {"time_since_pericentre": "time since pericentre", "mass_ratio": "mass ratio", "size_ratio": "size ratio",
          "view_inclination": "viewing angle"}


def main(path: str) -> None:
    """Print a Markdown table."""
    with open(path) as f:
        e = json.load(f)
    print(f"On {e['n_images']:,} images of {e['n_encounters']} encounters that the shipped model never saw, "
          f"{e['time_range'][0]:+.0f} to {e['time_range'][1]:+.0f} Myr; median error, and how often the 68 % interval "
          "holds the truth:\n")
    print("| | clean, scale known | sky, stars, noise | and scale unknown | guessing |\n|---|---|---|---|---|")
    for label, title in TITLES.items():
        cells = []
        for part in ("clean", "realism", "realism_without_scale"):
            v = e[part][label]
            cells.append(f"{v['median_abs_error']:.2g} ({100 * v['coverage68']:.0f} %)")
        v = e["clean"][label]
        unit = {"Myr": ", Myr", "deg": ", degrees"}.get(v["unit"], "")
        print(f"| {title}{unit} | {' | '.join(cells)} | {v['prior_median_abs_error']:.2g} |")


if __name__ == "__main__":
    main(sys.argv[1])
