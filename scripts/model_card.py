"""Write the model card from an evaluation: python scripts/model_card.py evaluation.json > docs/model_card.md"""

from __future__ import annotations

import json
import sys

from deepgalaxy.inference.predictor import load, shipped
from deepgalaxy.labels import LABELS
from deepgalaxy.models.deepgalaxy import ModelConfig
from deepgalaxy.report.evaluation import where

ALGORITHMS = {"muon": "Muon", "adamw": "AdamW"}

CARD = """# Model card: {name} {version}

sha256 `{sha256}`; library of {n_library} reference images of {n_encounters} encounters.

## What it is for
Pictures of two interacting disc galaxies: time since the first pericentre, mass and size ratio, angle of the
orbital plane to the sky, stage, each as a distribution, and simulated encounters that look alike. Single galaxies and
chance pairs are stages of their own, and pictures of something else are flagged by their familiarity; groups, clusters
and gas were never shown.

## Data
Four suites of N-body encounters (disc, bulge, halo; 16,384 particles; no gas), described in docs/suites.md: `core`,
428 encounters, `wide`, 256, with mass ratios from 0.1, pericentres of 2-40 kpc, bound to hyperbolic orbits, discs
and bulges of all sizes, -200 to +500 Myr and a third of them to +1000 Myr, single galaxies and chance pairs, and
`wide-3` and `wide-2`, 410 and 186 more of the wide design. {n_trained:,} encounters were trained on; the others of
these suites were held out. The library is of `wide-3` and `wide-2`: {n_encounters} encounters. Error bars, and how
unusual an unseen encounter may be, come from `wide-4`, 120 encounters of the wide design that were not trained on.
`core` and `wide` were simulated with earlier versions of gravity and discs, the others and the encounters of the table
below with the present one.

## Training
Backbone {backbone} at stride {stride}, activation maps of {channels} channels, z of {latent}. Last part: {epochs}
epochs of {images_per_epoch:,} images of `wide-3` and `wide-2`, batch {batch_size}, {algorithm} with warm-up and
cosine, averaged weights are the result. It went on from weights that had seen 377,000 images of `core`, then 328,000 of
`core` and `wide`, then 197,000 of `wide-3` (`recipes/shipped_first.yaml`, `shipped_second.yaml`, `shipped_third.yaml`).
{realistic:.0f} % of the images pass through observational realism (`src/deepgalaxy/image/realism.py`), in the last two
parts as fine and bright as in the table below. `recipes/shipped.sh` makes such weights again, not these to the bit:
between the first two parts heads were mapped bin by bin onto wider labels (docs/log.md, 2026-11-24).

## Protocol and figures
`unseen`: {test_encounters} whole encounters of another seed, {test_images:,} images, {t0:g}..{t1:g} Myr, frames found
by content, {views} mirrored and turned views averaged. "Guessing" answers with the median of the truth; p is that the
ranks of the truths are uniform, with one image of each encounter at a time (the median of many such draws).

| label | images | median error | mean error | guessing | 68 % covers | 95 % covers | p |
|---|---|---|---|---|---|---|---|
{rows}

All times, {all_t0:.0f}..{all_t1:.0f} Myr ({all_images:,} images): median error of the time {all_clean:.0f} Myr clean,
{all_realism:.0f} Myr with realism. TARP of the four labels together: {tarp_clean:.3f} clean, {tarp_realism:.3f} with
realism (errors of mass and size ratio go together, r = {correlation:.2f}). Right stage with realism: {stage:.0f} %.

Familiarity tells {kinds} from unseen encounters with realism with an AUROC of {auroc:.3f}. The stage tells single
galaxies from mergers with an AUROC of {single:.3f}, chance pairs with {chance:.3f}.

Medians that move less than half of their own 68 % interval: {robust}.

| with realism, where | images | {label_titles} |
|---|---|{label_rules}
{breakdown}

SSIM of the reconstruction on unseen clean images: {ssim_fcae:.3f} from the activation maps, {ssim_vae:.3f} through z.
The 5 nearest library images in z of an unseen clean image: median |dt| {dt5:.0f} Myr, the nearest {dt1:.0f} Myr.
The look-alike that is shown first for an image with realism at a known scale, chosen by z, by looks and by whether it
agrees with the answers: {dt_shown:.0f} Myr.

## Limits
- Times are those of a Milky-Way-like primary (disc 5e10 Msun, scale length 3 kpc). With lengths fixed, a system four
  times as heavy runs twice as fast and looks the same; `predict --mass` turns times into those of the system.
- Without a pixel scale the frame is scaled by its content, and error bars widen; the answer says so.
- Two galaxies of an old stellar disc each: no gas, no star formation, no dust but what realism paints on.
- Mass ratio is secondary over primary, at most 1; very minor mergers (below 0.1) were never shown.
- The viewing angle is hardly better than a guess, at all times and at any noise: the discs' spins are isotropic here,
  so that the shapes of discs and tails say little about the plane of the orbit.
- A figure from simulated observations is no promise for real ones. A small network tells simulated from real pictures
  with an AUROC of 0.89 (0.5 is chance; `benchmarks/telltale.py`, docs/log.md), and published times of real systems lie
  in the 90 % interval less often than they should: most are later. Published models of one real system differ among
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
                         f"{100 * v['coverage95']:.1f} %", f"{v['rank_test_p']:.2g}")
                rows.append(f"| {' | '.join(cells)} |")
    everything, familiar = e["all_times"], e["familiarity"]
    robust = "; ".join(f"{name} {100 * labels['time_since_pericentre']['within']:.0f} % (time), "
                       f"{100 * labels['mass_ratio']['within']:.0f} % (mass ratio)"
                       for name, labels in e["robustness"].items())
    breakdown = []
    for what, table in e["by"].items():
        for row in table:
            values = (f"{what.replace('_', ' ')} {where(row)}", row["n_images"],
                      *(f"{row[label.name]:.3g}" for label in LABELS))
            breakdown.append("| " + " | ".join(map(str, values)) + " |")
    print(CARD.format(
        label_titles=" | ".join(f"{label.title.lower()}, {label.unit}" for label in LABELS),
        label_rules="---|" * len(LABELS),
        all_t0=everything["time_range"][0], all_t1=everything["time_range"][1], all_images=everything["n_images"],
        all_clean=everything["clean"]["time_since_pericentre"]["median_abs_error"],
        all_realism=everything["realism"]["time_since_pericentre"]["median_abs_error"],
        tarp_clean=e["clean"]["joint"]["tarp"], tarp_realism=e["realism"]["joint"]["tarp"],
        correlation=weights.metadata["correlation"][1][2],
        stage=100 * e["realism"]["stage"]["accuracy"], auroc=familiar["auroc"], kinds=", ".join(
            f"{kind} ({value:.2f})" for kind, value in familiar["by_kind"].items()),
        single=familiar["auroc_single"], chance=familiar["auroc_chance"], robust=robust,
        breakdown="\n".join(breakdown),
        name=weights.name, version=weights.version, sha256=weights.sha256, n_library=len(library),
        n_encounters=len(set(library.encounter.tolist())),
        n_trained=sum("-" not in name for name in weights.metadata["training_encounters"]),
        backbone=m.backbone, stride=m.stride,
        channels=m.channels, latent=m.latent_size, epochs=t["epochs"], images_per_epoch=t["images_per_epoch"],
        batch_size=t["batch_size"], algorithm=ALGORITHMS[t["optimiser"].get("algorithm", "adamw")],
        realistic=100 * t["loss"]["realistic"], test_encounters=e["n_encounters"],
        test_images=e["n_images"], t0=e["time_range"][0], t1=e["time_range"][1], views=predictor.n_views,
        rows="\n".join(rows), ssim_fcae=e["reconstruction"]["ssim_fcae"], ssim_vae=e["reconstruction"]["ssim_vae"],
        dt5=e["neighbours"]["median_abs_dt_5"], dt1=e["neighbours"]["median_abs_dt_1"],
        dt_shown=e["neighbours"]["median_abs_dt_shown"]), end="")


if __name__ == "__main__":
    print(shipped("model.safetensors"), file=sys.stderr)
    main(sys.argv[1])
