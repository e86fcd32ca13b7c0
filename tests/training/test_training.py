"""A recipe becomes weights: the same ones when it is interrupted, and the same on several workers."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import lightning
import numpy as np
import pytest
import torch

from deepgalaxy.data.datamodule import EncounterImages, GlobalBatches, InMemory, loader
from deepgalaxy.data.joined import open_data
from deepgalaxy.data.reader import Dataset
from deepgalaxy.data.splits import split_by_encounter
from deepgalaxy.data.writer import write_dummy_dataset
from deepgalaxy.errors import ConfigError, DatasetError, ModelError
from deepgalaxy.files import keep_others_out
from deepgalaxy.image.observation import image_seeds, light_from_stored, observe_frames
from deepgalaxy.image.realism import RealismConfig
from deepgalaxy.inference.calibration import light_of
from deepgalaxy.inference.predictor import Predictor
from deepgalaxy.labels import NO_STAGE, STAGES
from deepgalaxy.models.deepgalaxy import DeepGalaxy, ModelConfig
from deepgalaxy.models.weights import Learnt, load_weights, save_weights, update_metadata
from deepgalaxy.training.callbacks import STOPS, Checkpoints, read_metrics
from deepgalaxy.training.fit import fit
from deepgalaxy.training.heads import Features
from deepgalaxy.training.module import LossConfig, TrainingModule
from deepgalaxy.training.optimiser import OptimiserConfig
from deepgalaxy.training.recipe import TrainConfig, read_recipe, split

MODEL = {"backbone": "mobilenetv4_conv_small", "channels": 16, "latent_size": 8, "classifier_width": 16,
         "decoder_width": 16}
#: A process that trains a recipe; with "kill" it takes itself down at the end of the second epoch,
#: when that epoch's checkpoint is not yet written.
SCRIPT = """
import os, signal, sys
import torch
from deepgalaxy.training.fit import fit
from deepgalaxy.training.recipe import read_recipe
torch.set_num_threads(1)
said = []
def say(line):
    print(line, flush=True)
    if line.startswith("epoch"):
        said.append(line)
    if "kill" in sys.argv and len(said) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
fit(read_recipe(sys.argv[1]), say)
"""


#: The same on a disk with so little space that a checkpoint of it finds none.
FULL = """
import resource, sys
from deepgalaxy.errors import ModelError
from deepgalaxy.training.fit import fit
from deepgalaxy.training.recipe import read_recipe
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    fit(read_recipe(sys.argv[1]), print)
except ModelError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dummy_dataset(tmp_path_factory.mktemp("data") / "suite.h5", n_encounters=4, n_snapshots=4,
                               n_cameras=2, n_pixels=64)


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(data, output, **options):
    options = {"epochs": 2, "images_per_epoch": 16, "batch_size": 8, "validation_share": 0.3, "realism": None,
               "model": MODEL, "optimiser": {"warmup": 2}, **options}
    return TrainConfig.parse({"data": str(data), "output": str(output), **options})


def start(config, *arguments, launcher=(), code=SCRIPT):
    path = Path(config.output).with_suffix(".yaml")
    path.write_text(config.to_json())  # JSON is YAML
    script = path.with_suffix(".py")
    script.write_text(code)
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")}
    return subprocess.run([sys.executable, *launcher, str(script), str(path), *arguments], capture_output=True,
                          text=True, env={**environment, "OMP_NUM_THREADS": "1"})


def metrics(output):
    return [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


def state(path):
    return load_weights(path).model.state_dict()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """Two epochs without an interruption."""
    torch.set_num_threads(1)
    config = recipe(data, tmp_path_factory.mktemp("straight") / "run")
    said = []
    return config, fit(config, said.append), said


def test_fit_writes_weights_metrics_and_recipe(straight, data):
    config, path, said = straight
    output = Path(config.output)
    weights = load_weights(path)
    assert path == output / "model.safetensors" and weights.name == "model"
    assert weights.metadata["training"] == json.loads(config.to_json())
    held = weights.metadata["validation_encounters"]
    assert 1 <= len(held) < 4 and set(held) <= set(Dataset(data).identities)
    rows = metrics(output)
    assert [row["epoch"] for row in rows] == [0, 1] and [row["steps"] for row in rows] == [2, 4]
    for row in rows:
        assert row["workers"] == 1 and row["images_per_second"] > 0 and 0 <= row["input_wait"] <= 1
        assert np.isfinite([row["loss"], row["labels"], row["reconstruction"], row["kl"]]).all()
        assert row["clean_time_since_pericentre"] >= 0
    # Three of four names hash into the share that is held out: said before hours are spent on one encounter.
    assert said[0] == ("trains on 1 of 4 encounters, holds out 3 (validation_share = 0.3; another split_seed holds out "
                       "others)")
    missing = ", ".join(weights.metadata["never_seen"])
    assert missing and said[1] == f"no image to train on tells: {missing}; answers about that will mean nothing"
    assert len(said) == 4 and said[2].startswith("epoch 1/2: loss ")
    assert TrainConfig.from_json((output / "recipe.json").read_text()) == config
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == ["epoch_00000.ckpt", "epoch_00001.ckpt"]


def test_the_result_is_the_average_of_the_weights_on_their_way(straight):
    config, path, _ = straight
    checkpoint = torch.load(Checkpoints.newest(Path(config.output) / "checkpoints"), weights_only=False)["state_dict"]
    averaged, last = ({k.removeprefix(start): v for k, v in checkpoint.items() if k.startswith(start)}
                      for start in ("averaged.module.", "model."))
    assert_same(state(path), averaged)
    assert not torch.equal(last["encoder.neck.weight"], averaged["encoder.neck.weight"])


def test_every_part_of_the_loss_teaches_what_it_is_for(monkeypatch):
    """Their weights, the warm-up of the KL divergence, and which layers get a gradient."""
    torch.manual_seed(0)
    frames, scale = torch.rand(6, 1, 64, 64), torch.zeros(6)
    labels = {"time_since_pericentre": torch.linspace(0, 300, 6), "mass_ratio": torch.full((6,), 0.5)}

    def parts(step, **weights):
        torch.manual_seed(1)
        loss = LossConfig(kl_warmup=1000, free_bits=0, **{"latent_ranks": 0.1, **weights})
        module = TrainingModule(ModelConfig(**MODEL), loss, OptimiserConfig(), None, total_steps=10)
        monkeypatch.setattr(TrainingModule, "global_step", step)
        return module, module.losses(frames, scale, frames[:3], labels)

    module, found = parts(1000)
    names = {"labels", "latent_labels", "latent_ranks", "reconstruction", "latent_reconstruction", "maps", "kl"}
    assert set(found) == names and all(value > 0 for value in found.values())
    value = {name: part.item() for name, part in found.items()}
    assert parts(500)[1]["kl"].item() == pytest.approx(0.5 * value["kl"]) and parts(0)[1]["kl"].item() == 0
    for name in names - {"labels"}:
        twice = parts(1000, **{name: 2 * getattr(LossConfig(latent_ranks=0.1), name)})[1][name].item()
        assert twice == pytest.approx(2 * value[name])
    model = module.model
    of = {"labels": model.classifier, "latent_labels": model.latent_heads, "latent_ranks": model.vae.squeeze,
          "reconstruction": model.decoder, "latent_reconstruction": model.vae.from_latent,
          "maps": model.vae.expand, "kl": model.vae.to_latent}
    for name, layers in of.items():
        model.zero_grad()
        found[name].backward(retain_graph=True)
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in layers.parameters()), name
        assert model.encoder.neck.weight.grad.abs().max() > 0, name  # all teach the encoder


