"""From logits to quantiles."""

import numpy as np
import pytest
import torch
from scipy.stats import norm, spearmanr

from deepgalaxy.image.preprocess import TURNS, cut_frames, whole_frames
from deepgalaxy.inference.posterior import (
    N_VIEWS,
    SLOPE,
    UNTOLD,
    at_ranks,
    coverage_level,
    distributions,
    joint_samples,
    n_turns,
    quantile,
    summarise,
    two_answers,
    views_of,
    widths,
)
from deepgalaxy.inference.story import QUANTILES
from deepgalaxy.labels import FRAME_SIDE, HEADS, LABELS, STAGES
from deepgalaxy.search.pictures import flipped

ALL = pytest.mark.parametrize("label", LABELS, ids=lambda label: label.name)
LEVELS = (0.001, 0.05, 0.16, 0.5, 0.84, 0.95, 0.999)


def some_distributions(label, n=40, seed=0):
    """(n, n_bins) of all widths, no bin empty."""
    rng = np.random.default_rng(seed)
    centre, width = rng.uniform(0, label.n_bins, (n, 1)), rng.uniform(0.6, label.n_bins, (n, 1))
    p = np.exp(-0.5 * ((np.arange(label.n_bins) + 0.5 - centre) / width) ** 2) + 1e-6
    return p / p.sum(axis=1, keepdims=True)


@ALL
@pytest.mark.parametrize("q", LEVELS)
def test_quantile_of_the_flat_distribution_is_analytic(label, q):
    flat = np.full((1, label.n_bins), 1 / label.n_bins)
    wanted = label.low * (label.high / label.low) ** q if label.log else label.low + q * (label.high - label.low)
    assert quantile(label, flat, q)[0] == pytest.approx(wanted, rel=1e-9)


@ALL
@pytest.mark.parametrize("bin_", [0, 11, -1])
def test_quantiles_of_one_full_bin_divide_that_bin(label, bin_):
    p = np.zeros((1, label.n_bins))
    p[0, bin_] = 1
    low, high = label.edges[:-1][bin_], label.edges[1:][bin_]
    for q in LEVELS:
        wanted = low * (high / low) ** q if label.log else low + q * (high - low)
        assert quantile(label, p, q)[0] == pytest.approx(wanted, rel=1e-6)


@ALL
def test_quantiles_of_many_draws_are_those_of_the_sample(label):
    """Brute force: draw bins, spread each draw evenly over its bin, take numpy's quantiles."""
    rng, p = np.random.default_rng(1), some_distributions(label, 3)
    for row in p:
        position = rng.choice(label.n_bins, 200_000, p=row) + rng.random(200_000)
        for q in (0.05, 0.5, 0.95):
            found = label.position(quantile(label, row[None], q))[0]
            assert found == pytest.approx(np.quantile(position, q), abs=0.02 * label.n_bins)


@ALL
@pytest.mark.parametrize("q", LEVELS)
def test_coverage_level_at_the_quantile_is_its_level(label, q):
    p = some_distributions(label)
    assert coverage_level(label, p, quantile(label, p, q)) == pytest.approx(np.full(len(p), q), abs=1e-9)


@ALL
def test_coverage_level_outside_the_bins_is_zero_or_one(label):
    p = some_distributions(label, 2)
    values = np.array([label.low * 0.5 if label.log else label.low - 9, label.high * 1.5])
    assert coverage_level(label, p, values).tolist() == [0, 1]


@ALL
def test_coverage_level_of_draws_is_uniform(label):
    """Simulation-based calibration: truths drawn from the posteriors have uniform levels."""
    rng, n = np.random.default_rng(2), 4000
    p = some_distributions(label, n)
    position = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1) + rng.random(n)
    truth = np.interp(position, np.arange(label.n_bins + 1), label.edges)
    if label.log:
        truth = np.exp(np.interp(position, np.arange(label.n_bins + 1), np.log(label.edges)))
    level = np.sort(coverage_level(label, p, truth))
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed by 99.9 %.
    assert np.abs(level - (np.arange(n) + 0.5) / n).max() < 1.95 / np.sqrt(n)


