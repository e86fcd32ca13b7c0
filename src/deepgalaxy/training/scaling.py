"""A short training whose cost is taken apart; run by `deepgalaxy bench scaling` under torchrun."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from ..models.deepgalaxy import DeepGalaxy
from .fit import fit, leave, world
from .recipe import read_recipe

__all__ = ["main"]


def main(recipe: str) -> None:
    """Train as the recipe says; rank 0 writes scaling.json beside the weights.

    The last epoch's throughput counts, because the first one compiles and fills caches.
    """
    config = read_recipe(recipe)
    fit(config, say=lambda text: None)
    seconds = _allreduce_seconds(sum(p.numel() for p in DeepGalaxy(config.model).parameters()))
    if world()[0] == 0:
        output = Path(config.output)
        last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
        step = config.batch_size / last["images_per_second"]
        (output / "scaling.json").write_text(json.dumps({
            "images_per_second": last["images_per_second"], "input_wait": last["input_wait"],
            "allreduce": seconds / step}))
    leave()


def _allreduce_seconds(n_parameters: int) -> float:
    """Median time of summing one gradient over all workers; 0 for one."""
    import torch
    import torch.distributed as dist

    if world()[1] == 1:
        return 0.0
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    gradient = torch.zeros(n_parameters, device="cuda" if torch.cuda.is_available() else "cpu")
    times = []
    for _ in range(9):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(gradient)
        if gradient.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == "__main__":
    main(sys.argv[1])
