"""Does the reference galaxy stay what it is when nobody comes near it?

Usage: python benchmarks/isolation.py [--particles 65536] [--halo 0.35] [--time 1000] [-o docs/isolation.png]

Runs the galaxy alone, measures it every 25 Myr, prints what was measured beside what is demanded, and draws it.
Ends with status 1 if a demand is not met. Lengths are judged by their mean over 100 Myr, one radial period: waves
in the disc come and go, and the tenth of the halo is 2,300 particles, whose radius scatters by 1.3 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field

import numpy as np

from deepgalaxy.image.render import render
from deepgalaxy.image.view import View
from deepgalaxy.simulate.evolve import Conservation, conserve_momenta, evolve, nuclei
from deepgalaxy.simulate.galaxy import DISC, HALO, Galaxy, GalaxyConfig, Particles
from deepgalaxy.simulate.gravity import Tree

SOFTENING, SOFTENING_HALO = 0.25, 0.55  # kpc, as in an encounter
HALO_SHARE = 0.35  # of the particles, as in an encounter; of the stars, disc and bulge have 11 and 2 parts
LAGRANGIAN = (0.10, 0.25, 0.50, 0.75)
INTERVAL = 25.0  # Myr
FACE_ON, EDGE_ON = View((0, 0, 1)), View((1, 0, 0))
#: Half-mass radius of an exponential disc over its scale length.
_HALF_MASS = 1.67835
_AVERAGED = 100.0  # Myr


@dataclass
class History:
    """What one run was like, at T times."""

    config: GalaxyConfig
    n_particles: int
    seconds: float = 0.0
    time: list = field(default_factory=list)  #: Myr
    virial: list = field(default_factory=list)  #: 2 K / sum(-m r.a)
    scale_length: list = field(default_factory=list)  #: kpc, half-mass radius over 1.678
    fitted_length: list = field(default_factory=list)  #: kpc, slope of the surface density within 1..4 scale lengths
    height: list = field(default_factory=list)  #: kpc, rms at 2 scale lengths
    halo_radii: list = field(default_factory=list)  #: kpc, (T, 4)
    a2: list = field(default_factory=list)  #: strongest m = 2 amplitude within 2 scale lengths
    energy_drift: list = field(default_factory=list)  #: largest |dE/E| so far
    momentum_drift: list = field(default_factory=list)  #: largest |dL|/|L| so far
    pictures: dict = field(default_factory=dict)  #: time -> (face-on, edge-on)


def reference_galaxy(n_particles: int, seed: int = 0, config: GalaxyConfig | None = None,
                     halo_share: float = HALO_SHARE) -> Particles:
    """The galaxy as an encounter samples it; with another share of the particles in the halo, if asked for."""
    n_stars = (1 - halo_share) * n_particles
    n_disc, n_bulge = int(n_stars * 11 / 13), int(n_stars * 2 / 13)
    return Galaxy(config or GalaxyConfig(), SOFTENING).sample(
        n_disc, n_bulge, n_particles - n_disc - n_bulge, SOFTENING_HALO, np.random.default_rng(seed))


def isolate(n_particles: int, last_time: float, seed: int = 0, interval: float = INTERVAL, pictures=(),
            config: GalaxyConfig | None = None, halo_share: float = HALO_SHARE) -> History:
    """Run the galaxy alone and measure it at every multiple of `interval` (Myr)."""
    config = config or GalaxyConfig()
    particles = reference_galaxy(n_particles, seed, config, halo_share)
    history, conservation, start = History(config, n_particles), Conservation(), time.perf_counter()
    for step in evolve(particles, interval, conservation=conservation):
        if step.is_snapshot:
            measure(history, particles, step.time)
            history.energy_drift.append(conservation.energy_drift)
            history.momentum_drift.append(conservation.angular_momentum_drift)
            if any(abs(step.time - wanted) < 0.5 * interval for wanted in pictures):
                history.pictures[step.time] = photograph(particles)
        if step.time >= last_time - 1e-6:
            break
    history.seconds = time.perf_counter() - start
    return history


def measure(history: History, particles: Particles, at: float) -> None:
    """Append one line to the history."""
    p, rd = particles, history.config.disc_scale_length
    acceleration, _ = Tree(p.positions, p.masses, p.softening, 0.5).accelerations()
    acceleration = conserve_momenta(p.positions, p.masses, acceleration)
    v = p.velocities - np.average(p.velocities, axis=0, weights=p.masses)
    kinetic = 0.5 * (p.masses * (v**2).sum(axis=1)).sum()
    # Clausius: what r.a is to softened forces, the potential energy is not.
    clausius = -(p.masses * (p.positions * acceleration).sum(axis=1)).sum()
    x, _ = disc_frame(p)
    R, phi = np.hypot(x[:, 0], x[:, 1]), np.arctan2(x[:, 1], x[:, 0])
    halo = np.linalg.norm(p.positions[p.component == HALO] - nuclei(p)[0], axis=1)
    history.time.append(at)
    history.virial.append(2 * kinetic / clausius)
    history.scale_length.append(np.median(R) / _HALF_MASS)
    history.fitted_length.append(fitted_scale_length(R, rd))
    ring = np.abs(R - 2 * rd) < 0.25 * rd
    history.height.append(x[ring, 2].std())
    history.halo_radii.append(np.quantile(halo, LAGRANGIAN))
    history.a2.append(bar_strength(R, phi, 2 * rd))


def disc_frame(particles: Particles) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities (N, 3) of the disc about its nucleus, its spin along +z: the disc may drift and tilt."""
    p = particles
    disc = p.component == DISC
    x = p.positions[disc] - nuclei(p)[0]
    inner = (x**2).sum(axis=1) < np.quantile((x**2).sum(axis=1), 0.8)
    v = p.velocities[disc] - p.velocities[disc][inner].mean(axis=0)
    rotation = View(tuple(np.cross(x[inner], v[inner]).mean(axis=0))).rotation
    return x @ rotation.T, v @ rotation.T


