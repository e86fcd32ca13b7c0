"""One picture, however it comes, has one story."""

import copy
import csv
import json
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from PIL import Image

import deepgalaxy
from deepgalaxy.errors import ConfigError, DeepGalaxyError, ImageError, LibraryError
from deepgalaxy.image.mock import write_mock_fits
from deepgalaxy.image.reader import from_array, read
from deepgalaxy.image.strangers import strangers
from deepgalaxy.inference.predictor import Predictor, Scale, training_of
from deepgalaxy.inference.story import QUANTILES
from deepgalaxy.labels import LABELS, STAGES
from deepgalaxy.report import scale_sentence
from deepgalaxy.units import kpc_per_arcsec

KEYS = ["image", "model", "scale", "time_since_pericentre", "mass_ratio", "size_ratio", "view_inclination", "stage",
        "familiarity", "flags", "matches", "clock", "kpc_per_pixel_estimate"]
FIELD, REDSHIFT = 90.0, 0.03
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def fits(sky, tmp_path_factory):
    path = tmp_path_factory.mktemp("fits") / "pair.fits"
    write_mock_fits(path, sky, FIELD, REDSHIFT)
    return path


def eight_bits(image):
    low, high = image.min(), image.max()
    return np.round(255 * (image - low) / (high - low)).astype(np.uint8)


def numbers(story) -> dict[str, float]:
    """All numbers of an answer but the distances, flat."""
    tree = story if isinstance(story, dict) else story.to_dict()
    flat = {f"{name}.{key}": value for name in [label.name for label in LABELS] + ["stage"]
            for key, value in tree[name].items() if key != "unit"}
    return flat | {"familiarity": tree["familiarity"]} | {
        f"match.{i}.{key}": value for i, match in enumerate(tree["matches"])
        for key, value in match.items() if key != "encounter"}


def difference(a, b) -> float:
    """Largest vertical distance of the cumulative posteriors, averaged over the labels."""
    return float(np.mean([np.abs(np.cumsum(a.distributions[label.name][1] - b.distributions[label.name][1])).max()
                          for label in LABELS]))


def blobs(*places, size=160, noise=0.005):
    """Round galaxies (x, y, width in pixels) on a noisy sky."""
    y, x = np.mgrid[:size, :size].astype(float)
    light = sum(np.exp(-np.hypot(x - x0, y - y0) / width) for x0, y0, width in places)
    return (light + noise * np.random.default_rng(3).standard_normal(light.shape)).astype(np.float32)


# What an answer holds


def test_json_has_the_keys_of_the_design(predictor, sky):
    answer = json.loads(json.dumps(predictor.predict(sky).to_dict()))
    assert list(answer) == KEYS
    assert sorted(answer["model"]) == ["name", "sha256", "version"]
    assert sorted(answer["scale"]) == ["kpc_per_pixel", "source"]
    for label in LABELS:
        assert list(answer[label.name]) == ["unit", "p05", "p16", "p50", "p84", "p95"]
    assert tuple(answer["stage"]) == STAGES and sum(answer["stage"].values()) == pytest.approx(1, abs=1e-5)
    assert 0 <= answer["familiarity"] <= 1
    assert all(isinstance(flag, str) for flag in answer["flags"])
    assert len(answer["matches"]) == 5
    for match in answer["matches"]:
        assert list(match) == ["encounter", "time_myr", "mass_ratio", "size_ratio", "view", "distance"]


def test_mass_sets_the_clock_and_nothing_else(loud, fits):
    plain, heavy = (loud.predict(fits, redshift=REDSHIFT, **mass) for mass in ({}, {"mass": 6e11, "mass_dex": 0.1}))
    assert plain.clock["basis"] == "reference" and heavy.clock["basis"] == "mass"
    q, t = plain.properties["mass_ratio"]["p50"], plain.properties["time_since_pericentre"]["p50"]
    spread = plain.properties["time_since_pericentre"]["p84"] - plain.properties["time_since_pericentre"]["p16"]
    wanted = (6e10 * (1 + q) / 6e11) ** 0.5
    assert heavy.properties["time_since_pericentre"]["p50"] == pytest.approx(t * wanted, abs=0.1 * spread)
    for name in ("mass_ratio", "size_ratio", "view_inclination"):
        assert heavy.properties[name] == plain.properties[name]
    assert heavy.clock["time_in_dynamical_times"] == plain.clock["time_in_dynamical_times"]


