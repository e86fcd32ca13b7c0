"""What the answers do not know, in plain words: of one picture, and of a page."""

from __future__ import annotations

from ..inference.story import UNUSUAL, Story
from ..labels import LABELS
from ..units import REFERENCE_STARS
from . import is_shipped, number, unit

__all__ = ["limits", "unknowns"]

#: Of the encounters that the shipped model learned from; no other model's.
_SHIPPED_LIMITS = ("Learned from simulated pairs of disc galaxies without gas. Single galaxies and chance pairs are "
                   "stages of their own; groups and clusters were never shown.")

#: Of the primary, the physics and the light of the encounters that the shipped model learned from, and of any others.
_SHIPPED = (
    "All was learned with a primary like the Milky Way (stars 6e10 Msun, disc scale length 2 to 4 kpc).",
    "What gas, star formation and dust do, and galaxies that are not discs: the simulated pairs are discs with bulges "
    "in dark haloes, of stars and dark matter alone.",
    "the model that ships was taught that galaxies differ by 0.15 dex. More, as between a burst of young stars and an "
    "old galaxy, is not in the error bars.")
_OF_ANY = (
    f"The times are for a primary of {REFERENCE_STARS:.2g} Msun of stars.",
    "What the simulations of the training left out, be it gas, star formation, dust or galaxies of other kinds: the "
    "limits of the answers are those of these simulations.",
    "where they differ by more than in the images of the training, it is not in the error bars.")


def limits(story: Story) -> str:
    """What the training of its model means for every answer."""
    if is_shipped(story):
        return _SHIPPED_LIMITS
    n = story.training.get("n_encounters", 0)
    encounters = "the encounter" if n == 1 else f"the {n:,} encounters" if n else "the encounters"
    return f"Learned from {encounters} of its own training; its limits are those of their simulations."


def unknowns(stories: list[Story]) -> list[str]:
    """What the page does not know, in plain words, most important first."""
    ranges = [f"{label.title.lower()} {number(label, label.low)} to {number(label, label.high)}{unit(label)}"
              for label in LABELS]
    without = sum(story.scale.get("kpc_per_pixel") is None for story in stories)
    strange = sum(story.familiarity < UNUSUAL for story in stories)
    never_shown = [plural for name, plural in (("single", "single galaxies"), ("chance pair", "chance alignments"))
                   if any(name in story.training.get("unseen_stages", ()) for story in stories)]
    apart = ("Single galaxies and chance alignments are stages of their own, told apart as well as one picture allows; "
             "before two discs have touched, nothing tells a pair that will meet from one that will not.")
    if never_shown:
        apart = (f"No image of the training showed {' or '.join(never_shown)}: these are not told from pairs that "
                 "meet.")
    # A page without an answer does not know whose it would have been.
    primary, physics, light = _SHIPPED if stories and all(map(is_shipped, stories)) else _OF_ANY
    lines = [
        f"Whether a picture shows two galaxies that meet at all. {apart} Of three galaxies or a cluster the answer "
        "means nothing.",
        f"The mass of the galaxies in Msun, and so the clock. {primary} Times grow as the square root of size³/mass of "
        "the primary: at the same size and half the mass, everything takes 1.4 times as long.",
        physics,
        f"How bright each galaxy is for its mass. Ratios are of mass, pictures show light: {light}",
        f"Anything beyond its ranges: {'; '.join(ranges).replace('-', '−')}. What lies outside is pressed to "
        "the nearest edge.",
        "Depth and speed. One picture has neither, so different encounters can look the same: look at the "
        "whole curve, not only at its median, and at the look-alikes. Front and back of the orbit cannot be "
        "told apart.",
        "Whether the error bars hold on the real sky. They can be checked on simulated pictures of "
        "encounters that the model has never seen; for real pairs nobody knows the true time.",
        "Whether familiarity means correctness. It says how usual a picture is for the model, nothing else.",
    ]
    if strange:
        lines.insert(0, f"What to say of {_of(strange, stories)}, like which there is little in the library: "
                        "the numbers are hardly worth more than a guess.")
    if without:
        lines.insert(0, f"The physical scale of {_of(without, stories)}. The distance between the galaxies "
                        "in kpc is a strong clue to time; without it the shape alone must do.")
    return lines


def _of(n: int, stories: list) -> str:
    return f"{n} of {len(stories)} pictures" if len(stories) > 1 else "the picture"