@ALL
def test_position_inverts_the_edges(label):
    np.testing.assert_allclose(label.position(label.edges), np.arange(label.n_bins + 1), atol=1e-9)


@pytest.fixture
def frame():
    """(1, 1, 112, 112): a blob in one corner and a smaller one beside it, so that all mirror images differ."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 112), torch.linspace(-1, 1, 112), indexing="ij")
    blobs = torch.exp(-((x - 0.4) ** 2 + (y - 0.3) ** 2) / 0.02) + torch.exp(-((x + 0.2) ** 2 + (y - 0.4) ** 2) / 0.01)
    return blobs[None, None]


def bells(*parts):
    """A distribution over the bins of the time: (share, middle, standard deviation in Myr) of each Gaussian."""
    edges = LABELS[0].edges
    return edges, np.diff(sum(share * norm.cdf(edges, middle, width) for share, middle, width in parts))


def test_two_separate_answers_are_told_with_their_shares():
    (first, more), (second, less) = two_answers(*bells((0.4, 50, 25), (0.6, 450, 40)))
    assert (first, second) == pytest.approx((450, 50), abs=1) and (more, less) == pytest.approx((0.6, 0.4), abs=0.01)
    # The median of all of it is where next to nothing is.
    assert 50 + 3 * 25 < at_ranks(*bells((0.5, 50, 25), (0.5, 450, 40)), 0.5) < 450 - 3 * 40


@pytest.mark.parametrize("parts", [[(1, 120, 40)], [(0.9, 50, 25), (0.1, 450, 40)], [(0.5, 100, 50), (0.5, 200, 50)],
                                   [(1, 120, 3)], [(0.6, 100, 30), (0.4, 300, 200)]])
def test_one_answer_however_skewed_is_one(parts):
    assert two_answers(*bells(*parts)) is None


def test_a_flat_answer_is_one():
    assert two_answers(LABELS[0].edges, np.full(LABELS[0].n_bins, 1 / LABELS[0].n_bins)) is None


@pytest.mark.parametrize("n_views", [1, 2, 4, 5, 12])
def test_views_keep_shape_and_number(frame, n_views):
    views = views_of([frame] * n_turns(n_views), n_views)
    assert len(views) == n_views and all(view.shape == frame.shape for view in views)


def test_four_views_are_the_four_mirror_images(frame):
    x = frame[0, 0].numpy()
    views = [view[0, 0].numpy() for view in views_of([frame], 4)]
    for view, wanted in zip(views, (x, x[:, ::-1], x[::-1], x[::-1, ::-1]), strict=True):
        np.testing.assert_array_equal(view, wanted)


def test_views_of_the_mirror_image_are_the_same_twelve(frame):
    def views(canvas):
        framing = whole_frames(canvas)
        return [view.numpy() for view in views_of([cut_frames(canvas, framing.turned(t)) for t in TURNS])]

    wanted = views(frame)
    assert len(wanted) == N_VIEWS
    for axis in (2, 3):
        for mirrored in views(frame.flip(axis)):
            assert min(np.abs(mirrored - view).max() for view in wanted) < 1e-4


def test_library_undoes_the_flip_of_every_view(frame):
    """Both count mirror images alike: what looks like view v, mirrored as v is, looks like the first again."""
    x = frame[0, 0].numpy()
    for v, view in enumerate(views_of([frame, frame], 8)):  # views 4 to 7 are turned, flipped alike
        np.testing.assert_array_equal(flipped(view[0, 0].numpy(), v), x)


def test_distributions_are_the_mean_over_views_and_sum_to_one(predictor, frame):
    frames = torch.cat([frame, frame.flip(3) * 0.5, torch.rand(1, 1, 112, 112)])
    scale, model = torch.tensor([0.1, torch.nan, -0.2]), predictor.weights.model
    temperatures = {label.name: 0.7 for label in LABELS} | {f"mass_ratio{UNTOLD}": 1.6, f"size_ratio{SLOPE}": 0.3}
    turned = [frames, frames.roll(3, 3), frames.roll(5, 2)]
    p, encodings = distributions(model, turned, scale, temperatures)
    assert [encoding.mu.shape for encoding in encodings] == 4 * [(3, model.config.latent_size)]
    with torch.inference_mode():  # of the four mirror images as they are, not turned
        for encoding, mirrored in zip(encodings, views_of([frames], 4), strict=True):
            torch.testing.assert_close(encoding.mu, model.encode(mirrored, scale).mu)
            torch.testing.assert_close(encoding.maps, model.encode(mirrored).maps)
    assert list(p) == [label.name for label in HEADS] + ["stage"]
    with torch.inference_mode():
        logits = [model(view, scale)[1] for view in views_of(turned)]
    for name, values in p.items():
        np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-5)
        assert (values >= 0).all()
        t = torch.full((3, 1), temperatures.get(name, 1.0))
        if name == "mass_ratio":
            t[1] = 1.6  # where nobody tells the scale
        if name == "size_ratio":
            t *= widths(torch.stack([one[name] for one in logits]))[:, None] ** 0.3
        one_by_one = np.mean([torch.softmax(one[name] / t, dim=1).numpy() for one in logits], axis=0)
        np.testing.assert_allclose(values, one_by_one, atol=1e-6)


def test_width_is_the_standard_deviation_in_that_of_a_flat_answer():
    logits = torch.zeros(2, 3, 40)
    logits[:, 1, 7] = 99  # one bin alone: its width is a bin's
    logits[0, 2, 10] = logits[1, 2, 30] = 99  # views that disagree: +-10 bins
    np.testing.assert_allclose(widths(logits) * np.std(np.arange(40)), [np.std(np.arange(40)), 1, 10], rtol=1e-3)


def test_batch_gives_what_single_frames_give(predictor, frame):
    frames, scale = torch.cat([frame, frame.flip(2).roll(9, 3)]), torch.tensor([0.3, torch.nan])
    together, _ = distributions(predictor.weights.model, [frames], scale)
    for i in range(2):
        alone, _ = distributions(predictor.weights.model, [frames[i:i + 1]], scale[i:i + 1])
        for name in together:
            np.testing.assert_allclose(together[name][i], alone[name][0], atol=1e-5)


def test_summary_holds_all_labels_in_order():
    p = {label.name: some_distributions(label, 2) for label in LABELS}
    p["stage"] = np.array([[0.1, 0.2, 0.3, 0.3, 0.06, 0.04]] * 2)
    properties, stage, curves = summarise(p, 1, QUANTILES)
    assert list(properties) == list(curves) == [label.name for label in LABELS]
    assert stage == dict(zip(STAGES, (0.1, 0.2, 0.3, 0.3, 0.06, 0.04), strict=True))
    for label in LABELS:
        values = properties[label.name]
        assert list(values) == ["unit", *QUANTILES] and values["unit"] == label.unit
        assert values["p84"] == quantile(label, p[label.name], 0.84)[1]
        assert len(curves[label.name][0]) == len(curves[label.name][1]) + 1


def test_joint_samples_keep_the_posteriors_and_tie_time_to_scale(loud, frame):
    """Each label's draws are those of its posterior; only with an unknown scale does anything hang on the scale."""
    model, encoding = loud.weights.model, None
    for scale in (torch.tensor([0.1]), torch.tensor([torch.nan])):
        p, _ = distributions(model, [frame], scale)
        with torch.inference_mode():
            encoding = model.encode(frame)
            samples = joint_samples(model, encoding.maps, scale, p, {}, side_pixels=100.0, n=4000)
        assert set(samples) == {label.name for label in LABELS} | {"kpc_per_pixel"}
        for label in LABELS:
            drawn = samples[label.name]
            if label.name == "view_inclination":
                assert 0.45 < (drawn > 90).mean() < 0.55  # the mirror image is as likely
                drawn = np.where(drawn > 90, 180 - drawn, drawn)
            for q in (0.16, 0.5, 0.84):
                assert np.mean(drawn <= quantile(label, p[label.name], q)[0]) == pytest.approx(q, abs=0.01)
        if torch.isnan(scale).any():
            for q in (0.05, 0.16, 0.5, 0.84, 0.95):
                side = quantile(FRAME_SIDE, p["frame_side"], q)[0]
                assert np.mean(samples["kpc_per_pixel"] <= side / 100) == pytest.approx(q, abs=0.03)
            assert len(np.unique(samples["kpc_per_pixel"])) > 3000
        else:
            np.testing.assert_allclose(samples["kpc_per_pixel"], 10**0.1, rtol=1e-5)


