"""Measure gravity and rendering: our tree beside pytreegrav's and a GPU's sum over all pairs; the cost of a picture."""

from __future__ import annotations

import time

import numpy as np

from .bench import hardware, spread

__all__ = ["measure_gravity", "measure_rendering"]

_N_PROBES = 1024  # particles whose forces are compared with those of all pairs


def measure_gravity(n_particles: list[int], runs: int = 5, say=print) -> dict:
    """Seconds and error of one force evaluation, ours and pytreegrav's, turn by turn.

    The error is the median over particles of |a - a_exact| / |a_exact|; exact are all pairs with the same softening
    (Plummer's for ours, a spline of 2.8 times its length for pytreegrav). Of pytreegrav's settings, the fastest
    counts whose error is not above ours at the smallest number of particles. Its times are without potentials,
    ours with them; both with building the tree, on all threads. Where torch sees a GPU, its sum over all pairs stands
    beside them, with potentials and with the way to the GPU and back.
    """
    import torch

    from .simulate.encounter import EncounterConfig, Resolution, initial_conditions
    from .simulate.gpu import DirectForces
    from .simulate.gravity import Tree, direct

    try:
        import pytreegrav
    except ImportError:
        pytreegrav = None
    rows, setting = [], None
    for n in sorted(n_particles):
        p = initial_conditions(EncounterConfig(resolution=Resolution(n_particles=n)))
        x, m, eps = p.positions, p.masses, p.softening
        n = len(m)  # two equal galaxies: even
        probes = np.random.default_rng(0).permutation(n)[:_N_PROBES]
        exact, _ = direct(x[probes], eps[probes], x, m, eps)

        def ours(x=x, m=m, eps=eps):
            return Tree(x, m, eps).accelerations()[0]

        error = _median_error(ours()[probes], exact)
        row = {"n_particles": n, "error": spread([error], "of the force")}
        times, peer_times, gpu_times = [], [], []
        if pytreegrav is not None:
            h = 2.8 * eps
            peer_exact = pytreegrav.AccelTarget(x[probes], x, m, softening_target=h[probes], softening_source=h,
                                                method="bruteforce", parallel=True)
            if setting is None:
                setting = _fastest_setting(pytreegrav, x, m, h, probes, peer_exact, error, say)

            def peer(x=x, m=m, h=h, setting=setting):
                return pytreegrav.Accel(x, m, h, method="tree", parallel=True, **setting)

            peer_error = _median_error(peer()[probes], peer_exact)
            row["peer_error"] = spread([peer_error], "of the force")
        forces = DirectForces(m, eps) if torch.cuda.is_available() else None
        if forces is not None:
            row["gpu_error"] = spread([_median_error(forces(x)[0][probes], exact)], "of the force")
        for _ in range(runs):
            times.append(_seconds(ours))
            if pytreegrav is not None:
                peer_times.append(_seconds(peer))
            if forces is not None:
                gpu_times.append(_seconds(lambda forces=forces, x=x: forces(x)))
        row["seconds"] = spread(times, "s")
        if peer_times:
            row["peer_seconds"] = spread(peer_times, "s")
            row["times_faster"] = spread([b / a for a, b in zip(times, peer_times, strict=True)], "x")
        if gpu_times:
            row["gpu_seconds"] = spread(gpu_times, "s")
        rows.append(row)
        say(f"{n} particles: {row['seconds']['median']:.4f} s, error {error:.1e}" + (
            f"; pytreegrav {row['peer_seconds']['median']:.4f} s, error {peer_error:.1e}" if peer_times else "") + (
            f"; GPU {row['gpu_seconds']['median']:.5f} s, error {row['gpu_error']['median']:.1e}" if gpu_times else ""))
    return {"bench": "simulate", "hardware": hardware(), "runs": runs, "peer": _peer(pytreegrav, setting),
            "work": "forces of two galaxies on their way in, tree and all; peer: " + _peer(pytreegrav, setting),
            "rows": rows}


def _fastest_setting(pytreegrav, x, m, h, probes, exact, error: float, say) -> dict:
    """theta and quadrupole of the fastest tree of pytreegrav that is as exact as ours."""
    best = None
    for quadrupole in (False, True):
        for theta in (1.2, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
            setting = {"theta": theta, "quadrupole": quadrupole}
            a = pytreegrav.Accel(x, m, h, method="tree", parallel=True, **setting)
            if _median_error(a[probes], exact) <= error:
                seconds = min(_seconds(lambda s=setting: pytreegrav.Accel(
                    x, m, h, method="tree", parallel=True, **s)) for _ in range(3))
                say(f"pytreegrav {setting}: {seconds:.4f} s")
                best = min([best, (seconds, setting)], key=lambda b: b[0]) if best else (seconds, setting)
                break
    return best[1] if best else {"theta": 0.4, "quadrupole": True}


def _peer(pytreegrav, setting) -> str:
    if pytreegrav is None:
        return "pytreegrav is not installed"
    return f"pytreegrav, theta {setting['theta']:g}, {'quadrupoles' if setting['quadrupole'] else 'monopoles'}"


def measure_rendering(n_pixels: list[int], runs: int = 5, n_stars: int = 20000) -> dict:
    """Seconds for one picture of a merging pair of galaxies, and for the smoothing lengths of a snapshot."""
    from .image.render import render, smoothing_lengths
    from .image.view import cube_views
    from .simulate.encounter import EncounterConfig, Resolution, initial_conditions

    config = EncounterConfig(start_time=20, resolution=Resolution(n_particles=int(n_stars / 0.65)))
    p = initial_conditions(config)
    x, m = p.positions[p.stars], p.masses[p.stars]
    smoothing = smoothing_lengths(x)
    neighbours = [_seconds(lambda: smoothing_lengths(x)) for _ in range(runs)]
    rows = []
    for n in n_pixels:
        render(x, m, cube_views()[6], n, 150.0, smoothing)
        times = [np.mean([_seconds(lambda v=view, n=n: render(x, m, v, n, 150.0, smoothing))
                          for view in cube_views()[::3]]) for _ in range(runs)]
        rows.append({"n_pixels": n, "seconds_per_image": spread(times, "s")})
    return {"bench": "render", "hardware": hardware(), "runs": runs, "rows": rows,
            "work": f"{len(x)} stars in a field of 150 kpc, one thread",
            "smoothing_seconds_per_snapshot": spread(neighbours, "s")}


def _median_error(a, exact) -> float:
    return float(np.median(np.linalg.norm(a - exact, axis=1) / np.linalg.norm(exact, axis=1)))


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
