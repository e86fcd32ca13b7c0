"""Draw the latent space: python scripts/latent_figures.py data.h5 docs/

Writes latent_map.png (the library in z, by time and by mass ratio) and latent_walk.png (a straight line through z from
one snapshot to a later one, decoded, above the snapshots themselves).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from deepgalaxy.data.reader import Dataset
from deepgalaxy.image.observation import observe_frames
from deepgalaxy.inference.calibration import light_of
from deepgalaxy.inference.predictor import load
from deepgalaxy.report import write_file
from deepgalaxy.report.figures import CMAP, THEME, png

STEPS = 8


def latent_map(library) -> Figure:
    """The plane in z that separates times best, and mass ratios across it, each point coloured by one of them."""
    z = library.index._vectors  # z in units of what observation does to it
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
            ("Time since pericentre, Myr", "Mass ratio"), ((-200, 800), (0.1, 1)), strict=True):
        shown = ax.scatter(*at.T, c=values, s=3, cmap="viridis", vmin=limits[0], vmax=limits[1], lw=0, alpha=0.7)
        bar = figure.colorbar(shown, ax=ax)
        bar.ax.tick_params(colors=THEME["text"])
        ax.set_title(title, color=THEME["text"], fontsize=14)
        ax.set_facecolor(THEME["panel"])
        ax.set(xticks=[], yticks=[], xlim=np.quantile(at[:, 0], [0.002, 0.998]),
               ylim=np.quantile(at[:, 1], [0.002, 0.998]))
    return figure


def _direction(z, targets) -> np.ndarray:
    """The unit vectors (D, n) along which these targets grow fastest, by linear regression."""
    y = np.stack([t - t.mean() for t in targets], axis=1)
    w = np.linalg.solve(z.T @ z + 1e-3 * len(z) * np.eye(z.shape[1]), z.T @ y)
    u, _, _ = np.linalg.svd(w, full_matrices=False)
    return u


@torch.inference_mode()
def latent_walk(model, dataset: Dataset, n_walks: int = 3) -> Figure:
    """Straight lines in z between two snapshots seen from above, decoded; the snapshots themselves below."""
    figure = Figure(figsize=(16, 4.1 * n_walks), dpi=100, facecolor=THEME["ground"], layout="constrained")
    figure.suptitle("Upper rows: decoded at even steps on a straight line in z. Lower rows: the snapshots.",
                    color=THEME["text"], fontsize=14)
    axes = figure.subplots(2 * n_walks, STEPS)
    series = [s for g in range(len(dataset.groups)) if "kind" not in dataset.attributes[g]
              if len(s := _from_above(dataset, g)) >= STEPS]
    for k, rows in enumerate(series[:: max(1, len(series) // n_walks)][:n_walks]):
        pick = rows[np.linspace(0, len(rows) - 1, STEPS).astype(int)]
        frames = observe_frames(light_of(dataset, pick), torch.full((STEPS,), torch.nan), [0] * STEPS, None).frames
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
                ax.axis("off")
                if row:
                    ax.set_title(f"{dataset.labels['time'][pick[j]]:+.0f} Myr", color=THEME["text"], fontsize=11)
    return figure


def _from_above(dataset: Dataset, group: int) -> np.ndarray:
    """Images of a group from 0 to 300 Myr, in order, whose directions are near to that which is most from above.

    Where directions are random they change with the snapshot.
    """
    time = dataset.labels["time"]
    rows = np.flatnonzero((dataset.group == group) & (time > 0) & (time < 300))
    if len(rows) == 0:
        return rows
    towards = dataset.view[rows[np.argmax(dataset.view[rows, 2])]]
    rows = rows[dataset.view[rows] @ towards > 0.8]
    return rows[np.argsort(time[rows])]


def main(data: str, folder: str) -> None:
    """Write both figures."""
    predictor = load()
    write_file(Path(folder) / "latent_map.png", png(latent_map(predictor.library)))
    write_file(Path(folder) / "latent_walk.png", png(latent_walk(predictor.weights.model, Dataset(data))))


if __name__ == "__main__":
    main(*sys.argv[1:])
