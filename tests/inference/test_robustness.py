"""How far answers move when a picture is turned, mirrored, zoomed or noisier."""

import numpy as np
import pytest
import torch

import deepgalaxy.inference.robustness as module
from deepgalaxy.data.reader import Dataset
from deepgalaxy.image.preprocess import find_frames, resampled
from deepgalaxy.inference.calibration import light_of
from deepgalaxy.inference.robustness import robustness
from deepgalaxy.labels import LABELS


@pytest.fixture(scope="module")
def canvases(tiny_dataset):
    data = Dataset(tiny_dataset)
    rows = np.arange(0, len(data), 9)
    light = light_of(data, rows)
    light = light / light.amax((1, 2, 3), keepdim=True)
    noise = torch.full((len(light),), 0.01)
    light = light + 0.01 * torch.randn(light.shape, generator=torch.Generator().manual_seed(0))
    return light, torch.from_numpy(data.labels["pixel_scale"][rows]), noise


def test_a_mirrored_picture_has_the_same_answer_and_a_turned_one_nearly(loud, canvases):
    result = robustness(loud.weights.model, *canvases, {})
    for label in LABELS:
        assert result["mirrored"][label.name]["median_shift"] < 0.02
        assert result["rotated by 90 degrees"][label.name]["median_shift"] < 0.3
        assert all(0 <= figures[label.name]["within"] <= 1 for figures in result.values())
    assert result["half the signal to noise"]["time_since_pericentre"]["median_shift"] > 1e-4


def test_a_zoom_about_the_middle_keeps_the_middle_and_moves_the_rest():
    image = torch.zeros(1, 1, 101, 101)
    image[0, 0, 50, 50], image[0, 0, 50, 70] = 1, 1
    enlarged = resampled(image, 0, 1.5)
    assert enlarged[0, 0, 50, 50] == pytest.approx(1, abs=0.01)
    assert int(enlarged[0, 0, 50, 60:].argmax()) + 60 == 80
    turned = resampled(image, 90)
    assert turned[0, 0, 50, 50] == pytest.approx(1, abs=0.01)
    assert max(float(turned[0, 0, 30, 50]), float(turned[0, 0, 70, 50])) == pytest.approx(1, abs=0.01)


def test_changes_are_those_that_their_names_say(loud, canvases, monkeypatch):
    """A zoom leaves every length in kpc; noise of sqrt(3) added to noise of 1 makes 2."""
    seen = []

    def answers(model, images, pixel_scale, *_):
        seen.append((images, pixel_scale))
        return {label.name: np.zeros((len(images), 3)) for label in LABELS}

    light, pixel_scale, noise = canvases
    monkeypatch.setattr(module, "_answers", answers)
    names = list(robustness(loud.weights.model, light, pixel_scale, noise, {}))
    (before, _), after = seen[0], dict(zip(names, seen[1:], strict=True))
    for name, zoom in (("enlarged by 20 %", 1.2), ("reduced by 20 %", 1 / 1.2)):
        images, scale = after[name]
        np.testing.assert_allclose(scale, pixel_scale / zoom, rtol=1e-6)
        size, now = (find_frames(x).half_side for x in (before, images))
        # Frames of faint images may be led elsewhere at the border; zoomed the wrong way all have 0.7 or 1.4.
        assert np.median(now * scale.numpy() / (size * pixel_scale.numpy())) == pytest.approx(1, abs=0.1)
    added = after["half the signal to noise"][0] - before
    np.testing.assert_allclose(added.std(dim=(1, 2, 3)), 3**0.5 * noise, rtol=0.05)
