"""The whole chain, small: from gravity to an answer in a few minutes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from .cluster import dask_client
from .config import Config
from .data.held_out import make_dataset
from .errors import ConfigError
from .image.render import RenderConfig
from .labels import TIME
from .progress import progress
from .simulate.encounter import Resolution
from .simulate.suite import SobolDesign, SuiteConfig

__all__ = ["run_demo"]

#: Images that two cores train in a minute, roughly.
_IMAGES_PER_MINUTE = 5000


def run_demo(output: Path, minutes: float, say) -> Path:
    """Simulate, render, train, index, evaluate, predict an unseen encounter, report.

    Parameters
    ----------
    minutes : of training, on two cores.
    say : takes one line of text.

    Returns
    -------
    page : the report.
    """
    start = time.monotonic()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output = {output}: cannot be written ({error.strerror}); choose another folder") from None
    resolution = Resolution(n_particles=6144, snapshot_interval=20)
    suites = {
        "training": SuiteConfig(name="demo", design=SobolDesign(n_encounters=6, seed=11), resolution=resolution),
        "unseen": SuiteConfig(name="demo-unseen", design=SobolDesign(n_encounters=1, seed=12), resolution=resolution),
    }
    with dask_client() as client:
        for part, suite in suites.items():
            _write_yaml(output / f"suite_{part}.yaml", suite)
            make_dataset(suite, RenderConfig(n_pixels=128, n_cameras=12), output / f"runs_{part}",
                         output / f"{part}.h5", client, part)

    from .data.reader import Dataset
    from .inference.evaluate import evaluate_unseen
    from .inference.predictor import load
    from .report import json_ready
    from .report.evaluation import write_evaluation
    from .report.html import write_report
    from .search.build import build_library, calibrate
    from .training.fit import fit
    from .training.recipe import TrainConfig

    epochs = max(2, round(minutes * _IMAGES_PER_MINUTE / 2048))
    recipe = TrainConfig(name="demo", data=str(output / "training.h5"), output=str(output / "model"), epochs=epochs,
                         images_per_epoch=2048, validation_images=128, validation_share=0.2)
    # Its paths are taken from its folder.
    _write_yaml(output / "recipe.yaml", recipe.model_copy(update={"data": "training.h5", "output": "model"}))
    say(f"training for {epochs} epochs of 2048 images")
    weights = fit(recipe, say)
    calibrate(weights, recipe.data, n_images=384)
    n_images = len(Dataset(recipe.data))
    with progress("index", n_images) as advance:
        build_library(weights, recipe.data, weights.parent / "library.h5", n_images, advance)

    predictor = load(weights)
    unseen = Dataset(output / "unseen.h5")
    with progress("evaluate", 3 * len(unseen)) as advance:
        result, samples = evaluate_unseen(predictor.weights, unseen, predictor.library, n_views=4, on_batch=advance)
    (output / "evaluation.json").write_text(json.dumps(json_ready(result), indent=1))
    write_evaluation(result, samples, output / "evaluation")
    mocks = _mock_observations(output)
    with progress("predict", len(mocks)) as advance:
        stories = []
        for path, redshift in mocks:
            stories.append(predictor.predict(str(path), redshift=redshift))
            advance()
    page = write_report(stories, output / "report")
    clean = result["clean"][TIME.name]
    say(f"median |dt| on an encounter never seen: {clean['median_abs_error']:.0f} Myr clean (guessing: "
        f"{clean['prior_median_abs_error']:.0f}); {len(suites['training'].encounters())} encounters and "
        f"{minutes:g} minutes of training are a demonstration, not a model")
    say(f"done in {(time.monotonic() - start) / 60:.1f} minutes: {page}")
    return page


def _mock_observations(output: Path) -> list[tuple[Path, float | None]]:
    """Pictures of the unseen encounter, with a redshift where there is a WCS to go with it."""
    from .image.mock import mock_image, write_mock_fits, write_mock_png
    from .image.view import random_views
    from .simulate.snapshot import Encounter

    folder = output / "observations"
    folder.mkdir(exist_ok=True)
    encounter = Encounter.read(next((output / "runs_unseen").glob("*.h5")))
    views = random_views(4, np.random.default_rng(5))
    mocks = []
    for i, (wanted, view) in enumerate(zip((-60, 80, 200, 400), views, strict=True)):
        snapshot = int(np.argmin(np.abs(encounter.time - wanted)))
        field = float(np.clip(3.2 * encounter.separation[snapshot] + 60, 90, 240))
        image = mock_image(encounter, snapshot, view, field_of_view=field, seed=i)
        name = f"unseen_{encounter.time[snapshot]:+.0f}_myr"
        if i % 2 == 0:
            write_mock_fits(folder / f"{name}.fits", image, field, redshift=0.02)
            mocks.append((folder / f"{name}.fits", 0.02))
        else:
            write_mock_png(folder / f"{name}.png", image)
            mocks.append((folder / f"{name}.png", None))
    return mocks


def _write_yaml(path: Path, config: Config) -> None:
    import yaml

    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
