"""Pictures laid on each other: what was turned, enlarged and shifted is found again."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from deepgalaxy.search.pictures import (
    PICTURE_PIXELS,
    PictureBasis,
    align,
    at_contrast,
    disc_contrast,
    flipped,
    lit_share,
    map_agreement,
    structure_agreement,
    tidy,
)


def blobs(n, seed=0, size=PICTURE_PIXELS):
    """(n, size, size), 0..1: three blobs at random places away from the border."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    c, w = rng.uniform(0.3, 0.7, (2, n, 3, 1, 1)), rng.uniform(0.03, 0.08, (n, 3, 1, 1))
    return np.exp(-((x - c[0]) ** 2 + (y - c[1]) ** 2) / 2 / w**2).sum(axis=1).clip(0, 1).astype(np.float32)


def changed(picture, degrees, zoom, shift):
    """Turned counter-clockwise, enlarged and moved by (dx, dy) pixels."""
    a, n = np.radians(degrees), PICTURE_PIXELS
    back = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) / zoom
    offset = -back @ (2 * np.array(shift) / n)
    affine = torch.tensor(np.column_stack([back, offset]))[None].float()
    grid = F.affine_grid(affine, (1, 1, n, n), align_corners=False)
    return F.grid_sample(torch.from_numpy(picture)[None, None], grid, align_corners=False)[0, 0].numpy()


@pytest.mark.parametrize("degrees, zoom, shift", [
    (0, 1, (0, 0)), (0, 1, (5, -3)), (8, 1, (0, 0)), (-16, 1, (-4, 4)), (0, 1.15, (0, 0)), (8, 0.87, (2, 6))])
def test_a_moved_picture_is_laid_back(degrees, zoom, shift):
    picture = blobs(1)[0]
    agreement, aligned = align(picture, changed(picture, degrees, zoom, shift)[None])
    assert agreement[0] > 0.985
    np.testing.assert_allclose(aligned[0], picture, atol=0.2)


def test_agreement_is_the_correlation_and_at_most_one():
    pictures = blobs(12)
    agreement, aligned = align(pictures[0], pictures)
    assert agreement[0] == pytest.approx(1, abs=1e-5) and agreement.max() <= 1 + 1e-5
    for one, picture, original in zip(agreement, aligned, pictures, strict=True):
        assert one == pytest.approx(np.corrcoef(picture.ravel(), pictures[0].ravel())[0, 1], abs=0.03)
        assert one >= np.corrcoef(original.ravel(), pictures[0].ravel())[0, 1] - 1e-5


def test_structure_is_what_lies_between_two_scales_over_what_is_around_it():
    pictures = blobs(12)

    def structure(picture):
        around = gaussian_filter(picture, 5)
        return ((gaussian_filter(picture, 1) - around) / (around + 0.1)).ravel()

    expected = [np.corrcoef(structure(picture), structure(pictures[0]))[0, 1] for picture in pictures]
    np.testing.assert_allclose(structure_agreement(pictures[0], pictures), expected, atol=1e-4)
    assert np.isfinite(structure_agreement(pictures[0], np.zeros((2, 64, 64), np.float32))).all()


def test_arms_are_seen_in_the_structure_and_not_in_the_light():
    """A disc without arms is as good as the same spiral in a larger disc, by their light."""
    y, x = np.mgrid[-32:32, -32:32] + 0.5
    r, phi = np.hypot(x, y), np.arctan2(y, x)

    def galaxy(scale, arms):
        return (np.exp(-r / scale) * (1 + arms * np.cos(2 * phi - 3 * np.log(r)) * (r > 4))).astype(np.float32)

    spiral, others = galaxy(8, 0.8), np.stack([galaxy(8, 0), galaxy(11, 0.8)])
    light, laid = align(spiral, others)
    structure = structure_agreement(spiral, laid)
    assert structure[1] > structure[0] + 0.1
    assert structure[1] - structure[0] > 2 * (light[1] - light[0])


def test_a_faint_companion_counts_by_its_contrast():
    """Beside a bright galaxy it has next to no light, and is the first that a person misses."""
    y, x = np.mgrid[-32:32, -32:32] + 0.5

    def galaxy(x0, y0, size, peak):
        return peak * np.exp(-np.hypot(x - x0, y - y0) / size)

    main, companion = galaxy(-6, 0, 5, 1.0), galaxy(20, 8, 3, 0.3)
    with_it, without = structure_agreement(main + companion, np.stack([1.1 * galaxy(-6, 0, 4, 1) + companion, main]))
    assert np.corrcoef((main + companion).ravel(), main.ravel())[0, 1] > 0.98
    assert with_it > without + 0.1


