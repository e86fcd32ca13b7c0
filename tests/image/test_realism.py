"""What observation does to images: always the same to the same image, and never anything infinite."""

import numpy as np
import pytest
import torch

from deepgalaxy.image.observation import _jitter, image_seeds, light_from_stored, observe_frames
from deepgalaxy.image.preprocess import TURNS, Framing, cut_frames, find_frames, resampled, stretch
from deepgalaxy.image.realism import Draws, RealismConfig, add_detail, draw, noise_strength, observe

SIZE = 96
QUIET = RealismConfig(zoom=1, shift=0, psf=0, clumps=0, dust=0, stars=0, neighbours=0.1, noise_faintest=1e-9,
                      stretched=0, borders=0, detail=0, knots=0)
# Six images that have no background galaxies, though one in ten could.
QUIET_SEEDS = [s for s in image_seeds(0, 0, np.arange(40)) if (draw([s], 8).neighbours[..., 4] > 0.1).all()][:6]


def light(n=6, size=SIZE):
    """Pairs of blobs, surface densities as simulated, and as stored."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    images = []
    for k in range(n):
        a = 8 + 2 * k
        images.append(1e9 * np.exp(-np.hypot(x - a, y - k) / 4) + 5e8 * np.exp(-np.hypot(x + a, (y + k) / 0.6) / 3))
    return torch.from_numpy(np.array(images)).float()[:, None]


def scales(n):
    return torch.full((n,), 1.2)


def test_turned_frames_are_of_the_same_picture():
    """Turned back they are the frame, noise, stars and all, but for what lies in the corners."""
    images, seeds = light(), image_seeds(3, 0, np.arange(6))
    for realism in (None, RealismConfig(detail=1.0)):
        seen = observe_frames(images, scales(6), seeds, realism, n_turns=3)
        alone = observe_frames(images, scales(6), seeds, realism)
        assert len(seen.turned) == 3 and len(alone.turned) == 1
        torch.testing.assert_close(seen.frames, alone.frames, rtol=0, atol=0)
        torch.testing.assert_close(seen.turned[0], seen.frames, rtol=0, atol=0)
        inner = (slice(None), 0, slice(20, -20), slice(20, -20))
        for turned, degrees in zip(seen.turned[1:], TURNS[1:], strict=True):
            back, frame = resampled(turned, -degrees)[inner], seen.frames[inner]
            together = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(back, frame, strict=True)]
            as_is = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(turned[inner], frame, strict=True)]
            assert min(together) > 0.8 and (np.array(together) > as_is).all()


def test_a_frame_that_is_cut_anew_is_as_sharp_as_the_first():
    """Points keep more of their light in one pixel than where the frame itself is turned."""
    canvas = torch.zeros(1, 1, 320, 320)
    canvas[0, 0, 60:260:7, 60:260:7] = 1.0
    framing = Framing(np.full((1, 2), 0.01), np.array([0.3]), np.zeros(1), np.ones(1, bool), np.zeros(1, int))
    first = cut_frames(canvas, framing)
    anew, again = cut_frames(canvas, framing.turned(6)), resampled(first, 6)
    inner = (0, 0, slice(25, -25), slice(25, -25))
    assert float(again[inner].std()) < 0.8 * float(anew[inner].std())
    assert float(anew[inner].mean()) == pytest.approx(float(again[inner].mean()), rel=0.05)


def test_same_seed_same_observation_whatever_the_batch():
    images, seeds = light(), image_seeds(0, 0, np.arange(6))
    whole, ideal, zoom = observe(images, draw(seeds, SIZE), RealismConfig())
    for part in (slice(0, 3), slice(3, 6), slice(2, 3)):
        some, clean, factor = observe(images[part], draw(seeds[part], SIZE), RealismConfig())
        np.testing.assert_allclose(some, whole[part], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(clean, ideal[part], rtol=1e-5, atol=1e-3)
        np.testing.assert_array_equal(factor, zoom[part])


@pytest.mark.parametrize("realistic", [0.0, 0.5, 1.0])
def test_frames_do_not_depend_on_how_images_are_divided_among_workers(realistic):
    images, seeds = light(), image_seeds(3, 1, np.arange(6))
    whole = observe_frames(images, scales(6), seeds, RealismConfig(), realistic, n_ideal=6)
    for rank in (0, 1):
        mine = observe_frames(images[rank::2], scales(3), seeds[rank::2], RealismConfig(), realistic, n_ideal=3)
        np.testing.assert_allclose(mine.frames, whole.frames[rank::2], atol=1e-4)
        np.testing.assert_allclose(mine.ideal, whole.ideal[rank::2], atol=1e-4)
        np.testing.assert_allclose(mine.scale, whole.scale[rank::2], atol=1e-5)


def test_jittered_frames_do_not_depend_on_how_images_are_divided_among_workers():
    images, seeds = light(), image_seeds(3, 1, np.arange(6))
    whole = observe_frames(images, scales(6), seeds, RealismConfig(), jitter=True)
    for rank in (0, 1):
        mine = observe_frames(images[rank::2], scales(3), seeds[rank::2], RealismConfig(), jitter=True)
        np.testing.assert_allclose(mine.frames, whole.frames[rank::2], atol=1e-4)


def test_another_epoch_or_seed_looks_different():
    images = light()
    first = observe_frames(images, scales(6), image_seeds(0, 0, np.arange(6)), RealismConfig()).frames
    for seeds in (image_seeds(0, 1, np.arange(6)), image_seeds(1, 0, np.arange(6))):
        other = observe_frames(images, scales(6), seeds, RealismConfig()).frames
        assert ((first - other).abs().mean(dim=(1, 2, 3)) > 0.01).all()


def test_seeds_of_images_are_all_different_and_do_not_depend_on_the_order():
    seeds = np.concatenate([image_seeds(s, e, np.arange(5000)) for s in (0, 1) for e in (0, 1, 2)])
    assert len(np.unique(seeds)) == len(seeds)
    assert seeds.max() < 2**62
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_array_equal(image_seeds(2, 3, order), image_seeds(2, 3, np.arange(100))[order])
    np.testing.assert_array_equal(image_seeds(2, 3, torch.arange(10)), image_seeds(2, 3, np.arange(10)))


def test_without_realism_the_clean_image_is_framed():
    images = light()
    seen = observe_frames(images, scales(6), image_seeds(0, 0, np.arange(6)), None)
    np.testing.assert_array_equal(seen.frames, stretch(cut_frames(images, find_frames(images))))
    np.testing.assert_allclose(seen.scale, np.log10(find_frames(images).half_side * SIZE * 1.2 / 100), rtol=1e-5)
    assert len(seen.ideal) == 0
    none = observe_frames(images, scales(6), image_seeds(0, 0, np.arange(6)), RealismConfig(), realistic=0.0, n_ideal=6)
    np.testing.assert_array_equal(none.frames, seen.frames)
    np.testing.assert_array_equal(none.ideal, seen.frames)


def test_scale_is_the_side_of_the_frame_whatever_the_zoom():
    images, seeds = light(), QUIET_SEEDS
    still = observe_frames(images, scales(6), seeds, QUIET)
    moved = observe_frames(images, scales(6), seeds, QUIET.model_copy(update={"zoom": 1.4, "shift": 0.1}))
    np.testing.assert_allclose(moved.scale, still.scale, atol=0.05)
    unknown = observe_frames(images, scales(6) * torch.nan, seeds, None)
    assert unknown.scale.isnan().all() and torch.isfinite(unknown.frames).all()


def test_nothing_is_done_where_nothing_is_asked_for():
    images = light()
    draws = draw(QUIET_SEEDS, SIZE)
    draws.u[:, 0] = 0  # not turned
    draws.u[:, 2] = 1 - 1e-6  # not mirrored
    draws.u[:, 6] = 0.9  # neither steeper nor shallower
    draws.u[:, 17] = 0  # no slope of the sky
    observed, ideal, zoom = observe(images, draws, QUIET)
    np.testing.assert_allclose(ideal, images, rtol=1e-3, atol=1e-4 * images.max())
    np.testing.assert_array_equal(zoom, 1)
    for seen, clean in zip(observed[:, 0], images[:, 0], strict=True):
        assert np.corrcoef(seen.flatten(), clean.flatten())[0, 1] > 0.995  # still a narrow PSF


def test_ideal_image_is_the_same_sky_from_the_same_side():
    images = light()
    observed, ideal, _ = observe(images, draw(QUIET_SEEDS, SIZE), QUIET.model_copy(
        update={"zoom": 1.3, "shift": 0.1}))
    for seen, clean in zip(observed[:, 0], ideal[:, 0], strict=True):
        assert np.corrcoef(seen.flatten(), clean.sqrt().flatten())[0, 1] > 0.8


@pytest.mark.parametrize("value", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("normal", [-6.0, 0.0, 6.0])
def test_extreme_draws_give_finite_frames(value, normal):
    draws = Draws(torch.full((6, 32), value), torch.full((6, 80, 3), value), torch.full((6, 3, 6), value),
                  torch.full((6, 1, SIZE, SIZE), normal), torch.full((6, 2, 40, 40), normal),
                  torch.full((6, 240, 3), value))
    strong = RealismConfig(zoom=4, shift=1, psf=5, clumps=2, dust=5, neighbours=1, noise_faintest=1, stretched=1,
                           borders=1, detail=1, knots=20)
    for config in (RealismConfig(), strong, QUIET):
        observed, ideal, zoom = observe(light(), draws, config)
        frames = add_detail(cut_frames(observed, find_frames(observed)), draws, config)
        for x in (observed, ideal, zoom, stretch(frames)):
            assert torch.isfinite(x).all()


@pytest.mark.parametrize("field", [
    "shift", "psf", "clumps", "dust", "stars", "stretched", "borders", "neighbours", "detail", "knots"])
def test_every_disturbance_can_be_turned_off(field):
    config = RealismConfig.parse({field: 0})
    seen = observe_frames(light(), scales(6), image_seeds(0, 0, np.arange(6)), config)
    assert torch.isfinite(seen.frames).all()


def test_detail_is_drawn_on_the_picture_and_nowhere_else():
    frames = light(6, 128) / 1e9
    frames[:, :, :, :32] = 0  # beyond the picture's edge
    draws = draw(image_seeds(0, 0, np.arange(6)), SIZE)
    assert torch.equal(add_detail(frames, draws, RealismConfig(detail=0)), frames)
    added = add_detail(frames, draws, RealismConfig(detail=1, knots=0)) - frames
    assert (added[..., :28] == 0).all()
    # Noise as strong as it was drawn; stars lie above it.
    peaks = frames.flatten(1).quantile(0.995, dim=1) - frames.flatten(1).median(dim=1).values
    below = added[..., 36:].flatten(1)
    spread = (below.quantile(0.5, dim=1) - below.quantile(0.16, dim=1)) / peaks
    np.testing.assert_allclose(spread, noise_strength(draws, RealismConfig()), rtol=0.25)


def test_dark_image_and_far_too_bright_one_give_finite_frames():
    images = light(4)
    images[0], images[1] = 0, images[1] * 1e5
    images[2, 0, 3, 3] = 1e15
    seen = observe_frames(images, scales(4), image_seeds(0, 0, np.arange(4)), RealismConfig(), n_ideal=4)
    assert torch.isfinite(seen.frames).all() and torch.isfinite(seen.ideal).all() and torch.isfinite(seen.scale).all()
    assert seen.frames.min() >= -0.1 and seen.frames.max() <= 1.3


@pytest.mark.parametrize("size", [
    64, 112, 160, 150])
def test_images_of_any_size_can_be_observed(size):
    seen = observe_frames(light(2, size), scales(2), image_seeds(0, 0, np.arange(2)), RealismConfig())
    assert seen.frames.shape == (2, 1, 112, 112) and torch.isfinite(seen.frames).all()


def test_stored_images_become_linear_light():
    stored = torch.tensor([[[0.0, 6.0], [7.5, 9.0]]])
    np.testing.assert_allclose(light_from_stored(stored)[0, 0], [[0, 1e6], [10**7.5, 1e9]], rtol=1e-5)
    np.testing.assert_array_equal(light_from_stored(stored / 10, logarithmic=False)[0, 0], stored[0] / 10)
    assert light_from_stored(stored.half()).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine")
def test_a_gpu_observes_as_the_cores_do():
    draws, pictures = draw(range(6), SIZE), light()
    there = Draws(*(getattr(draws, name).cuda() for name in Draws.__dataclass_fields__))
    for ours, theirs in zip(observe(pictures, draws, RealismConfig()), observe(pictures.cuda(), there, RealismConfig()),
                            strict=True):
        difference = (ours - theirs.cpu()).abs()
        assert difference.max() < 1.1 / 255 * max(1, ours.max()) and difference.median() < 1e-6  # 8 bits are rounded
    seeds = image_seeds(0, 0, np.arange(6))
    ours, theirs = (observe_frames(x, scales(6).to(x.device), seeds, None, jitter=True, n_ideal=2)
                    for x in (pictures, pictures.cuda()))
    for name in ("frames", "scale", "ideal"):
        torch.testing.assert_close(getattr(theirs, name).cpu(), getattr(ours, name), rtol=1e-4, atol=1e-4)
    seen = observe_frames(pictures.cuda(), scales(6).cuda(), seeds, RealismConfig(), jitter=True)
    assert torch.isfinite(seen.frames).all() and seen.frames.std() > 0.05


def test_misplaced_frames_are_normal_and_half_of_them_mirrored():
    n = 20_000
    seeds = image_seeds(3, 1, np.arange(n))
    framing = Framing(np.zeros((n, 2)), np.ones(n), np.zeros(n), np.ones(n, bool), np.zeros(n, int))
    moved, mirrored = _jitter(framing, seeds)
    columns = np.stack([moved.centre[:, 0] / 0.05, moved.centre[:, 1] / 0.05, np.log(moved.half_side) / 0.1,
                        moved.angle / np.radians(6), 2.0 * mirrored[0] - 1, 2.0 * mirrored[1] - 1])
    np.testing.assert_allclose(columns.mean(axis=1), 0, atol=4 / np.sqrt(n))
    np.testing.assert_allclose(columns.std(axis=1), 1, atol=0.02)
    # Neither with each other nor with what else is decided by the seed does any of them go.
    together = np.corrcoef(np.concatenate([columns, seeds[None] / 2.0**62]))
    assert np.abs(together - np.eye(7)).max() < 4.5 / np.sqrt(n)
