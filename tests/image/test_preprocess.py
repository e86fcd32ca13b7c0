"""One normalisation for all pictures: the same galaxies give the same frame, however they were taken."""

import numpy as np
import pytest
import torch

from deepgalaxy.errors import ImageError
from deepgalaxy.image.preprocess import (
    FRAME_PIXELS,
    Framing,
    _frames_of,
    asinh,
    cut_frames,
    find_frames,
    largest_of_nine,
    quantile,
    stretch,
    to_canvas,
)


def pair(shape=(200, 200), angle=0.0, mirror=False, zoom=1.0, shift=(0.0, 0.0), noise=0.0, seed=0):
    """Two unequal blobs and a bridge, turned by degrees, mirrored, enlarged and shifted (pixels) on the sky."""
    y, x = np.mgrid[:shape[0], :shape[1]].astype(float)
    x, y = x - (shape[1] - 1) / 2 - shift[0], y - (shape[0] - 1) / 2 - shift[1]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    x, y = (c * x + s * y) / zoom, (c * y - s * x) / zoom
    if mirror:
        y = -y
    image = np.exp(-np.hypot(x + 22, y) / 7) + 0.5 * np.exp(-np.hypot((x - 25) / 1.5, y - 8) / 4)
    image += 0.05 * np.exp(-((x / 25) ** 2) - ((y - 4 + x**2 / 100) / 4) ** 2)
    return image + noise * np.random.default_rng(seed).standard_normal(shape)


def frame(pixels, mask=None):
    canvas, _ = to_canvas(pixels, mask)
    return stretch(cut_frames(canvas, find_frames(canvas)))[0, 0].numpy()


def correlation(a, b):
    """The best over the four flips: the sense of the long axis and the handedness of the sky are free."""
    return max(np.corrcoef(a.ravel(), b[::v, ::h].ravel())[0, 1] for v in (1, -1) for h in (1, -1))


@pytest.fixture(scope="module")
def reference():
    return frame(pair())


@pytest.mark.parametrize("change", [
    {"angle": 30}, {"angle": 90}, {"angle": -77}, {"angle": 180}, {"mirror": True}, {"zoom": 0.7}, {"zoom": 1.4},
    {"shift": (30, -20)}, {"shift": (0, 35)}, {"shape": (260, 200)}, {"shape": (180, 310)},
    {"angle": 130, "mirror": True, "zoom": 1.2, "shift": (-12, 17)},
    {"angle": 200, "zoom": 0.8, "shift": (25, 9), "noise": 0.003},
], ids=lambda c: " ".join(f"{k} {v}" for k, v in c.items()))
def test_frame_does_not_depend_on_how_the_picture_was_taken(reference, change):
    assert correlation(reference, frame(pair(**change))) > 0.97


def test_frames_of_different_pairs_differ(reference):
    rng = np.random.default_rng(0)
    other = np.exp(-np.hypot(*(np.mgrid[:200, :200] - 99.5)) / 12) + 1e-4 * rng.standard_normal((200, 200))
    assert correlation(reference, frame(other)) < 0.9


@pytest.mark.parametrize("size", [120, 400, 700])
def test_frame_does_not_depend_on_the_number_of_pixels(reference, size):
    assert correlation(reference, frame(pair((size, size), zoom=size / 200))) > 0.97


@pytest.mark.parametrize("factor, offset", [(1, 100), (1e-12, 0), (1e9, 0), (3, -50), (0.02, 7)])
def test_frame_does_not_depend_on_the_unit_of_light_or_the_level_of_the_sky(factor, offset):
    image = pair(noise=0.01)
    np.testing.assert_allclose(frame(factor * image + offset), frame(image), atol=3e-3)


def test_a_large_offset_survives_single_precision():
    image = (1e6 + 1000 * pair(noise=0.01)).astype(np.float32)  # steps of 0.06 in float32
    np.testing.assert_allclose(frame(image), frame(pair(noise=0.01)), atol=0.02)