def test_mass_of_a_picture_without_a_scale_is_flagged(predictor, sky):
    story = predictor.predict(sky, redshift=REDSHIFT, mass=1e11)
    assert story.clock["basis"] == "reference"
    assert any("redshift" in flag and "mass" in flag and "not used" in flag for flag in story.flags)


def test_quantiles_are_ordered_and_inside_the_bins(loud, sky, fits):
    for story in (loud.predict(sky), loud.predict(sky, kpc_per_pixel=0.4), loud.predict(fits, redshift=REDSHIFT)):
        for label in LABELS:
            values = [story.properties[label.name][name] for name in QUANTILES]
            assert values == sorted(values)
            assert label.low <= values[0] and values[-1] <= label.high


def test_unlike_pictures_get_unlike_answers(loud, sky):
    """What the comparisons below rest on."""
    others = [loud.predict(blobs((60, 80, 9), (105, 80, 5))), loud.predict(blobs((80, 80, 12)))]
    assert min(difference(loud.predict(sky), other) for other in others) > 0.03


# However it comes


def test_path_picture_and_array_give_the_same_numbers(loud, sky, fits):
    kpc = FIELD / 200
    by_path = loud.predict(str(fits), kpc_per_pixel=kpc)
    for image in (fits, read(fits), from_array(sky), sky, sky.astype(">f8")):
        assert numbers(loud.predict(image, kpc_per_pixel=kpc)) == pytest.approx(numbers(by_path), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("image", [None, [[1, 2], [3, 4]], 7, object()], ids=["None", "list", "number", "object"])
def test_what_is_no_picture_is_one_line_that_says_what_is(predictor, image):
    with pytest.raises(ImageError, match=f"of type {type(image).__name__}; give a path, a numpy array") as caught:
        predictor.predict(image)
    assert "\n" not in str(caught.value)
    [(_, error)] = predictor.predict_many([image])
    assert error == str(caught.value)


def test_a_batch_takes_finite_squares_alone(predictor):
    for images in (np.full((2, 64, 64), np.nan), np.ones((2, 64, 32)), np.ones((64, 64)), np.ones((0, 64, 64))):
        with pytest.raises(ImageError, match="must be .B, H, H., of one image or more, and finite"):
            predictor.predict_batch(images)
    with pytest.raises(ConfigError, match="n_matches = -3"):
        predictor.predict(blobs((60, 80, 9)), n_matches=-3)


def test_command_line_gives_the_same_numbers(predictor, tiny_model, fits, run, tmp_path):
    answer = tmp_path / "deep" / "answer.json"
    done = run("predict", fits, "--redshift", REDSHIFT, "--model", tiny_model / "model.safetensors", "--json", answer,
               "--no-report", cwd=tmp_path)
    assert done.status == 0, done.err
    assert "pair.fits" in done.out and not (tmp_path / "deepgalaxy-report").exists()
    (found,) = json.loads(answer.read_text())
    story = predictor.predict(str(fits), redshift=REDSHIFT)
    assert numbers(found) == pytest.approx(numbers(story), rel=1e-3, abs=1e-4)
    wanted = story.to_dict()
    for key in ("image", "model", "flags"):
        assert found[key] == wanted[key]
    assert [m["encounter"] for m in found["matches"]] == [m.encounter for m in story.matches]


def test_batch_gives_what_single_pictures_give(loud, sky):
    images = np.stack([sky[20:180, 20:180], blobs((60, 80, 9), (105, 80, 5))])
    kpc = np.array([0.5, np.nan])
    p, z = loud.predict_batch(images, kpc, n_views=12)
    assert z.shape == (2, loud.weights.model.config.latent_size)
    for i, given in enumerate((0.5, None)):
        story = loud.predict(images[i], kpc_per_pixel=given)
        for label in LABELS:
            np.testing.assert_allclose(p[label.name][i], story.distributions[label.name][1], atol=5e-3)


def test_a_batch_takes_sizes_of_pixels_as_single_pictures_do(loud, sky):
    images = np.stack([sky, sky[::-1]])
    for kpc, words in (([0.5, 0.0], "got 0"), ([np.inf, 1], "got inf"), ([-1, 1], "got -1"), ([1.0], "shape .1,.")):
        with pytest.raises(ConfigError, match=f"kpc_per_pixel.*{words}"):
            loud.predict_batch(images, np.array(kpc))
    far, unknown = (loud.predict_batch(images, np.array([kpc, 0.5]))[0] for kpc in (900.0, np.nan))
    for label in LABELS:  # one that is not used, as it would span far more than was ever simulated
        np.testing.assert_array_equal(far[label.name], unknown[label.name])
    story = loud.predict(sky, kpc_per_pixel=900, mass=1e11)
    assert not story.scale_used and loud.predict(sky, kpc_per_pixel=0.5).scale_used
    sentence = scale_sentence(story.scale, story.clock, used=story.scale_used)
    assert sentence.startswith("Scale 900 kpc per pixel, as given, is not used: times are for a primary like the Milky")
    assert "--mass" not in sentence


def test_unit_and_offset_of_the_light_do_not_matter_in_a_batch(loud, sky):
    images = np.stack([sky[20:180, 20:180].astype(float), blobs((60, 80, 9), (105, 80, 5))])
    wanted, _ = loud.predict_batch(images)
    for other in (images * 1e-17, images * 4e5 + 1e6):
        found, _ = loud.predict_batch(other)
        for label in LABELS:
            np.testing.assert_allclose(found[label.name], wanted[label.name], atol=2e-3)
    with pytest.raises(ImageError, match=r"images\[1\].* no light"):
        loud.predict_batch(np.stack([images[0], np.ones_like(images[0])]))


def test_a_scale_that_is_not_used_sets_no_clock(loud, sky):
    """A mass alone says nothing: times go with the square root of size^3 / mass."""
    plain, heavy = (loud.predict(sky, kpc_per_pixel=1e-3, **mass) for mass in ({}, {"mass": 1e9}))
    assert heavy.clock["basis"] == "reference" and heavy.properties == plain.properties
    assert any("not used, nor is the mass" in flag for flag in heavy.flags)
    assert any("not used" in flag and "mass" not in flag for flag in plain.flags)


def test_unit_and_offset_of_the_light_do_not_matter(loud, sky):
    story = loud.predict(sky)
    for other in (sky * 1e-17 + 3e-16, sky * 4e5 - 1e5):
        assert difference(loud.predict(other), story) < 0.01


def test_fits_and_8_bit_png_of_one_sky_agree(loud, sky, fits, tmp_path):
    png = tmp_path / "pair.png"
    Image.fromarray(eight_bits(sky)[::-1]).save(png)
    a, b = loud.predict(fits), loud.predict(png)
    others = [loud.predict(blobs((60, 80, 9), (105, 80, 5))), loud.predict(blobs((80, 80, 12)))]
    assert np.abs(a.frame - b.frame).mean() < 0.02
    assert difference(a, b) < 0.5 * min(difference(a, other) for other in others)
    assert np.linalg.norm(a.z - b.z) < 0.5 * min(np.linalg.norm(a.z - other.z) for other in others)


@pytest.mark.parametrize("turn", [
    lambda x: np.rot90(x), lambda x: np.rot90(x, 2), lambda x: np.rot90(x, 3), lambda x: x[:, ::-1], lambda x: x[::-1],
    lambda x: x.T], ids=["90", "180", "270", "left-right", "up-down", "diagonal"])
def test_a_turned_or_mirrored_picture_has_the_same_story(loud, sky, turn):
    """The frame is the same but for its four mirror images, over which the answer is averaged."""
    a, b = loud.predict(sky), loud.predict(np.ascontiguousarray(turn(sky)))
    mirrored = (b.frame, b.frame[:, ::-1], b.frame[::-1], b.frame[::-1, ::-1])
    assert min(np.abs(a.frame - frame).mean() for frame in mirrored) < 0.015
    assert difference(a, b) < 0.03
    assert a.familiarity == pytest.approx(b.familiarity, abs=0.1)


def test_frame_box_encloses_the_galaxies_in_the_display(predictor, sky):
    story = predictor.predict(np.pad(sky, ((0, 0), (0, 120)), mode="median"))  # wide: the canvas is padded
    box, centre = story.frame_box, story.frame_box.mean(axis=0)
    height = story.display.shape[0]
    edges = np.roll(box, -1, axis=0) - box
    assert np.linalg.norm(edges, axis=1) == pytest.approx([np.linalg.norm(edges[0])] * 4)
    for x, y in ((80, 85), (128, 118)):
        point = np.array([x + 0.5, height - (y + 0.5)])
        assert (np.sign(np.cross(edges, point - box)) == np.sign(np.cross(edges, point - box))[0]).all()
    assert np.linalg.norm(centre - [104, height - 101]) < 25


# Scale


def test_kpc_agrees_with_arcsec_and_redshift(loud, sky):
    kpc = 0.7 * kpc_per_arcsec(REDSHIFT)
    a, b = loud.predict(sky, kpc_per_pixel=kpc), loud.predict(sky, arcsec_per_pixel=0.7, redshift=REDSHIFT)
    assert a.scale["kpc_per_pixel"] == pytest.approx(b.scale["kpc_per_pixel"])
    assert a.scale["source"] == b.scale["source"] == "given"
    assert numbers(a) == pytest.approx(numbers(b))


def test_scale_comes_from_the_wcs_or_the_content(loud, sky, fits, tmp_path):
    by_wcs = loud.predict(fits, redshift=REDSHIFT)
    assert by_wcs.scale == {"kpc_per_pixel": pytest.approx(FIELD / 200), "source": "wcs"}
    by_hand = loud.predict(fits, kpc_per_pixel=FIELD / 200)
    assert by_hand.scale["source"] == "given"
    assert numbers(by_wcs) == pytest.approx(numbers(by_hand), rel=1e-4)
    assert loud.predict(fits).scale == {"kpc_per_pixel": None, "source": "content"}
    assert difference(loud.predict(fits), by_hand) > 1e-4  # the scale is used


def test_redshift_without_a_pixel_scale_is_told(predictor, sky):
    """A picture without a WCS: the redshift alone says nothing, and the answer must not pass that over."""
    story = predictor.predict(sky, redshift=REDSHIFT)
    assert story.scale == {"kpc_per_pixel": None, "source": "content"}
    assert any("redshift" in flag for flag in story.flags)


def test_resampled_picture_with_its_scale_has_the_same_story(loud):
    image = blobs((120, 160, 18), (210, 180, 10), size=320, noise=0)  # binning would lower the noise
    half = image.reshape(160, 2, 160, 2).mean(axis=(1, 3))
    assert difference(loud.predict(image, kpc_per_pixel=0.4), loud.predict(half, kpc_per_pixel=0.8)) < 0.05


@pytest.mark.parametrize("arguments, words", [
    ({"kpc_per_pixel": 0}, "kpc_per_pixel"), ({"kpc_per_pixel": -1.0}, "kpc_per_pixel"),
    ({"kpc_per_pixel": np.nan}, "kpc_per_pixel"), ({"kpc_per_pixel": 1e9}, "kpc_per_pixel"),
    ({"redshift": -0.01}, "redshift"), ({"redshift": np.inf}, "redshift"),
    ({"arcsec_per_pixel": 0.4}, "needs redshift"), ({"arcsec_per_pixel": 0.0, "redshift": 0.1}, "arcsec_per_pixel"),
    ({"kpc_per_pixel": 0.4, "redshift": 0.02}, "leave"),
    ({"redshift": 3000}, "km/s"), ({"kpc_per_pixel": 0.4, "mass": 11.2}, "is it a logarithm. give 1.6e.11"),
    ({"redshift": "near"}, "redshift = 'near': must be a plain number"), ({"redshift": [0.02, 0.03]}, "plain number"),
    ({"kpc_per_pixel": 0.4 * units.kpc}, "kpc_per_pixel = .* kpc>: must be a plain number"),
    ({"kpc_per_pixel": 0.4, "arcsec_per_pixel": 1.0, "redshift": 0.02}, "leave")])
def test_a_scale_that_makes_no_sense_is_one_line(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Scale(**arguments)
    assert "\n" not in str(caught.value)


def test_a_size_far_outside_of_the_simulations_is_not_used(predictor, sky):
    """Told it, a model answers with narrow nonsense."""
    absurd, unknown = predictor.predict(sky, kpc_per_pixel=300), predictor.predict(sky)
    assert any("it is not used" in flag for flag in absurd.flags)
    assert absurd.properties == unknown.properties and absurd.scale["kpc_per_pixel"] == 300


def test_the_content_of_a_file_is_told_from_its_path(predictor):
    with pytest.raises(ImageError, match="is the content of a file; give its path"):
        predictor.predict((EXAMPLES / "mock_3.png").read_bytes())


def test_an_impossible_size_is_flagged(predictor, sky):
    assert any("check the scale" in flag for flag in predictor.predict(sky, kpc_per_pixel=50).flags)
    assert not any("check the scale" in flag for flag in predictor.predict(sky, kpc_per_pixel=0.5).flags)


# Flags


@pytest.mark.parametrize("place", [(158, 80), (2, 80), (80, 158), (80, 1)])
def test_light_at_the_border_is_flagged(predictor, place):
    flags = predictor.predict(blobs((*place, 14))).flags
    assert any("border" in flag for flag in flags)


def test_light_in_the_middle_is_not_flagged(predictor):
    flags = predictor.predict(blobs((68, 80, 5), (95, 84, 4))).flags
    assert not any("border" in flag or "stands out" in flag for flag in flags)


def test_noise_alone_is_flagged(predictor):
    noise = np.random.default_rng(0).standard_normal((160, 160))
    assert any("no light stands out" in flag for flag in predictor.predict(noise).flags)


def test_flags_of_the_reader_are_kept(predictor, sky):
    holes = sky.copy()
    holes[:5] = np.nan
    assert any("have no value" in flag for flag in predictor.predict(holes).flags)


def test_stages_that_no_image_showed_are_flagged(predictor, sky):
    for never_seen, text in (
            (["stage: single"], "showed the stage single: its probability means"),
            (["stage: single", "stage: chance pair"], "showed the stages single, chance pair: their ")):
        weights = copy.copy(predictor.weights)
        weights.metadata = {**weights.metadata, "never_seen": never_seen}
        story = Predictor(weights).predict(sky)
        assert sum(text in flag for flag in story.flags) == 1
        assert story.training["unseen_stages"] == [name.removeprefix("stage: ") for name in never_seen]


def test_of_no_stage_that_it_never_saw_it_says_that_a_picture_looks_like_it(predictor, sky):
    weights = copy.copy(predictor.weights)
    weights.model = copy.deepcopy(weights.model)
    weights.model.classifier.heads.layers["stage"].bias[STAGES.index("single")] += 50
    for never_seen, told in (([], True), (["stage: single"], False), (["stage"], False)):
        weights.metadata = {**weights.metadata, "never_seen": never_seen}
        story = Predictor(weights).predict(sky)
        assert story.stage["single"] > 0.9
        assert any("looks like a single galaxy" in flag for flag in story.flags) == told
        assert sum("stage" in flag for flag in story.flags) == (not told)


def test_a_story_knows_whose_training_is_behind_it(predictor, sky):
    training = predictor.predict(sky).training
    assert not training["shipped"] and training == training_of(predictor.weights)
    assert training["n_encounters"] == len(predictor.weights.metadata["training_encounters"]) > 0
    assert any("outside of the usual 25-450 kpc:" in flag for flag in predictor.predict(sky, kpc_per_pixel=50).flags)


def test_what_ships_is_known_as_such(shipped):
    story = shipped.predict(EXAMPLES / "mock_1.fits", kpc_per_pixel=5)
    assert story.training["shipped"] and story.training["unseen_stages"] == []
    assert any("25-450 kpc of the simulations:" in flag for flag in story.flags)


# What goes wrong


def test_many_pictures_keep_their_order_and_a_bad_one_its_name(predictor, sky, fits, tmp_path):
    empty = tmp_path / "empty.fits"
    empty.touch()
    constant = np.ones((64, 64))
    stories = list(predictor.predict_many([sky, str(empty), empty, str(fits), constant]))
    assert [isinstance(story, tuple) for story in stories] == [False, True, True, False, True]
    assert stories[1] == (str(empty), stories[1][1]) and str(empty) in stories[1][1]
    assert stories[2][0] == str(empty)  # a Path is named as a text is
    assert stories[3].image == str(fits)
    assert stories[4][0] == "array" and "constant" in stories[4][1]


def test_errors_are_ours_and_one_line(predictor, tmp_path):
    for image in (str(tmp_path), tmp_path / "nowhere.fits", np.full((64, 64), np.nan), np.ones((64, 64)),
                  np.zeros((4, 4)), np.zeros(10), np.array(["a"])):
        with pytest.raises(ImageError) as caught:
            predictor.predict(image)
        assert "\n" not in str(caught.value)


def test_without_a_library_there_are_no_matches(predictor, sky):
    story = Predictor(predictor.weights).predict(sky)
    assert story.matches == [] and np.isnan(story.familiarity)
    assert story.properties["mass_ratio"]["p50"] > 0


def test_library_of_another_model_is_refused(predictor):
    class Foreign:
        path, model_sha256 = "foreign.h5", "0" * 64

    with pytest.raises(LibraryError, match="another model"):
        Predictor(predictor.weights, Foreign())


def test_load_without_files_says_what_to_do(tmp_path, tiny_model):
    for arguments in ({"model": tmp_path / "no.safetensors"}, {"model": tmp_path},
                      {"model": tiny_model / "model.safetensors", "library": tmp_path}):
        with pytest.raises(DeepGalaxyError) as caught:
            deepgalaxy.load(**arguments)
        assert "\n" not in str(caught.value) and any(do in str(caught.value) for do in ("deepgalaxy", "; give"))


def examples() -> dict[str, dict]:
    """What is true of the examples."""
    with open(EXAMPLES.parent / "docs" / "examples.csv") as rows:
        return {row["file"]: row for row in csv.DictReader(rows)}


def test_what_ships_knows_what_is_true_of_the_examples(shipped):
    """Encounters that it never saw: their times, ratios and scales lie within three standard deviations."""
    columns = {"time_since_pericentre": "time_myr", "mass_ratio": "mass_ratio", "size_ratio": "size_ratio"}
    for file, row in examples().items():
        story = shipped.predict(EXAMPLES / file, kpc_per_pixel=float(row["kpc_per_pixel"]))
        for label, column in columns.items():
            q, true = story.properties[label], float(row[column])
            assert q["p50"] - 3 * (q["p50"] - q["p16"]) < true < q["p50"] + 3 * (q["p84"] - q["p50"]), (file, label)
        assert story.familiarity > 0.02 and story.stage["single"] + story.stage["chance pair"] < 0.5
        scale = shipped.predict(EXAMPLES / file).kpc_per_pixel_estimate
        assert scale["p05"] / 1.3 < float(row["kpc_per_pixel"]) < 1.3 * scale["p95"]


@pytest.mark.parametrize("name", ["mock_2.fits", "mock_4.png"])
def test_who_asks_for_more_look_alikes_gets_the_same_ones_first(shipped, name):
    few, many = ([match.row for match in shipped.predict(EXAMPLES / name, n_matches=k).matches] for k in (5, 100))
    assert len(many) == 100 and many[:5] == few


def test_a_best_match_of_another_time_than_the_answer_is_flagged(shipped):
    flagged = {}
    for path in sorted(EXAMPLES.glob("mock_*")):
        story = shipped.predict(path)
        time, best = story.properties["time_since_pericentre"], story.matches[0].time_myr
        said = [flag for flag in story.flags if "outside of the answer's 90 %" in flag]
        assert bool(said) != (time["p05"] <= best <= time["p95"]) and all(f"{best:+.0f} Myr" in flag for flag in said)
        flagged[path.name] = bool(said)
    assert set(flagged.values()) == {False, True}


def test_what_ships_flags_pictures_of_something_else(shipped):
    flagged = [shipped.predict(picture).familiarity < 0.02 for _, picture in strangers(18, seed=11)]
    assert np.mean(flagged) > 0.7


@pytest.mark.parametrize("name", ["mock_1", "mock_2"])
def test_the_same_sky_as_fits_png_and_jpeg_has_the_same_story(shipped, name, tmp_path):
    """Eight bits cost less than the picture leaves open: medians stay within their own 68 % interval."""
    path = EXAMPLES / f"{name}.fits"
    sky = read(path).pixels[::-1]
    low, high = np.quantile(sky, (0.01, 0.9995))
    grey = Image.fromarray((255 * np.clip((sky - low) / (high - low), 0, 1)).round().astype(np.uint8))
    grey.save(tmp_path / "sky.png")
    grey.save(tmp_path / "sky.jpg", quality=90)
    kpc = float(examples()[f"{name}.fits"]["kpc_per_pixel"])
    before = shipped.predict(path, kpc_per_pixel=kpc).properties
    for kind in ("png", "jpg"):
        after = shipped.predict(tmp_path / f"sky.{kind}", kpc_per_pixel=kpc).properties
        for label, q in before.items():
            half = (q["p84"] - q["p16"]) / 2
            assert abs(after[label]["p50"] - q["p50"]) < half, (kind, label)


@pytest.mark.parametrize("name", ["mock_1", "mock_2"])
def test_a_scale_that_the_picture_contradicts_is_flagged(shipped, name):
    """An angular size or a redshift that is wrong by a factor of three moves the time by more than its error bar."""
    true = float(examples()[f"{name}.fits"]["kpc_per_pixel"])
    for factor, odd in ((1, False), (3.5, True), (1 / 3.5, True)):
        flags = shipped.predict(EXAMPLES / f"{name}.fits", kpc_per_pixel=true * factor).flags
        assert any("the picture itself suggests" in flag for flag in flags) == odd, (factor, flags)