def test_maps_agree_by_the_direction_of_their_channels_where_the_query_has_any():
    query = np.random.default_rng(0).normal(size=(5, 3, 4))
    query[:, 2, 3] = 0
    gain = np.random.default_rng(1).uniform(0.1, 9, (3, 4))
    other = query.copy()
    other[:, 2, 3] = 7  # where the query has nothing, nothing is asked
    across = np.zeros_like(query)
    across[0], across[1] = -query[1], query[0]
    np.testing.assert_allclose(map_agreement(query, np.stack([query, gain * query, other, -query, across])),
                               [1, 1, 1, -1, 0], atol=1e-12)
    # A cell counts by how far its channels are from zero: here one has three quarters of the weight.
    cells, turned = np.array([[[3.0, 1.0]], [[0.0, 0.0]]]), np.array([[[3.0, 0.0]], [[0.0, 1.0]]])
    assert map_agreement(cells, turned[None]) == pytest.approx(0.75)
    assert np.isfinite(map_agreement(0 * query, np.zeros((2, *query.shape)))).all()


def test_nothing_wraps_around_the_border():
    picture = blobs(1)[0]
    corner = np.zeros_like(picture)
    corner[-5:, -5:] = 1.0
    _, aligned = align(changed(picture, 0, 1, (6, 6)), np.maximum(picture, corner)[None])
    assert aligned[0][:8, :8].max() < 0.05


def test_products_of_projections_are_correlations():
    """To what 64 components hold of blobs; two pictures of nothing in common have none."""
    pictures = blobs(300)
    basis = PictureBasis.of(pictures)
    new = blobs(40, seed=9)
    p = basis.project(new)
    coarse = at_contrast(new, disc_contrast(0.7)).reshape(40, 32, 2, 32, 2).mean(axis=(2, 4)).reshape(40, -1)
    np.testing.assert_allclose(p @ p.T, np.corrcoef(coarse), atol=0.06)
    np.testing.assert_allclose(basis.components @ basis.components.T, np.eye(len(basis.components)), atol=1e-5)


def test_a_stretch_changes_no_contrast():
    pictures = np.where(blobs(6) > 0.1, blobs(6), 0)
    for stretched in (pictures**0.5, pictures**2, 0.3 * pictures):
        for contrast in (disc_contrast(0.3), np.sort(pictures[0], axis=None)):
            np.testing.assert_allclose(at_contrast(stretched, contrast), at_contrast(pictures, contrast), atol=0.03)


def test_in_its_own_contrast_a_picture_stays_what_it_is():
    for picture in blobs(3):
        np.testing.assert_allclose(at_contrast(picture[None], np.sort(picture, axis=None))[0], picture, atol=2e-3)


def test_an_exponential_disc_has_the_contrast_of_one():
    """Its logarithm falls linearly with radius: a cone, whose lit share is that of its circle."""
    y, x = np.mgrid[-32:32, -32:32] + 0.5
    for radius in (12, 20, 28):
        cone = np.maximum(0, 1 - np.hypot(x, y) / radius).astype(np.float32)
        share = np.pi * radius**2 / PICTURE_PIXELS**2
        assert lit_share(cone) == pytest.approx(share, rel=0.06)
        np.testing.assert_allclose(np.sort(cone, axis=None), disc_contrast(share), atol=0.04)


def test_a_stretched_picture_projects_to_the_same_components():
    pictures = np.where(blobs(100) > 0.1, blobs(100), 0)
    basis = PictureBasis.of(pictures)
    np.testing.assert_allclose(basis.project(pictures[:20] ** 1.6), basis.project(pictures[:20]), atol=0.03)


def test_mirror_images_are_their_own_inverse():
    picture = blobs(1)[0]
    for view in range(8):
        np.testing.assert_array_equal(flipped(flipped(picture, view), view), picture)


def test_tidy_keeps_galaxies_and_drops_sky_and_stars():
    rng = np.random.default_rng(0)
    frame = np.kron(blobs(1)[0], np.ones((2, 2), np.float32))[:112, :112]
    dirty = frame + 0.04 * rng.standard_normal(frame.shape)
    dirty[8:10, 90:92] = 1.0
    clean, out = tidy(frame), tidy(dirty)
    assert out.shape == (PICTURE_PIXELS,) * 2 and 0 <= out.min() and out.max() <= 1
    np.testing.assert_allclose(out, clean, atol=0.12)
    assert np.abs(out - clean).mean() < 0.01
