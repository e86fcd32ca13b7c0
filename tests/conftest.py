"""What several test files share: a tiny data set, a tiny model with its library, and how to call the program."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

# Threads of OpenMP wait for each other by turning round: where others compute too, small tensors take ten times longer.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np
import pytest

import deepgalaxy

#: One step of training of this model takes 0.1 s on one core.
TINY_MODEL = {"backbone": "mobilenetv4_conv_small_035", "channels": 16, "latent_size": 8, "classifier_width": 32,
              "decoder_width": 24, "latent_scale": True}


def _other_encounters(path: Path, prefix: str) -> Path:
    """Rename the groups, so that they are encounters of another suite."""
    with h5py.File(path, "r+") as f:
        for name in list(f):
            f.move(name, name.replace("encounter", prefix))
    return path


def _work_on(work, args, started):
    for k in itertools.count():
        work(*args, k)
        if k == 0:
            started.send(True)


@pytest.fixture(scope="session")
def kill_after():
    """Calls work(*args, k) for k = 0, 1, 2, ... in a process of its own, which is killed so long after the first."""
    # A fork of this process could wait for ever for threads of OpenMP that it did not inherit.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "deepgalaxy.inference.predictor"])

    def kill(seconds, work, *args):
        started, told = context.Pipe(duplex=False)
        child = context.Process(target=_work_on, args=(work, args, told))
        child.start()
        told.close()
        assert started.recv()
        time.sleep(seconds)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL

    return kill


@pytest.fixture(scope="session")
def tiny_settings():
    """Architecture of `tiny_model`, as a recipe holds it."""
    return TINY_MODEL


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    """Path of a data set: 6 encounters x 8 snapshots x 3 cameras of 64 pixels, two Gaussian blobs each."""
    from deepgalaxy.data.writer import write_dummy_dataset

    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    return write_dummy_dataset(path, n_encounters=6, n_snapshots=8, n_cameras=3, n_pixels=64)


@pytest.fixture(scope="session")
def other_dataset(tmp_path_factory):
    """Path of a data set of two encounters that `tiny_model` has never seen."""
    from deepgalaxy.data.writer import write_dummy_dataset

    path = tmp_path_factory.mktemp("other") / "other.h5"
    write_dummy_dataset(path, n_encounters=2, n_snapshots=8, n_cameras=2, n_pixels=64, seed=1)
    return _other_encounters(path, "other")


@pytest.fixture(scope="session")
def tiny_model(tiny_dataset, tmp_path_factory):
    """Folder with model.safetensors and library.h5: 30 steps of training, calibrated, all images in the library.

    The small rate keeps features diverse: BatchNorm's averages follow the weights, which at 4e-3 they did not.
    """
    from deepgalaxy.search.build import build_library, calibrate
    from deepgalaxy.training.fit import fit
    from deepgalaxy.training.recipe import TrainConfig

    folder = tmp_path_factory.mktemp("model") / "tiny"
    recipe = TrainConfig(
        name="tiny", data=str(tiny_dataset), output=str(folder), epochs=2, images_per_epoch=240, batch_size=16,
        validation_share=0.34, validation_images=16, validate_every=2, model=TINY_MODEL,
        optimiser={"learning_rate": 5e-4, "warmup": 1, "ema": 0.9}, loss={"realistic": 0.5})
    weights = fit(recipe, say=lambda text: None)
    calibrate(weights, tiny_dataset, n_images=64)
    build_library(weights, tiny_dataset, folder / "library.h5")
    return folder


@pytest.fixture(scope="session")
def predictor(tiny_model):
    """The tiny model and its library, ready to answer."""
    return deepgalaxy.load(tiny_model / "model.safetensors")


@pytest.fixture(scope="session")
def loud(predictor, tiny_dataset):
    """The tiny model with its last layers scaled up, so that unlike pictures get unlike answers.

    Thirty steps teach it next to nothing: all its answers would be the same, and every comparison true.
    """
    import torch

    from deepgalaxy.data.reader import Dataset
    from deepgalaxy.image.observation import light_from_stored, observe_frames
    from deepgalaxy.inference.predictor import Predictor

    weights = copy.copy(predictor.weights)
    weights.model = copy.deepcopy(weights.model)
    dataset = Dataset(tiny_dataset)
    index = np.arange(0, len(dataset), 3)
    seen = observe_frames(light_from_stored(torch.from_numpy(dataset.images(index))),
                          torch.from_numpy(dataset.labels["pixel_scale"][index]), [0] * len(index), None)
    with torch.no_grad():
        _, logits = weights.model(seen.frames, seen.scale)
        for name, layer in weights.model.classifier.heads.layers.items():
            factor = 1.5 / logits[name].std(dim=0).mean()
            layer.weight.mul_(factor)
            layer.bias.copy_(factor * (layer.bias - logits[name].mean(dim=0)))
    return Predictor(weights, predictor.library)


@pytest.fixture(scope="session")
def shipped():
    """A predictor with the weights and the library that ship with the package."""
    from deepgalaxy.inference.predictor import shipped as path_of

    for name in ("model.safetensors", "library.h5"):
        if not path_of(name).is_file():
            pytest.skip(f"src/deepgalaxy/shipped/{name} is missing; make it with recipes/shipped.sh")
    return deepgalaxy.load()


@pytest.fixture(scope="session")
def sky():
    """(200, 200) float32, y upwards: two unlike galaxies, askew, and faint noise. Neither mirror image is the same."""
    y, x = np.mgrid[:200, :200].astype(float)
    image = np.zeros((200, 200))
    for x0, y0, length, flattening, angle, peak in ((80, 85, 14, 0.5, 0.4, 1.0), (128, 118, 9, 0.8, 1.5, 0.7)):
        dx, dy = x - x0, y - y0
        along, across = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
        image += peak * np.exp(-np.hypot(along, across / flattening) / length)
    return (image + 0.02 * np.random.default_rng(0).standard_normal(image.shape)).astype(np.float32)


@pytest.fixture(scope="session")
def run():
    """run(*arguments) calls `python -m deepgalaxy` in a process of its own; status, out and err come back."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "COLUMNS": "120"}

    def call(*arguments, module="deepgalaxy", cwd=None, timeout=1800, env=None):
        done = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True,
                              cwd=cwd, timeout=timeout, env={**environment, **(env or {})})
        return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr)

    return call
