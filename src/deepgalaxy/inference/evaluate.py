"""How good are the answers? On encounters that the model has never seen."""

from __future__ import annotations

import numpy as np
import torch

from ..data.reader import Dataset
from ..errors import ConfigError, DatasetError
from ..image.observation import image_seeds, observe_frames
from ..image.preprocess import cut_frames, find_frames, stretch, to_canvas
from ..image.realism import RealismConfig, draw, noise_strength, observe
from ..image.strangers import strangers
from ..labels import HEADS, LABELS, NO_STAGE, STAGES, UNDISTURBED
from ..models.losses import ssim
from ..models.weights import Weights
from ..search.index import LatentIndex
from .calibration import light_of, predict_dataset
from .honesty import auroc, rank_test, rank_test_of_all, tarp
from .posterior import N_VIEWS, at_ranks, coverage_level, distributions, levels_together, n_turns, quantile, views_of
from .predictor import look_alikes, without_sky
from .robustness import robustness
from .story import UNFAMILIAR

__all__ = ["chosen_images", "confusion", "evaluate_unseen", "label_figures", "reconstruction"]


#: What errors are told apart by: name, column of the labels, edges.
_BY = (("time", "time", (-210, -50, 0, 100, 200, 350, 500, 1010)),
       ("mass_ratio", "mass_ratio", (0.1, 0.2, 0.35, 0.6, 1, 1.6)),
       ("view_inclination", "view_inclination", (0, 30, 50, 70, 90)))


def evaluate_unseen(weights: Weights, dataset: Dataset, library=None, n_images: int | None = None,
                    time_range: tuple[float, float] = (-150.0, 500.0), n_views: int = N_VIEWS, seed: int = 0,
                    on_batch=None) -> tuple[dict, dict]:
    """Errors, coverage, honesty, reconstruction, neighbours and familiarity on a data set of unseen encounters.

    Parameters
    ----------
    library : for neighbours in z and familiarity; without one they are left out.
    n_images : at most so many in the time range, spread evenly, and the same share of the others; all without it.
    time_range : Myr, of the main figures; those of all times stand beside them.

    Returns
    -------
    result : what `--json` holds.
    samples : {"clean" | "realism" | "realism_without_scale": {label: {"truth", "p16", "p50", "p84", "pit"}}}, arrays
        (N,), in the time range; of all times under "all_times": the same.

    Where the data set has images whose light does not follow mass, what is with realism is of both, and the figures
    are of either too ("realism_by_mass", "realism_other_light"); clean images are of those whose light does.

    Raises
    ------
    DatasetError
        If the model was trained or its error bars were fitted on one of these encounters, or no image lies in the
        time range.
    """
    if weights.learnt.framing == "whole":
        raise ConfigError("protocol = unseen: this model takes pictures as they are (framing: whole), knows nothing of "
                          "other fields and orientations; use --protocol paper")
    if set(weights.metadata.get("training_encounters", [])) & set(dataset.identities):
        raise DatasetError(f"{dataset.path}: holds encounters that the model was trained on; evaluate on others")
    if set(weights.metadata.get("calibration_encounters", [])) & set(dataset.identities):
        raise DatasetError(f"{dataset.path}: holds encounters that the model's error bars were fitted on; evaluate on "
                           "others")
    indices, inside = chosen_images(dataset, n_images, time_range, seed)
    by_mass = dataset.shines_by_mass
    lit = chosen_images(dataset, n_images, time_range, seed, any_light=True)
    realism = RealismConfig.parse(weights.metadata["training"].get("realism") or {}, "realism")
    temperatures = weights.metadata.get("temperatures", {})
    result = {"protocol": "unseen", "model": weights.identity, "n_images": int(inside.sum()),
              "n_encounters": len(np.unique(dataset.encounter[indices[inside]])), "time_range": list(time_range)}
    samples, everything, latents = {"all_times": {}}, {}, {}
    told = not weights.learnt.never_told
    correlation = weights.metadata.get("correlation")
    runs = {"clean": (None, told, indices, inside), "realism": (realism, told, *lit),
            "realism_without_scale": (realism, False, *lit)}
    for name, (how, scale_known, rows, within) in runs.items():
        p, z, side = predict_dataset(weights.model, dataset, rows, how, scale_known, temperatures, n_views,
                                     seed=seed + 5, on_batch=on_batch, framing=weights.learnt.framing)
        latents[name] = z[within]
        side = side if name == "realism_without_scale" else None
        result[name], samples[name] = _figures(dataset, rows, p, within, side, correlation)
        everything[name], samples["all_times"][name] = _figures(dataset, rows, p, np.full(len(rows), True), side,
                                                                correlation)
        if name == "realism":
            result["by"] = _breakdown(dataset, rows, p, _signal_to_noise(realism, rows, seed + 5))
            for light, those in (("realism_by_mass", by_mass[rows]), ("realism_other_light", ~by_mass[rows])):
                if not by_mass.all() and (those & within).any():
                    result[light], _ = _figures(dataset, rows, p, within & those, None, correlation)
    time = dataset.labels["time"][indices]
    result["all_times"] = {"n_images": len(indices), "time_range": [float(time.min()), float(time.max())], **everything}
    some, either = (np.random.default_rng(seed).permutation(rows[within]) for rows, within in ((indices, inside), lit))
    result["robustness"] = _robustness(weights, dataset, either[:200], realism, temperatures, n_views, seed)
    result["reconstruction"] = reconstruction(weights, dataset, some[:512])
    if library is not None:
        result["neighbours"] = {
            **_neighbours(library.told_index if told else library.index, library, dataset, indices[inside],
                          latents["clean"]),
            "median_abs_dt_5_without_scale": _neighbours(library.index, library, dataset, lit[0][lit[1]],
                                                         latents["realism_without_scale"])["median_abs_dt_5"],
            **_shown(weights, library, dataset, some[:200], either[:200], realism, temperatures, n_views, seed)}
        result["familiarity"] = _familiarity(weights, dataset, either[:600], library, realism, seed)
    return result, samples


