"""Encounters that anyone recognises, as pictures: do the tails go where they should?

Usage: python benchmarks/gallery.py [recipes/gallery.yaml] [--runs runs/gallery] [-o docs/gallery.png]

Simulates what is not in the folder of runs yet (minutes each), prints the table of docs/gallery.md, and draws.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepgalaxy.image.render import render, smoothing_lengths
from deepgalaxy.image.view import View
from deepgalaxy.report.figures import THEME
from deepgalaxy.simulate.encounter import simulate
from deepgalaxy.simulate.galaxy import BULGE
from deepgalaxy.simulate.snapshot import Encounter
from deepgalaxy.simulate.suite import SuiteConfig

N_PIXELS = 780  # of one panel
_MARGIN, _CAPTION = 20, 66
_DPI = 100
#: log10 Msun/kpc^2 that is black, and that is white.
_DARK, _BRIGHT = 5.2, 9.2


@dataclass(frozen=True)
class Panel:
    """One encounter at one moment from one side."""

    name: str  #: of the encounter
    title: str
    time: float  #: Myr since the first pericentre
    view: View
    field_of_view: float  #: kpc
    centre: tuple[float, float] = (0.0, 0.0)  #: kpc on the sky, from the point between the nuclei


PANELS = (
    Panel("mice", "After the Mice (NGC 4676)", 170, View((-0.34, 0.94, 0.12), 180), 125),
    Panel("antennae", "After the Antennae (NGC 4038/9)", 350, View((-0.45, -0.89, 0.1), -90), 170, (-18, 0)),
    Panel("bridge", "After M 51: a bridge", 120, View((0.3, 0.2, 1), 30), 110),
    Panel("retrograde", "Retrograde: no tails", 110, View((0, 0.3, 1)), 120),
)


def encounters(suite: SuiteConfig, folder: Path) -> dict[str, Encounter]:
    """All encounters of the suite, by name; those that are in the folder are read."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for config in suite.encounters():
        path = folder / f"{config.name}.h5"
        if not path.exists() or Encounter.read(path).config != config.to_json():
            print(f"simulating {config.name} ({config.resolution.n_particles} particles)", flush=True)
            simulate(config).write(path)
        found[config.name] = Encounter.read(path)
    return found


def picture(encounter: Encounter, panel: Panel) -> tuple[np.ndarray, float]:
    """log10 of the surface density (N_PIXELS, N_PIXELS), y upwards, and the time of the snapshot in Myr."""
    t = int(np.argmin(np.abs(encounter.time - panel.time)))
    x = encounter.positions[t].astype(np.float64)
    bulge = encounter.component == BULGE
    x -= np.mean([np.median(x[bulge & (encounter.galaxy == k)], axis=0) for k in (0, 1)], axis=0)
    image = render(x, encounter.masses, panel.view, N_PIXELS, panel.field_of_view, smoothing_lengths(x, 32),
                   panel.centre)
    return np.log10(np.maximum(image, 1.0)), float(encounter.time[t])


def draw(found: dict[str, Encounter]):
    """The figure: two panels to a row, each with its name, time and view below."""
    from matplotlib.figure import Figure

    rows = -(-len(PANELS) // 2)
    width = 2 * N_PIXELS + 3 * _MARGIN
    height = rows * (N_PIXELS + _CAPTION) + _MARGIN
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=THEME["ground"])
    for i, panel in enumerate(PANELS):
        image, time = picture(found[panel.name], panel)
        left = _MARGIN + (i % 2) * (N_PIXELS + _MARGIN)
        top = _MARGIN + (i // 2) * (N_PIXELS + _CAPTION)
        axes = figure.add_axes((left / width, 1 - (top + N_PIXELS) / height, N_PIXELS / width, N_PIXELS / height))
        axes.imshow(image, origin="lower", cmap="magma", vmin=_DARK, vmax=_BRIGHT, interpolation="nearest")
        axes.axis("off")
        bar = 20 / panel.field_of_view * N_PIXELS
        axes.plot([N_PIXELS - 24 - bar, N_PIXELS - 24], [26, 26], color=THEME["text"], lw=2)
        axes.text(N_PIXELS - 24 - bar / 2, 34, "20 kpc", color=THEME["text"], ha="center", va="bottom", fontsize=12)

        def caption(x, text, align="left", offset=left, base=top + N_PIXELS + 34, **style):
            figure.text((offset + x) / width, 1 - base / height, text, ha=align, va="baseline", **style)

        caption(2, panel.title, color=THEME["text"], fontsize=17, fontweight="bold")
        caption(N_PIXELS - 2, f"{time:+.0f} Myr, orbit seen at {panel.view.inclination:.0f}°", "right",
                color=THEME["muted"], fontsize=14)
    return figure


def table(found: dict[str, Encounter]) -> str:
    """What was asked for and what came of it, in Markdown."""
    columns = ("encounter", "mass, size ratio", "pericentre requested", "measured", "discs (i, node)", "shown at",
               "observer")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for panel in PANELS:
        p = found[panel.name].parameters
        discs = ", ".join(f"({p[f'{g}_disc_inclination']:g}°, {p[f'{g}_disc_node']:g}°)"
                          for g in ("primary", "secondary"))
        view = ", ".join(f"{value:.2f}" for value in panel.view.unit)
        _, time = picture(found[panel.name], panel)
        lines.append(f"| {panel.name} | {p['mass_ratio']:g}, {p['size_ratio']:g} | {p['pericentre_requested']:g} kpc | "
                     f"{p['pericentre_measured']:.1f} kpc | {discs} | {time:+.0f} Myr | ({view}) |")
    return "\n".join(lines)


def main() -> None:
    """Simulate, print, draw."""
    from PIL import Image

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="recipes/gallery.yaml")
    parser.add_argument("--runs", default="runs/gallery", help="folder of the encounter files")
    parser.add_argument("-o", "--output", help="PNG; without it, the table only")
    options = parser.parse_args()
    found = encounters(SuiteConfig.from_yaml(options.recipe), Path(options.runs))
    print(table(found))
    if options.output:
        raw = io.BytesIO()
        draw(found).savefig(raw, format="png", facecolor=THEME["ground"])
        # One colour map and some grey: 256 colours say it all, in a third of the bytes.
        Image.open(raw).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
