"""Does it pay to train the FCAE alone first? And how much do two trainings differ that differ by their seed alone?

    python benchmarks/pretraining.py OUTPUT TEST.h5 DATA.h5 [DATA.h5 ...] --kind plain --seed 1

`plain` trains everything from nothing; `pretrained` first the FCAE alone on as many images, then everything from its
weights; `longer` everything from nothing on twice as many images, which costs about as much. Judged on images of
TEST.h5, which none has seen, clean and with realism. Goes on where it was stopped; one line of JSON per model.
"""

from __future__ import annotations

import argparse
import json

from encounters import median_errors, some_images

from deepgalaxy.data.joined import open_data
from deepgalaxy.image.realism import RealismConfig
from deepgalaxy.labels import LABELS
from deepgalaxy.models.weights import load_weights
from deepgalaxy.training.fit import fit
from deepgalaxy.training.recipe import TrainConfig

#: The weights of all losses but that of the image's reconstruction (docs/extending.md).
_FCAE_ALONE = {"latent_reconstruction": 0, "maps": 0, "kl": 0, "latent_labels": 0,
               "labels": {name: 0 for name in (*(label.name for label in LABELS), "stage", "frame_side")}}


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output")
    parser.add_argument("test")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--kind", choices=["plain", "pretrained", "longer"], default="plain")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3, help="of 16,384 images")
    options = parser.parse_args()

    def train(name: str, epochs: int, **more) -> str:
        return str(fit(TrainConfig(
            name=name, data=tuple(options.data), output=f"{options.output}/{name}", epochs=epochs, batch_size=32,
            validation_share=0.05, validation_images=64, validate_every=epochs, seed=options.seed, split_seed=1,
            optimiser={"algorithm": "muon", "learning_rate": 8e-3}, **more)))

    name, epochs = f"{options.kind}-{options.seed}", options.epochs
    if options.kind == "pretrained":
        start = train(f"fcae-{options.seed}", epochs, loss=_FCAE_ALONE)
        path = train(name, epochs, start_from=start)
    else:
        path = train(name, epochs * (2 if options.kind == "longer" else 1))
    model, test = load_weights(path).model, open_data(options.test)
    images = some_images(test, None, 1000)
    seen = epochs * 16384
    print(json.dumps({"kind": options.kind, "seed": options.seed,
                      "images_of_the_fcae_alone": seen if options.kind == "pretrained" else 0,
                      "images": 2 * seen if options.kind == "longer" else seen,
                      "clean": median_errors(model, test, images),
                      "realism": median_errors(model, test, images, RealismConfig())}), flush=True)


if __name__ == "__main__":
    main()
