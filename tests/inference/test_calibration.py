"""What is fitted on held-out encounters."""

import numpy as np
import torch
from scipy.special import ndtri

from deepgalaxy.data.reader import Dataset
from deepgalaxy.data.writer import write_dummy_dataset
from deepgalaxy.inference.calibration import fit_correlation
from deepgalaxy.labels import LABELS
from deepgalaxy.models.deepgalaxy import Encoding


class Ignorant:
    """Answers every picture with what it knows beforehand: a flat distribution."""

    def __call__(self, frames, scale):
        return self.encode(frames), {label.name: torch.zeros(len(frames), label.n_bins) for label in LABELS}

    def encode(self, frames):
        return Encoding(torch.zeros(len(frames), 1, 2, 2), torch.zeros(len(frames), 4), torch.zeros(len(frames), 4))


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
