"""Light that does not follow mass."""

import numpy as np
import pytest
import torch

from deepgalaxy.data.build import build_dataset
from deepgalaxy.data.reader import Dataset
from deepgalaxy.data.schema import check_dataset
from deepgalaxy.errors import DatasetError
from deepgalaxy.image.observation import image_seeds, observe_frames
from deepgalaxy.image.realism import RealismConfig
from deepgalaxy.image.render import RenderConfig
from deepgalaxy.image.starlight import Starlight, _arms, shine
from deepgalaxy.simulate.encounter import EncounterConfig, simulate
from deepgalaxy.simulate.galaxy import BULGE, DISC
from deepgalaxy.simulate.undisturbed import Undisturbed


@pytest.fixture(scope="module")
def encounter():
    return simulate(EncounterConfig.parse({
        "name": "pair", "mass_ratio": 0.5, "size_ratio": 0.7, "pericentre": 10, "start_time": 130, "seed": 3,
        "resolution": {"n_particles": 2048, "first_time": -120, "last_time": 20}}))


def _galaxy(n=4000, seed=0):
    """An exponential disc of scale length 3 kpc in the x-y plane, and a bulge of a sixth of its stars."""
    rng = np.random.default_rng(seed)
    r, phi = rng.gamma(2, 3, n), 2 * np.pi * rng.random(n)
    disc = np.column_stack([r * np.cos(phi), r * np.sin(phi), 0.3 * rng.standard_normal(n)])
    bulge = 0.6 * rng.standard_normal((n // 6, 3))
    return np.concatenate([disc, bulge]), np.repeat([DISC, BULGE], [n, n // 6]), r


def test_galaxies_of_one_mass_differ_in_light_by_015_dex():
    x, component, _ = _galaxy(30)  # too few stars for arms and gradients: the ratio alone
    dex = np.log10([shine(x[component == DISC], component[component == DISC], np.random.default_rng(k))[0]
                    for k in range(2000)])
    assert abs(dex.mean()) < 0.02 and dex.std() == pytest.approx(0.15, rel=0.15) and np.abs(dex).max() < 0.301


def test_bulges_are_fainter_than_their_discs_more_often_than_brighter():
    x, component, _ = _galaxy()
    dex = []
    for k in range(200):
        light = shine(x, component, np.random.default_rng(k))
        dex.append(np.log10(light[component == BULGE].mean() / np.median(light[component == DISC])))
        assert np.isfinite(light).all() and (light > 0).all() and np.ptp(light[component == BULGE]) == 0
    assert -0.4 < np.median(dex) < -0.1


@pytest.mark.parametrize("n_arms", [2, 3, 4])
def test_arms_are_logarithmic_spirals_between_the_centre_and_the_outskirts(n_arms):
    r, phi = np.random.default_rng(0).gamma(2, 3, 200_000), np.linspace(0, 2 * np.pi, 200_000, endpoint=False)
    disc = np.column_stack([r * np.cos(phi), r * np.sin(phi), np.zeros(200_000)])
    light = _arms(disc, 3.0, np.array([0.9, 0.5, 0.2, 0.4, 0.5]), n_arms)
    inside = (r > 4) & (r < 9)
    winding = np.log(r / 3) / np.tan(np.radians(22.5))  # half of the way from 10 to 35 degrees of pitch

    def power(n, sense):
        return np.abs(np.mean((light * np.exp(1j * n * (phi - sense * winding)))[inside]))

    # Which side the plane is looked at from is open, and with it the sense of the arms.
    strong, weak = sorted((power(n_arms, -1), power(n_arms, 1)), reverse=True)
    assert strong > 0.5 and strong > 5 * weak and strong > 20 * max(power(n_arms + 1, 1), power(n_arms + 1, -1))
    assert light[inside].max() / light[inside].min() > 5
    assert light[r < 0.5].max() < 1.2 and light[r > 20].max() < 1.1


def test_the_arms_lie_in_the_disc_however_it_is_turned():
    from scipy.spatial.transform import Rotation

    x, component, r = _galaxy()
    turn = Rotation.from_euler("xyz", [40, 70, 10], degrees=True).as_matrix()
    for k in range(20):
        flat, turned = (shine(y, component, np.random.default_rng(k)) for y in (x, x @ turn.T))
        # The arms begin elsewhere, but as strongly, and at the same radii.
        for low, high in ((0, 2), (4, 9), (15, 30)):
            here = (component == DISC) & (np.r_[r, np.zeros(len(x) - len(r))] >= low)
            here &= np.r_[r, np.zeros(len(x) - len(r))] < high
            assert np.std(flat[here]) == pytest.approx(np.std(turned[here]), rel=0.15, abs=0.01)


def test_every_picture_comes_beside_one_in_another_light(encounter, tmp_path):
    (tmp_path / "runs").mkdir()
    encounter.write(tmp_path / "runs" / "pair.h5")
    path = tmp_path / "suite.h5"
    config = RenderConfig(n_pixels=32, n_cameras=2, n_undisturbed=3, light="both")
    assert list(build_dataset(tmp_path / "runs", path, config)) == [("pair", None)]
    assert check_dataset(path) == []
    data = Dataset(path)
    names = ["pair", "pair-chance", "pair-single"]
    assert data.groups == sorted(names + [f"{name}-starlight" for name in names])
    assert data.families == ["pair"] * 6  # never divided among training and testing
    assert set(data.encounter) == {0} and len(data.encounter) == len(data)
    for name in names:
        mass, light = (data.group == data.groups.index(n) for n in (name, f"{name}-starlight"))
        assert data.shines_by_mass[mass].all() and not data.shines_by_mass[light].any()
        for label in ("time", "mass_ratio", "size_ratio", "stage", "separation"):
            np.testing.assert_array_equal(data.labels[label][mass], data.labels[label][light])
        assert np.array_equal(data.is_encounter[mass], data.is_encounter[light])
    # Without it, the pictures by mass are the same.
    plain = tmp_path / "plain.h5"
    list(build_dataset(tmp_path / "runs", plain, RenderConfig(n_pixels=32, n_cameras=2, n_undisturbed=3)))
    other = Dataset(plain)
    np.testing.assert_array_equal(other.images(np.arange(len(other))),
                                  data.images(np.flatnonzero(data.shines_by_mass)))


def test_a_library_shows_what_was_simulated(tiny_model, tiny_dataset, tmp_path):
    import shutil

    import h5py

    from deepgalaxy.search.build import build_library
    from deepgalaxy.search.library import Library

    path = shutil.copy(tiny_dataset, tmp_path / "both.h5")
    with h5py.File(path, "r+") as f:
        name = sorted(f)[0]
        f.copy(f[name], f, f"{name}-starlight")
        f[f"{name}-starlight"].attrs.update({"light": "varied", "encounter": name})
    build_library(tiny_model / "model.safetensors", path, tmp_path / "library.h5")
    library = Library(tmp_path / "library.h5")
    assert len(library) == 6 * 24
    assert not any(library.encounters[k].endswith("starlight") for k in np.unique(library.encounter))


def test_pictures_do_not_depend_on_how_snapshots_are_divided(encounter):
    from deepgalaxy.image.render import render_encounter

    config = RenderConfig(n_pixels=32, n_cameras=1)
    for source in (encounter, Undisturbed(encounter, "single", 4), Undisturbed(encounter, "chance", 4)):
        whole = render_encounter(Starlight(source), config)[0].images
        piece = render_encounter(Starlight(source), config, 2, 2)[0].images
        np.testing.assert_array_equal(whole[2:4], piece)
        assert np.abs(whole.astype(float) - render_encounter(source, config)[0].images).max() > 0.1


def test_a_users_own_snapshots_are_refused_because_nobody_knows_whose_stars_they_are(tmp_path):
    (tmp_path / "labels.csv").write_text("snapshot,encounter,time,mass_ratio,size_ratio,pericentre\na.hdf5,x,0,1,1,5\n")
    (tmp_path / "a.hdf5").touch()
    with pytest.raises(DatasetError, match="light = both"):
        list(build_dataset(tmp_path, tmp_path / "suite.h5", RenderConfig(light="both")))


def test_each_image_has_a_probability_of_its_own_to_be_observed():
    light = torch.rand(4, 1, 64, 64).cumsum(3)
    seeds, scale = image_seeds(0, 0, np.arange(4)), torch.ones(4)
    clean = observe_frames(light, scale, seeds, None).frames
    seen = observe_frames(light, scale, seeds, RealismConfig(), np.array([0.0, 1.0, 0.0, 1.0])).frames
    torch.testing.assert_close(seen[::2], clean[::2])
    assert ((seen - clean).abs().amax(dim=(1, 2, 3)) > 0.01).tolist() == [False, True, False, True]