def chosen_images(dataset: Dataset, n_images: int | None, time_range: tuple[float, float] = (-150.0, 500.0),
                  seed: int = 0, any_light: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Indices (N,) of the images that are looked at, and which of them (N,) are in the time range.

    any_light : also of those whose light does not follow mass.

    Raises
    ------
    DatasetError
        If none is in the time range.
    """
    time = np.where(any_light | dataset.shines_by_mass, dataset.labels["time"], np.nan)
    inside = (time >= time_range[0] - 8) & (time <= time_range[1] + 8)
    if not inside.any():
        raise DatasetError(f"{dataset.path}: no image lies within {time_range[0]:g}..{time_range[1]:g} Myr")
    share = 1.0 if n_images is None else min(1.0, n_images / inside.sum())
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rng.permutation(rows)[:int(round(share * len(rows)))] for rows in (
        np.flatnonzero(inside), np.flatnonzero(~inside & np.isfinite(time)))])
    chosen = np.sort(chosen)
    return chosen, inside[chosen]


def label_figures(dataset: Dataset, indices: np.ndarray, probability: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """Errors, coverage and tests of the error bars per label, of posteriors {label: (N, n_bins)} of these images.

    Beside them, as `evaluate_unseen` does, what plots are made of.
    """
    return _figures(dataset, indices, probability, np.ones(len(indices), bool))


def _figures(dataset, indices, probability, chosen, side=None, correlation=None):
    """Figures of the chosen (N,) of the images, and what they were made of; with side (N,) kpc, those of it too.

    correlation : (L, L) of the labels' errors, for the joint posterior.
    """
    figures, samples = {}, {}
    indices = indices[chosen]
    encounter = dataset.encounter[indices]
    for label in HEADS if side is not None else LABELS:
        truth = dataset.labels[label.column][indices] if label.column else side[chosen]
        known = np.isfinite(truth)  # of the others nothing can be said
        if not known.any():
            continue
        p, truth = probability[label.name][chosen][known], truth[known]
        p16, p50, p84 = (quantile(label, p, q) for q in (0.16, 0.5, 0.84))
        pit = coverage_level(label, p, truth)
        error = np.abs(p50 - truth)
        figures[label.name] = {
            "unit": label.unit, "median_abs_error": float(np.median(error)), "mean_abs_error": float(error.mean()),
            "coverage68": float(np.mean(np.abs(pit - 0.5) < 0.34)),
            "coverage95": float(np.mean(np.abs(pit - 0.5) < 0.475)),
            "prior_median_abs_error": float(np.median(np.abs(truth - np.median(truth)))),
            "rank_test_p": rank_test(pit, encounter[known]),
            "rank_test_of_all_p": rank_test_of_all(pit, encounter[known]),
        }
        samples[label.name] = {"truth": truth, "p16": p16, "p50": p50, "p84": p84, "pit": pit}
    if side is None:  # where the scale is to be found too, draws go by the scale, not by this correlation
        joint = _joint(dataset, indices, {name: p[chosen] for name, p in probability.items()}, correlation)
        if joint is not None:
            figures["joint"] = dict(zip(("tarp", "tarp_by_chance"), joint, strict=True))
    stage = dataset.labels["stage"][indices]
    known = stage != NO_STAGE
    if known.any():
        best = probability["stage"][chosen][known].argmax(1)
        figures["stage"] = {"accuracy": float((best == stage[known]).mean()),
                            "confusion": confusion(stage[known], best, len(STAGES))}
    return figures, samples


def confusion(truth: np.ndarray, answer: np.ndarray, n: int) -> list[list[int]]:
    """How many of each of n classes (rows) were taken for which (columns)."""
    return np.histogram2d(truth, answer, bins=(np.arange(n + 1) - 0.5,) * 2)[0].astype(int).tolist()


def _joint(dataset, indices, probability, correlation) -> tuple[float, float] | None:
    """TARP of all labels together, as `honesty.tarp`, over images of which all are known; None if there are none."""
    truth = np.stack([label.position(dataset.labels[label.column][indices]) / label.n_bins for label in LABELS], axis=1)
    known = np.isfinite(truth).all(axis=1)
    if not known.any():
        return None
    levels = levels_together(np.random.default_rng(0), (100, int(known.sum())), correlation)
    drawn = [_positions(probability[label.name][known], levels[..., k]) for k, label in enumerate(LABELS)]
    return tarp(np.stack(drawn, axis=2), truth[known], dataset.encounter[indices][known])


def _positions(p: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Where in 0..1 of a label's range binned distributions p (N, n_bins) reach levels (S, N)."""
    edges = np.linspace(0, 1, p.shape[1] + 1)
    return np.stack([at_ranks(edges, row, u) for row, u in zip(p, level.T, strict=True)], axis=1)


def _robustness(weights, dataset, indices, realism, temperatures, n_views, seed) -> dict:
    # More noise can be added to linear pictures only, and only to those that have all of theirs.
    realism = realism.model_copy(update={"stretched": 0.0, "borders": 0.0, "detail": 0.0})
    light, draws = light_of(dataset, indices), draw(image_seeds(seed + 7, 0, indices), dataset.shape[-1])
    seen, _, zoom = observe(light, draws, realism)
    pixel_scale = weights.learnt.told(torch.from_numpy(dataset.labels["pixel_scale"][indices]) / zoom)
    return robustness(weights.model, seen, pixel_scale, noise_strength(draws, realism), temperatures, n_views, seed)


def _breakdown(dataset, indices, probability, signal) -> dict:
    """Median |error| of every label where something else is within certain limits."""
    error = {label.name: np.abs(quantile(label, probability[label.name], 0.5) - dataset.labels[label.column][indices])
             for label in LABELS}
    tables, stage = {}, dataset.labels["stage"][indices]
    columns = [(name, dataset.labels[column][indices], edges) for name, column, edges in _BY]
    columns.append(("signal_to_noise", signal, (0, 40, 80, 160, 320, np.inf)))
    for name, values, edges in columns:
        tables[name] = [_row(error, (values >= low) & ((values < high) | (values == edges[-1]) & (high == edges[-1])),
                             {"low": low, "high": high if np.isfinite(high) else None})
                        for low, high in zip(edges, edges[1:], strict=False)]
    tables["stage"] = [_row(error, stage == k, {"stage": title}) for k, title in enumerate(STAGES)]
    return {name: [row for row in rows if row["n_images"]] for name, rows in tables.items()}


def _row(error, here, what) -> dict:
    medians = {name: float(np.nanmedian(values[here])) for name, values in error.items()
               if np.isfinite(values[here]).any()}
    return {**what, "n_images": int(here.sum()), **medians}


def _signal_to_noise(realism: RealismConfig, indices, seed) -> np.ndarray:
    """Brightest half percent of the galaxies' pixels over the noise of the sky, of each observed image (N,)."""
    return np.concatenate([1 / noise_strength(draw(image_seeds(seed, 0, indices[k:k + 256]), 8), realism).numpy()
                           for k in range(0, len(indices), 256)])


@torch.inference_mode()
def _familiarity(weights, dataset, indices, library, realism, seed, n_strangers: int = 360) -> dict:
    """How well pictures of something else, and single galaxies, are told from unseen encounters."""
    def observed(rows):
        return [observe_frames(light_of(dataset, rows[k:k + 64]), torch.full((len(rows[k:k + 64]),), torch.nan),
                               image_seeds(seed + 6, 0, rows[k:k + 64]), realism, framing=weights.learnt.framing).frames
                for k in range(0, len(rows), 64)]

    def look(frames):
        encodings = [weights.model.encode(f) for f in frames]
        features = np.concatenate([weights.model.unscaled_features(e.maps).numpy() for e in encodings])
        unknown = [torch.full((len(f),), torch.nan) for f in frames]
        stage = torch.cat([weights.model.classify(e.maps, u)["stage"] for e, u in zip(encodings, unknown, strict=True)])
        flagged = np.array([library.familiarity(one[None]) < UNFAMILIAR for one in features])
        return library.strangeness(features), flagged, torch.softmax(stage, dim=1).numpy()

    kinds, others = zip(*strangers(n_strangers, seed=seed), strict=True)
    canvases = [to_canvas(picture)[0] for picture in others]
    usual, usual_flagged, usual_stage = look(observed(indices))
    strange, flagged, _ = look([stretch(cut_frames(c, find_frames(c))) for c in canvases])
    of = {kind: np.array(kinds) == kind for kind in dict.fromkeys(kinds)}
    result = {"auroc": auroc(strange, usual),
              "by_kind": {kind: auroc(strange[rows], usual) for kind, rows in of.items()},
              "flagged_by_kind": {kind: float(flagged[rows].mean()) for kind, rows in of.items()},
              "flagged": float(flagged.mean()), "flagged_encounters": float(usual_flagged.mean())}
    for name, k in UNDISTURBED.items():
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(dataset.labels["stage"] == k))[:400]
        if len(rows):
            *_, stage = look(observed(rows))
            result[f"auroc_{name}"] = auroc(stage[:, k], usual_stage[:, k])
    return result


