"""What is fitted on held-out encounters."""

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri

from deepgalaxy.data.reader import Dataset
from deepgalaxy.data.writer import write_dummy_dataset
from deepgalaxy.errors import DatasetError
from deepgalaxy.inference.calibration import _costs, fit_correlation, fit_temperature
from deepgalaxy.inference.posterior import SLOPE, coverage_level, tempered
from deepgalaxy.labels import LABELS, TIME
from deepgalaxy.models.deepgalaxy import Encoding
from deepgalaxy.models.weights import load_weights
from deepgalaxy.search.build import not_trained_on
from deepgalaxy.training.fit import fit
from deepgalaxy.training.recipe import TrainConfig, split


class Ignorant:
    """Answers every picture with what it knows beforehand: a flat distribution."""

    def __call__(self, frames, scale):
        return self.encode(frames), {label.name: torch.zeros(len(frames), label.n_bins) for label in LABELS}

    def encode(self, frames):
        return Encoding(torch.zeros(len(frames), 1, 2, 2), torch.zeros(len(frames), 4), torch.zeros(len(frames), 4))


def test_many_truths_say_how_wide_intervals_are_and_few_leave_it_to_the_likelihood():
    grid = np.geomspace(0.4, 3.0, 41)
    errors = 1.3 * np.random.default_rng(0).standard_normal(4000)
    levels = [ndtr(errors / t) for t in grid]  # a normal posterior of this width
    def believed(n_truths):
        return grid[np.argmin(_costs(grid, levels, 1.0, n_truths, np.arange(4000) % 4))]

    for n_truths, wanted in ((4000, 1.3), (1, 1.0)):
        assert believed(n_truths) == pytest.approx(wanted, rel=0.06)
    assert 1.05 < believed(100) < 1.3


def test_narrow_answers_get_another_temperature_than_wide_ones():
    """Normal posteriors whose errors are smaller than they say where they are narrow: all quarters cover then."""
    rng, n = np.random.default_rng(0), 4000
    sigma = np.exp(rng.uniform(np.log(20), np.log(160), n))  # Myr; 2 to 16 bins
    truth = rng.uniform(300, 500, n)
    mean = truth + sigma * (sigma / 160) ** 0.15 * rng.standard_normal(n)
    centres = (TIME.edges[1:] + TIME.edges[:-1]) / 2
    logits = torch.tensor(-0.5 * ((centres - mean[:, None]) / sigma[:, None]) ** 2)[None].float()
    t, slope = fit_temperature(TIME, logits, truth)
    assert slope == pytest.approx(0.3, abs=0.11)  # a width goes with the root of the temperature
    p = tempered(logits, {TIME.name: t, TIME.name + SLOPE: slope}, TIME.name, torch.zeros(n)).numpy()
    for quarter in np.array_split(np.argsort(sigma), 4):
        for promised in (0.68, 0.95):
            level = coverage_level(TIME, p[quarter], truth[quarter])
            assert np.mean(np.abs(level - 0.5) < promised / 2) == pytest.approx(promised, abs=0.03)


def test_correlation_of_errors_is_that_of_the_truths_for_a_model_that_knows_nothing(tmp_path):
    """Its errors are the truths themselves, as normal scores."""
    dataset = Dataset(write_dummy_dataset(tmp_path / "suite.h5", n_encounters=6, n_snapshots=25, n_cameras=2,
                                          n_pixels=48))
    rng, n = np.random.default_rng(4), len(dataset)
    u = rng.random((len(LABELS), n))
    u[2] = np.where(rng.random(n) < 0.6, u[1], u[2])  # these two go together, three times of five
    for label, at in zip(LABELS, u, strict=True):
        low, high = (np.log(label.low), np.log(label.high)) if label.log else (label.low, label.high)
        value = low + at * (high - low)
        dataset.labels[label.column] = (np.exp(value) if label.log else value).astype(np.float32)
    found = np.array(fit_correlation(Ignorant(), dataset, np.arange(n), None, {}, n_views=1))
    np.testing.assert_allclose(found, np.corrcoef(ndtri(np.clip(u, 0.005, 0.995))), atol=0.01)
    assert found[1, 2] > 0.45
    dataset.labels["time"][:] = np.nan
    assert fit_correlation(Ignorant(), dataset, np.arange(n), None, {}, n_views=1) is None


def test_only_images_that_were_not_trained_on_calibrate(tiny_dataset, other_dataset, tiny_settings, tmp_path):
    """Of a split by encounters, the held-out ones or others; of a random split, the images that it held out."""
    dataset, weights = Dataset(tiny_dataset), {}
    for kind in ("encounters", "random"):
        recipe = TrainConfig(data=str(tiny_dataset), output=str(tmp_path / kind), epochs=1, images_per_epoch=16,
                             batch_size=8, validation_share=0.34, validation_images=8, split=kind, model=tiny_settings)
        weights[kind] = load_weights(fit(recipe, say=lambda text: None))
        trained_on, held_out = split(recipe, dataset)[1]
        used = not_trained_on(weights[kind], dataset)
        assert set(used) == set(held_out) and not set(used) & set(trained_on)
    assert len(not_trained_on(weights["encounters"], Dataset(other_dataset))) == len(Dataset(other_dataset))
    fewer = write_dummy_dataset(tmp_path / "tiny.h5", n_encounters=6, n_snapshots=8, n_cameras=2, n_pixels=64)
    with pytest.raises(DatasetError, match="random split of 144"):
        not_trained_on(weights["random"], Dataset(fewer))
    weights["encounters"].metadata.update(training_encounters=dataset.identities, validation_encounters=[])
    with pytest.raises(DatasetError, match="trained on all"):
        not_trained_on(weights["encounters"], dataset)
