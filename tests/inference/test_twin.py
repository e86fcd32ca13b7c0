"""The simulated twin: the same collision, turned as the picture is, and never its mirror image in space."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from deepgalaxy.errors import LibraryError
from deepgalaxy.image.observation import light_from_stored
from deepgalaxy.image.preprocess import cut_frames, find_frames, stretch
from deepgalaxy.image.render import RenderConfig, render, render_encounter, smoothing_lengths
from deepgalaxy.image.view import View
from deepgalaxy.inference.story import Match
from deepgalaxy.inference.twin import _some_of, simulate_twin
from deepgalaxy.search.library import Library, encode_thumbnail, write_library
from deepgalaxy.search.pictures import flipped
from deepgalaxy.simulate.encounter import EncounterConfig, Resolution, simulate
from deepgalaxy.simulate.galaxy import GalaxyConfig

#: Two discs of unlike size on either side, one of them tilted: no mirror image of it is itself.
CONFIG = EncounterConfig(name="pair", mass_ratio=0.4, size_ratio=0.6, pericentre=10, start_time=70, seed=3,
                         secondary_disc_inclination=70, secondary_disc_node=40,
                         resolution=Resolution(n_particles=2048, first_time=-60, last_time=90))


@pytest.fixture(scope="module")
def encounter():
    return simulate(CONFIG)


@pytest.fixture(scope="module")
def cameras(encounter):
    return render_encounter(encounter, RenderConfig(n_pixels=160, n_cameras=3, seed=5))


@pytest.fixture(scope="module")
def frames(cameras):
    """(3, 112, 112), of each camera at the last snapshot, as the model sees them."""
    light = light_from_stored(torch.from_numpy(np.stack([c.images[-1] for c in cameras]).astype(np.float32)))
    return stretch(cut_frames(light, find_frames(light)))[:, 0].numpy()


def write(path, cameras, frames, time, configs, config="{}"):
    rng, n = np.random.default_rng(0), len(frames)
    write_library(path, z=rng.normal(size=(n, 4)), encounters=["suite:pair"], encounter=np.zeros(n, int),
                  labels={"time": np.full(n, time), "mass_ratio": np.full(n, 0.4), "size_ratio": np.full(n, 0.6),
                          "view_inclination": np.full(n, 45.0)},
                  snapshot=np.zeros(n, int), camera=np.arange(n), thumbnails=[encode_thumbnail(f) for f in frames],
                  usual_features=rng.normal(size=(50, 4)), unseen_features=rng.normal(size=(50, 4)),
                  model_sha256="ab" * 32, configs=configs, view=np.array([c.view[-1] for c in cameras]),
                  config=config)
    return Library(path)


@pytest.fixture(scope="module")
def library(tmp_path_factory, encounter, cameras, frames):
    path = tmp_path_factory.mktemp("library") / "library.h5"
    return write(path, cameras, frames, encounter.time[-1], [CONFIG.to_json()])


def match(library, row, time=None):
    time = float(library.labels["time"][row]) if time is None else time
    return Match("suite:pair", time, 0.4, 0.6, 45.0, 1.0, row=row)


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.mark.parametrize("mirror", range(4))
@pytest.mark.parametrize("row", range(3))
def test_its_stars_lie_where_the_picture_has_light(library, encounter, frames, row, mirror):
    frame, told = flipped(frames[row], mirror), []
    twin = simulate_twin(library, match(library, row), frame, told.append)
    assert twin.time[twin.at] == pytest.approx(encounter.time[-1], abs=0.01) and twin.time[0] < 0 < twin.time[-1]
    assert twin.agreement > 0.97 and told[-1] > 0.99 and np.all(np.diff(told) >= 0)
    # Its projection, drawn here from the stars alone.
    x, y, _ = (twin.positions[twin.at] / (twin.side / 2)).T
    drawn, _, _ = np.histogram2d(y, x, bins=112, range=[[-1, 1], [-1, 1]])
    drawn = np.arcsinh(gaussian_filter(drawn, 2.5) * 30)
    others = [correlation(drawn, flipped(frame, other)) for other in range(4)]
    assert others[0] > 0.85 and np.argmax(others) == 0
    # And it is the same pair in space, not a reflection of it: distances and handedness are kept.
    chosen = _some_of(encounter, 3000)
    assert (twin.galaxy == encounter.galaxy[chosen]).all() and np.all(np.diff(twin.galaxy) >= 0)
    before, after = encounter.positions[-1][chosen].astype(float), twin.positions[twin.at].astype(float)
    for corners in np.random.default_rng(1).integers(0, len(chosen), (20, 4)):
        volumes = [np.linalg.det(p[corners[1:]] - p[corners[0]]) for p in (before, after)]
        assert volumes[1] == pytest.approx(volumes[0], rel=1e-3, abs=1.0)


def test_before_the_first_pericentre_the_film_goes_beyond_it(library, cameras, frames):
    twin = simulate_twin(library, match(library, 0, -30.0), frames[0])
    assert twin.time[twin.at] == pytest.approx(-30, abs=25) and twin.time[-1] > 140


def test_sky_that_hides_a_picture_does_not_move_its_twin(library, encounter, frames):
    """In the glare of a bright sky nothing of the pair shows but its nuclei; the decoder's picture shows it."""
    sky = np.maximum(gaussian_filter(frames[0], 14) * 2, 0.8 * frames[0]).clip(0, 1)
    told = simulate_twin(library, match(library, 0), sky, clean=frames[0])
    without = simulate_twin(library, match(library, 0), sky)
    assert told.time[told.at] == pytest.approx(encounter.time[-1], abs=11)
    x, y, _ = (told.positions[told.at] / (told.side / 2)).T
    drawn = np.arcsinh(gaussian_filter(np.histogram2d(y, x, bins=112, range=[[-1, 1], [-1, 1]])[0], 2.5) * 30)
    assert correlation(drawn, frames[0]) > 0.85 and told.agreement != without.agreement
    # What shows something else is not asked.
    other = simulate_twin(library, match(library, 0), sky, clean=1 - frames[0])
    assert other.agreement == without.agreement


