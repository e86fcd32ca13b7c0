"""Stars onto pixels: nothing is lost, and everything lies where it should."""

import numpy as np
import pytest

from deepgalaxy.errors import ViewError
from deepgalaxy.image.render import RenderConfig, field_of_view_by_content, render, render_encounter, smoothing_lengths
from deepgalaxy.image.view import View
from deepgalaxy.simulate.snapshot import Encounter

FACE_ON = View((0, 0, 1))


def cloud(n=300, size=3.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, size, (n, 3)), rng.uniform(0.5, 2, n) * 1e6


def encounter(name="a", n_times=3, n=300):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (n_times, n, 3))
    x[:, n // 2:, 0] += np.linspace(10, 30, n_times)[:, None]
    return Encounter(
        name=name, time=np.linspace(-20, 100, n_times).astype(np.float32), positions=x.astype(np.float32),
        masses=np.full(n, 2e8, np.float32), component=np.zeros(n, np.int8),
        galaxy=(np.arange(n) >= n // 2).astype(np.int8),
        separation=np.linspace(10, 30, n_times).astype(np.float32), stage=np.zeros(n_times, np.uint8),
        parameters={"mass_ratio": 1.0, "size_ratio": 1.0, "pericentre": 8.0})


@pytest.mark.parametrize("smoothing", [1e-3, 0.5, 2.0, 3.0, 8.0], ids=lambda h: f"{h * 2:g} px")
@pytest.mark.parametrize("position_angle", [0, 33])
def test_image_conserves_mass(smoothing, position_angle):
    x, m = cloud()
    n, field = 128, 64.0
    image = render(x, m, View((1, 2, 3), position_angle), n, field, np.full(len(m), smoothing))
    assert image.astype(np.float64).sum() * (field / n) ** 2 == pytest.approx(m.sum(), rel=1e-4)


@pytest.mark.parametrize("smoothing", [1.5, 3, 6, 9, 9.4, 9.6, 10, 12, 30])
def test_one_star_conserves_mass_wherever_it_falls_in_its_pixel(smoothing):
    for shift in ((0, 0), (0.5, 0.5), (0.25, 0.9), (0.01, 0.49)):
        image = render(np.array([[*shift, 0]]), np.array([1.0]), FACE_ON, 100, 100.0, np.array([smoothing]))
        assert image.astype(np.float64).sum() == pytest.approx(1, rel=1e-3)


def test_adaptive_smoothing_conserves_mass_too():
    x, m = cloud(1000)
    image = render(x, m, FACE_ON, 96, 96.0)
    assert image.astype(np.float64).sum() == pytest.approx(m.sum(), rel=1e-4)
    assert image.dtype == np.float32 and image.shape == (96, 96)


def test_mass_outside_the_field_does_not_count():
    x = np.array([[0.0, 0, 0], [100.0, 0, 0], [0, -100.0, 0]])
    image = render(x, np.array([1.0, 5.0, 7.0]), FACE_ON, 40, 40.0, np.full(3, 2.0))
    assert image.sum() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("at", [(0, 0), (19.9, 19.9), (-19.9, 5), (-20.5, 0)])
def test_splat_at_the_border_is_cut_off_and_not_wrapped(at):
    small = render(np.array([[*at, 0]]), np.array([1.0]), FACE_ON, 40, 40.0, np.array([3.0]))
    large = render(np.array([[*at, 0]]), np.array([1.0]), FACE_ON, 80, 80.0, np.array([3.0]))
    np.testing.assert_allclose(small, large[20:60, 20:60], atol=1e-6)


@pytest.mark.parametrize("x, y, column, row", [
    (0.5, 0.5, 50, 50), (-30.5, 10.5, 19, 60), (12.5, -44.5, 62, 5), (49.5, 49.5, 99, 99)])
@pytest.mark.parametrize("smoothing", [0.1, 2.0, 4.0])
def test_star_is_centred_at_its_pixel_with_y_upwards(x, y, column, row, smoothing):
    image = render(np.array([[x, y, 7.0]]), np.array([3e6]), FACE_ON, 100, 100.0, np.array([smoothing]))
    assert np.unravel_index(image.argmax(), image.shape) == (row, column)
    if 5 < column < 95 and 5 < row < 95:
        grid = np.arange(100) - 49.5
        assert (image.sum(axis=0) @ grid) / image.sum() == pytest.approx(x, abs=1e-3)
        assert (image.sum(axis=1) @ grid) / image.sum() == pytest.approx(y, abs=1e-3)


def test_kernel_has_the_documented_shape():
    h = 20.0
    image = render(np.array([[0.5, 0.5, 0]]), np.array([1.0]), FACE_ON, 64, 64.0, np.array([h]))
    y, x = np.mgrid[:64, :64] - 32
    wanted = 3 / (np.pi * h**2) * np.clip(1 - (x**2 + y**2) / h**2, 0, None) ** 2
    np.testing.assert_allclose(image, wanted, atol=1e-7)


def test_centre_moves_the_picture():
    x, m = cloud()
    image = render(x, m, FACE_ON, 64, 64.0, np.full(len(m), 2.0))
    moved = render(x + [5.0, -3.0, 0], m, FACE_ON, 64, 64.0, np.full(len(m), 2.0), centre=(5.0, -3.0))
    np.testing.assert_allclose(moved, image, rtol=1e-4, atol=1e-4 * image.max())


def test_surface_density_does_not_depend_on_the_pixels():
    x, m = cloud(2000)
    h = np.full(len(m), 5.0)
    coarse, fine = (render(x, m, FACE_ON, n, 64.0, h) for n in (64, 128))
    np.testing.assert_allclose(fine.reshape(64, 2, 64, 2).mean(axis=(1, 3)), coarse, atol=0.01 * coarse.max())


def test_no_star_in_the_field_is_a_view_error():
    x, m = cloud()
    with pytest.raises(ViewError, match="field of view of 20 kpc") as caught:
        render(x + [500.0, 0, 0], m, FACE_ON, 32, 20.0)
    assert "\n" not in str(caught.value)


def test_smoothing_is_the_distance_to_the_nth_neighbour():
    x, _ = cloud(80)
    distances = np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)
    np.testing.assert_allclose(smoothing_lengths(x, 24), distances[:, 23])  # the star itself is the first
    np.testing.assert_allclose(smoothing_lengths(x[:5], 24), np.sort(
        np.linalg.norm(x[:5, None] - x[None, :5], axis=2), axis=1)[:, 4])


def test_single_star_can_be_rendered_without_a_smoothing_length():
    image = render(np.zeros((1, 3)), np.ones(1), FACE_ON, 32, 32.0)
    assert image.sum() == pytest.approx(1, rel=1e-3)


def test_field_of_view_holds_the_visible_light_with_a_margin():
    rng = np.random.default_rng(0)
    sky = rng.normal([20, -10], 4, (5000, 2))
    centre, side = field_of_view_by_content(sky, np.full(5000, 1e7))
    np.testing.assert_allclose(centre, [20, -10], atol=2)
    radius = np.quantile(np.linalg.norm(sky - centre, axis=1), 0.97)
    assert 2 * radius < side < 8 * radius
    assert field_of_view_by_content(sky + 1e4, np.full(5000, 1e7))[1] == 300  # nothing in sight


@pytest.mark.parametrize("cameras, n_cameras", [("cube", 14), ("random", 3)])
@pytest.mark.parametrize("field_of_view", [None, 120.0])
def test_encounter_becomes_images_of_the_documented_shape(cameras, n_cameras, field_of_view):
    config = RenderConfig(n_pixels=32, cameras=cameras, n_cameras=3, field_of_view=field_of_view)
    pictures = render_encounter(encounter(), config)
    assert len(pictures) == n_cameras
    for camera in pictures:
        assert camera.images.shape == (3, 32, 32) and camera.images.dtype == np.float16
        assert camera.pixel_scale.shape == camera.times.shape == (3,) and camera.view.shape == (3, 3)
        np.testing.assert_allclose(np.linalg.norm(camera.view, axis=1), 1, atol=1e-6)
        assert np.isfinite(camera.images).all() and (camera.images >= 0).all()
        if field_of_view:
            np.testing.assert_allclose(camera.pixel_scale, 120 / 32)
    directions = {tuple(v) for camera in pictures for v in camera.view}
    assert len(directions) == (14 if cameras == "cube" else 9)  # random directions are drawn for every snapshot


def test_stored_quantity_is_the_logarithm_of_the_surface_density():
    e = encounter()
    camera = render_encounter(e, RenderConfig(n_pixels=32, cameras="cube", field_of_view=150.0))[4]
    np.testing.assert_array_equal(camera.view[0], [0, 0, 1])
    x = e.positions[0] - np.median(e.positions[0], axis=0)
    image = render(x, e.masses, FACE_ON, 32, 150.0)
    np.testing.assert_allclose(camera.images[0], np.log10(np.maximum(image, 1)), atol=5e-3)
    light = np.where(camera.images[0] > 0, 10.0 ** camera.images[0].astype(float), 0)
    assert light.sum() * (150 / 32) ** 2 == pytest.approx(e.masses.sum(), rel=0.01)
    assert (camera.images[0] == 0).any()  # 0 is darkness


def test_pictures_of_an_encounter_depend_on_its_name_and_the_seed_alone():
    config = RenderConfig(n_pixels=16, n_cameras=2)
    a, again, other = (render_encounter(encounter(name), config) for name in ("a", "a", "b"))
    seeded = render_encounter(encounter("a"), RenderConfig(n_pixels=16, n_cameras=2, seed=1))
    for one, two, three, four in zip(a, again, other, seeded, strict=True):
        np.testing.assert_array_equal(one.images, two.images)
        np.testing.assert_array_equal(one.view, two.view)
        assert np.abs(one.view - three.view).max() > 0.01
        assert np.abs(one.view - four.view).max() > 0.01
