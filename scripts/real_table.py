"""Write what was answered of real pictures: python scripts/real_table.py real.json > docs/real.md

real.json is what `deepgalaxy evaluate --protocol real --json` holds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deepgalaxy.report.card import wrapped

#: Of whom the best match does not look alike, or hardly; by the eye of who wrote the program, and not blind.
NOT_ALIKE = {"sdss_arp_142.jpg", "sdss_arp_237.jpg", "sdss_arp_241.jpg", "sdss_arp_305.jpg"}
HARDLY = {"hst_arp142.jpg", "hst_ic2163_ngc2207.jpg", "sdss_arp_82.jpg", "sdss_arp_101.jpg"}


def page(e: dict) -> str:
    """The page as Markdown."""
    n, times, ratios = e["n_images"], e["n_published"], e["n_published_ratios"]
    alike = n - len(NOT_ALIKE)
    return f"""# Real pictures

{n} pictures of interacting galaxies (surveys' colour pictures at a known scale, and Hubble press images at none), as
{e["model"]["name"]} answers them. Published times and mass ratios are those of Holincheck et al. (2016), MNRAS 459,
720, table 4: restricted three-body models, fitted by people; two published models of one system can differ by a
factor of two. Systems are taken to be as heavy as the simulated ones within 0.3 dex. Of the mass ratios the lighter
galaxy over the heavier one is compared.

- **Times**: of {times} published ones {e["published_within_90"]} lie in our 90 % interval and
  {e["published_within_68"]} in that of 68 %; {e["published_within_90_without_mass_error"]} in that of 90 % of a
  primary exactly as heavy as simulated. The rank correlation of our medians with them is
  {e["published_rank_correlation"]:.2f}; in the median they are {e["published_median_abs_difference"]:.0f} Myr
  apart, and {e["published_median_abs_difference_of_guess"]:.0f} if one answers with the median of the others. So our
  times and the published ones do not agree, and nobody knows which are right: take neither for the truth.
- **Mass ratios**: {e["published_ratio_within_90"]} of {ratios} lie in our 90 % interval; rank correlation
  {e["published_ratio_rank_correlation"]:.2f}.
- **Look-alikes**: {alike} of {n} look like the picture, {len(HARDLY)} of them hardly. That is the eye of who wrote
  the program, not blind; and how look-alikes are ranked was chosen with these pictures in view, so that others may do
  worse.
- **Familiarity**: {e["familiar"]} of {n} are familiar; one match serves {e["most_systems_per_match"]} of them at most.

{_table(e["images"])}

`deepgalaxy evaluate --protocol real --data folder/` makes such a comparison, with pictures, of a folder of your own."""


def _table(images: list[dict]) -> str:
    head = ("picture", "time, Myr (5 to 95 %)", "published", "within", "mass ratio", "published", "within",
            "familiarity", "best match at, Myr", "looks alike")
    rows = [[image["name"] + (" (Hubble)" if image["image"].startswith("hst") else ""),
             _interval(image["time"], ".0f"), _published(image["published_time"], image["published_error"]),
             _yes(image["within_90"]), _interval(image["mass_ratio"], ".2f"),
             "" if (q := image["published_mass_ratio"]) is None else f"{q:.2f}", _yes(image["ratio_within_90"]),
             f"{image['familiarity']:.2f}", f"{image['match']['time_myr']:.0f}", _alike(image["image"])]
            for image in images]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _interval(p: dict, form: str) -> str:
    return f"{p['p50']:{form}} ({p['p05']:{form}} to {p['p95']:{form}})"


def _published(value: float | None, error: float | None) -> str:
    return "" if value is None else f"{value:.0f}" + (f" ± {error:.0f}" if error is not None else "")


def _yes(inside: bool | None) -> str:
    return "" if inside is None else "yes" if inside else "no"


def _alike(image: str) -> str:
    return "no" if image in NOT_ALIKE else "hardly" if image in HARDLY else "yes"


if __name__ == "__main__":
    print("\n\n".join(map(wrapped, page(json.loads(Path(sys.argv[1]).read_text())).split("\n\n"))))