def fitted_scale_length(R: np.ndarray, rd: float) -> float:
    """Of exp(-R / length), from the number of stars in rings from 1 to 4 rd."""
    edges = np.linspace(1, 4, 13) * rd
    n, _ = np.histogram(R, edges)
    middle, area = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges**2)
    slope, _ = np.polyfit(middle, np.log(np.maximum(n, 1) / area), 1, w=np.sqrt(n))
    return -1 / slope


def bar_strength(R: np.ndarray, phi: np.ndarray, outer: float, n_bins: int = 8) -> float:
    """Largest |<exp(2 i phi)>| of rings of equal numbers of stars within `outer`; the mean square of noise is out."""
    inside = R < outer
    order = np.argsort(R[inside])
    strongest = 0.0
    for ring in np.array_split(phi[inside][order], n_bins):
        strongest = max(strongest, abs(np.exp(2j * ring).mean()) ** 2 - 1 / len(ring))
    return float(np.sqrt(strongest))


def averaged(history: History, values) -> tuple[np.ndarray, np.ndarray]:
    """Times and running means of T values over 100 Myr, or over all there is."""
    n = min(1 + int(round(_AVERAGED / (history.time[1] - history.time[0]))), len(history.time))
    kernel = np.ones(n) / n
    return np.convolve(history.time, kernel, "valid"), np.convolve(values, kernel, "valid")


