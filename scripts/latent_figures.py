"""Draw the latent space: python scripts/latent_figures.py runs/ docs/

Writes latent_map.png (the library in z, by time and by mass ratio) and latent_walk.png (a straight line through z from
one snapshot to a later one, decoded, above the snapshots themselves; of encounters in the folder runs/).
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from deepgalaxy.image.observation import observe_frames
from deepgalaxy.image.render import field_of_view_by_content, render, smoothing_lengths
from deepgalaxy.image.view import View
from deepgalaxy.inference.predictor import load
from deepgalaxy.report import write_file
from deepgalaxy.report.figures import CMAP, THEME, png
from deepgalaxy.simulate.snapshot import Encounter, parameters_of

STEPS, SPAN = 8, (40.0, 320.0)  # Myr
TOWARDS = View((0.3, 0.2, 0.93))


def latent_map(library) -> Figure:
    """The plane in z that separates times best, and mass ratios across it, each point coloured by one of them."""
    z = library.told_index._vectors  # z in units of what observation does to it, with the scale told
    z = z - z.mean(axis=0)
    time, mass = library.labels["time"], np.log(library.labels["mass_ratio"])
    first = _direction(z, [np.sin(np.pi * time / 1200), np.cos(np.pi * time / 1200)])[:, 0]
    second = _direction(z, [mass])[:, 0]
    second = second - first * (first @ second)
    plane = np.stack([first, second / np.linalg.norm(second)], axis=1)
    at = z @ plane
    figure = Figure(figsize=(16, 7.4), dpi=100, facecolor=THEME["ground"], layout="constrained")
    for ax, values, title, limits in zip(
            figure.subplots(1, 2), (time, library.labels["mass_ratio"]),
            ("Time since pericentre, Myr", "Mass ratio"), ((-200, 1000), (0.1, 1)), strict=True):
        shown = ax.scatter(*at.T, c=values, s=3, cmap="viridis", vmin=limits[0], vmax=limits[1], lw=0, alpha=0.7)
        bar = figure.colorbar(shown, ax=ax)
        bar.ax.tick_params(colors=THEME["text"])
        ax.set_title(title, color=THEME["text"], fontsize=14)
        ax.set_facecolor(THEME["panel"])
        ax.set_xlabel("direction in z in which times change most", color=THEME["text"], fontsize=12)
        ax.set_ylabel("direction across it in which mass ratios change most", color=THEME["text"], fontsize=12)
        ax.set(xticks=[], yticks=[], xlim=np.quantile(at[:, 0], [2e-4, 1 - 2e-4]),
               ylim=np.quantile(at[:, 1], [2e-4, 1 - 2e-4]))
    return figure


def _direction(z, targets) -> np.ndarray:
    """The unit vectors (D, n) along which these targets grow fastest, by linear regression."""
    y = np.stack([t - t.mean() for t in targets], axis=1)
    w = np.linalg.solve(z.T @ z + 1e-3 * len(z) * np.eye(z.shape[1]), z.T @ y)
    u, _, _ = np.linalg.svd(w, full_matrices=False)
    return u


@torch.inference_mode()
def latent_walk(model, encounters: list[Encounter]) -> Figure:
    """Straight lines in z between two snapshots seen from one side, decoded; the snapshots themselves below."""
    figure = Figure(figsize=(16, 4.3 * len(encounters)), dpi=100, facecolor=THEME["ground"], layout="constrained")
    figure.suptitle("Upper rows: a straight line in z from the first picture to the last, decoded at even steps.   "
                    "Lower rows: the encounter itself, which the model never saw.", color=THEME["text"], fontsize=14)
    axes = figure.subplots(2 * len(encounters), STEPS)
    for k, encounter in enumerate(encounters):
        pick = [int(np.abs(encounter.time - time).argmin()) for time in np.linspace(*SPAN, STEPS)]
        frames = observe_frames(torch.stack([_light(encounter, t) for t in pick]), torch.full((STEPS,), torch.nan),
                                [0] * STEPS, None).frames
        for j in range(1, STEPS):  # a frame has an axis, but neither end of it is the first
            turned = torch.stack([frames[j], frames[j].flip(1, 2)])
            frames[j] = turned[(turned - frames[j - 1]).square().mean(dim=(1, 2, 3)).argmin()]
        encoding = model.encode(frames)
        weight = torch.linspace(0, 1, STEPS)[:, None]
        z = (1 - weight) * encoding.mu[:1] + weight * encoding.mu[-1:]
        decoded = model.reconstruct(model.vae.decode(z, encoding.maps.shape[2:]), frames.shape[2:])
        for row, pictures in enumerate((decoded, frames)):
            for j, ax in enumerate(axes[2 * k + row]):
                ax.imshow(pictures[j, 0].clamp(0, 1), origin="lower", cmap=CMAP, vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
                if row:
                    ax.set_title(f"{encounter.time[pick[j]]:+.0f} Myr", color=THEME["text"], fontsize=11)
        axes[2 * k, 0].set_ylabel("through z", color=THEME["text"], fontsize=12)
        axes[2 * k + 1, 0].set_ylabel(f"mass ratio {encounter.parameters['mass_ratio']:.2f}", color=THEME["text"],
                                      fontsize=12)
    return figure


def _light(encounter: Encounter, t: int) -> torch.Tensor:
    """(1, 160, 160) surface density of one snapshot, framed by its content."""
    positions, masses, _ = encounter.stars(t)
    positions, masses = positions - np.median(positions, axis=0), masses.astype(np.float64)
    centre, field = field_of_view_by_content(positions @ TOWARDS.rotation[:2].T, masses)
    return torch.from_numpy(render(positions, masses, TOWARDS, 160, field, smoothing_lengths(positions), centre))[None]


def _chosen(folder: Path, n: int = 3) -> list[Encounter]:
    """Encounters of a folder that are seen long enough, of the largest mass ratios: these change most."""
    heaviest = sorted(folder.glob("*.h5"), key=lambda path: -parameters_of(path)["mass_ratio"])
    found = (Encounter.read(path) for path in heaviest)
    return list(islice((e for e in found if e.time[0] <= SPAN[0] and e.time[-1] >= SPAN[1]), n))


def main(runs: str, folder: str) -> None:
    """Write both figures."""
    predictor = load()
    write_file(Path(folder) / "latent_map.png", png(latent_map(predictor.library)))
    write_file(Path(folder) / "latent_walk.png", png(latent_walk(predictor.weights.model, _chosen(Path(runs)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
