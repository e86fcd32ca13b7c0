"""Can a small network tell real pictures from simulated ones? python benchmarks/telltale.py PICTURES data.h5

Both are framed and stretched as the model sees them; simulated ones pass through observational realism first. A
network of three convolutions is trained on crops of both, and judged on pictures of systems that it has not seen. 0.5
is chance: then realism leaves no easy tell.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from deepgalaxy.data.reader import Dataset
from deepgalaxy.image.observation import image_seeds, observe_frames
from deepgalaxy.image.preprocess import cut_frames, find_frames, stretch, to_canvas
from deepgalaxy.image.reader import read
from deepgalaxy.image.realism import RealismConfig
from deepgalaxy.inference.calibration import light_of
from deepgalaxy.inference.honesty import auroc
from deepgalaxy.inference.real import read_table

CROP, FOLDS, STEPS = 64, 5, 250


def real_frames(folder: str, jitters: int = 12, seed: int = 0) -> list[list[torch.Tensor]]:
    """(jitters, 1, 112, 112) of each picture of each system: the frame a little off, as in training."""
    rng, out = np.random.default_rng(seed), {}
    for row in read_table(folder):
        picture = read(f"{folder}/{row['file']}")
        canvas, _ = to_canvas(picture.pixels, picture.mask)
        framing = find_frames(canvas)
        frames = []
        for _ in range(jitters):
            off = framing.jittered(0.05 * rng.standard_normal((1, 2)), np.exp(0.1 * rng.standard_normal(1)),
                                   np.radians(6) * rng.standard_normal(1))
            frames.append(stretch(cut_frames(canvas, off)))
        out.setdefault(row.get("name") or row["file"], []).append(torch.cat(frames))
    return list(out.values())


def simulated_frames(path: str, n: int, realism: RealismConfig | None, seed: int = 0, by_mass: bool = True,
                     ) -> torch.Tensor | None:
    """(n, 1, 112, 112) of encounters at random, whose light follows mass or not; None if there are no such images."""
    data = Dataset(path)
    rows = np.flatnonzero(data.is_encounter & (data.shines_by_mass == by_mass))
    if len(rows) < n:
        return None
    rows = np.random.default_rng(seed).permutation(rows)[:n]
    return torch.cat([observe_frames(light_of(data, rows[k:k + 64]), torch.full((len(rows[k:k + 64]),), torch.nan),
                                     image_seeds(seed, 0, rows[k:k + 64]), realism, jitter=True).frames
                      for k in range(0, n, 64)])


def crops(frames: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A random square of each, mirrored at random."""
    y, x = rng.integers(0, frames.shape[-1] - CROP + 1, (2, len(frames)))
    cut = torch.stack([f[:, j:j + CROP, i:i + CROP] for f, j, i in zip(frames, y, x, strict=True)])
    return cut.flip(2) if rng.random() < 0.5 else cut


def network() -> nn.Module:
    """Three convolutions and a mean."""
    layers, channels = [], 1
    for width in (16, 32, 64):
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(channels, 1))


def tell(real: list[list[torch.Tensor]], simulated: torch.Tensor, seed: int = 0) -> float:
    """Area under the curve on pictures of systems that were held out, over all folds."""
    rng = np.random.default_rng(seed)
    order, share, scores = rng.permutation(len(real)), len(simulated) // FOLDS, ([], [])
    for fold in range(FOLDS):
        held = set(order[fold::FOLDS])
        train = torch.cat([frames for k, system in enumerate(real) if k not in held for frames in system])
        test = [frames for k in sorted(held) for frames in real[k]]
        mine = torch.ones(len(simulated), dtype=torch.bool)
        mine[fold * share:(fold + 1) * share] = False
        torch.manual_seed(seed + fold)
        net = network()
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
        for _ in range(STEPS):
            a = crops(train[torch.from_numpy(rng.integers(0, len(train), 32))], rng)
            b = crops(simulated[mine][torch.from_numpy(rng.integers(0, int(mine.sum()), 32))], rng)
            target = torch.cat([torch.ones(32), torch.zeros(32)])
            loss = F.binary_cross_entropy_with_logits(net(torch.cat([a, b]))[:, 0], target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        net.eval()
        with torch.no_grad():
            scores[0].extend(float(net(frames).mean()) for frames in test)
            scores[1].extend(net(simulated[~mine])[:, 0].tolist())
    return auroc(np.array(scores[0]), np.array(scores[1]))


def main(folder: str, data: str) -> None:
    """Print how well they are told apart, with realism and without."""
    real = real_frames(folder)
    for name, realism, by_mass in (("with realism", RealismConfig(), True), ("clean", None, True),
                                   ("with realism, in another light", RealismConfig(), False)):
        simulated = [simulated_frames(data, 600, realism, seed, by_mass) for seed in range(3)]
        if simulated[0] is None:
            continue
        values = [tell(real, frames, seed) for seed, frames in enumerate(simulated)]
        print(f"{name}: AUROC {np.median(values):.2f} ({min(values):.2f} to {max(values):.2f}), "
              f"{sum(map(len, real))} pictures of {len(real)} systems")


if __name__ == "__main__":
    main(*sys.argv[1:])