def demands(history: History) -> list[tuple[str, str, str, bool]]:
    """Rows of the table: what, measured, demanded, met."""
    h = history

    def deviation(values):
        """Largest change of the mean over 100 Myr, and of a single snapshot."""
        changes = [np.asarray(v) / values[0] - 1 for v in (averaged(h, values)[1], values)]
        return [change[np.argmax(np.abs(change))] for change in changes]

    def length(name, values, demanded, limit):
        mean, single = deviation(values)
        rows.append((name, f"{values[0]:.2f} to {averaged(h, values)[1][-1]:.2f} kpc, at most {mean:+.1%} (single "
                     f"snapshots {single:+.1%})", demanded, abs(mean) <= limit))

    virial = np.array(h.virial)
    rows = [("virial ratio 2K / sum(-m r·a)", f"{virial.min():.3f} to {virial.max():.3f}", "1 ± 0.015",
             np.abs(virial - 1).max() <= 0.015)]
    length("scale length, from the half-mass radius", h.scale_length, "± 4 %", 0.04)
    length("scale length, fitted to 1 to 4 R_d", h.fitted_length, "± 4 %", 0.04)
    length("rms height at 2 R_d", h.height, "+30 %", 0.30)
    for share, values in zip(LAGRANGIAN, np.transpose(h.halo_radii), strict=True):
        length(f"halo radius that holds {share:.0%}", values, "± 3 %", 0.03)
    rows += [("bar strength A2 within 2 R_d", f"at most {max(h.a2):.3f}", "at most 0.2", max(h.a2) <= 0.2),
             ("energy drift |dE/E|", f"{h.energy_drift[-1]:.2e}", "at most 3e-3", h.energy_drift[-1] <= 3e-3),
             ("angular momentum drift |dL/L|", f"{h.momentum_drift[-1]:.1e}", "at most 1e-10",
              h.momentum_drift[-1] <= 1e-10)]
    return rows


def photograph(particles: Particles, n_pixels: int = 300, field_of_view: float = 30.0):
    """log10 of the surface density of disc and bulge, face-on and edge-on."""
    p = particles
    stars = p.stars
    x = p.positions[stars] - nuclei(p)[0]
    return tuple(np.log10(np.maximum(render(x, p.masses[stars], view, n_pixels, field_of_view), 1.0))
                 for view in (FACE_ON, EDGE_ON))