def test_a_large_offset_in_double_precision_loses_nothing():
    np.testing.assert_allclose(frame(1e9 + pair(noise=0.01)), frame(pair(noise=0.01)), atol=0.02)


def test_a_long_strip_takes_little_memory_and_keeps_its_scale():
    strip = np.tile(pair((20, 400), zoom=0.3), (1, 50)).astype(np.float32)  # 20,000 pixels long
    canvas, canvas_pixel = to_canvas(strip)
    assert canvas.shape[-1] <= 320 and canvas_pixel * canvas.shape[-1] == pytest.approx(20000, rel=1e-3)


def test_background_below_zero_is_fine():
    image = 20 * pair(noise=0.02) - 0.3  # as after a sky subtraction
    assert (image < 0).mean() > 0.3
    assert correlation(frame(image), frame(pair(noise=0.02))) > 0.99


@pytest.mark.parametrize("dtype", [">f4", ">i2", "u1", "f8"])
def test_any_kind_of_number_is_accepted(dtype, reference):
    assert correlation(reference, frame((200 * pair()).astype(dtype))) > 0.97


def test_scale_of_the_frame_follows_the_zoom():
    sides = []
    for zoom in (0.7, 1.0, 1.4):
        canvas, canvas_pixel = to_canvas(pair(zoom=zoom))
        sides.append(find_frames(canvas).half_side[0] * canvas.shape[-1] * canvas_pixel / zoom)
    np.testing.assert_allclose(sides, sides[1], rtol=0.1)


def test_centre_and_angle_of_the_frame_are_those_of_the_light():
    still, moved = (find_frames(to_canvas(pair(**c))[0]) for c in ({}, {"shift": (30, -20)}))
    np.testing.assert_allclose((moved.centre - still.centre)[0], [0.3, -0.2], atol=0.03)
    turned = find_frames(to_canvas(pair(angle=40))[0])
    difference = np.degrees(turned.angle - still.angle)[0]
    assert abs((difference - 40 + 90) % 180 - 90) < 4
    assert still.found.all() and turned.found.all()


