"""Measure this machine: medians of several runs, ratios from one run."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from .errors import DeepGalaxyError

__all__ = ["measure_inference", "measure_scaling", "bench_table", "hardware", "spread"]


def measure_inference(model=None, library=None, runs: int = 5) -> dict:
    """Batch throughput at 128 pixels, and the time of a single picture, cold and warm.

    `images_per_second` takes arrays to posteriors and 5 nearest neighbours, one view each;
    `images_per_second_8_views` averages the 8 views that `predict` does.
    """
    import torch

    from .image.mock import write_mock_png
    from .inference.predictor import load

    predictor = load(model, library)
    images = _blobs(512, 128)

    def batch(n_images, n_views):
        start = time.perf_counter()
        for first in range(0, n_images, 128):
            _, z = predictor.predict_batch(images[first:first + 128], n_views=n_views)
            if predictor.library is not None:
                predictor.library.index.search(z, 5)
        return n_images / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.png"
        write_mock_png(path, np.kron(images[0], np.ones((3, 3), np.float32)))
        command = [sys.executable, "-m", "deepgalaxy", "predict", str(path), "--no-report"]
        command += ["--model", str(model)] if model else []
        command += ["--library", str(library)] if library else []
        batch(128, 1)
        predictor.predict(str(path))
        one, eight, warm, cold = [], [], [], []
        for _ in range(runs):
            one.append(batch(512, 1))
            eight.append(batch(128, 8))
            start = time.perf_counter()
            predictor.predict(str(path))
            warm.append(time.perf_counter() - start)
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            cold.append(time.perf_counter() - start)
    encounter, snapshots = _simulation_seconds()
    per_image = 1 / np.median(one)
    return {
        "bench": "inference", "hardware": hardware(), "runs": runs,
        "work": "512 images of 128 px in batches of 128, frame to posterior to 5 neighbours; one 384 px PNG",
        "threads": torch.get_num_threads(),
        "images_per_second": spread(one, "images/s"), "images_per_second_8_views": spread(eight, "images/s"),
        "cold_seconds": spread(cold, "s"), "warm_seconds": spread(warm, "s"),
        "simulation_seconds": spread([encounter], "s"),
        "speedup_over_simulation": spread([encounter / per_image], "x"),
        "snapshots_simulated": snapshots,
    }


def _simulation_seconds() -> tuple[float, int]:
    """Wall time of one encounter as the library holds them, and its number of snapshots."""
    from .simulate.encounter import EncounterConfig, Resolution, simulate

    simulate(EncounterConfig(start_time=20, resolution=Resolution(n_particles=1024, last_time=20)))  # compiles
    start = time.perf_counter()
    encounter = simulate(EncounterConfig())
    return time.perf_counter() - start, len(encounter.time)


def measure_scaling(workers: list[int], runs: int = 3, steps: int = 20, say=print) -> dict:
    """Throughput of training on n workers of one core each, real processes under torchrun.

    Weak: 32 images per worker and step. Strong: 64 images per step in all. The numbers of workers
    take turns, so that a busy machine disturbs all alike.
    """
    rates: dict[tuple[str, int], list] = {}
    with tempfile.TemporaryDirectory() as folder:
        from .data.writer import write_dummy_dataset

        data = write_dummy_dataset(Path(folder) / "data.h5", n_encounters=4, n_snapshots=10, n_cameras=4, n_pixels=160)
        for run in range(runs):
            for n in workers:
                for kind, batch in (("weak", 32 * n), ("strong", 64)):
                    if batch % n:
                        continue
                    row = _train_once(Path(folder) / f"{kind}_{n}_{run}", data, n, batch, steps)
                    rates.setdefault((kind, n), []).append(row)
                    say(f"{kind}, {n} workers, run {run + 1}: {row['images_per_second']:.0f} images/s")
    first = min(workers)
    rows = []
    for n in workers:
        row = {"workers": n}
        for kind in ("weak", "strong"):
            ratio = [r["images_per_second"] / n / (one["images_per_second"] / first)
                     for r, one in zip(rates.get((kind, n), []), rates.get((kind, first), []), strict=False)]
            row[f"efficiency_{kind}"] = spread(ratio, "1") if ratio else None
            rate = [r["images_per_second"] for r in rates.get((kind, n), [])]
            row[f"images_per_second_{kind}"] = spread(rate, "images/s") if rate else None
        row["input_wait"] = spread([r["input_wait"] for r in rates["weak", n]], "of the time")
        row["allreduce"] = spread([r["allreduce"] for r in rates["weak", n]], "of the time, if not overlapped")
        rows.append(row)
    return {"bench": "scaling", "hardware": hardware(), "runs": runs, "model": "mobilenetv4_conv_small, stride 16",
            "work": f"{steps} steps of training with realism, 160 px canvases; weak: 32 images per worker; "
                    "strong: 64 in all", "rows": rows}


def _train_once(output: Path, data: Path, n: int, batch: int, steps: int) -> dict:
    recipe = output.with_suffix(".yaml")
    recipe.write_text(json.dumps({"data": str(data), "output": str(output), "epochs": 2, "batch_size": batch,
                                  "images_per_epoch": steps * batch, "validate_every": 99}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n),
               "-m", "deepgalaxy.training.scaling", str(recipe)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        # torchrun says the same of every worker, between rules.
        said = re.search(r"^(?:\[rank\d+\]: ?)?(?:\w+\.)*(\w*(?:Error|Exception): .+)", done.stderr, re.MULTILINE)
        raise DeepGalaxyError(f"a training of {n} workers failed: {said[1] if said else done.stderr[-300:].strip()}")
    return json.loads((output / "scaling.json").read_text())


def hardware() -> dict:
    """What was measured on."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"processor": name, "cores": os.cpu_count(), "gpu": gpu, "python": platform.python_version(),
            "torch": torch.__version__}


def bench_table(result: dict):
    """The result as a table for the terminal."""
    from rich.table import Table

    h = result["hardware"]
    table = Table("figure", "median", "min", "max", "unit", title=f"{result['bench']}: {h['processor']}, "
                  f"{h['cores']} cores{', ' + h['gpu'] if h['gpu'] else ''}", caption=result["work"])
    what = {"workers": "workers", "n_particles": "particles", "n_pixels": "px"}
    rows = [("", result)]
    for row in result.get("rows", []):
        key = next(k for k in what if k in row)
        rows.append((f"{row[key]} {what[key]}: ", row))
    for prefix, row in rows:
        for name, value in row.items():
            if isinstance(value, dict) and "median" in value:
                table.add_row(prefix + name, *(f"{value[k]:.4g}" for k in ("median", "min", "max")), value["unit"])
    return table


def spread(values: list[float], unit: str) -> dict:
    """Median and range of several runs."""
    return {"median": float(np.median(values)), "min": float(min(values)), "max": float(max(values)), "unit": unit}


def _blobs(n: int, size: int) -> np.ndarray:
    """n pictures (n, size, size) of two round galaxies and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    c, s = rng.uniform(0.35, 0.65, (2, 2, n)), rng.uniform(0.02, 0.08, (2, n))
    images = sum(np.exp(-np.hypot(x - c[0, k][:, None, None], y - c[1, k][:, None, None]) / s[k][:, None, None])
                 for k in (0, 1))
    return (images + 0.01 * rng.standard_normal(images.shape)).astype(np.float32)