def draw(history: History):
    """The figure: the galaxy at three times above, its numbers with what is demanded (green) below."""
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    h, t = history, np.array(history.time)
    ink, muted, blue, red, allowed = "#1d2330", "#5d6677", "#2962a8", "#c4492d", "#dcefdc"
    style = {"color": ink, "fontfamily": "DejaVu Sans"}
    figure = Figure(figsize=(13, 11.4), dpi=100, facecolor="white")
    figure.text(0.055, 0.965, "The reference galaxy alone", fontsize=20, fontweight="bold", **style)
    figure.text(0.055, 0.942, f"{h.n_particles:,} particles, {t[-1]:g} Myr. Green: what is demanded. Thin lines: "
                "single snapshots; thick ones: mean over 100 Myr.", fontsize=13,
                color=muted)

    n = len(h.pictures)
    above = GridSpec(1, 2 * n, figure, left=0.055, right=0.975, top=0.905, bottom=0.735, wspace=0.04)
    for i, (at, pair) in enumerate(sorted(h.pictures.items())):
        for j, (picture, name) in enumerate(zip(pair, ("face-on", "edge-on"), strict=True)):
            axes = figure.add_subplot(above[0, 2 * i + j])
            axes.imshow(picture, origin="lower", cmap="magma", vmin=5.3, vmax=9.6, extent=(-15, 15, -15, 15))
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{at:.0f} Myr, {name}", fontsize=12, color=ink, pad=5)
            if i == j == 0:
                axes.plot([-13, -3], [-13, -13], color="white", lw=2)
                axes.text(-8, -12.2, "10 kpc", color="white", ha="center", va="bottom", fontsize=11)

    below = GridSpec(2, 3, figure, left=0.055, right=0.975, top=0.675, bottom=0.055, wspace=0.24, hspace=0.3)

    def panel(i, title, band=None):
        axes = figure.add_subplot(below[i // 3, i % 3])
        axes.set_title(title, fontsize=13, loc="left", pad=7, **style)
        axes.set_xlim(t[0], t[-1])
        axes.tick_params(labelsize=11, colors=muted)
        if i >= 3:
            axes.set_xlabel("Myr", fontsize=12, color=muted)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(muted)
        if band is not None:
            axes.axhspan(*band, color=allowed, lw=0)
        return axes

    axes = panel(0, "Virial ratio", (0.985, 1.015))
    axes.plot(t, h.virial, color=blue, lw=1.8)
    axes.set_ylim(0.975, 1.025)

    first = h.scale_length[0]
    axes = panel(1, "Disc scale length [kpc]", (0.96 * first, 1.04 * first))
    for values, colour, label in ((h.scale_length, blue, "half-mass radius / 1.678"),
                                  (h.fitted_length, red, "fit to 1–4 scale lengths")):
        axes.plot(t, values, color=colour, lw=0.9, alpha=0.45)
        axes.plot(*averaged(h, values), color=colour, lw=2.2, label=label)
    axes.set_ylim(0.92 * first, 1.08 * first)
    axes.legend(frameon=False, fontsize=11, loc="lower left", labelcolor=ink)

    axes = panel(2, "rms height at 2 scale lengths [kpc]", (0, 1.3 * h.height[0]))
    axes.plot(t, h.height, color=blue, lw=1.8)
    axes.set_ylim(0, 1.5 * h.height[0])

    axes = panel(3, "Halo radii / first value, by mass", (0.97, 1.03))
    ratios = np.array(h.halo_radii) / h.halo_radii[0]
    shades = ("#8fb8de", "#5a92cc", "#2962a8", "#173c6b")
    for share, values, colour in zip(LAGRANGIAN, ratios.T, shades, strict=True):
        axes.plot(t, values, color=colour, lw=0.9, alpha=0.45)
        axes.plot(*averaged(h, values), color=colour, lw=2.2, label=f"{share:.0%}")
    axes.set_ylim(0.94, 1.06)
    axes.legend(frameon=False, fontsize=11, ncol=4, loc="lower left", columnspacing=0.9, handlelength=1.3,
                labelcolor=ink)

    axes = panel(4, "Bar strength A2 within 2 scale lengths", (0, 0.2))
    axes.plot(t, h.a2, color=blue, lw=1.8)
    axes.set_ylim(0, 0.3)

    axes = panel(5, "Largest drift so far")
    axes.axhspan(1e-16, 3e-3, color=allowed, lw=0)
    axes.plot(t[1:], np.maximum(h.energy_drift[1:], 1e-16), color=blue, lw=1.8, label="energy |dE/E|")
    axes.plot(t[1:], np.maximum(h.momentum_drift[1:], 1e-16), color=red, lw=1.8, label="angular momentum |dL/L|")
    axes.set_yscale("log")
    axes.set_ylim(1e-16, 1e-1)
    axes.legend(frameon=False, fontsize=11, loc="center right", labelcolor=ink)
    return figure


def main() -> int:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=65536)
    parser.add_argument("--time", type=float, default=1000.0, help="Myr")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--halo", type=float, default=HALO_SHARE, help="share of the particles in the halo")
    parser.add_argument("-o", "--output", help="PNG; without it, the table only")
    options = parser.parse_args()
    history = isolate(options.particles, options.time, options.seed, pictures=(0, options.time / 2, options.time),
                      halo_share=options.halo)
    rows = demands(history)
    print(f"{options.particles} particles, {options.time:g} Myr, seed {options.seed}: {history.seconds:.0f} s\n")
    print("| figure | measured | demanded | met |\n|---|---|---|---|")
    for what, measured, demanded, met in rows:
        print(f"| {what} | {measured} | {demanded} | {'yes' if met else '**no**'} |")
    if options.output:
        draw(history).savefig(options.output)
    return 0 if all(met for *_, met in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
