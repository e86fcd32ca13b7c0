"""The command line: parse, call, print."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .cli_bench import bench_app
from .errors import ConfigError, DeepGalaxyError, DeepGalaxyWarning
from .memory import keep_freed_memory
from .options import (
    ArcsecOption,
    ExtOption,
    Images,
    ImagesOrTable,
    JsonOption,
    KpcOption,
    LibraryOption,
    MassDexOption,
    MassOption,
    ModelOption,
    PatienceOption,
    RedshiftOption,
    SchedulerOption,
    WorkersOption,
)
from .output import show, write_json
from .progress import progress, say

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
                  context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(bench_app, name="bench")


def _version(asked: bool) -> None:
    if asked:
        from . import __version__

        print(f"deepgalaxy {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                                help="say which, and leave")] = False) -> None:
    """From a picture of two colliding galaxies to their story, with error bars."""


def main() -> None:
    """Entry point: errors of ours become one line, and the exit status 2."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", DeepGalaxyWarning)
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    keep_freed_memory()
    try:
        # Outside of its standalone mode the parser returns the status of typer.Exit.
        status = app(standalone_mode=False) or 0
        if status == 130:  # what the parser makes of KeyboardInterrupt
            raise KeyboardInterrupt
        sys.stdout.flush()  # here, and not at the exit, where nobody hears of a full disk
        sys.exit(status)
    except DeepGalaxyError as error:
        say(f"{type(error).__name__}: {error}")
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        say("stopped; what was finished is kept")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or its buffer fails once more
        what = error.filename if error.filename is not None else "the output"
        say(f"{what}: cannot be read or written ({error.strerror or error}); free space or choose another place")
        sys.exit(2)
    except Exception as error:
        if hasattr(error, "format_message"):  # usage errors of the parser
            say(f"{error.format_message()} (see 'deepgalaxy --help')")
            sys.exit(2)
        raise