def test_it_is_shown_when_and_from_where_it_fits_better_than_the_look_alike(library, cameras, encounter):
    """The picture is of 20 Myr before the look-alike, from 15 degrees beside it."""
    view = View(tuple(cameras[0].view[-1]))
    right, _, towards = view.rotation
    beside = np.cos(np.radians(15)) * towards + np.sin(np.radians(15)) * right
    positions, masses = encounter.positions[-3].astype(float), encounter.masses.astype(float)
    image = render(positions - np.median(positions, axis=0), masses, View(tuple(beside)), 160, 120,
                   smoothing_lengths(positions))
    light = torch.from_numpy(image.astype(np.float32))[None, None]
    frame = stretch(cut_frames(light, find_frames(light)))[0, 0].numpy()
    twin = simulate_twin(library, match(library, 0), frame)
    assert twin.time[twin.at] == pytest.approx(encounter.time[-3], abs=11)
    # Where the stars are seen: as the picture's observer sees them, but for a turn about the line of sight.
    chosen = _some_of(encounter, 3000)
    now = int(np.argmin(np.abs(encounter.time - twin.time[twin.at])))
    depth = twin.positions[twin.at][:, 2].astype(float)
    seen = [correlation(depth, encounter.positions[now][chosen] @ one) for one in (beside, towards)]
    assert abs(seen[0]) > 0.95 > 0.6 > abs(seen[1])


def test_times_are_those_of_the_library_whatever_the_primary_weighs(tmp_path, cameras, frames):
    """A pair four times as heavy runs twice as fast; the library tells its times on the reference's clock."""
    heavy = GalaxyConfig(disc_mass=2e11, bulge_mass=4e10, halo_mass=2.4e12)
    config = EncounterConfig.parse({**CONFIG.model_dump(), "primary": heavy.model_dump(), "start_time": 35.0})
    library = write(tmp_path / "library.h5", cameras, frames, 90.0, [config.to_json()])
    twin = simulate_twin(library, match(library, 0), frames[0])
    assert twin.time[twin.at] == pytest.approx(90, abs=11)
    apart = [np.linalg.norm(np.subtract(*(np.median(x[twin.galaxy == k], axis=0) for k in (0, 1))))
             for x in twin.positions]
    assert abs(twin.time[int(np.argmin(apart[:twin.at + 1]))]) < 25  # the first pericentre


@pytest.mark.parametrize("time", [np.nan, 1e7, -1e5, -120.0])
def test_times_that_cannot_be_seen_are_one_line(library, frames, time):
    """The last is before the beginning of the run, 70 Myr before its pericentre."""
    with pytest.raises(LibraryError, match="suite:pair (cannot be simulated by this version|begins)"):
        simulate_twin(library, match(library, 0, time), frames[0])


def test_a_library_that_does_not_know_its_encounters_says_so(tmp_path, encounter, cameras, frames):
    later, another = '{"name": "pair", "of_a_later_version": 1}', CONFIG.model_copy(update={"name": "b"}).to_json()
    for configs in ([], [None], [later], [another], [3.0], ["{"], [later, later]):
        library = write(tmp_path / "library.h5", cameras, frames, encounter.time[-1], configs)
        words = "cannot be simulated by this version.*of_a_later_version" if configs == [later] else \
            "does not say how suite:pair was simulated.*labelled snapshots.*no twin to simulate"
        with pytest.raises(LibraryError, match=words):
            simulate_twin(library, match(library, 0), frames[0])


def test_the_shipped_library_knows_how_its_encounters_were_simulated(shipped):
    library = shipped.library
    _, rows = np.unique(library.encounter, return_index=True)
    for row in rows[::20]:
        source, direction = library.origin(row)
        config = EncounterConfig.from_json(source)
        assert config.mass_ratio == pytest.approx(library.labels["mass_ratio"][row], rel=1e-4)
        assert config.size_ratio == pytest.approx(library.labels["size_ratio"][row], rel=1e-4)
        inclination = np.degrees(np.arccos(min(abs(direction[2]), 1)))
        assert inclination == pytest.approx(library.labels["view_inclination"][row], abs=2)