def test_joint_samples_follow_a_model_whose_time_is_the_scale():
    """A model that says: the larger, the later. Draws of time and scale then go together, in rank."""
    class Model:
        @staticmethod
        def classify(maps, scale):
            logits = {label.name: torch.zeros(len(maps), label.n_bins) for label in LABELS}
            time = LABELS[0]
            at = (np.log(100 * 10 ** float(scale[0])) - np.log(20)) / np.log(20)  # 20 to 400 kpc: 0 to 1
            logits[time.name] = torch.zeros(len(maps), time.n_bins)
            logits[time.name][:, int(np.clip(at, 0, 1) * (time.n_bins - 1))] = 30
            return logits

    side = some_distributions(FRAME_SIDE, 1)
    p = {label.name: some_distributions(label, 1) for label in LABELS} | {"frame_side": side}
    samples = joint_samples(Model(), torch.zeros(4, 1, 1, 1), torch.tensor([torch.nan]), p, {}, 100.0)
    together = spearmanr(samples["time_since_pericentre"], samples["kpc_per_pixel"]).statistic
    assert together > 0.95
    assert abs(spearmanr(samples["mass_ratio"], samples["kpc_per_pixel"]).statistic) < 0.1


def test_joint_samples_of_a_model_that_never_saw_a_scale_ask_it_without():
    class Model:
        @staticmethod
        def classify(maps, scale):
            assert torch.isnan(scale).all()
            return {label.name: torch.zeros(len(maps), label.n_bins) for label in LABELS}

    p = {label.name: some_distributions(label, 1) for label in (*LABELS, FRAME_SIDE)}
    samples = joint_samples(Model(), torch.zeros(1, 1, 1, 1), torch.tensor([torch.nan]), p, {}, 100.0, n=4000,
                            never_told=True)
    for label in LABELS[:3]:
        assert np.median(samples[label.name]) == pytest.approx(quantile(label, p[label.name], 0.5)[0], rel=0.05)
        assert abs(spearmanr(samples[label.name], samples["kpc_per_pixel"]).statistic) < 0.05


def test_joint_samples_of_labels_whose_errors_go_together_do_so():
    """The rank correlation of a Gaussian copula is 6/pi asin(r/2); each label's own distribution stays."""
    class Model:
        @staticmethod
        def classify(maps, scale):
            return {label.name: torch.zeros(len(maps), label.n_bins) for label in LABELS}

    p = {label.name: some_distributions(label, 1) for label in LABELS}
    correlation = np.eye(len(LABELS))
    correlation[1, 2] = correlation[2, 1] = 0.7
    samples = joint_samples(Model(), torch.zeros(1, 1, 1, 1), torch.tensor([0.2]), p, {}, 100.0, n=8000,
                            correlation=correlation.tolist())
    names = [label.name for label in LABELS]
    together = spearmanr(samples[names[1]], samples[names[2]]).statistic
    assert together == pytest.approx(6 / np.pi * np.arcsin(0.35), abs=0.02)
    assert abs(spearmanr(samples[names[0]], samples[names[1]]).statistic) < 0.04
    for label in LABELS[:3]:
        for q in (0.16, 0.5, 0.84):
            assert np.mean(samples[label.name] <= quantile(label, p[label.name], q)[0]) == pytest.approx(q, abs=0.01)