def test_stretch_lies_between_its_bounds():
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(np.stack([
        pair((112, 112), zoom=0.6, noise=0.01), rng.standard_normal((112, 112)), 1e12 * rng.random((112, 112)),
        np.where(rng.random((112, 112)) < 1e-3, 1e9, 0), np.zeros((112, 112))])[:, None]).float()
    out = stretch(frames)
    assert out.dtype == torch.float32 and out.shape == frames.shape
    assert torch.isfinite(out).all() and out.min() >= -0.1 and out.max() <= 1.3
    bright = torch.sort(out[0].flatten()).values[-112 * 112 // 100]
    assert bright == pytest.approx(1, abs=0.05)  # the brightest percent
    assert out[0, 0, :5].abs().median() < 0.1  # the sky
    assert (out[4] == 0).all()


def test_stretch_keeps_the_order_of_brightness():
    image = torch.from_numpy(pair((112, 112), zoom=0.6))[None, None].float()
    a, b = image.flatten(), stretch(image).flatten()
    order = torch.argsort(a)
    assert (torch.diff(b[order]) >= -1e-6).all()


def test_quantile_is_an_order_statistic():
    images = torch.from_numpy(np.random.default_rng(0).permutation(1000).reshape(1, 10, 100).astype(np.float32))
    assert quantile(images, 0.99).item() == 989
    assert quantile(images, 0.5).item() == 499


def test_asinh_is_that_of_torch():
    x = torch.cat([torch.logspace(-20, 18, 400), torch.zeros(1)])
    x = torch.cat([x, -x])
    torch.testing.assert_close(asinh(x), torch.asinh(x.double()).float(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (40, 40)])
def test_largest_of_nine_is_what_pooling_finds(size):
    x = torch.randn(3, 1, *size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(largest_of_nine(x), torch.nn.functional.max_pool2d(x, 3, stride=1, padding=1))


def test_canvas_is_square_small_and_padded_with_sky():
    canvas, pixel = to_canvas(pair((100, 60)))
    assert canvas.shape == (1, 1, 100, 100) and pixel == 1
    assert canvas[0, 0, :, :20].std() < 1e-3  # padding is as flat as the picture's border is, and as dark
    assert canvas[0, 0, 50, 5] == pytest.approx(float(canvas[0, 0, 2, 22]), abs=0.02)
    canvas, pixel = to_canvas(pair((640, 500)))
    assert canvas.shape == (1, 1, 320, 320) and pixel == 2
    canvas, pixel = to_canvas(pair((401, 300)), size=100)
    assert canvas.shape == (1, 1, 100, 100) and pixel == pytest.approx(4.01)


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_a_noisy_picture_is_framed_alike_whatever_is_cut_off_or_masked_of_its_sky(noise):
    """What is missing is filled with sky: without its noise it stood out of a noisy picture as if it were light."""
    rng, image = np.random.default_rng(3), np.zeros((360, 360))
    image[80:280, 80:280] = pair()
    noisy = image + rng.normal(0, noise * np.quantile(image[80:280, 80:280], 0.99), image.shape)
    rim = np.ones(image.shape, bool)
    rim[36:-36, 36:-36] = False

    def framed(pixels, mask=None):
        canvas, pixel = to_canvas(pixels, mask)
        framing = find_frames(canvas)
        half = canvas.shape[-1] * pixel / 2
        assert framing.found[0]
        return np.array([*framing.centre[0] * half, framing.half_side[0] * half])

    whole = framed(noisy)
    for other in (framed(noisy[60:300]), framed(noisy[:, 45:315]), framed(noisy[80:280]), framed(noisy, rim)):
        assert np.abs(other - whole).max() < 0.2 * whole[2]


def test_sky_that_is_filled_in_turns_with_the_picture():
    image = pair((100, 60)) + np.random.default_rng(0).normal(0, 0.3, (100, 60))
    canvas = to_canvas(image)[0][0, 0]
    assert 0.5 < float(canvas[:, :20].std() / canvas[:6, 20:80].std()) < 2
    for turned, back in ((image[::-1], canvas.flip(0)), (image[:, ::-1], canvas.flip(1)), (image.T, canvas.T)):
        torch.testing.assert_close(to_canvas(np.ascontiguousarray(turned))[0][0, 0], back, rtol=0, atol=1e-6)


def test_masked_pixels_do_not_count(reference):
    image, mask = pair(), np.zeros((200, 200), bool)
    mask[:30], mask[150:160, 100:110] = True, True
    image[mask] = 1e7
    assert correlation(reference, frame(image, mask)) > 0.95


def test_masked_pixels_may_hold_anything(reference):
    image, mask = pair(), np.zeros((200, 200), bool)
    mask[:3] = True
    image[mask] = np.nan
    assert correlation(reference, frame(image, mask)) > 0.95


@pytest.mark.parametrize("pixels, mask", [
    (np.zeros((30, 30)), None), (np.full((30, 30), 1e6), None), (pair((30, 30)), np.ones((30, 30), bool)),
    (np.where(np.eye(30) > 0, 5.0, 1.0), np.eye(30) > 0), (np.zeros((0, 0)), None)],
    ids=["black", "grey", "all masked", "constant where valid", "empty"])
def test_picture_without_light_is_refused(pixels, mask):
    with pytest.raises(ImageError, match="no light"):
        to_canvas(pixels, mask)


def test_one_bright_pixel_and_pure_noise_still_give_a_frame():
    rng = np.random.default_rng(0)
    single = np.zeros((50, 50))
    single[10, 20] = 1
    for image in (single, rng.standard_normal((90, 60)), rng.random((8, 8)), np.arange(4.0).reshape(2, 2)):
        out = frame(image)
        assert out.shape == (FRAME_PIXELS, FRAME_PIXELS) and np.isfinite(out).all()


@pytest.mark.parametrize("value", [-1e4, -1e10, 1e10])
def test_a_damaged_pixel_is_no_part_of_the_scale(reference, value):
    pixels = pair()
    pixels[3, 3] = value
    np.testing.assert_allclose(frame(pixels), reference, atol=0.02)


def test_where_no_light_stands_out_the_whole_canvas_is_framed():
    canvas, _ = to_canvas(np.random.default_rng(1).standard_normal((160, 160)))
    framing = find_frames(canvas)
    assert not framing.found[0]
    assert framing.half_side[0] == 1 and framing.angle[0] == 0 and (framing.centre[0] == 0).all()


def test_canvases_do_not_influence_each_other():
    canvases = torch.cat([to_canvas(pair(angle=a, zoom=z))[0] for a, z in ((0, 1), (50, 0.6), (120, 1.5))])
    together = find_frames(canvases)
    frames = stretch(cut_frames(canvases, together))
    for i in range(3):
        alone = find_frames(canvases[i:i + 1])
        assert alone.half_side[0] == together.half_side[i] and alone.angle[0] == together.angle[i]
        np.testing.assert_allclose(stretch(cut_frames(canvases[i:i + 1], alone))[0], frames[i], atol=1e-5)


def test_distant_companion_of_another_size_is_left_out():
    image = pair()
    y, x = np.mgrid[:200, :200]
    alone = find_frames(to_canvas(image)[0])
    image += 0.8 * np.exp(-((x - 185) ** 2 + (y - 185) ** 2) / 2 / 4.0**2)
    framing = find_frames(to_canvas(image)[0])
    assert framing.crowded[0] == 1
    np.testing.assert_allclose(framing.half_side, alone.half_side, rtol=0.1)


def test_identity_framing_is_the_canvas_itself():
    canvas = torch.from_numpy(pair((112, 112)))[None, None].float()
    whole = Framing(np.zeros((1, 2)), np.ones(1), np.zeros(1), np.ones(1, bool), np.zeros(1, int))
    np.testing.assert_allclose(cut_frames(canvas, whole), canvas, atol=1e-5)


def test_pieces_of_light_never_reach_into_the_next_grid():
    """Grids of random pieces, some empty, some touching every edge, each framed as if it were alone."""
    rng = np.random.default_rng(0)
    light = rng.random((200, 40, 40)).astype(np.float32)
    bright = light > rng.choice([0.7, 0.9, 0.97, 0.999, 2], (200, 1, 1))
    bright[::7, 0] = bright[::7, -1] = bright[1::7, :, 0] = True
    together = _frames_of(light, bright)
    assert together.found.any() and not together.found.all()
    for i in range(len(light)):
        alone = _frames_of(light[i:i + 1], bright[i:i + 1])
        for name in Framing.__dataclass_fields__:
            np.testing.assert_allclose(getattr(alone, name)[0], getattr(together, name)[i], rtol=1e-9, atol=1e-9)


def test_two_pieces_of_a_size_are_framed_together_and_a_small_one_is_not():
    light, bright = np.zeros((1, 40, 40), np.float32), np.zeros((1, 40, 40), bool)
    for row, column, size in ((20, 12, 4), (20, 24, 4), (8, 8, 1)):
        light[0, row:row + size, column:column + size] = 1
        bright[0, row:row + size, column:column + size] = True
    framing = _frames_of(light, bright)
    x = (np.array([13.5, 25.5]) + 0.5) * 2 / 40 - 1
    np.testing.assert_allclose(framing.centre[0], [x.mean(), (21.5 + 0.5) * 2 / 40 - 1], atol=1e-9)
    np.testing.assert_allclose(np.sin(framing.angle[0]), 0, atol=1e-9)
    assert framing.found[0] and framing.crowded[0] == 0 and framing.half_side[0] > 1.35 * 6 * 2 / 40
