"""Where the observer stands: right-handed from every side, and mirrored from the opposite one."""

import numpy as np
import pytest

from deepgalaxy.errors import ViewError
from deepgalaxy.image.render import render
from deepgalaxy.image.view import View, cube_views, random_views

POLES = [View((0, 0, 1), 30), View((0, 0, -1), 30), View((0.01, 0, 1), 10), View((0, 0.01, -1), 10),
         View((0, 0.14, 0.99)), View((0, 0.15, 0.985))]
VIEWS = cube_views() + random_views(60, np.random.default_rng(0)) + POLES


def scene(n=400, seed=0):
    """A lopsided, twisted cloud that no mirror maps onto itself."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 1, n)
    x = np.column_stack([12 * t**2, 9 * t * np.cos(5 * t), 6 * t * np.sin(5 * t) + 3 * t])
    return x - x.mean(axis=0), rng.uniform(0.5, 1.5, n) * 1e6


def picture(view, n=64):
    x, m = scene()
    return render(x, m, view, n, 40.0, np.full(len(m), 1.5))


def test_rotation_has_determinant_one_from_every_side():
    for view in VIEWS:
        rotation = view.rotation
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-12)


def test_observer_lies_on_the_third_axis():
    for view in VIEWS:
        np.testing.assert_allclose(view.rotation @ view.unit, [0, 0, 1], atol=1e-12)
        np.testing.assert_allclose(np.cross(view.rotation[0], view.rotation[1]), view.unit, atol=1e-12)


def test_north_is_up_where_it_can_be():
    for view in cube_views():
        sky = view.rotation @ [0, 0, 1]
        assert abs(sky[0]) < 1e-12 and sky[1] > -1e-12


def test_length_of_the_direction_does_not_matter():
    np.testing.assert_allclose(View((1, 2, 3), 20).rotation, View((10, 20, 30), 20).rotation, atol=1e-12)


def test_position_angle_turns_the_picture_counter_clockwise():
    east = np.array([1.0, 0, 0])  # to the right as seen from +z
    for angle, wanted in ((0, [1, 0]), (90, [0, 1]), (180, [-1, 0]), (45, [np.sqrt(0.5)] * 2)):
        np.testing.assert_allclose(View((0, 0, 1), angle).rotation[:2] @ east, wanted, atol=1e-12)


def test_quarter_turn_of_the_position_angle_is_a_quarter_turn_of_the_pixels():
    # Axis 0 increases upwards, so a counter-clockwise turn of the sky is clockwise for numpy's rot90.
    np.testing.assert_allclose(picture(View((1, 2, 3), 110)), np.rot90(picture(View((1, 2, 3), 20)), -1),
                               rtol=1e-5, atol=1e-5 * picture(View((1, 2, 3), 20)).max())


@pytest.mark.parametrize("view", VIEWS[:14] + VIEWS[20:26] + POLES, ids=lambda v: " ".join(f"{x:.2f}" for x in v.unit))
def test_opposite_cameras_see_mirror_images(view):
    opposite = View(tuple(-view.unit), -view.position_angle)
    here, there = picture(view), picture(opposite)
    np.testing.assert_allclose(there, here[:, ::-1], rtol=0, atol=1e-6 * here.max())
    assert np.abs(there - here).max() > 0.05 * here.max()  # and not the same image


def test_cube_has_14_cameras_7_of_them_independent():
    units = np.array([v.unit for v in cube_views()])
    assert units.shape == (14, 3)
    assert len({tuple(np.round(u, 9)) for u in units}) == 14
    axes = {max(tuple(np.round(u, 9)), tuple(np.round(-u, 9))) for u in units}
    assert len(axes) == 7


@pytest.mark.parametrize("direction, wanted", [
    ((0, 0, 1), 0), ((0, 0, -1), 0), ((1, 0, 0), 90), ((0, -2, 0), 90), ((1, 0, 1), 45), ((0, 1, -1), 45),
    ((1, 1, 1), np.degrees(np.arccos(1 / np.sqrt(3))))])
def test_inclination_is_the_angle_between_orbit_and_sky_on_the_mirror_quotient(direction, wanted):
    assert View(direction).inclination == pytest.approx(wanted, abs=1e-5)


def test_inclinations_lie_between_0_and_90_and_are_isotropic():
    views = random_views(4000, np.random.default_rng(1))
    inclinations = np.array([v.inclination for v in views])
    assert inclinations.min() >= 0 and inclinations.max() <= 90
    # Isotropic: the cosine is uniform, so half of the directions are more inclined than 60 degrees.
    assert np.mean(inclinations > 60) == pytest.approx(0.5, abs=0.03)
    assert np.abs(np.mean([v.unit for v in views], axis=0)).max() < 0.04


def test_random_views_repeat_with_their_seed():
    a, b = (random_views(5, np.random.default_rng(9)) for _ in range(2))
    assert a == b


@pytest.mark.parametrize("direction", [(0, 0, 0), (np.nan, 0, 1), (np.inf, 0, 0)])
def test_impossible_direction_is_refused(direction):
    with pytest.raises(ViewError, match="direction"):
        View(direction).rotation  # noqa: B018
