"""One contract for every backbone; the losses against their definitions; weights that come back whole."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deepgalaxy.models.weights as weights_module
from deepgalaxy.errors import ModelError
from deepgalaxy.labels import HEADS, LABELS, STAGES
from deepgalaxy.models.backbone import Encoder
from deepgalaxy.models.blocks import Depthwise
from deepgalaxy.models.classifier import soft_targets
from deepgalaxy.models.deepgalaxy import DeepGalaxy, ModelConfig
from deepgalaxy.models.losses import class_targets, image_loss, kl_divergence, label_loss, rank_loss, ssim
from deepgalaxy.models.vae import VAE
from deepgalaxy.models.weights import load_weights, save_weights, update_metadata

BACKBONES = ("mobilenetv4_conv_small", "resnet18", "resnet50", "repvgg_a0", "regnety_002", "convnext_atto",
             "efficientnet_b0", "efficientnet_b4", "vgg16", "mobilenetv4_hybrid_medium")
# Backbones whose training step takes the interpreter down (see test_narrow_strided_stem_...).
SMALL = {"channels": 16, "latent_size": 8, "classifier_width": 16, "decoder_width": 16}


def labels(n, seed=0):
    """Values inside the range of every label."""
    rng = np.random.default_rng(seed)
    values = {}
    for label in HEADS:
        u = rng.uniform(0.02, 0.98, n)
        value = label.low * (label.high / label.low) ** u if label.log else label.low + u * (label.high - label.low)
        values[label.name] = torch.tensor(value, dtype=torch.float32)
    values["stage"] = torch.tensor(rng.integers(0, len(STAGES), n), dtype=torch.uint8)
    return values


def build(backbone="mobilenetv4_conv_small", **options):
    torch.manual_seed(0)
    return DeepGalaxy(ModelConfig(backbone=backbone, **{**SMALL, **options}))


@pytest.fixture(scope="module", params=BACKBONES)
def model(request):
    return build(request.param)


class TestBackboneContract:
    """What every backbone must do; a new one joins by its name in BACKBONES."""

    @pytest.mark.parametrize("size", [112, 128])
    def test_shapes(self, model, size):
        model.eval()
        with torch.no_grad():
            encoding, logits = model(torch.rand(2, 1, size, size), torch.tensor([0.1, torch.nan]))
            image = model.reconstruct(encoding.maps)
            maps = model.vae.decode(encoding.mu, encoding.maps.shape[2:])
        assert encoding.maps.shape == maps.shape == (2, 16, size // 16, size // 16)
        assert encoding.mu.shape == encoding.logvar.shape == (2, 8)
        assert image.shape == (2, 1, size, size)
        assert {name: tuple(x.shape) for name, x in logits.items()} == {
            **{label.name: (2, label.n_bins) for label in HEADS}, "stage": (2, len(STAGES))}
        assert all(torch.isfinite(x).all() for x in (*encoding, image, *logits.values()))

    def test_one_training_step_reaches_every_parameter(self, model):
        model.train()
        image = torch.rand(4, 1, 112, 112)
        encoding, logits = model(image, torch.tensor([0.1, -0.2, torch.nan, torch.nan]))
        z = model.vae.sample(encoding.mu, encoding.logvar, torch.randn(4, 8))
        maps = model.vae.decode(z, encoding.maps.shape[2:])
        loss = (label_loss(logits, labels(4), {}) + label_loss(model.latent_heads(z), labels(4), {})
                + image_loss(model.reconstruct(encoding.maps), image) + image_loss(model.reconstruct(maps), image)
                + kl_divergence(encoding.mu, encoding.logvar))
        model.zero_grad()
        loss.backward()
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert len(trainable) > 50
        for name, parameter in trainable.items():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        before = [p.detach().clone() for p in trainable.values()]
        torch.optim.AdamW(trainable.values(), lr=1e-3).step()
        assert all(torch.isfinite(p).all() for p in trainable.values())
        assert any((p != q).any() for p, q in zip(trainable.values(), before, strict=True))

    def test_answer_does_not_depend_on_the_rest_of_the_batch(self, model):
        model.eval()
        images, scale = torch.rand(3, 1, 112, 112), torch.tensor([0.1, torch.nan, -0.3])
        with torch.no_grad():
            together, logits = model(images, scale)
            alone, one = model(images[1:2], scale[1:2])
        np.testing.assert_allclose(alone.mu, together.mu[1:2], atol=1e-4)
        np.testing.assert_allclose(one["mass_ratio"], logits["mass_ratio"][1:2], atol=1e-4)


def test_narrow_strided_stem_does_not_corrupt_memory():
    # In a process of its own: glibc checks the heap at every free, and aborts.
    code = """if True:
        import torch
        from deepgalaxy.models.backbone import Encoder
        encoder = Encoder("repvgg_a0", 16, 8)
        encoder.to(memory_format=encoder.memory_format)
        for _ in range(3):
            encoder(torch.rand(2, 1, 112, 112)).square().mean().backward()"""
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, "MALLOC_CHECK_": "3"}, capture_output=True)
    assert run.returncode == 0


def test_a_backbone_whose_maps_are_not_of_its_stride_is_refused():
    with pytest.raises(ModelError, match="dla46_c: its maps at stride 16 are 14x14 of a frame of 112, not 7x7"):
        Encoder("dla46_c", 16, 8)


def test_blocks_that_are_passed_by_in_part_are_not_cut_off():
    encoder = Encoder("xception41", 16, 8).train()
    maps = encoder(torch.rand(1, 1, 112, 112))
    assert maps.shape == (1, 8, 7, 7)
    maps.sum().backward()
    trained = [p for p in encoder.parameters() if p.requires_grad]
    assert len(trained) > 50 and all(p.grad is not None for p in trained)


def test_weights_of_timm_that_cannot_be_fetched_are_one_line():
    code = ("from deepgalaxy.models.backbone import Encoder\n"
            "try:\n    Encoder('resnet18', 16, 8, pretrained=True)\n"
            "except Exception as error:\n    print(type(error).__name__, error)\n")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("ModelError backbone = resnet18: pretrained") and done.stdout.count("\n") == 1


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_stride_is_the_one_asked_for(stride):
    model = build(stride=stride).eval()
    with torch.no_grad():
        maps = model.encode(torch.rand(1, 1, 128, 128)).maps
        assert maps.shape == (1, 16, 128 // stride, 128 // stride)
        assert model.reconstruct(maps).shape == (1, 1, 128, 128)
        frame = torch.rand(1, 1, 112, 112)  # not a multiple of 32
        assert model.reconstruct(model.encode(frame).maps, (112, 112)).shape == frame.shape


def test_model_can_be_built_where_gradients_are_off():
    with torch.no_grad():
        expected = build()
    assert any(p.requires_grad for p in expected.encoder.body.parameters())


def test_unknown_backbone_is_answered_with_the_nearest_names():
    with pytest.raises(ModelError, match="backbone = resnet19: .*did you mean .*resnet18"):
        Encoder("resnet19", 16, 8)
    with pytest.raises(ModelError, match="backbone = qqqqqqqq"):
        Encoder("qqqqqqqq", 16, 8)


def test_wrong_stride_is_answered_with_those_there_are():
    with pytest.raises(ModelError, match=r"stride = 12: .*\[2, 4, 8, 16, 32\]"):
        Encoder("resnet18", 12, 8)
    with pytest.raises(ModelError, match=r"stride = 2: .*\[2, 4, 8, 16, 32\], not at 1; set fine_depth: 0"):
        Encoder("resnet18", 2, 8, fine_depth=1)


@pytest.mark.parametrize("backbone", ["mobilenetv4_conv_small", "vgg16", "convnext_atto", "mobilenetv4_hybrid_medium"])
def test_blocks_at_half_the_stride_do_nothing_at_first_and_then_see_finer(backbone):
    torch.manual_seed(0)
    plain, finer = Encoder(backbone, 16, 8).eval(), Encoder(backbone, 16, 8, fine_depth=2).eval()
    missing, unexpected = finer.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("fine") for name in missing)
    for shape in ((112, 112), (121, 90)):
        image = torch.rand(1, 1, *shape)
        with torch.no_grad():
            torch.testing.assert_close(finer(image), plain(image), rtol=1e-5, atol=1e-5)
    torch.nn.init.normal_(finer.fine_neck.weight)
    finer(image).square().sum().backward()
    assert all(p.grad is not None for p in finer.parameters() if p.requires_grad)
    assert not torch.allclose(finer(image), plain(image), rtol=1e-5, atol=1e-6)


def test_backbone_without_a_pyramid_is_one_line():
    with pytest.raises(ModelError, match="mixer_s32_224") as caught:
        Encoder("mixer_s32_224", 16, 8)
    assert "\n" not in str(caught.value)


def test_time_camera_head_exists_on_demand():
    assert "time_camera" not in build().classifier.heads.layers
    assert build(n_classes=994).classifier.heads.layers["time_camera"].out_features == 994


def test_unknown_scale_is_the_same_whatever_it_hides():
    model = build().eval()
    maps = torch.rand(2, 16, 7, 7)
    with torch.no_grad():
        told, untold = model.classify(maps, torch.tensor([0.3, 0.3])), model.classify(maps, torch.full((2,), torch.nan))
    assert all(torch.isfinite(x).all() for x in untold.values())
    assert (told["mass_ratio"] - untold["mass_ratio"]).abs().max() > 1e-6


# Losses


@pytest.mark.parametrize("kind", ["noise", "alike", "smooth"])
def test_ssim_is_that_of_scikit_image(kind):
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    a = rng.random((3, 40, 56)).astype(np.float32)
    b = {"noise": rng.random(a.shape), "alike": np.clip(a + 0.05 * rng.standard_normal(a.shape), 0, 1),
         "smooth": np.cumsum(a, axis=2) / 56}[kind].astype(np.float32)
    wanted = [structural_similarity(p, q, win_size=7, data_range=1.0) for p, q in zip(a, b, strict=True)]
    found = ssim(torch.from_numpy(a)[:, None], torch.from_numpy(b)[:, None])
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (4, 4), (3, 6), (7, 7), (9, 20)])
def test_depthwise_convolution_and_its_gradients_are_those_of_torch(size):
    torch.manual_seed(0)
    ours = Depthwise(8, 8, 5, padding=2, groups=8)
    x = torch.randn(3, 8, *size, requires_grad=True)
    theirs = torch.nn.functional.conv2d(x, ours.weight, ours.bias, padding=2, groups=8)
    inputs, weight = (x, ours.weight, ours.bias), torch.randn(theirs.shape)
    torch.testing.assert_close(ours(x), theirs, rtol=1e-5, atol=1e-5)
    for got, expected in zip(torch.autograd.grad((ours(x) * weight).sum(), inputs),
                             torch.autograd.grad((theirs * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_ssim_does_not_lose_digits_in_mixed_precision():
    image = 0.9 + 0.02 * torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))  # bright and smooth
    expected = ssim(image, image.flip(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ssim(image, image.flip(3)), expected)


def test_what_inference_kept_can_be_trained_through():
    with torch.inference_mode():
        ssim(torch.rand(1, 1, 41, 43), torch.rand(1, 1, 41, 43))
        Depthwise(4, 4, 5, padding=2, groups=4)(torch.rand(1, 4, 3, 5))
    image = torch.rand(1, 1, 41, 43, requires_grad=True)
    ssim(image, torch.rand(1, 1, 41, 43)).sum().backward()
    Depthwise(4, 4, 5, padding=2, groups=4)(torch.rand(1, 4, 3, 5)).sum().backward()
    assert torch.isfinite(image.grad).all()


def test_image_loss_is_zero_for_the_same_image_and_larger_for_worse_ones():
    rng = torch.Generator().manual_seed(0)
    image, noise = torch.rand(2, 1, 32, 32, generator=rng), torch.randn(2, 1, 32, 32, generator=rng)
    losses = [image_loss(image + s * noise, image).item() for s in (0, 0.05, 0.2, 0.5)]
    assert losses[0] == pytest.approx(0, abs=1e-5)
    assert losses == sorted(losses)


def test_kl_divergence_is_that_of_torch():
    from torch.distributions import Normal
    from torch.distributions import kl_divergence as divergence

    rng = torch.Generator().manual_seed(0)
    mu, logvar = torch.randn(5, 4, generator=rng), torch.randn(5, 4, generator=rng)
    wanted = divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum(dim=1).mean()
    assert kl_divergence(mu, logvar).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert kl_divergence(torch.zeros(5, 4), torch.zeros(5, 4)).item() == 0


def test_free_bits_cost_nothing():
    mu = torch.zeros(6, 3)
    mu[:, 0] = 2.0  # 2 nats in one dimension, nothing in the others
    assert kl_divergence(mu, torch.zeros(6, 3)).item() == pytest.approx(2)
    mu.requires_grad_()
    loss = kl_divergence(mu, torch.zeros(6, 3), free_bits=0.5)
    assert loss.item() == pytest.approx(2 + 2 * 0.5)
    loss.backward()
    assert (mu.grad[:, 0] > 0).all() and (mu.grad[:, 1:] == 0).all()


def test_sampled_z_has_the_mean_and_spread_that_were_asked_for():
    mu, logvar = torch.full((20000, 1), 1.5), torch.full((20000, 1), float(np.log(0.25)))
    z = VAE.sample(mu, logvar, torch.randn(20000, 1, generator=torch.Generator().manual_seed(0)))
    assert z.mean().item() == pytest.approx(1.5, abs=0.02)
    assert z.std().item() == pytest.approx(0.5, rel=0.02)


def perfect(values):
    """Logits that say exactly what the targets do."""
    logits = {label.name: soft_targets(label, values[label.name]).clamp(min=1e-30).log()
              for label in HEADS}
    logits["stage"] = 50 * torch.nn.functional.one_hot(values["stage"].long(), len(STAGES)).float()
    return logits


def test_label_loss_is_zero_for_perfect_logits_and_positive_for_others():
    values = labels(50)
    assert label_loss(perfect(values), values, {}).item() == pytest.approx(0, abs=1e-4)
    flat = {name: torch.zeros_like(x) for name, x in perfect(values).items()}
    assert label_loss(flat, values, {}).item() > 5
    others = labels(50, seed=1)
    assert label_loss(perfect(others), values, {}).item() > label_loss(flat, values, {}).item()


def test_classes_are_blurred_over_time_and_never_over_cameras():
    targets = class_targets(torch.arange(12), 12, 3, 1.0)  # 4 snapshots of 3 cameras
    torch.testing.assert_close(targets.sum(1), torch.ones(12))
    assert targets[4].nonzero().flatten().tolist() == [1, 4, 7, 10]
    assert targets[4, 1] / targets[4, 4] == pytest.approx(np.exp(-0.5)) and targets[4, 7] == targets[4, 1]
    torch.testing.assert_close(class_targets(torch.arange(12), 12, 3, 0), torch.eye(12))
    wanted = {"time_camera": torch.tensor([4])}
    assert label_loss({"time_camera": targets[[4]].clamp(min=1e-9).log()}, wanted, {}, 3, 1.0).item() < 1e-5
    assert label_loss({"time_camera": targets[[7]].clamp(min=1e-9).log()}, wanted, {}, 3, 1.0).item() > 0.1


def test_label_loss_grows_with_the_distance_between_answer_and_truth():
    values = {**labels(1), "time_since_pericentre": torch.tensor([100.0])}
    losses = [label_loss(perfect({**values, "time_since_pericentre": torch.tensor([100.0 + d])}), values, {}).item()
              for d in (0, 10, 20, 40)]
    assert losses == sorted(losses) and losses[0] < 1e-4 < losses[1]


def test_unknown_labels_do_not_count():
    values = labels(6)
    logits = {name: x.clone().requires_grad_() for name, x in perfect(labels(6, seed=1)).items()}
    known = {name: x[:4] for name, x in values.items()}
    for label in HEADS:
        values[label.name][4:] = torch.nan
    values["stage"][4:] = 255
    loss = label_loss(logits, values, {})
    assert loss.item() == pytest.approx(label_loss({n: x[:4] for n, x in logits.items()}, known, {}).item(), rel=1e-5)
    loss.backward()
    for x in logits.values():
        assert torch.isfinite(x.grad).all() and (x.grad[4:] == 0).all()
    nothing = {name: torch.full_like(x, torch.nan) for name, x in values.items() if name != "stage"}
    assert label_loss(logits, {**nothing, "stage": torch.full((6,), 255)}, {}).item() == 0


def test_weight_of_a_label_multiplies_its_part():
    values, logits = labels(8), perfect(labels(8, seed=1))
    none = dict.fromkeys([*(label.name for label in HEADS), "stage"], 0.0)
    assert label_loss(logits, values, none).item() == 0
    one, three = (label_loss(logits, values, {**none, "mass_ratio": w}).item() for w in (1.0, 3.0))
    assert three == pytest.approx(3 * one) and one > 0


def test_order_in_z_is_right_where_it_is_that_of_the_labels():
    times = {"time_since_pericentre": torch.tensor([0.0, 10.0, 30.0, 70.0, 150.0])}
    line = torch.stack([times["time_since_pericentre"], torch.zeros(5)], dim=1)
    assert rank_loss(line, times, {}).item() == pytest.approx(0, abs=1e-3)
    assert rank_loss(-line, times, {}).item() == pytest.approx(0, abs=1e-3)
    # All in one place: of every image, each of the K others is as likely the nearest of those not nearer in time.
    alike = rank_loss(torch.zeros(5, 2), times, {}).item()
    assert alike == pytest.approx(sum(np.log(k) for k in (1, 2, 3, 4)) / 4, rel=1e-5)
    assert rank_loss(line[[0, 4, 1, 3, 2]], times, {}).item() > alike


def test_order_in_z_is_taught_by_known_labels_alone():
    values, z = labels(8), torch.randn(8, 4).requires_grad_()
    first = {name: x[:6] for name, x in values.items()}
    values["mass_ratio"][6:] = torch.nan
    loss = rank_loss(z, values, {})
    assert loss.item() == pytest.approx(rank_loss(z[:6], first, {}).item(), rel=1e-5)
    loss.backward()
    assert torch.isfinite(z.grad).all() and (z.grad[6:] == 0).all() and z.grad[:6].abs().min() > 0
    values["mass_ratio"][:] = torch.nan  # nobody knows it: the others still count
    without = {name: x for name, x in values.items() if name != "mass_ratio"}
    assert rank_loss(z, values, {}).item() == pytest.approx(rank_loss(z, without, {}).item(), rel=1e-5) != 0
    nothing = {name: torch.full_like(x, torch.nan) for name, x in values.items() if name != "stage"}
    assert rank_loss(z, nothing, {}).item() == 0
    same = torch.zeros(6, 4, requires_grad=True)
    rank_loss(same, first, {}).backward()
    assert torch.isfinite(same.grad).all()


@pytest.mark.parametrize("label", LABELS, ids=lambda label: label.name)
def test_soft_targets_are_distributions_about_the_value(label):
    values = labels(40)[label.name]
    targets = soft_targets(label, values)
    np.testing.assert_allclose(targets.sum(dim=1), 1, rtol=1e-5)
    centre = (targets * (torch.arange(label.n_bins) + 0.5)).sum(dim=1)
    wanted = label.position(values.numpy())
    inside = (wanted > 4) & (wanted < label.n_bins - 4)
    np.testing.assert_allclose(centre[inside], wanted[inside], atol=0.02)
    outside = soft_targets(label, torch.tensor([label.low * 0.5 if label.log else label.low - 500, label.high * 10]))
    assert torch.isfinite(outside).all()
    assert outside[0].argmax() == 0 and outside[1].argmax() == label.n_bins - 1


# Weights


@pytest.fixture(scope="module")
def trained():
    model = build().train()
    model.encode(torch.rand(2, 1, 112, 112))  # BatchNorm's statistics are no longer those of a new model
    return model.eval()


@pytest.fixture
def file(trained, tmp_path):
    save_weights(tmp_path / "model.safetensors", trained, "tiny", calibration={"temperature": 1.25})
    return tmp_path / "model.safetensors"


def assert_refused(path, words=None):
    with pytest.raises(ModelError, match=words) as caught:
        load_weights(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_weights_give_back_the_same_model(trained, file):
    weights = load_weights(file)
    assert weights.name == "tiny" and weights.metadata["calibration"] == {"temperature": 1.25}
    assert weights.model.config == trained.config and not weights.model.training
    state = weights.model.state_dict()
    for name, tensor in trained.state_dict().items():
        assert torch.equal(state[name], tensor), name
    image, scale = torch.rand(2, 1, 112, 112), torch.tensor([0.1, torch.nan])
    with torch.no_grad():
        (a, logits), (b, again) = trained(image, scale), weights.model(image, scale)
    assert torch.equal(a.mu, b.mu)
    assert all(torch.equal(logits[name], again[name]) for name in logits)
    assert [p.name for p in file.parent.iterdir()] == ["model.safetensors"]
    assert set(weights.identity) == {"name", "version", "sha256"}


def test_weights_of_other_bins_are_refused(file, tmp_path):
    """The same probabilities would be other numbers."""
    tensors, header = weights_module._read(file)
    bins = json.loads(header["bins"])
    assert bins["time_since_pericentre"] == [-210, 1010, 122, False] and bins.keys() == {label.name for label in HEADS}
    bins["time_since_pericentre"][1] = 2020
    weights_module._write(tmp_path / "wider.safetensors", tensors, {**header, "bins": json.dumps(bins)})
    assert_refused(tmp_path / "wider.safetensors", "122 bins from -210 to 2020 of time_since_pericentre, labels.py has "
                                                   "122 bins from -210 to 1010; train again")
    weights_module._write(tmp_path / "older.safetensors", tensors, {k: v for k, v in header.items() if k != "bins"})
    assert load_weights(tmp_path / "older.safetensors").name == load_weights(file).name


def test_metadata_can_be_added_without_touching_the_weights(trained, file):
    before = load_weights(file)
    update_metadata(file, scores={"median": 30})
    after = load_weights(file)
    assert after.metadata["scores"] == {"median": 30} and after.metadata["calibration"] == {"temperature": 1.25}
    assert before.sha256 != after.sha256
    assert all(torch.equal(p, q) for p, q in zip(before.model.parameters(), after.model.parameters(), strict=True))


def test_flipped_byte_in_the_tensors_is_found(file):
    whole = file.read_bytes()
    header = int.from_bytes(whole[:8], "little") + 8
    for where in np.random.default_rng(0).integers(header, len(whole), 3):
        damaged = bytearray(whole)
        damaged[where] ^= 0x10
        file.write_bytes(damaged)
        assert_refused(file)


def test_flipped_byte_in_the_header_is_found(file):
    whole = file.read_bytes()
    where = whole.index(b"1.25") + 2  # calibration: 1.25 -> 1.35 without a word
    file.write_bytes(whole[:where] + b"3" + whole[where + 1:])
    assert_refused(file)


def test_header_that_is_no_json_is_one_line(file):
    whole = file.read_bytes()
    where = whole.index(b'{\\"calibration')
    file.write_bytes(whole[:where] + b"@" + whole[where + 1:])
    assert_refused(file)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights_are_refused(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[:int(share * len(whole))])
    assert_refused(file)


def test_pickle_is_refused_and_not_run(file, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    file.write_bytes(pickle.dumps(Trap()))
    assert_refused(file, "safetensors")
    torch.save({"state_dict": {}}, file)
    assert_refused(file, "safetensors")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(file, tmp_path, value):
    model = build()
    with torch.no_grad():
        model.encoder.neck.weight[0, 0] = value
    save_weights(tmp_path / "nan.safetensors", model, "tiny")
    assert_refused(tmp_path / "nan.safetensors", "encoder.neck.weight.*not finite")


def _count_in(file, k):
    update_metadata(file, count=k)


def test_weights_outlive_a_writer_that_is_killed(file, kill_after):
    for k in range(20):
        kill_after(0.002 * k, _count_in, file)
        assert load_weights(file).metadata["count"] >= 0  # whole, each time


@pytest.mark.parametrize("change, words", [
    ({"name": None}, "nothing sensible"), ({"metadata": "[]"}, "nothing sensible"),
    ({"model": '{"backbone": "resnet19"}'}, "timm has no model of this name")])
def test_a_header_that_says_nothing_sensible_is_refused_however_well_its_checksum_fits(file, change, words):
    tensors, header = weights_module._read(file)
    header = {k: v for k, v in {**header, **change}.items() if v is not None}
    weights_module._write(file, tensors, header)
    assert_refused(file, words)


def test_somebody_elses_safetensors_are_refused(file):
    save_file({"x": torch.zeros(3)}, file)
    assert_refused(file, "not weights of deepgalaxy")


def test_weights_of_another_architecture_are_refused(trained, file):
    from safetensors import safe_open

    with safe_open(file, framework="pt") as f:
        header = f.metadata()
    config = json.loads(header["model"])
    save_file(load_file(file), file, metadata={**header, "model": json.dumps({**config, "latent_size": 9})})
    assert_refused(file)


def test_missing_weights_are_one_line(tmp_path):
    assert_refused(tmp_path / "no.safetensors", "no such weights")
    assert_refused(tmp_path)


def test_weights_that_cannot_be_written_are_one_line(trained, tmp_path):
    with pytest.raises(ModelError, match="cannot be written") as caught:
        save_weights(tmp_path / "missing" / "x.safetensors", trained, "tiny")
    assert "\n" not in str(caught.value)
