"""Error against the number of encounters, at equal training.

    python benchmarks/encounters.py OUTPUT TEST.h5 DATA.h5 [DATA.h5 ...] --encounters 75 150 300 600

Each model is trained from nothing on about so many encounters of the data sets, on the same number of clean images,
and judged on images of encounters that it was trained on and on those of TEST.h5, which none has seen: what both have
in common wants more training or a larger model, what is between them more encounters. Goes on where it was stopped;
one line of JSON per model.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from deepgalaxy.data.joined import open_data
from deepgalaxy.image.realism import RealismConfig
from deepgalaxy.inference.calibration import predict_dataset
from deepgalaxy.inference.posterior import quantile
from deepgalaxy.labels import LABELS
from deepgalaxy.models.weights import load_weights
from deepgalaxy.training.fit import fit
from deepgalaxy.training.recipe import TrainConfig


def median_errors(model, data, images: np.ndarray, realism: RealismConfig | None = None) -> dict[str, float]:
    """Of the labels' medians, their scale told; of images as they are, or with realism."""
    probability, _, _ = predict_dataset(model, data, images, realism, n_views=1)
    errors = {}
    for label in LABELS:
        truth = data.labels[label.column][images]
        found = quantile(label, probability[label.name], [0.5])[:, 0]
        errors[label.name] = round(float(np.nanmedian(np.abs(found - truth))), 4)
    return errors


def some_images(data, names: set[str] | None, n: int) -> np.ndarray:
    """n of the images of encounters (of these identities), -150 to +500 Myr, always the same ones."""
    time = data.labels["time"]
    good = data.is_encounter & (time >= -150) & (time <= 500)
    if names is not None:
        good &= np.isin(data.group, [g for g, identity in enumerate(data.identities) if identity in names])
    return np.sort(np.random.default_rng(0).permutation(np.flatnonzero(good))[:n])


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output")
    parser.add_argument("test")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--encounters", type=int, nargs="+", default=[75, 150, 300, 600])
    parser.add_argument("--epochs", type=int, default=3, help="of 16,384 images")
    options = parser.parse_args()
    data, test = open_data(options.data), open_data(options.test)
    encounters = {data.identities[g] for g in np.unique(data.group[data.is_encounter])}
    for n in options.encounters:
        share = min(max(1 - n / len(encounters), 0.01), 0.99)
        recipe = TrainConfig(
            name=f"encounters-{n}", data=tuple(options.data), output=f"{options.output}/{n}", epochs=options.epochs,
            batch_size=32, validation_share=share, validation_images=64, validate_every=options.epochs, realism=None,
            loss={"realistic": 0.0}, optimiser={"algorithm": "muon", "learning_rate": 8e-3})
        weights = load_weights(fit(recipe))
        seen = encounters & set(weights.metadata["training_encounters"])
        result = {"encounters": len(seen), "images": options.epochs * 16384,
                  "trained_on": median_errors(weights.model, data, some_images(data, seen, 1500)),
                  "unseen": median_errors(weights.model, test, some_images(test, None, 1500))}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