@contextmanager
def _no_garbage():
    """Importing torch makes a million objects that stay; looking through them for garbage takes 0.3 s."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@app.command(epilog="Examples: deepgalaxy predict examples/* --report out/; deepgalaxy predict --table pairs.csv")
def predict(images: ImagesOrTable = None, *,
            table: Annotated[Path | None, typer.Option("--table", metavar="CSV", help="pictures with what is known of "
                             "each: columns file and any of kpc_per_pixel, arcsec_per_pixel, redshift, mass, "
                             "mass_dex")] = None,
            report: Annotated[Path | None, typer.Option("--report", metavar="DIR", help="write a page and a figure per "
                              "image; without it, to deepgalaxy-report/")] = None,
            json_file: JsonOption = None, kpc_per_pixel: KpcOption = None, arcsec_per_pixel: ArcsecOption = None,
            redshift: RedshiftOption = None, mass: MassOption = None, mass_dex: MassDexOption = None,
            ext: ExtOption = None, model: ModelOption = None, library: LibraryOption = None,
            no_report: Annotated[bool, typer.Option("--no-report", help="only the table")] = False,
            twin: Annotated[bool, typer.Option("--twin", help="simulate each picture's best match anew, to be turned "
                                               "on the page; ten seconds a picture")] = False) -> None:
    """The main job: when they met, how heavy and large, from where we look, and the look-alikes."""
    with _no_garbage():
        from .inference.catalogue import read_catalogue
        from .inference.predictor import Scale, load

        # Bad usage ends here, before loading.
        known = {"kpc_per_pixel": kpc_per_pixel, "arcsec_per_pixel": arcsec_per_pixel, "redshift": redshift,
                 "mass": mass, "mass_dex": mass_dex}
        Scale(**known)
        if (table is None) == (not images):
            raise ConfigError("IMAGE...: give pictures, or a table of them (--table CSV), one of the two")
        if table is not None and (given := [name for name, value in known.items() if value is not None]):
            raise ConfigError(f"{given[0]}: is a column of the table, or an option for pictures; give one of the two")
        pictures = read_catalogue(table) if table is not None else [(image, known) for image in images]
        if twin and no_report:
            raise ConfigError("twin: is shown on the page, which --no-report leaves out; leave out one of them")
        if report is not None and no_report:
            raise ConfigError(f"report: {report}: is not written with --no-report; leave out one of them")
        predictor = load(model, library)
    stories = []
    with progress("predict", len(pictures)) as advance:
        for image, options in pictures:
            [story] = predictor.predict_many([image], **options, ext=ext)
            stories.append(story)
            _say_if_failed(story)
            advance()
    from .report import answer_dict

    write_json(json_file, [answer_dict(s) for s in stories])
    if json_file != "-":
        from .report.terminal import story_table

        show(story_table(stories))
    if not no_report and any(not isinstance(s, tuple) for s in stories):
        from .report.html import write_report

        try:
            without = _simulate_twins(predictor, stories) if twin else 0
        finally:  # the page is written, whatever happens to the twins
            say(f"report: {write_report(stories, report if report is not None else Path('deepgalaxy-report'))}")
        if without:
            raise typer.Exit(1)
    _exit(stories)


def _simulate_twins(predictor, stories) -> int:
    """The twins of all stories that have one; returns how many have none."""
    good, failed = [story for story in stories if not isinstance(story, tuple)], 0
    with progress("twin", 100 * len(good)) as advance:
        for story in good:
            done = 0

            def tell(share: float) -> None:
                nonlocal done
                advance(max(0, round(100 * share) - done))
                done = max(done, round(100 * share))

            try:
                predictor.simulate_twin(story, tell)
            except DeepGalaxyError as error:
                say(f"{story.image}: no twin: {error}")
                failed += 1
            tell(1.0)
    return failed


@app.command(epilog="Example: deepgalaxy search pair.png --matches 10")
def search(images: Images, matches: Annotated[int, typer.Option("--matches", min=1, max=100)] = 5,
           json_file: JsonOption = None, kpc_per_pixel: KpcOption = None, arcsec_per_pixel: ArcsecOption = None,
           redshift: RedshiftOption = None, ext: ExtOption = None, model: ModelOption = None,
           library: LibraryOption = None,
           looks: Annotated[float | None, typer.Option("--looks", min=0, max=1, help="0 ranks by the distance in z, "
                                                       "1 by the pictures, laid on each other, and their activation "
                                                       "maps; 0.85 without it",
                                                       show_default=False)] = None,
           any_story: Annotated[bool, typer.Option("--any-story", help="agreement with the answers of 'predict' does "
                                                   "not count")] = False) -> None:
    """Look-alikes only."""
    with _no_garbage():
        from .inference.predictor import Scale, load

        Scale(kpc_per_pixel, arcsec_per_pixel, redshift)
        predictor = load(model, library)
    if predictor.library is None:
        raise ConfigError("search needs a library; give --library, or make one with 'deepgalaxy index'")
    ranking = {} if looks is None else {"picture_weight": looks}
    if any_story:
        ranking["posterior_weight"] = 0.0
    stories = list(predictor.predict_many(images, kpc_per_pixel=kpc_per_pixel, arcsec_per_pixel=arcsec_per_pixel,
                                          redshift=redshift, ext=ext, n_matches=matches, ranking=ranking))
    for story in stories:
        _say_if_failed(story)
    from .report import answer_dict

    write_json(json_file, [{key: value for key, value in answer_dict(story).items() if key in (
        "image", "error", "matches", "clock", "flags")} for story in stories])
    if json_file != "-":
        from .report.terminal import matches_table

        show(matches_table(stories))
    _exit(stories)


@app.command(epilog="Example: deepgalaxy simulate recipes/wide_suite.yaml -o runs/")
def simulate(suite: Annotated[Path, typer.Argument(help="YAML of a suite")],
             output: Annotated[Path, typer.Option("-o", "--output", help="folder of encounter files")],
             scheduler: SchedulerOption = None, workers: WorkersOption = None, patience: PatienceOption = 120,
             gadget: Annotated[bool, typer.Option("--gadget", help="keep whole snapshots too, as Gadget-HDF5 in "
                                                  "folders of their own")] = False,
             device: Annotated[str, typer.Option("--device", help="cpu, or cuda: forces of all pairs on a GPU, which "
                                                 "several workers may share")] = "cpu",
             json_file: JsonOption = None) -> None:
    """Encounters to snapshots: runs what is missing in the folder, and can be started again at any time."""
    from .cluster import dask_client
    from .simulate.encounter import is_finished
    from .simulate.gpu import require_device
    from .simulate.snapshot import MAX_DRIFT, drift_of
    from .simulate.suite import SuiteConfig, alone_in, run_suite

    if scheduler is None or device != "cuda":  # on a cluster, the workers have the GPUs
        require_device(device)
    if device != "cpu":
        workers = workers or 1
    config = SuiteConfig.from_yaml(suite)
    total = len(config.encounters())
    missing = sum(not is_finished(e.name, output, gadget) for e in config.encounters())
    failed, drifting = {}, {}
    with (alone_in(output), dask_client(scheduler, workers) as client,
          progress("simulate", total, total - missing) as advance):
        for name, error in run_suite(config, output, client, patience, gadget, device):
            if error:
                failed[name] = error
                say(f"{name}: {error}")
            elif (drift := drift_of(output / f"{name}.h5")) > MAX_DRIFT:
                drifting[name] = drift
                say(f"{name}: its energy or angular momentum drifts by {100 * drift:.2f} %, more than "
                    f"{100 * MAX_DRIFT:g} %; kept, and 'deepgalaxy check' names it")
            advance()
    write_json(json_file, {"suite": config.name, "encounters": total, "run": missing, "failed": failed,
                            "drifting": drifting})
    raise typer.Exit(1 if failed else 0)


@app.command(epilog="Example: deepgalaxy render runs/ -o suite.h5 --pixels 160")
def render(runs: Annotated[Path, typer.Argument(help="folder of encounter files, or of your own snapshots with a "
                                                "labels.csv")],
           output: Annotated[Path, typer.Option("-o", "--output", help="the data set, HDF5")],
           config: Annotated[Path | None, typer.Option("--config", help="YAML of the rendering")] = None,
           pixels: Annotated[int | None, typer.Option("--pixels", help="on a side")] = None,
           cameras: Annotated[str | None, typer.Option("--cameras", help="cube (14 fixed), or a number of "
                                                       "random directions per snapshot")] = None,
           field_of_view: Annotated[float | None, typer.Option("--field-of-view", help="kpc; without it, framed "
                                                               "by content")] = None,
           scheduler: SchedulerOption = None, workers: WorkersOption = None, json_file: JsonOption = None) -> None:
    """Snapshots to the data set; goes on where it was interrupted."""
    from .cluster import dask_client
    from .config import read_yaml
    from .data.build import build_dataset, encounter_files
    from .image.render import RenderConfig

    tree = (read_yaml(config) or {}) if config else {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{config}: expected a mapping of settings, got {type(tree).__name__}")
    options = {"n_pixels": pixels, "field_of_view": field_of_view}
    if cameras is not None:
        options |= {"cameras": "cube"} if cameras == "cube" else {"cameras": "random", "n_cameras": cameras}
    tree |= {k: v for k, v in options.items() if v is not None}
    settings = RenderConfig.parse(tree, str(config or "options"))
    total, failed = len(encounter_files(runs, output)), {}
    with dask_client(scheduler, workers) as client, progress("render", total) as advance:
        for name, error in build_dataset(runs, output, settings, client):
            if error:
                failed[name] = error
                say(f"{name}: left out: {error}")
            advance()
    write_json(json_file, {"data": str(output), "encounters": total, "failed": failed})
    raise typer.Exit(1 if failed else 0)


@app.command(epilog="Example: deepgalaxy check suite.h5")
def check(file: Annotated[Path, typer.Argument(help="a data set, encounter, model, library or image")],
          json_file: JsonOption = None) -> None:
    """Is this file sound? Says what is wrong, line by line."""
    from .inference.check import check_file

    kind, problems = check_file(file)
    write_json(json_file, {"file": str(file), "kind": kind, "problems": problems})
    for problem in problems:
        say(problem)
    if problems:
        raise typer.Exit(2)
    if json_file != "-":
        print(f"{file}: sound {kind}")


@app.command(epilog="Examples: deepgalaxy train recipe.yaml; "
             "torchrun --nproc-per-node 2 -m deepgalaxy train recipe.yaml")
def train(recipe: Annotated[Path, typer.Argument(help="YAML of a training")], json_file: JsonOption = None) -> None:
    """Train, or go on training; on one worker, or under torchrun on many (on a cluster: srun torchrun ...)."""
    from .training.callbacks import read_metrics
    from .training.fit import fit, leave, world
    from .training.recipe import read_recipe

    path = fit(read_recipe(recipe), say=say, progress=sys.stderr.isatty())
    leave()
    if world()[0] == 0:
        say(f"weights: {path}")
        write_json(json_file, {"weights": str(path), "epochs": read_metrics(path.parent / "metrics.jsonl")})


@app.command(epilog="Examples: deepgalaxy evaluate --protocol unseen --json -; "
             "deepgalaxy evaluate --protocol real --data FOLDER --report out/")
def evaluate(protocol: Annotated[str, typer.Option("--protocol", help="unseen, or realism, which is the same: "
                                                   "encounters never seen, clean and with observational realism; "
                                                   "paper: DeepGalaxy's classes on a random split; real: a folder of "
                                                   "pictures, and a CSV of what was published about them")] = "unseen",
             model: ModelOption = None, library: LibraryOption = None,
             data: Annotated[list[Path] | None, typer.Option("--data", help="a data set (unseen: several are taken as "
                                                             "one), or the folder; without it, held-out encounters "
                                                             "are simulated into the cache first")] = None,
             encounters: Annotated[int | None, typer.Option("--encounters", min=2, max=10_000, help="unseen without "
                                                            "--data: so many are simulated instead of 16, six or seven "
                                                            "a minute on two cores; 100 tell an error bar of 68 % to "
                                                            "5 %")] = None,
             n_images: Annotated[int, typer.Option("--images", min=16, help="unseen: at most so many from -150 to 500 "
                                                   "Myr, and the same share of the others")] = 2000,
             report: Annotated[Path | None, typer.Option("--report", metavar="DIR", help="write a page")] = None,
             card: Annotated[Path | None, typer.Option("--card", metavar="FILE", help="write a model card, as Markdown "
                                                       "(--protocol unseen)")] = None,
             json_file: JsonOption = None) -> None:
    """How good the answers are: errors and tests of the error bars, or real pictures beside published stories."""
    protocols = {"unseen": _evaluate_unseen, "realism": _evaluate_unseen, "paper": _evaluate_paper,
                 "real": _evaluate_real}
    if protocol not in protocols:
        raise ConfigError(f"protocol = {protocol}: is not known; allowed: {', '.join(protocols)}")
    from .inference.predictor import load

    if protocol in ("real", "paper") and len(data or ()) != 1:
        what = "a folder of pictures" if protocol == "real" else "the data set that the model was trained on"
        raise ConfigError(f"protocol = {protocol}: needs one --data, {what}")
    if card is not None and protocols[protocol] is not _evaluate_unseen:
        raise ConfigError(f"card = {card}: a model card is made of --protocol unseen, not of {protocol}")
    if encounters is not None and (data or protocols[protocol] is not _evaluate_unseen):
        raise ConfigError(f"encounters = {encounters}: is for --protocol unseen without --data")
    predictor = load(model, library)
    if protocols[protocol] is _evaluate_unseen and not data:
        from .data.held_out import held_out_dataset

        data = [held_out_dataset(encounters)]
    result, table, write, stories = protocols[protocol](predictor, data, n_images)
    result["protocol"] = protocol
    write_json(json_file, result)
    if json_file != "-":
        show(table(result))
    if report is not None:
        say(f"report: {write(report)}")
    if card is not None:
        from .report import write_file
        from .report.card import model_card

        say(f"card: {write_file(card, model_card(predictor.weights, result, predictor.library))}")
    for story in stories:
        _say_if_failed(story)
    _exit(stories)


def _evaluate_unseen(predictor, data, n_images):
    from .data.joined import open_data
    from .inference.evaluate import chosen_images, evaluate_unseen
    from .report.evaluation import write_evaluation
    from .report.terminal import evaluation_table

    dataset = open_data(data)
    clean, observed = (len(chosen_images(dataset, n_images, any_light=any_light)[0]) for any_light in (False, True))
    with progress("evaluate", clean + 2 * observed) as advance:
        result, samples = evaluate_unseen(predictor.weights, dataset, predictor.library, n_images, on_batch=advance)
    return result, evaluation_table, lambda folder: write_evaluation(result, samples, folder), ()


def _evaluate_paper(predictor, data, n_images):
    from .data.reader import Dataset
    from .inference.paper import evaluate_paper, n_shown
    from .report.evaluation import write_evaluation
    from .report.terminal import paper_table

    [path] = data
    dataset = Dataset(path)
    with progress("evaluate", n_shown(predictor.weights, dataset)) as advance:
        result, samples = evaluate_paper(predictor.weights, dataset, advance)
    return result, paper_table, lambda folder: write_evaluation(result, samples, folder), ()


def _evaluate_real(predictor, data, n_images):
    from .inference.real import evaluate_real, read_table
    from .report.real import write_real
    from .report.terminal import real_table

    [folder] = data
    with progress("evaluate", len(read_table(folder))) as advance:
        result, stories = evaluate_real(predictor, folder, advance)
    return result, real_table, lambda folder: write_real(result, stories, folder), stories


@app.command(epilog="Example: deepgalaxy index --model out/model.safetensors --data suite.h5 -o out/")
def index(data: Annotated[list[Path], typer.Option("--data", help="a data set; several are taken as one")],
          output: Annotated[Path, typer.Option("-o", "--output", help="folder of the library")],
          model: ModelOption = None,
          n_images: Annotated[int, typer.Option("--images", min=1, help="at most so many")] = 36000,
          no_calibration: Annotated[bool, typer.Option("--no-calibration", help="keep the model's temperatures")]
          = False,
          references: Annotated[Path | None, typer.Option("--references", help="a library of this model whose images "
                                                          "are kept; the data set calibrates only, but for --add")]
          = None,
          add: Annotated[bool, typer.Option("--add", help="images of the data set come beside those of --references, "
                                            "without it of the shipped library; error bars stay")] = False,
          json_file: JsonOption = None) -> None:
    """Calibrate the model on its held-out encounters, and make its library of reference images.

    The calibrated weights and the library that belongs to them come into the same folder; weights that lie
    elsewhere are left as they are. With none of its held-out encounters in the data set, all are taken that it was
    not trained on.
    """
    from .search.build import make_library

    write_json(json_file, make_library(model, data, output, references, n_images, not no_calibration, say, progress,
                                       add))


@app.command(epilog="Example: deepgalaxy demo -o out/")
def demo(output: Annotated[Path, typer.Option("-o", "--output", help="folder for everything")] = Path("out"),
         minutes: Annotated[float, typer.Option("--minutes", min=0.1, max=60, help="of training")] = 2.0) -> None:
    """The whole chain, small: simulate, render, train, index, evaluate, predict, report."""
    from .demo import run_demo

    run_demo(output, minutes, say)


def _say_if_failed(story) -> None:
    if isinstance(story, tuple):
        name, error = story
        say(f"ImageError: {error}" if error.startswith(name) else f"ImageError: {name}: {error}")


def _exit(stories) -> None:
    failed = sum(isinstance(s, tuple) for s in stories)
    if "triton" not in sys.modules:  # which counts what it is left with at the end, and complains in 50 lines
        gc.freeze()  # else the interpreter looks through all of torch's objects on its way out: 0.6 s
    raise typer.Exit(0 if not failed else 2 if failed == len(stories) else 1)