@torch.inference_mode()
def reconstruction(weights, dataset, indices):
    """SSIM of clean frames and their reconstructions, from the maps and through z."""
    model, direct, through = weights.model, [], []
    for start in range(0, len(indices), 64):
        index = indices[start:start + 64]
        unknown = torch.full((len(index),), torch.nan)
        frames = observe_frames(light_of(dataset, index), unknown, [0] * len(index), None,
                                framing=weights.learnt.framing).frames
        encoding = model.encode(frames)
        direct.append(ssim(model.reconstruct(encoding.maps, frames.shape[2:]), frames))
        maps = model.vae.decode(encoding.mu, encoding.maps.shape[2:])
        through.append(ssim(model.reconstruct(maps, frames.shape[2:]), frames))
    return {"ssim_fcae": float(torch.cat(direct).mean()), "ssim_vae": float(torch.cat(through).mean())}


def _neighbours(index: LatentIndex, library, dataset, indices, latents):
    """How far in time the 5 nearest library images in z are."""
    _, rows = index.search(latents, 5)
    dt = np.abs(library.labels["time"][rows] - dataset.labels["time"][indices][:, None])
    return {"median_abs_dt_5": float(np.median(dt)), "median_abs_dt_1": float(np.median(dt[:, 0]))}


@torch.inference_mode()
def _shown(weights, library, dataset, clean, observed, realism, temperatures, n_views, seed):
    """How far in time the look-alike is that a person sees first, for images (indices) of known scale."""
    names = {"median_abs_dt_shown": (observed, realism), "median_abs_dt_shown_clean": (clean, None)}
    return {name: float(np.median(_shown_first(weights, library, dataset, *which, temperatures, n_views, seed)))
            for name, which in names.items()}


def _shown_first(weights, library, dataset, indices, realism, temperatures, n_views, seed):
    dt, of = [], weights.learnt
    for start in range(0, len(indices), 64):
        index = indices[start:start + 64]
        pixel_scale = torch.from_numpy(dataset.labels["pixel_scale"][index])
        seen = observe_frames(light_of(dataset, index), pixel_scale, image_seeds(seed + 8, 0, index), realism,
                              framing=of.framing, n_turns=n_turns(n_views))
        p, encodings = distributions(weights.model, seen.turned, of.told(seen.scale), temperatures, n_views)
        views = torch.cat(views_of(seen.turned, len(encodings)), dim=1).numpy()
        for k, time in enumerate(dataset.labels["time"][index]):
            maps = torch.stack([encoding.maps[k] for encoding in encodings])
            clean = without_sky(weights, maps[:1], views.shape[2:])
            [best] = look_alikes(library, weights, maps, views[k], clean,
                                 {name: values[k] for name, values in p.items()}, 1)
            dt.append(abs(best.time_myr - time))
    return dt