def test_same_recipe_same_weights(straight, data, tmp_path):
    config, path, _ = straight
    again = fit(config.model_copy(update={"output": str(tmp_path / "run")}), say=lambda line: None)
    assert_same(state(path), state(again))
    other = fit(config.model_copy(update={"output": str(tmp_path / "other"), "seed": 1}), say=lambda line: None)
    assert not torch.equal(state(path)["encoder.neck.weight"], state(other)["encoder.neck.weight"])


def test_a_full_disk_is_one_line_and_the_training_goes_on_from_there(straight, data, tmp_path):
    config, path, _ = straight
    config = config.model_copy(update={"output": str(tmp_path / "run")})
    full = start(config, code=FULL)
    assert full.returncode == 0, full.stderr[-1000:]
    assert "epoch_00000.ckpt: cannot be written (File too large); free space and start again" in full.stdout
    assert "Traceback" not in full.stderr and not list((tmp_path / "run" / "checkpoints").iterdir())
    assert start(config).returncode == 0
    assert_same(state(path), state(Path(config.output) / "model.safetensors"))


def test_resume_equals_uninterrupted_run(straight, data, tmp_path):
    config, path, _ = straight
    config = config.model_copy(update={"output": str(tmp_path / "run")})
    killed = start(config, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    checkpoints = Path(config.output) / "checkpoints"
    assert [p.name for p in checkpoints.iterdir()] == ["epoch_00000.ckpt"]
    assert not (Path(config.output) / "model.safetensors").exists()
    said = []
    resumed = fit(config, said.append)
    assert said[0] == "going on from epoch_00000.ckpt" and said[1].startswith("epoch 2/2")
    assert_same(state(path), state(resumed))


def test_weights_of_another_training_are_not_taken_for_those_of_this_one(straight, data, tmp_path):
    """Its checkpoints were deleted and another one begun, which was killed before it wrote its weights."""
    first = recipe(data, tmp_path / "run", optimiser={"warmup": 2, "learning_rate": 1e-4})
    path = fit(first, say=lambda line: None)
    weights = path.read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    second = recipe(data, tmp_path / "run")
    fit(second, say=lambda line: None)
    assert len(metrics(tmp_path / "run")) == 2 and (tmp_path / "run" / "metrics_before.jsonl").exists()
    path.write_bytes(weights)
    assert_same(state(fit(second, say=lambda line: None)), state(straight[1]))
    said = []
    fit(second, said.append)
    assert said == [f"{path}: all 2 epochs are done"]


def test_two_trainings_in_one_output_do_not_get_in_each_others_way(data, tmp_path, monkeypatch):
    monkeypatch.setattr("time.monotonic", iter(range(0, 1000, 20)).__next__)  # nobody waits for the other to end
    with keep_others_out(tmp_path / "run", RuntimeError, "busy"):
        with pytest.raises(ConfigError, match="run: another training is at work there; wait for it to end"):
            fit(recipe(data, tmp_path / "run"), say=lambda line: None)
        assert not list((tmp_path / "run").iterdir())


def test_one_encounter_and_its_galaxies_alone_are_one(data, tmp_path):
    with h5py.File(data) as source, h5py.File(tmp_path / "one.h5", "w") as f:
        f.attrs.update(source.attrs)
        name = next(iter(source))
        for group in (name, f"{name}-single"):
            source.copy(source[name], f, group)
        f[f"{name}-single"].attrs.update({"kind": "single", "encounter": name})
    with pytest.raises(DatasetError, match="holds 1 encounter; training needs at least 2"):
        fit(recipe(tmp_path / "one.h5", tmp_path / "run"), say=lambda line: None)


def test_damaged_newest_checkpoint_is_passed_over(straight, tmp_path):
    config, path, _ = straight
    shutil.copytree(config.output, tmp_path / "run")
    config = config.model_copy(update={"output": str(tmp_path / "run")})
    newest = tmp_path / "run" / "checkpoints" / "epoch_00001.ckpt"
    whole = newest.read_bytes()
    said = []
    newest.write_bytes(whole[:len(whole) // 2])
    with pytest.warns(UserWarning, match="epoch_00001.ckpt: damaged checkpoint.*the one before is used"):
        again = fit(config, said.append)
    assert said[0] == "going on from epoch_00000.ckpt"
    assert_same(state(path), state(again))
    assert newest.read_bytes() != whole[:len(whole) // 2]  # written anew


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", "truncated", "other"])
def test_newest_readable_checkpoint_is_chosen(tmp_path, content):
    assert Checkpoints.newest(tmp_path) is None
    torch.save({"state_dict": {}}, tmp_path / "epoch_00003.ckpt")
    if content == "other":
        torch.save([1, 2], tmp_path / "epoch_00004.ckpt")
    elif content == "truncated":
        (tmp_path / "epoch_00004.ckpt").write_bytes((tmp_path / "epoch_00003.ckpt").read_bytes()[:-100])
    else:
        (tmp_path / "epoch_00004.ckpt").write_bytes(content)
    (tmp_path / "epoch_00005.tmp").write_bytes(b"half")
    with pytest.warns(UserWarning, match="epoch_00004.ckpt"):
        assert Checkpoints.newest(tmp_path).name == "epoch_00003.ckpt"


def test_terminated_run_goes_on_where_it_was(straight, data, tmp_path):
    config, path, _ = straight
    config = config.model_copy(update={"output": str(tmp_path / "run")})

    def say(line):
        if line.startswith("epoch 1/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        fit(config, say)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    said = []
    assert_same(state(path), state(fit(config, said.append)))
    assert said[0] == "going on from epoch_00000.ckpt"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("step", [1, 3])
def test_terminated_in_mid_epoch_it_goes_on_from_that_step(straight, data, tmp_path, monkeypatch, step, workers):
    """A job that is shorter than an epoch gets on too; and nothing is done twice."""
    config, path, _ = straight
    config = config.model_copy(update={"output": str(tmp_path / "run"), "loader_workers": workers})
    steps, training_step = [], TrainingModule.training_step

    def stopped(module, *arguments):
        steps.append(module.global_step)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(module, *arguments)

    monkeypatch.setattr(TrainingModule, "training_step", stopped)
    said = []
    with pytest.raises(KeyboardInterrupt):
        fit(config, said.append)
    assert "asked to stop (SIGTERM)" in said[-1]
    newest = Checkpoints.newest(tmp_path / "run" / "checkpoints")
    assert newest.name == {1: "epoch_00000_step_0000001.ckpt", 3: "epoch_00001_step_0000001.ckpt"}[step]
    assert_same(state(path), state(fit(config, said.append)))
    assert steps == [0, 1, 2, 3]
    partly = [line.partition(":")[0] for line in said if "(of its last 1 steps)" in line]
    assert partly == [{1: "epoch 1/2", 3: "epoch 2/2"}[step]]
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["epoch_00000.ckpt", "epoch_00001.ckpt"]


def test_fit_leaves_the_process_as_it_was(data, tmp_path):
    """Whether it came to its end or was stopped."""
    before = {number: signal.getsignal(number) for number in STOPS}
    with pytest.raises(KeyboardInterrupt):
        fit(recipe(data, tmp_path / "run"),
            say=lambda line: line.startswith("epoch") and os.kill(os.getpid(), signal.SIGINT))
    assert {number: signal.getsignal(number) for number in STOPS} == before
    fit(recipe(data, tmp_path / "run"), say=lambda line: None)
    assert {number: signal.getsignal(number) for number in STOPS} == before


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_writes_a_checkpoint_and_ends_as_everywhere(data, tmp_path, workers):
    config = recipe(data, tmp_path / "run", epochs=1000, loader_workers=workers)
    path = tmp_path / "recipe.yaml"
    path.write_text(config.to_json())  # JSON is YAML
    child = subprocess.Popen([sys.executable, "-m", "deepgalaxy", "train", str(path)], stderr=subprocess.PIPE,
                             text=True, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        first = [child.stderr.readline() for _ in range(3)]  # what is trained on, and what is not learnt, first
        assert first[0].startswith("trains on ") and first[2].startswith("epoch 1/1000")
        os.killpg(child.pid, signal.SIGINT)  # Ctrl-C reaches the processes that read as well
        err = child.communicate(timeout=120)[1].splitlines()
    finally:
        child.kill()
    assert child.returncode == 130, err
    assert err[-2].startswith("asked to stop (SIGINT): a checkpoint is written")
    assert err[-1] == "stopped; what was finished is kept" and all(line.startswith("epoch ") for line in err[:-2])
    assert Checkpoints.newest(tmp_path / "run" / "checkpoints") is not None
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_lost_worker_ends_the_training_and_the_next_start_goes_on(data, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    whole, config = (recipe(data, tmp_path / name, validate_every=9) for name in ("whole", "lost"))
    assert start(whole, launcher=launcher).returncode == 0
    lost = start(config, "kill", launcher=launcher)
    assert lost.returncode not in (0, None) and not (tmp_path / "lost" / "model.safetensors").exists()
    again = start(config, launcher=launcher)
    assert again.returncode == 0 and "going on from epoch_00000.ckpt" in again.stdout, again.stderr[-500:]
    assert_same(*(state(tmp_path / name / "model.safetensors") for name in ("whole", "lost")))


def test_two_workers_match_one(data, tmp_path):
    # 3 epochs of 4 steps of 16 images. Dropout, z and BatchNorm's statistics differ between the two, and at
    # the usual learning rate that grows to 1.5 % within 12 steps of so small batches.
    configs = [recipe(data, tmp_path / name, epochs=3, images_per_epoch=64, batch_size=16, validate_every=3,
                      optimiser={"warmup": 12, "learning_rate": 1e-3}) for name in ("one", "two")]
    fit(configs[0], say=lambda line: None)
    two = start(configs[1], launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))
    assert two.returncode == 0, two.stderr
    a, b = metrics(configs[0].output), metrics(configs[1].output)
    assert [row["workers"] for row in a] == [1, 1, 1] and [row["workers"] for row in b] == [2, 2, 2]
    assert [row["steps"] for row in a] == [row["steps"] for row in b] == [4, 8, 12]
    np.testing.assert_allclose([row["loss"] for row in b], [row["loss"] for row in a], rtol=0.01)
    assert two.stdout.count("epoch 1/3") == 1  # one worker speaks for all
    load_weights(tmp_path / "two" / "model.safetensors")


# Batches


@pytest.mark.parametrize("n, batch_size, steps", [(100, 8, 5), (7, 4, 7), (1000, 12, 83)])
@pytest.mark.parametrize("world", [2, 4])
def test_workers_together_take_the_batch_of_one(n, batch_size, steps, world):
    for epoch in (0, 1, 5):
        single = GlobalBatches(n, batch_size, steps, seed=3)
        several = [GlobalBatches(n, batch_size, steps, 3, rank, world) for rank in range(world)]
        for sampler in (single, *several):
            sampler.set_epoch(epoch)
        for whole, *parts in zip(single, *several, strict=True):
            assert len(whole) == batch_size and {len(p) for p in parts} == {batch_size // world}
            merged = [parts[i % world][i // world] for i in range(batch_size)]
            assert merged == whole


def test_epochs_go_on_through_one_stream_of_permutations():
    n = 24
    sampler, taken = GlobalBatches(n, 4, 2, seed=1), []
    assert len(sampler) == len(list(sampler)) == 2
    for epoch in range(6):
        sampler.set_epoch(epoch)
        taken += [i for batch in sampler for i in batch]
    assert sorted(taken[:n]) == sorted(taken[n:]) == list(range(n))  # every image once before any comes twice
    assert taken[:n] != taken[n:]


@pytest.mark.parametrize("workers", [0, 1])
def test_images_kept_in_memory_make_the_same_weights(straight, data, tmp_path, workers):
    path = fit(recipe(data, tmp_path, in_memory=True, loader_workers=workers))
    assert_same(state(path), state(straight[1]))


@pytest.mark.parametrize("kind", ["float16", "uint8"])
def test_published_files_train_as_they_are(kind, tmp_path):
    path = write_dummy_dataset(tmp_path / "published.hdf5", n_encounters=4, n_snapshots=4, n_cameras=2, n_pixels=64,
                               published=True)
    if kind == "uint8":
        with h5py.File(path, "r+") as f:
            for group in f.values():
                for name in [n for n in group if n.startswith("images")]:
                    values = np.round(255 * group[name][()].astype(float)).astype(np.uint8)
                    del group[name]
                    group[name] = values
    weights = fit(recipe(path, tmp_path / "run", realism={}, epochs=1), say=lambda text: None)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(rows[0]["loss"]) and load_weights(weights).metadata["training_encounters"]


def test_fewer_images_than_a_batch_still_fill_one():
    assert [len(b) for b in GlobalBatches(3, 8, 1, seed=0)] == [8]


def test_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match="multiple of 3"):
        GlobalBatches(10, 8, 1, 0, 0, 3)


class Recorder(lightning.LightningModule):
    """Learns nothing; notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), {}

    def training_step(self, batch, _):
        self.seen.setdefault(self.current_epoch, []).extend(batch["index"].tolist())
        return (self.weight * batch["image"].mean()).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_epoch_shows_other_images(data, workers):
    images = EncounterImages(Dataset(data), np.arange(32))
    batches, module = GlobalBatches(32, 4, 4, seed=0), Recorder()
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(module, loader(images, batches, workers))
    for epoch in range(4):
        batches.set_epoch(epoch)
        assert module.seen[epoch] == [i for batch in batches for i in batch]
    assert sorted(module.seen[0] + module.seen[1]) == list(range(32))


def test_labels_stay_with_their_images(data):
    dataset = Dataset(data)
    batch = EncounterImages(dataset, np.arange(5, 30)).__getitems__([3, 0, 20])
    assert batch["index"].tolist() == [8, 5, 25]
    np.testing.assert_array_equal(batch["image"], dataset.images([8, 5, 25]))
    for name, column in (("time_since_pericentre", "time"), ("mass_ratio", "mass_ratio"), ("stage", "stage")):
        np.testing.assert_array_equal(batch[name], dataset.labels[column][[8, 5, 25]])
    assert batch["time_camera"].tolist() == [dataset.snapshot[i] * 2 + dataset.camera[i] for i in (8, 5, 25)]


def test_training_can_start_from_weights(straight, data, tmp_path):
    """With steps too small to matter, the result is what it started from; and nothing like another start."""
    config, path, _ = straight
    still = config.optimiser.model_copy(update={"learning_rate": 1e-12})
    going_on = config.model_copy(update={"output": str(tmp_path / "run"), "seed": 5, "split_seed": config.seed,
                                         "start_from": str(path), "optimiser": still})
    ours = state(fit(going_on, say=lambda line: None))
    for name, value in state(path).items():
        if "running" not in name and "num_batches" not in name:  # BatchNorm's averages follow the images
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6)


def test_a_recipe_without_a_model_takes_that_of_its_start(straight, data, tmp_path):
    _, path, _ = straight
    tree = {"name": "on", "data": str(data), "output": str(tmp_path / "run"), "start_from": str(path), "epochs": 1,
            "images_per_epoch": 8, "batch_size": 4, "validation_share": 0.3, "split_seed": straight[0].seed}
    weights = load_weights(fit(TrainConfig.parse(tree), say=lambda line: None))
    assert weights.model.config == load_weights(path).model.config != ModelConfig()


def test_what_a_recipe_does_not_say_of_the_model_is_that_of_its_start(straight, data, tmp_path):
    _, path, _ = straight
    tree = {"name": "on", "data": str(data), "output": str(tmp_path / "run"), "start_from": str(path), "epochs": 1,
            "images_per_epoch": 8, "batch_size": 4, "validation_share": 0.3, "split_seed": straight[0].seed,
            "model": {"n_classes": 8}}
    weights = load_weights(fit(TrainConfig.parse(tree), say=lambda line: None))
    assert weights.model.config == load_weights(path).model.config.model_copy(update={"n_classes": 8})


def test_a_training_goes_on_though_its_start_has_become_another(straight, data, tmp_path):
    config, path, _ = straight
    start = tmp_path / "start.safetensors"
    start.write_bytes(path.read_bytes())
    tree = {"name": "on", "data": str(data), "output": str(tmp_path / "run"), "start_from": str(start), "epochs": 1,
            "images_per_epoch": 8, "batch_size": 4, "validation_share": 0.3, "split_seed": config.seed,
            "model": {"n_classes": 8}}
    done = fit(TrainConfig.parse(tree), say=lambda line: None)
    other = config.model.model_copy(update={"channels": 24, "fine_depth": 1})
    save_weights(start, DeepGalaxy(other), "other", training=config)
    said = []
    assert fit(TrainConfig.parse(tree), say=said.append) == done and "all 1 epochs are done" in said[-1]
    longer = load_weights(fit(TrainConfig.parse({**tree, "epochs": 2}), say=said.append))
    assert longer.model.config == config.model.model_copy(update={"n_classes": 8})


def test_a_deeper_classifier_starts_as_the_one_before(straight, data, tmp_path):
    config, path, _ = straight
    deeper = config.model.model_copy(update={"classifier_depth": 5})
    still = config.optimiser.model_copy(update={"learning_rate": 1e-12})
    deep = config.model_copy(update={"output": str(tmp_path / "run"), "split_seed": config.seed, "model": deeper,
                                      "start_from": str(path), "optimiser": still})
    ours, theirs = (load_weights(p).model for p in (fit(deep, say=lambda line: None), path))
    assert len(ours.classifier.deeper) == 2 and len(theirs.classifier.deeper) == 0
    theirs.load_state_dict(ours.state_dict(), strict=False)  # BatchNorm's averages follow the images
    maps, scale = torch.randn(3, config.model.channels, 8, 8), torch.zeros(3)
    for name, logits in theirs.classify(maps, scale).items():
        torch.testing.assert_close(ours.classify(maps, scale)[name], logits, rtol=1e-4, atol=1e-4)
    finer = deep.model_copy(update={"output": str(tmp_path / "finer"), "model": config.model.model_copy(
        update={"fine_depth": 2})})
    ours, theirs = load_weights(fit(finer, say=lambda line: None)).model, load_weights(path).model
    theirs.load_state_dict(ours.state_dict(), strict=False)
    image = torch.randn(3, 1, 64, 64)
    torch.testing.assert_close(ours.encode(image).maps, theirs.encode(image).maps, rtol=1e-4, atol=1e-4)
    torch.nn.init.normal_(ours.encoder.fine_neck.weight)  # as after a training
    save_weights(tmp_path / "fine.safetensors", ours, "fine", training=finer,
                 training_encounters=load_weights(path).metadata["training_encounters"])
    finest = finer.model_copy(update={
        "output": str(tmp_path / "finest"), "model": config.model.model_copy(update={"fine_depth": 3}),
        "start_from": str(tmp_path / "fine.safetensors")})
    grown = load_weights(fit(finest, say=lambda line: None)).model
    ours.load_state_dict(grown.state_dict(), strict=False)
    torch.testing.assert_close(grown.encode(image).maps, ours.eval().encode(image).maps, rtol=1e-4, atol=1e-4)
    classes = deep.model_copy(update={"output": str(tmp_path / "classes"), "model": config.model.model_copy(
        update={"n_classes": 8})})
    assert load_weights(fit(classes, say=lambda line: None)).model.config.n_classes == 8
    without = deep.model_copy(update={"output": str(tmp_path / "without"), "model": config.model.model_copy(
        update={"n_classes": 0}), "start_from": str(tmp_path / "classes" / "model.safetensors")})
    assert load_weights(fit(without, say=lambda line: None)).model.config.n_classes == 0
    less = deep.model_copy(update={"start_from": str(tmp_path / "run" / "model.safetensors"), "model":
                                    config.model.model_copy(update={"classifier_depth": 3}),
                                    "output": str(tmp_path / "less")})
    with pytest.raises(ModelError, match="classifier_depth 5, not 3"):
        fit(less, say=lambda line: None)


def test_a_second_backbone_starts_as_nothing_and_learns(straight, data, tmp_path):
    config, path, _ = straight

    def grown(name, rate, **more):
        optimiser = config.optimiser.model_copy(update={"learning_rate": rate})
        return fit(config.model_copy(update={
            "output": str(tmp_path / name), "start_from": str(path), "split_seed": config.seed, "optimiser": optimiser,
            "model": config.model.model_copy(update={"second_backbone": "resnet10t"}), **more}), say=lambda line: None)

    image = torch.randn(3, 1, 64, 64)
    ours, theirs = load_weights(grown("still", 1e-12)).model, load_weights(path).model
    assert ours.second.neck.weight.abs().max() < 1e-6
    theirs.load_state_dict(ours.state_dict(), strict=False)  # BatchNorm's averages follow the images
    torch.testing.assert_close(ours.encode(image).maps, theirs.encode(image).maps, rtol=1e-4, atol=1e-4)
    learnt = grown("learnt", 1e-2, store="float16")
    model = load_weights(learnt).model
    assert model.second.neck.weight.abs().max() > 1e-4 and model.second.neck.weight.dtype == torch.float32
    assert learnt.stat().st_size < 0.6 * (tmp_path / "still" / "model.safetensors").stat().st_size
    with pytest.raises(ModelError, match="second_backbone = resnet10x: timm has no model of this name; did you mean"):
        DeepGalaxy(ModelConfig(second_backbone="resnet10x"))
    with pytest.raises(ModelError, match="second_backbone resnet10t, not resnet18"):
        fit(config.model_copy(update={
            "output": str(tmp_path / "another"), "start_from": str(learnt), "split_seed": config.seed,
            "model": config.model.model_copy(update={"second_backbone": "resnet18"})}), say=lambda line: None)

    alone = load_weights(fit(config.model_copy(update={
        "output": str(tmp_path / "alone"), "start_from": str(learnt), "split_seed": config.seed,
        "optimiser": config.optimiser.model_copy(update={"learning_rate": 1e-12}),
        "model": config.model.model_copy(update={"second_backbone": None})}), say=lambda line: None)).model
    assert alone.second is None and alone.config.second_backbone is None
    torch.testing.assert_close(alone.encoder.neck.weight, model.encoder.neck.weight, rtol=1e-3, atol=1e-4)


def test_z_that_is_told_the_scale_starts_as_the_one_before_and_learns(straight, data, tmp_path):
    config, path, _ = straight
    assert not config.model.latent_scale

    def told(name, rate):
        return load_weights(fit(config.model_copy(update={
            "output": str(tmp_path / name), "start_from": str(path), "split_seed": config.seed,
            "optimiser": config.optimiser.model_copy(update={"learning_rate": rate}),
            "model": config.model.model_copy(update={"latent_scale": True})}), say=lambda line: None)).model

    maps, scale = torch.randn(3, config.model.channels, 8, 8), torch.tensor([-0.5, 0.0, torch.nan])
    ours, theirs = told("still", 1e-12).vae, load_weights(path).model.vae
    theirs.load_state_dict(ours.state_dict(), strict=False)
    torch.testing.assert_close(ours.encode(maps, scale)[0], theirs.encode(maps)[0], rtol=1e-4, atol=1e-4)
    learnt = told("learnt", 1e-2).vae
    near, untold = learnt.encode(maps, scale)[0], learnt.encode(maps)[0]
    assert (near - untold)[:2].abs().max() > 1e-4 and torch.equal(near[2], untold[2])
    with pytest.raises(ModelError, match="latent_scale True, not False"):
        fit(config.model_copy(update={
            "output": str(tmp_path / "less"), "start_from": str(tmp_path / "learnt" / "model.safetensors"),
            "split_seed": config.seed, "model": config.model.model_copy(update={"latent_scale": False})}),
            say=lambda line: None)


def test_heads_alone_are_trained_on_the_features_of_the_rest(straight, data, tmp_path):
    """Everything below the last layers stays to the bit, and what they are trained on is what they will see."""
    config, path, _ = straight
    alone = config.model_copy(update={
        "train": "heads", "framing": "whole", "loss": LossConfig(scale_known=1, labels={"time_since_pericentre": 5}),
        "output": str(tmp_path / "run"), "split_seed": config.seed, "start_from": str(path)})
    ours, theirs = state(fit(alone, say=lambda line: None)), state(path)
    moved = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    last = {name for name in theirs if name.startswith(("classifier.mix", "classifier.heads"))}
    assert moved <= last and {name for name in last if "heads" not in name or "time_since" in name} <= moved

    dataset, model = Dataset(data), load_weights(path).model.eval()
    rows = Features(EncounterImages(dataset, np.arange(len(dataset))), model, "whole", True).__getitems__([5, 2])
    seen = observe_frames(light_from_stored(torch.from_numpy(dataset.images([5, 2]))),
                          torch.from_numpy(dataset.labels["pixel_scale"][[5, 2]]), image_seeds(3, 0, [5, 2]), None,
                          framing="whole")
    with torch.no_grad():
        whole = model(seen.frames, seen.scale)[1]
        for name, logits in model.classifier.heads(model.classifier.mix(rows["features"])).items():
            torch.testing.assert_close(logits, whole[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(rows["time_since_pericentre"], dataset.labels["time"][[5, 2]])


def test_heads_alone_go_on_with_the_features_that_they_began_with(straight, data, tmp_path):
    """Killed, and begun again when the weights that it started from have gone through another training."""
    shutil.copy(straight[1], tmp_path / "start.safetensors")
    whole, config = (recipe(data, tmp_path / name, train="heads", framing="whole", loss={"scale_known": 1},
                            split_seed=straight[0].seed, start_from=str(tmp_path / "start.safetensors"))
                     for name in ("whole", "run"))
    path = fit(whole, say=lambda line: None)
    killed = start(config, "kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    shutil.copy(path, tmp_path / "start.safetensors")
    assert_same(state(path), state(fit(config, say=lambda line: None)))


# Mistakes


@pytest.mark.parametrize(("change", "message"), [
    ({"start_from": None}, "start_from = None: must be weights"),
    ({"framing": "content"}, "framing = content: must be whole"),
    ({"realism": RealismConfig()}, "realism = given: must be null"),
    ({"loss": LossConfig()}, "loss.scale_known = 0.5: must be 0 or 1")])
def test_heads_alone_need_pictures_that_stay_the_same(straight, data, tmp_path, change, message):
    alone = {"train": "heads", "framing": "whole", "loss": LossConfig(scale_known=0), "start_from": str(straight[1])}
    with pytest.raises(ConfigError, match=f"^train = heads: {message}"):
        fit(recipe(data, tmp_path / "out").model_copy(update={**alone, **change}))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_of_the_start_is_in_the_result(straight, data, tmp_path, share):
    config, path, _ = straight
    on = config.model_copy(update={"output": str(tmp_path / "run"), "start_from": str(path), "split_seed": config.seed,
                                   "keep_of_start": share})
    result, start = state(fit(on, say=lambda line: None)), state(path)
    checkpoint = torch.load(Checkpoints.newest(tmp_path / "run" / "checkpoints"), weights_only=False)["state_dict"]
    moved = 0
    for name, tensor in result.items():
        learnt = checkpoint[f"averaged.module.{name}"]
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (1 - share) * learnt + share * start[name])
            moved += not torch.equal(learnt, start[name])
    assert moved > 10
    with pytest.raises(ConfigError, match="keep_of_start = 0.3: needs weights to start from"):
        fit(on.model_copy(update={"keep_of_start": 0.3, "start_from": None}))
    # It is said of the result alone: from the same checkpoint, another share can be taken.
    (tmp_path / "run" / "model.safetensors").unlink()
    other = state(fit(on.model_copy(update={"keep_of_start": 0.9}), say=lambda line: None))
    name = "encoder.neck.weight"
    torch.testing.assert_close(other[name], 0.1 * checkpoint[f"averaged.module.{name}"] + 0.9 * start[name])


def test_start_from_another_architecture_is_one_line(straight, data, tmp_path):
    config, path, _ = straight
    other = recipe(data, tmp_path / "run", model={**MODEL, "channels": 24}, start_from=str(path))
    with pytest.raises(ModelError, match="start_from = .*channels 16, not 24") as caught:
        fit(other, say=lambda line: None)
    assert "\n" not in str(caught.value)
    held = [split_by_encounter(Dataset(data).groups, (0.7, 0.3), seed)[1].tolist() for seed in range(40)]
    split_seed = next(seed for seed in range(40) if set(held[seed]) - set(held[config.seed]))
    mixed = config.model_copy(update={"output": str(tmp_path / "run"), "split_seed": split_seed,
                                      "start_from": str(path)})
    with pytest.raises(ConfigError, match="would be held out here"):
        fit(mixed, say=lambda line: None)
    with pytest.raises(ModelError, match="no such weights"):
        fit(other.model_copy(update={"start_from": str(tmp_path / "nowhere")}), say=lambda line: None)


@pytest.mark.parametrize("tree, key", [
    ({"epochs": 0}, "epochs"), ({"batch": 4}, "batch"), ({"optimiser": {"learning_rate": -1}}, "learning_rate"),
    ({"model": {"stride": 64}}, "stride"), ({"precision": "8"}, "precision"), ({"realism": {"zoom": 9}}, "zoom"),
    ({"realism": {"zooom": 1}}, "zooom.*allowed here: .*zoom"),
    ({"data": None}, "data")])
def test_mistake_in_a_recipe_is_one_line_that_names_it(tmp_path, tree, key):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"data": "x.h5", "output": "out", **tree}))
    with pytest.raises(ConfigError, match=key) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_paths_of_a_recipe_are_taken_from_its_folder(tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps({"data": "../x.h5", "output": "/abs/out"}))
    config = read_recipe(tmp_path / "recipe.yaml")
    assert (config.data, config.output) == (str(tmp_path.parent / "x.h5"), "/abs/out")
    for given, wanted in (("first/m.safetensors", str(tmp_path / "first/m.safetensors")), ("shipped", "shipped")):
        (tmp_path / "recipe.yaml").write_text(json.dumps({"data": "x.h5", "output": "o", "start_from": given}))
        assert read_recipe(tmp_path / "recipe.yaml").start_from == wanted


def test_missing_data_tiny_images_and_single_encounters_are_one_line(tmp_path):
    with pytest.raises(DatasetError, match="no.h5"):
        fit(recipe(tmp_path / "no.h5", tmp_path / "out"))
    small = write_dummy_dataset(tmp_path / "small.h5", n_pixels=16)
    with pytest.raises(DatasetError, match="16x16 pixels are too small for stride = 16"):
        fit(recipe(small, tmp_path / "out"))
    single = write_dummy_dataset(tmp_path / "single.h5", n_encounters=1)
    with pytest.raises(DatasetError, match="holds 1 encounter"):
        fit(recipe(single, tmp_path / "out"))


def test_going_on_with_another_random_split_would_leak_and_is_one_line(data, tmp_path):
    tree = recipe(data, tmp_path / "first").model_copy(update={"split": "random", "epochs": 1})
    start = fit(tree, say=lambda line: None)
    on = tree.model_copy(update={"start_from": str(start), "output": str(tmp_path / "on")})
    with pytest.raises(ConfigError, match="trained on images that would be held out here .*split_seed") as caught:
        fit(on.model_copy(update={"split_seed": 77}))
    assert "\n" not in str(caught.value)
    assert fit(on, say=lambda line: None).is_file()


def test_fewer_classes_than_the_data_has_are_one_line(data, tmp_path):
    config = recipe(data, tmp_path / "out")
    config = config.model_copy(update={"model": config.model.model_copy(update={"n_classes": 7})})
    with pytest.raises(ConfigError, match="n_classes = 7: .* has 8 classes of time and camera"):
        fit(config)


def test_output_that_cannot_be_written_is_one_line(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="output = .*cannot be written") as caught:
        fit(recipe(data, tmp_path / "file"))
    assert "\n" not in str(caught.value)


def test_finished_training_is_left_as_it_is(straight, data, tmp_path):
    """So that what calibration added to the weights is not lost."""
    config, _, _ = straight
    shutil.copytree(config.output, tmp_path / "run")
    again = config.model_copy(update={"output": str(tmp_path / "run")})
    update_metadata(tmp_path / "run" / "model.safetensors", temperatures={"mass_ratio": 1.5})
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    fit(again, say=lambda line: None)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_changed_recipe_does_not_go_on_from_the_old_checkpoints(straight, data, tmp_path):
    config, _, _ = straight
    shutil.copytree(config.output, tmp_path / "run")
    changed = config.model_copy(update={"output": str(tmp_path / "run"), "batch_size": 4})
    with pytest.raises(ConfigError, match="batch_size = 4: .*begun with 8") as caught:
        fit(changed, say=lambda line: None)
    assert "\n" not in str(caught.value)
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="epochs = 1: .*raise epochs"):
        fit(config.model_copy(update={"output": str(tmp_path / "run"), "epochs": 1}), say=lambda line: None)
    (tmp_path / "run" / "recipe.json").unlink()
    with pytest.raises(ConfigError, match="holds checkpoints, but no recipe.json.*choose another output"):
        fit(changed, say=lambda line: None)


@pytest.mark.parametrize("note", [True, False], ids=["noted", "older"])
def test_a_training_goes_on_with_the_same_file_by_another_path(data, tmp_path, monkeypatch, note):
    (tmp_path / "recipes").mkdir()
    shutil.copy(data, tmp_path / "a.h5")
    config = recipe("../a.h5", "../run", epochs=1)
    (tmp_path / "recipes" / "r.yaml").write_text(config.to_json())
    monkeypatch.chdir(tmp_path)
    fit(read_recipe("recipes/r.yaml"), say=lambda line: None)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["data"] == "a.h5"
    if not note:
        (tmp_path / "run" / "data.json").unlink()
    monkeypatch.chdir(tmp_path / "recipes")
    said = []
    fit(read_recipe("r.yaml").model_copy(update={"epochs": 2}), say=said.append)
    assert said[0] == "going on from epoch_00000.ckpt"
    shutil.copy(data, tmp_path / "b.h5")
    with pytest.raises(ConfigError, match=r"^data = ../b.h5: the training in ../run was begun with ../a.h5"):
        fit(read_recipe("r.yaml").model_copy(update={"data": "../b.h5", "epochs": 3}), say=lambda line: None)


def test_data_that_changed_under_a_training_are_one_line(data, tmp_path):
    """A random split would hold out what was trained on."""
    path, other = tmp_path / "suite.h5", tmp_path / "other.h5"
    shutil.copy(data, path)
    config = recipe(path, tmp_path / "run", epochs=1, split="random")
    fit(config, say=lambda line: None)
    longer = config.model_copy(update={"epochs": 2})
    shutil.copy(data, other)
    with h5py.File(other, "r+") as f:
        f.move("encounter_0003", "encounter_0009")
    path.unlink()  # HDF5 knows by its number a file that is still open
    shutil.copy(other, path)
    with pytest.raises(ConfigError, match="suite.h5: holds other encounters than when the training in .*run was begun"):
        fit(longer, say=lambda line: None)
    with h5py.File(other, "r+") as f:
        f.copy("encounter_0009", "encounter_0003")
    path.unlink()
    shutil.copy(other, path)
    with pytest.raises(ConfigError, match="suite.h5: has 40 images, and had 32 when the training in") as caught:
        fit(longer, say=lambda line: None)
    assert "\n" not in str(caught.value)
    (tmp_path / "run" / "data.json").unlink()  # as before there was such a note
    assert load_weights(fit(longer, say=lambda line: None)).metadata["n_images"] == 40


def test_a_line_of_metrics_that_was_cut_costs_no_other(straight, tmp_path):
    config, _, _ = straight
    shutil.copytree(config.output, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    (tmp_path / "run" / "checkpoints" / "epoch_00001.ckpt").unlink()
    fit(config.model_copy(update={"output": str(tmp_path / "run")}), say=lambda line: None)
    assert len(path.read_text().splitlines()) == 3
    rows = read_metrics(path)
    assert [row["epoch"] for row in rows] == [0, 1] and [row["steps"] for row in rows] == [2, 4]


def test_checkpoint_of_another_architecture_is_one_line(straight, tmp_path):
    config, _, _ = straight
    shutil.copytree(config.output, tmp_path / "run")
    other = config.model_copy(update={"output": str(tmp_path / "run"), "epochs": 3,
                                      "model": config.model.model_copy(update={"channels": 24})})
    with pytest.raises(ModelError, match="another architecture") as caught:
        fit(other, say=lambda line: None)
    assert "\n" not in str(caught.value)


@pytest.fixture
def bad_data(data, tmp_path):
    """The data set with one image that is not finite and one whose bytes were flipped."""
    path = tmp_path / "bad.h5"
    path.write_bytes(data.read_bytes())
    with h5py.File(path, "r+") as f:
        f["encounter_0000/images_camera_01"][2] = np.nan
        chunk = f["encounter_0001/images_camera_00"].id.get_chunk_info(0)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(raw)
    return path


def test_a_bad_image_stops_training_with_its_place(bad_data):
    dataset = Dataset(bad_data)
    images = EncounterImages(dataset, np.arange(len(dataset)))
    [nan] = np.flatnonzero((dataset.group == 0) & (dataset.camera == 1) & (dataset.snapshot == 2))
    [flipped] = np.flatnonzero((dataset.group == 1) & (dataset.camera == 0) & (dataset.snapshot == 0))
    with pytest.raises(DatasetError, match="bad.h5: group encounter_0000, camera 1, snapshot 2.*bad_images: skip"):
        images.__getitems__([0, nan])
    with pytest.raises(DatasetError, match="encounter_0001.*damaged"):
        images.__getitems__([0, flipped])


@pytest.mark.parametrize("value", [45.0, -1.0])  # 10^45 is more than float32 holds
def test_values_that_no_picture_has_are_bad_too(data, tmp_path, value):
    path = tmp_path / "odd.h5"
    path.write_bytes(data.read_bytes())
    with h5py.File(path, "r+") as f:
        f["encounter_0000/images_camera_01"][2, 3, 4] = value
    dataset = Dataset(path)
    [odd] = np.flatnonzero((dataset.group == 0) & (dataset.camera == 1) & (dataset.snapshot == 2))
    with pytest.raises(DatasetError, match=r"odd.h5: group encounter_0000, camera 1, snapshot 2.*0\.\.20"):
        EncounterImages(dataset, np.arange(len(dataset))).__getitems__([odd])
    with pytest.raises(DatasetError, match="odd.h5: group encounter_0000, camera 1, snapshot 2"):
        light_of(dataset, np.array([odd]))  # what calibration, library and evaluation read


@pytest.mark.parametrize("name, value", [("pixel_scale_camera_00", 0.0), ("stage", 7)])
def test_labels_that_cannot_be_are_one_line(data, tmp_path, name, value):
    path = tmp_path / "odd.h5"
    path.write_bytes(data.read_bytes())
    with h5py.File(path, "r+") as f:
        f[f"encounter_0002/{name}"][1] = value
    with pytest.raises(DatasetError, match="odd.h5: group encounter_0002, camera 0, snapshot 1: "
                                           f"{name.split('_camera')[0]} = {value:g}"):
        Dataset(path)


def test_a_loss_that_is_no_number_ends_the_training_with_one_line(data, tmp_path):
    config = recipe(data, tmp_path / "run", images_per_epoch=64,
                    optimiser={"algorithm": "adamw", "learning_rate": 1e8, "warmup": 1})
    with pytest.raises(ModelError, match="^the loss is (nan|inf).*learning_rate[^\n]*$"):
        fit(config, say=lambda line: None)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_bad_image_of_several_data_sets_is_named_with_its_own_file(bad_data, other_dataset):
    both = open_data([other_dataset, bad_data])
    group = both.groups.index("bad:encounter_0000")
    [nan] = np.flatnonzero((both.group == group) & (both.camera == 1) & (both.snapshot == 2))
    with pytest.raises(DatasetError, match=f"^{re.escape(str(bad_data))}: group bad:encounter_0000, camera 1, snap"):
        EncounterImages(both, np.arange(len(both))).__getitems__([nan])


def test_a_bad_image_is_skipped_and_said_if_so_configured(bad_data, capsys):
    dataset = Dataset(bad_data)
    bad = [int(np.flatnonzero((dataset.group == g) & (dataset.camera == c) & (dataset.snapshot == s))[0])
           for g, c, s in ((0, 1, 2), (1, 0, 0))]
    images = EncounterImages(dataset, np.arange(len(dataset)), skip_bad=True)
    batch = images.__getitems__([0, bad[0], 5, bad[1]])
    index = batch["index"].tolist()
    assert index[0] == 0 and index[2] == 5 and not set(bad) & set(index)
    np.testing.assert_array_equal(batch["image"], dataset.images(index))
    np.testing.assert_array_equal(batch["time_since_pericentre"], dataset.labels["time"][index])
    said = capsys.readouterr().err
    assert "encounter_0000, camera 1, snapshot 2" in said and "1 more" in said
    with pytest.raises(DatasetError, match="all others"):
        images.__getitems__(bad)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_ends_a_training_with_one_line(bad_data, tmp_path, workers, in_memory):
    config = recipe(bad_data, tmp_path / "run", validation_share=0.3, loader_workers=workers, images_per_epoch=64,
                    in_memory=in_memory)
    with pytest.raises(DatasetError, match=r"^[^\n]*bad.h5: group encounter_000[01][^\n]*$"):
        fit(config, say=lambda line: None)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_recipe_that_skips_bad_images_trains_through(bad_data, tmp_path, in_memory):
    config = recipe(bad_data, tmp_path / "run", bad_images="skip", validation_share=0.3, in_memory=in_memory)
    assert load_weights(fit(config, say=lambda line: None))


def test_more_images_than_memory_are_one_line(data):
    images = EncounterImages(Dataset(data), np.arange(32))
    images.dataset.shape = (1 << 20, 1 << 20)  # 70 TB
    with pytest.raises(ConfigError, match="in_memory = True: 32 images need 70368.7 GB, cpu has .* in_memory: false"):
        InMemory(images)


def test_a_recipe_may_name_several_data_sets(tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: [a.h5, sub/b.h5]\noutput: out\n")
    config = read_recipe(tmp_path / "recipe.yaml")
    assert config.data == (str(tmp_path / "a.h5"), str(tmp_path / "sub" / "b.h5"))


def test_weights_of_fewer_epochs_are_not_taken_for_those_of_a_prolonged_training(data, tmp_path):
    """Killed after the last checkpoint of a prolonged training, before its weights were written."""
    path = fit(recipe(data, tmp_path / "run", epochs=1), say=lambda text: None)
    early = path.read_bytes()
    longer = recipe(data, tmp_path / "run", epochs=2)
    late = load_weights(fit(longer, say=lambda text: None))
    path.write_bytes(early)
    again = load_weights(fit(longer, say=lambda text: None))
    assert again.metadata["training"]["epochs"] == 2
    for name, tensor in late.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_seeds_may_be_as_large_as_a_time_stamp():
    assert len(set(image_seeds(20261125000000, 3, np.arange(100)).tolist())) == 100


@pytest.mark.parametrize("told, flag", [(0, "trained without the size"), (1, "always told the size"), (0.5, None)])
def test_a_model_says_what_it_was_not_trained_for(data, tmp_path, told, flag):
    loss = {"scale_known": told, "labels": {"mass_ratio": 0}, "latent_labels": 0, "latent_reconstruction": 0, "maps": 0,
            "kl": 0}
    predictor = Predictor(load_weights(fit(recipe(data, tmp_path / "run", epochs=1, loss=loss), say=lambda text: None)))
    picture = np.random.default_rng(0).random((80, 80)) + np.hypot(*np.mgrid[-40:40, -40:40])
    known, unknown = (predictor.predict(-picture, kpc_per_pixel=kpc) for kpc in (0.5, None))
    for story in (known, unknown):
        assert any("not trained for mass ratio" in text for text in story.flags)
        assert any("latent space of this model was not trained" in text for text in story.flags)
    says = known if told == 0 else unknown
    assert any("the size of a pixel" in text for text in says.flags) == (flag is not None)
    assert flag is None or any(flag in text for text in says.flags)
    same = known.properties["time_since_pericentre"] == unknown.properties["time_since_pericentre"]
    assert same or told > 0  # what it never learnt to use, it is not told
    assert (unknown.kpc_per_pixel_estimate is None) == (told == 1)


def test_a_model_says_what_its_images_never_told(straight, tmp_path):
    """Published files know no stage and no scale."""
    weights, (config, *_) = load_weights(straight[1]), straight
    dataset = Dataset(config.data)
    shown = set(dataset.labels["stage"][split(config, dataset)[1][0]].tolist())
    unseen = tuple(name for k, name in enumerate(STAGES) if k not in shown)
    assert weights.metadata["never_seen"] == [f"stage: {name}" for name in unseen] and len(shown) > 1
    assert weights.learnt == Learnt(unseen_stages=unseen)
    path = write_dummy_dataset(tmp_path / "published.hdf5", n_encounters=4, n_snapshots=4, n_cameras=2, n_pixels=64,
                               published=True)
    weights = load_weights(fit(recipe(path, tmp_path / "run", epochs=1), say=lambda text: None))
    assert weights.learnt.untrained == ("frame_side", "stage") and weights.learnt.never_told
    picture = np.hypot(*np.mgrid[-40:40, -40:40])
    known, unknown = (Predictor(weights).predict(-picture, kpc_per_pixel=kpc) for kpc in (0.5, None))
    assert any("not trained for stage" in text for text in known.flags)
    assert any("trained without the size of a pixel" in text for text in known.flags)
    assert known.properties == unknown.properties and unknown.kpc_per_pixel_estimate is None


def test_one_stage_alone_teaches_none(data, tmp_path):
    path = tmp_path / "suite.h5"
    shutil.copy(data, path)
    with h5py.File(path, "r+") as f:
        for group in f.values():
            group["stage"][...] = np.where(group["stage"][()] == 0, 0, NO_STAGE)
    weights = load_weights(fit(recipe(path, tmp_path / "run", epochs=1), say=lambda text: None))
    assert weights.metadata["never_seen"] == ["stage"]
    assert weights.learnt == Learnt(untrained=("stage",), unseen_stages=STAGES)


def test_labels_that_were_corrected_are_other_data(data, tmp_path):
    """The same names and as many images: a training that goes on, or is done, is of what is not there any more."""
    path = shutil.copy(data, tmp_path / "suite.h5")
    fit(recipe(path, tmp_path / "run", epochs=1), say=lambda text: None)
    corrected = shutil.copy(data, tmp_path / "corrected.h5")
    with h5py.File(corrected, "r+") as f:
        for group in f.values():
            group.attrs["mass_ratio"] = 1 / group.attrs["mass_ratio"]
    os.replace(corrected, path)
    for epochs in (1, 2):
        with pytest.raises(ConfigError, match="has other labels than when the training in .* was begun"):
            fit(recipe(path, tmp_path / "run", epochs=epochs), say=lambda text: None)
    note = tmp_path / "run" / "data.json"  # of a training that was begun before labels were noted
    note.write_text(json.dumps({k: v for k, v in json.loads(note.read_text()).items() if k != "labels_sha256"}))
    fit(recipe(path, tmp_path / "run", epochs=2), say=lambda text: None)


@pytest.mark.parametrize("algorithm", ["muon", "adamw"])
def test_half_precision_goes_with_either_optimiser(data, tmp_path, algorithm):
    config = recipe(data, tmp_path / "run", epochs=1, precision="bf16-mixed",
                    optimiser={"algorithm": algorithm, "warmup": 2})
    assert all(torch.isfinite(tensor).all() for tensor in state(fit(config, say=lambda text: None)).values())


def test_a_weight_of_one_label_leaves_those_of_the_others(data, tmp_path):
    plain = LossConfig().labels
    assert LossConfig(labels={"time_camera": 5}).labels == {**plain, "time_camera": 5}
    assert LossConfig(labels={"stage": 0}).labels == {**plain, "stage": 0} and plain["stage"] == 0.3


@pytest.mark.parametrize("options, text", [
    ({"images_per_epoch": 8, "batch_size": 16}, "images_per_epoch = 8: must be at least batch_size = 16"),
    ({"model": {**MODEL, "backbone": "mobilenetv4_conv_small_035", "pretrained": True}},
     "timm has no weights of it; set pretrained: false"),
    ({"start_from": "no.safetensors"}, "start_from = no.safetensors: no such weights; give a file"),
    ({"start_from": "."}, "start_from = .: is a folder; give the file in it")])
def test_what_cannot_be_trained_names_the_setting(data, tmp_path, options, text):
    with pytest.raises((ConfigError, ModelError)) as caught:
        fit(recipe(data, tmp_path / "run", **options), say=lambda line: None)
    assert text in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"seed": 2**63}, {"split_seed": 2**70}, {"images_per_epoch": 10**15},
                                     {"batch_size": 10**9}, {"output": ""}])
def test_settings_have_limits(data, tmp_path, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        TrainConfig.parse({"data": str(data), "output": str(tmp_path / "run"), **options})


def test_paths_of_a_recipe_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "recipe.yaml").write_text("data: [~/a.h5, b.h5]\noutput: ~/run\n")
    config = read_recipe(tmp_path / "recipe.yaml")
    assert config.data == (str(tmp_path / "home" / "a.h5"), str(tmp_path / "b.h5"))
    assert config.output == str(tmp_path / "home" / "run")
    (tmp_path / "recipe.yaml").write_text("data: a.h5\noutput: ''\n")
    with pytest.raises(ConfigError, match="output"):
        read_recipe(tmp_path / "recipe.yaml")


def test_the_autoencoder_alone_is_trained_and_gone_on_from(data, tmp_path):
    off = {"time_since_pericentre": 0, "mass_ratio": 0, "size_ratio": 0, "view_inclination": 0, "stage": 0,
           "frame_side": 0}
    loss = {"labels": off, "latent_labels": 0, "latent_reconstruction": 0, "maps": 0, "kl": 0}
    plain = {"learning_rate": 3e-3, "warmup": 2, "weight_decay": 0}
    alone = fit(recipe(data, tmp_path / "alone", epochs=1, images_per_epoch=128, loss=loss, optimiser=plain),
                say=lambda text: None)
    torch.manual_seed(0)
    first = DeepGalaxy(ModelConfig(**MODEL)).state_dict()
    trained = load_weights(alone).model.state_dict()
    for part, moves in (("encoder.neck", True), ("decoder", True), ("classifier", False), ("vae", False)):
        weights = [name for name in first if name.startswith(part) and name.endswith("weight") and first[name].ndim > 1]
        assert weights and all((not torch.equal(first[n], trained[n])) == moves for n in weights), part
    after = fit(recipe(data, tmp_path / "after", epochs=1, start_from=str(alone)), say=lambda text: None)
    assert not torch.equal(load_weights(after).model.state_dict()["classifier.heads.layers.mass_ratio.weight"],
                           trained["classifier.heads.layers.mass_ratio.weight"])
