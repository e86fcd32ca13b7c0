"""The commands of `deepgalaxy bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import JsonOption, LibraryOption, ModelOption
from .output import show, write_json
from .progress import say

bench_app = typer.Typer(no_args_is_help=True, help="Measure this machine.", rich_markup_mode=None)


@bench_app.command("inference", epilog="Example: deepgalaxy bench inference --json -")
def bench_inference(json_file: JsonOption = None, model: ModelOption = None, library: LibraryOption = None,
                    runs: Annotated[int, typer.Option("--runs", min=1)] = 5) -> None:
    """Images per second in batch, and seconds for one picture from a cold shell."""
    from .bench import measure_inference

    _show_bench(measure_inference(model, library, runs), json_file)


@bench_app.command("scaling", epilog="Example: deepgalaxy bench scaling --workers 1 --workers 2")
def bench_scaling(workers: Annotated[list[int] | None, typer.Option("--workers", min=1, help="give it once per "
                  "number of workers; without it, 1 and 2")] = None, json_file: JsonOption = None,
                  runs: Annotated[int, typer.Option("--runs", min=1)] = 3,
                  steps: Annotated[int, typer.Option("--steps", min=2, help="per run")] = 20) -> None:
    """Weak scaling of training: images per second of n workers over n times those of one."""
    from .bench import measure_scaling

    _show_bench(measure_scaling(workers or [1, 2], runs, steps, say), json_file)


@bench_app.command("simulate", epilog="Example: deepgalaxy bench simulate --particles 16384 --particles 65536")
def bench_simulate(particles: Annotated[list[int] | None, typer.Option("--particles", min=512, help="give it once per "
                   "number of particles; without it, 16, 32, 65 and 131 thousand")] = None,
                   json_file: JsonOption = None, runs: Annotated[int, typer.Option("--runs", min=1)] = 5) -> None:
    """Gravity: seconds per force evaluation and error of our tree, beside pytreegrav's where it is installed."""
    from .bench_physics import measure_gravity

    _show_bench(measure_gravity(particles or [16384, 32768, 65536, 131072], runs, say), json_file)


@bench_app.command("render", epilog="Example: deepgalaxy bench render --pixels 128")
def bench_render(pixels: Annotated[list[int] | None, typer.Option("--pixels", min=16, max=4096, help="give it once "
                 "per size; without it, 128, 256, 512 and 2048")] = None,
                 json_file: JsonOption = None, runs: Annotated[int, typer.Option("--runs", min=1)] = 5) -> None:
    """Pictures: seconds per image at several sizes, and per snapshot for the neighbours of its stars."""
    from .bench_physics import measure_rendering

    _show_bench(measure_rendering(pixels or [128, 256, 512, 2048], runs), json_file)


def _show_bench(result: dict, json_file: str | None) -> None:
    write_json(json_file, result)
    if json_file == "-":
        return
    from .bench import bench_table

    show(bench_table(result))
