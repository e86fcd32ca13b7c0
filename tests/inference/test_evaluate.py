"""Figures of quality: on encounters never seen, and right."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from deepgalaxy.data.reader import Dataset
from deepgalaxy.errors import DatasetError
from deepgalaxy.image.observation import light_from_stored, observe_frames
from deepgalaxy.inference.evaluate import evaluate_unseen
from deepgalaxy.labels import LABELS

FIGURES = ["median_abs_error", "mean_abs_error", "coverage68", "coverage95", "prior_median_abs_error"]


@pytest.fixture(scope="module")
def evaluation(loud, other_dataset):
    seen = []
    result, samples = evaluate_unseen(loud.weights, Dataset(other_dataset), loud.library, on_batch=seen.append)
    return result, samples, seen


def test_every_key_is_documented(evaluation, predictor):
    text = (Path(__file__).parents[2] / "docs" / "data_format.md").read_text("utf-8")
    documented = set(re.findall(r"`([^`\n]+)`", text[text.index("# Evaluations"):text.index("# A folder of real")]))
    result = evaluation[0]
    keys = set(result) | {key for part in ("neighbours", "familiarity", "reconstruction", "all_times", "by")
                          for key in result[part]} | set().union(*(result["clean"][name] for name in result["clean"]))
    keys |= set(next(iter(next(iter(result["robustness"].values())).values())))
    # With two lights there are these two as well, and chance pairs and single galaxies where the data have them.
    assert keys <= documented, keys - documented
    assert {"realism_by_mass", "realism_other_light", "auroc_single", "auroc_chance pair"} <= documented


def test_realism_is_of_light_that_follows_mass_and_of_other_light(loud, other_dataset, tmp_path):
    """Clean pictures, and what is said about them, are of the former alone."""
    import shutil

    import h5py

    path = shutil.copy(other_dataset, tmp_path / "lit.h5")
    with h5py.File(path, "r+") as f:
        name = list(f)[1]
        f[name].attrs["light"] = "varied"
    data, seen = Dataset(path), []
    result, samples = evaluate_unseen(loud.weights, data, loud.library, on_batch=seen.append)
    n, half = len(data), len(data) // 2
    assert data.shines_by_mass.sum() == half and result["n_images"] == half and result["n_encounters"] == 1
    label = "time_since_pericentre"
    assert [len(samples[part][label]["truth"]) for part in ("clean", "realism")] == [half, n]
    assert sum(seen) == half + 2 * n
    parts = [result[part][label]["mean_abs_error"] for part in ("realism_by_mass", "realism_other_light")]
    assert result["realism"][label]["mean_abs_error"] == pytest.approx(np.mean(parts))
    plain, _ = evaluate_unseen(loud.weights, Dataset(other_dataset), loud.library, n_images=16)
    assert "realism_by_mass" not in plain


def test_training_encounters_are_refused(predictor, tiny_dataset):
    with pytest.raises(DatasetError, match="trained on"):
        evaluate_unseen(predictor.weights, Dataset(tiny_dataset))


def test_training_encounters_are_refused_before_the_model_is_calibrated(tiny_dataset, tiny_settings, tmp_path):
    """What a model has seen is written down when it is trained, not when its library is made."""
    from deepgalaxy.models.weights import load_weights
    from deepgalaxy.training.fit import fit
    from deepgalaxy.training.recipe import TrainConfig

    recipe = TrainConfig(data=str(tiny_dataset), output=str(tmp_path), epochs=1, images_per_epoch=4, batch_size=4,
                         validation_images=4, validate_every=9, model=tiny_settings, realism=None)
    weights = load_weights(fit(recipe, say=lambda text: None))
    with pytest.raises(DatasetError, match="trained on"):
        evaluate_unseen(weights, Dataset(tiny_dataset))


def test_encounters_that_error_bars_were_fitted_on_are_refused(tiny_model, other_dataset, tmp_path):
    from deepgalaxy.models.weights import load_weights
    from deepgalaxy.search.build import calibrate

    calibrate(tiny_model / "model.safetensors", other_dataset, n_images=64, output=tmp_path / "c.safetensors")
    with pytest.raises(DatasetError, match="error bars were fitted on"):
        evaluate_unseen(load_weights(tmp_path / "c.safetensors"), Dataset(other_dataset))


def test_result_has_the_keys_of_the_design(evaluation, predictor, other_dataset):
    result, _, seen = evaluation
    n = len(Dataset(other_dataset))
    assert result["protocol"] == "unseen" and result["n_images"] == n and result["n_encounters"] == 2
    assert result["model"] == predictor.weights.identity
    for part in ("clean", "realism", "realism_without_scale"):
        for label in LABELS:
            figures = result[part][label.name]
            assert figures["unit"] == label.unit and set(FIGURES) <= set(figures)
            assert all(np.isfinite(figures[name]) for name in FIGURES)
            assert 0 <= figures["coverage68"] <= figures["coverage95"] <= 1
            assert 0 <= figures["median_abs_error"] <= label.high - label.low
    assert -1 <= result["reconstruction"]["ssim_vae"] <= 1 and -1 <= result["reconstruction"]["ssim_fcae"] <= 1
    assert all(result["neighbours"][f"median_abs_dt_{name}"] >= 0 for name in ("5", "1", "5_without_scale", "shown",
                                                                               "shown_clean"))
    assert sum(seen) == 3 * n
    json.dumps(result)


def test_figures_of_all_times_are_those_of_a_range_that_holds_all(evaluation, loud, other_dataset):
    """All images of the data set lie in the usual range."""
    result, samples, _ = evaluation
    for part in ("clean", "realism", "realism_without_scale"):
        assert result["all_times"][part] == result[part]
        assert samples["all_times"][part].keys() == samples[part].keys()
    assert result["clean"]["joint"]["tarp"] > 0 and "joint" not in result["realism_without_scale"]


def test_what_is_flagged_is_counted(evaluation):
    familiarity = evaluation[0]["familiarity"]
    assert familiarity["flagged_by_kind"].keys() == familiarity["by_kind"].keys()
    assert 0 <= familiarity["flagged_encounters"] <= 1
    assert familiarity["flagged"] == pytest.approx(np.mean(list(familiarity["flagged_by_kind"].values())), abs=0.02)


def test_clean_figures_are_those_of_pictures_predicted_one_by_one(evaluation, loud, other_dataset):
    """Another way to the same numbers: each image as a user would give it, its errors counted by hand."""
    result, samples, _ = evaluation
    dataset = Dataset(other_dataset)
    stories = [loud.predict(dataset.surface_density(i), kpc_per_pixel=float(dataset.labels["pixel_scale"][i]))
               for i in range(len(dataset))]
    for label in LABELS:
        truth = dataset.labels[label.column]
        quantiles = {q: np.array([story.properties[label.name][q] for story in stories])
                     for q in ("p05", "p16", "p50", "p84", "p95")}
        width = label.high - label.low
        np.testing.assert_allclose(samples["clean"][label.name]["p50"], quantiles["p50"], atol=0.02 * width)
        np.testing.assert_allclose(samples["clean"][label.name]["p84"], quantiles["p84"], atol=0.02 * width)
        figures, error = result["clean"][label.name], np.abs(quantiles["p50"] - truth)
        assert figures["median_abs_error"] == pytest.approx(np.median(error), abs=0.02 * width)
        assert figures["mean_abs_error"] == pytest.approx(error.mean(), abs=0.02 * width)
        inside = (truth > quantiles["p16"]) & (truth < quantiles["p84"])
        assert figures["coverage68"] == pytest.approx(inside.mean(), abs=0.1)
        guess = np.abs(truth - np.median(truth))
        assert figures["prior_median_abs_error"] == pytest.approx(np.median(guess), rel=1e-5)


def test_coverage_counts_the_truths_between_the_quantiles(evaluation):
    result, samples, _ = evaluation
    for part in ("clean", "realism", "realism_without_scale"):
        for name, s in samples[part].items():
            inside = (s["truth"] > s["p16"]) & (s["truth"] < s["p84"])
            assert result[part][name]["coverage68"] == pytest.approx(inside.mean(), abs=1e-9)
            assert result[part][name]["coverage95"] == np.mean((s["pit"] > 0.025) & (s["pit"] < 0.975))


def test_realism_and_scale_make_a_difference(evaluation):
    _, samples, _ = evaluation
    p50 = [samples[part]["time_since_pericentre"]["p50"] for part in ("clean", "realism", "realism_without_scale")]
    assert np.abs(p50[0] - p50[1]).max() > 1 and np.abs(p50[1] - p50[2]).max() > 0.1


def test_evaluation_repeats_itself(evaluation, loud, other_dataset):
    again, _ = evaluate_unseen(loud.weights, Dataset(other_dataset), loud.library)
    assert again["realism"] == evaluation[0]["realism"]


def test_number_of_images_and_times_are_limited(predictor, other_dataset):
    dataset = Dataset(other_dataset)
    result, samples = evaluate_unseen(predictor.weights, dataset, n_images=10, time_range=(0.0, 200.0), n_views=1)
    truth = samples["clean"]["time_since_pericentre"]["truth"]
    assert result["n_images"] == len(truth) == 10 and truth.min() >= -8 and truth.max() <= 208
    assert "neighbours" not in result
    with pytest.raises(DatasetError, match="no image"):
        evaluate_unseen(predictor.weights, dataset, time_range=(5000.0, 6000.0))


@torch.inference_mode()
def test_neighbours_and_reconstruction_are_those_found_one_by_one(evaluation, loud, other_dataset):
    result, _, _ = evaluation
    data, model, distances, alike = Dataset(other_dataset), loud.weights.model, [], []
    for i in range(len(data)):
        light = light_from_stored(torch.from_numpy(data.images([i])), True)
        seen = observe_frames(light, torch.from_numpy(data.labels["pixel_scale"][i:i + 1]), [0], None)
        frame, told, encoding = seen.frames, model.encode(seen.frames, seen.scale).mu, model.encode(seen.frames)
        # By brute force, in the library's metric.
        apart = (loud.library.arrays["z_told"].astype(np.float32) - told.numpy()) @ loud.library.arrays["metric_told"]
        nearest = np.argsort((apart**2).sum(axis=1))[:5]
        distances.append(np.abs(loud.library.labels["time"][nearest] - data.labels["time"][i]))
        for maps in (encoding.maps, model.vae.decode(encoding.mu, encoding.maps.shape[2:])):
            alike.append(structural_similarity(model.reconstruct(maps, frame.shape[2:])[0, 0].numpy(),
                                               frame[0, 0].numpy(), data_range=1.0, win_size=7))
    assert result["neighbours"]["median_abs_dt_5"] == pytest.approx(float(np.median(distances)), abs=1e-3)
    direct, through = np.mean(np.reshape(alike, (-1, 2)), axis=0)
    assert result["reconstruction"]["ssim_fcae"] == pytest.approx(direct, abs=3e-5)
    assert result["reconstruction"]["ssim_vae"] == pytest.approx(through, abs=3e-5)
    assert abs(direct - through) > 9e-5  # they are told apart


def test_breakdown_is_of_the_images_within_its_limits(evaluation):
    result, samples, _ = evaluation
    error = {name: np.abs(s["p50"] - s["truth"]) for name, s in samples["realism"].items()}
    truth = {"time": samples["realism"]["time_since_pericentre"]["truth"],
             "mass_ratio": samples["realism"]["mass_ratio"]["truth"]}
    for what, values in truth.items():
        low, high = {"time": (-200, 1000), "mass_ratio": (0.1, 1.6)}[what]
        assert sum(row["n_images"] for row in result["by"][what]) == ((values >= low) & (values <= high)).sum() > 0
        for row in result["by"][what]:
            here = (values >= row["low"]) & (values < row["high"] + (row["high"] == high) * 1e-6)
            assert row["n_images"] == here.sum()
            for label in LABELS:
                assert row[label.name] == pytest.approx(float(np.median(error[label.name][here])), rel=1e-5)
