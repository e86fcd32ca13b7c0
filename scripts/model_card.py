"""Write the model card from an evaluation: python scripts/model_card.py evaluation.json > docs/model_card.md"""

from __future__ import annotations

import json
import sys

from deepgalaxy.inference.predictor import load, shipped
from deepgalaxy.models.deepgalaxy import ModelConfig

CARD = """# Model card: {name} {version}

sha256 `{sha256}`; library of {n_library} reference images of {n_encounters} encounters.

## What it is for
Pictures of two interacting disc galaxies: time since the first pericentre, mass and size ratio, angle of the
orbital plane to the sky, stage, each as a distribution, and simulated encounters that look alike. Not for single
galaxies, groups, clusters or gas: it takes for granted that the picture shows one pair.

## Data
`recipes/shipped_suite.yaml`: {n_encounters} N-body encounters (disc, bulge, halo; 16,384 particles; no gas), a Sobol
design over mass ratio 0.2-1, size ratio 0.7-1.4 times the root of it, pericentre 2-30 kpc, orbital energy -0.08..0.08
of the potential's depth at pericentre, isotropic disc orientations; snapshots every 10 Myr from -150 to +500 Myr, each
from 6 random directions: {n_images:,} images. {n_validation} of the encounters were held out of training, for the
calibration of the error bars. They were simulated with an earlier version of the gravity (docs/suites.md says what
that means), the encounters of the table below with the present one.

## Training
Backbone {backbone} at stride {stride}, activation maps of {channels} channels, z of {latent}. {epochs} epochs of
{images_per_epoch:,} images, batch {batch_size}, AdamW with warm-up and cosine, averaged weights are the result. They
went on from a first half of 23 epochs (`recipes/shipped_first.yaml`), which for this release saw the first 304 of the
encounters, as simulated and photographed by an earlier version (docs/log.md, 2026-11-24). The held-out encounters are
the same in both halves.
{realistic:.0f} % of the images pass through observational realism (`src/deepgalaxy/image/realism.py`).
`recipes/shipped.sh` makes it all again.

## Protocol and figures
`unseen`: {test_encounters} whole encounters of another seed, {test_images:,} images, {t0:g}..{t1:g} Myr, frames found
by content, {views} mirrored and turned views averaged. "Guessing" answers with the median of the truth.

| label | images | median error | mean error | guessing | 68 % covers | 95 % covers |
|---|---|---|---|---|---|---|
{rows}

SSIM of the reconstruction on unseen clean images: {ssim_fcae:.3f} from the activation maps, {ssim_vae:.3f} through z.
The 5 nearest library images in z of an unseen clean image: median |dt| {dt5:.0f} Myr, the nearest {dt1:.0f} Myr.

## Limits
- Times are those of a Milky-Way-like primary (disc 5e10 Msun, scale length 3 kpc). With lengths fixed, a system four
  times as heavy runs twice as fast and looks the same; `predict --mass` turns times into those of the system.
- Without a pixel scale the frame is scaled by its content, and error bars widen; the answer says so.
- Two galaxies of an old stellar disc each: no gas, no star formation, no dust but what realism paints on.
- Mass ratio is secondary over primary, at most 1; very minor mergers (below 0.2) were never shown.
- A figure from simulated observations is no promise for real ones: published models of one real system differ among
  themselves by a factor of two in time.
"""


def main(path: str) -> None:
    """Print the card."""
    with open(path) as f:
        e = json.load(f)
    predictor = load()
    weights, library = predictor.weights, predictor.library
    t, m = weights.metadata["training"], weights.model.config
    assert isinstance(m, ModelConfig)
    names = {"clean": "clean", "realism": "realism", "realism_without_scale": "realism, scale unknown"}
    rows = []
    for part, title in names.items():
        for label, v in e[part].items():
            if "median_abs_error" in v:
                cells = (label, title, f"{v['median_abs_error']:.3g} {v['unit']}", f"{v['mean_abs_error']:.3g}",
                         f"{v['prior_median_abs_error']:.3g}", f"{100 * v['coverage68']:.1f} %",
                         f"{100 * v['coverage95']:.1f} %")
                rows.append(f"| {' | '.join(cells)} |")
    print(CARD.format(
        name=weights.name, version=weights.version, sha256=weights.sha256, n_library=len(library),
        n_encounters=len(library.encounters), n_images=weights.metadata.get("n_images", 0),
        n_validation=len(weights.metadata["validation_encounters"]), backbone=m.backbone, stride=m.stride,
        channels=m.channels, latent=m.latent_size, epochs=t["epochs"], images_per_epoch=t["images_per_epoch"],
        batch_size=t["batch_size"], realistic=100 * t["loss"]["realistic"], test_encounters=e["n_encounters"],
        test_images=e["n_images"], t0=e["time_range"][0], t1=e["time_range"][1], views=predictor.n_views,
        rows="\n".join(rows), ssim_fcae=e["reconstruction"]["ssim_fcae"], ssim_vae=e["reconstruction"]["ssim_vae"],
        dt5=e["neighbours"]["median_abs_dt_5"], dt1=e["neighbours"]["median_abs_dt_1"]), end="")


if __name__ == "__main__":
    print(shipped("model.safetensors"), file=sys.stderr)
    main(sys.argv[1])
