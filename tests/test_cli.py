"""The command line as a user meets it: real processes, their status, and what they say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

import deepgalaxy
from deepgalaxy.search.library import Library

COMMANDS = ("predict", "search", "simulate", "render", "check", "train", "evaluate", "index", "demo",
            "bench inference", "bench scaling", "bench simulate", "bench render")


@pytest.fixture(scope="module")
def png(sky, tmp_path_factory):
    path = tmp_path_factory.mktemp("png") / "pair.png"
    low, high = sky.min(), sky.max()
    Image.fromarray(np.round(255 * (sky - low) / (high - low)).astype(np.uint8)[::-1]).save(path)
    return path


@pytest.fixture
def bad(tmp_path, sky):
    """Pictures that are none, by name."""
    folder = tmp_path / "bad"
    (folder / "a_folder").mkdir(parents=True)
    (folder / "empty.fits").touch()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200)).astype(np.uint8)).save(folder / "cut.jpg")
    data = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[:len(data) // 3])
    table = fits.BinTableHDU.from_columns([fits.Column("flux", "E", array=np.arange(9.0))])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(folder / "table.fits")
    fits.PrimaryHDU(np.full((64, 64), np.nan, np.float32)).writeto(folder / "nan.fits")
    return [folder / name for name in ("empty.fits", "cut.jpg", "table.fits", "nan.fits", "a_folder", "missing.png")]


def named(err, path):
    """The lines of standard error that name a file."""
    return [line for line in err.splitlines() if str(path) in line]


def write_yaml(path, tree):
    path.write_text(json.dumps(tree))  # which is YAML too
    return path


# Usage


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(run, command):
    done = run(*command.split(), "--help")
    assert done.status == 0 and done.err == ""
    assert re.search(rf"Examples?: .*deepgalaxy {command}", done.out), done.out


def test_version_is_that_of_the_package(run):
    done = run("--version")
    assert done.status == 0 and done.out == f"deepgalaxy {deepgalaxy.__version__}\n"


def test_a_place_for_the_answers_that_is_not_there_is_told_before_the_work(run, tmp_path):
    (tmp_path / "file").write_text("no folder")
    below = tmp_path / "file" / "answers.json"
    for command, place in (("predict no.png", below), ("search no.png", tmp_path), ("simulate no.yaml -o no", below),
                           ("render no -o no.h5", below), ("train no.yaml", below), ("evaluate", below),
                           ("index --model no --data no -o no", below), ("bench render", below),
                           ("bench simulate --particles 512", below), ("bench inference", below),
                           ("bench scaling", below)):
        done = run(*command.split(), "--json", place, cwd=tmp_path)
        assert done.status == 2 and f"{place}: nothing can be written there" in done.err
        assert len(done.err.splitlines()) == 1


def test_help_lists_every_command(run):
    out = run("--help").out
    assert all(re.search(rf"^ +{command.split()[0]} ", out, re.M) for command in COMMANDS)


@pytest.mark.parametrize("arguments, words", [
    ([], ""), (["nonsense"], "nonsense"), (["predict"], "IMAGE"), (["predict", "a.png", "--nonsense"], "--nonsense"),
    (["predict", "a.png", "--kpc-per-pixel", "much"], "kpc"), (["predict", "a.png", "--kpc-per-pixel", "-1"], "kpc"),
    (["predict", "a.png", "--arcsec-per-pixel", "1"], "needs redshift"),
    (["evaluate", "--protocol", "other"], "other"),
    (["evaluate", "--data", "a.h5", "--encounters", "20"], "encounters = 20"),
    (["simulate", "no.yaml", "-o", "runs"], "no.yaml"), (["check", "no.h5"], "no.h5")])
def test_bad_usage_is_status_2_and_says_what(run, tmp_path, arguments, words):
    done = run(*arguments, cwd=tmp_path)
    assert done.status == 2 and done.out == "" and words in done.err and "Traceback" not in done.err
    if words:
        assert len(done.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_unknown_key_of_a_recipe_is_one_line(run, tmp_path, tiny_dataset):
    recipe = write_yaml(tmp_path / "recipe.yaml", {"data": str(tiny_dataset), "output": "out", "epoch": 3})
    done = run("train", recipe)
    assert done.status == 2 and done.out == ""
    (line,) = done.err.splitlines()
    assert all(word in line for word in (str(recipe), "'epoch'", "epochs")) and not (tmp_path / "out").exists()


def test_unknown_key_deep_in_a_suite_is_one_line(run, tmp_path):
    suite = write_yaml(tmp_path / "suite.yaml", {"resolution": {"particles": 9}})
    done = run("simulate", suite, "-o", tmp_path / "runs")
    assert done.status == 2 and len(done.err.splitlines()) == 1
    assert "resolution.particles" in done.err and "n_particles" in done.err


# Pictures, good and bad


def test_bad_pictures_do_not_keep_the_good_one_from_its_story(run, tmp_path, tiny_model, png, bad):
    images = [bad[0], bad[1], png, *bad[2:]]
    done = run("predict", *images, "--model", tiny_model / "model.safetensors", "--report", tmp_path / "report",
               "--json", "-", cwd=tmp_path)
    assert done.status == 1 and "Traceback" not in done.err
    for path in bad:
        (line,) = named(done.err, path)
        assert line.startswith("ImageError: ") and ";" in line  # what is wrong; what to do
    answers = json.loads(done.out)
    assert [answer["image"] for answer in answers] == [str(path) for path in images]
    for path, answer in zip(images, answers, strict=True):
        assert ("error" in answer) == (path != png)
        if path == png:
            assert answer["time_since_pericentre"]["p05"] < answer["time_since_pericentre"]["p95"]
        else:
            assert set(answer) == {"image", "error"} and str(path) in answer["error"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "pair.png" in page and "missing.png" in page and (tmp_path / "report" / "pair_story.png").is_file()


def test_only_bad_pictures_are_status_2(run, tmp_path, tiny_model, bad):
    done = run("predict", *bad, "--model", tiny_model / "model.safetensors", cwd=tmp_path)
    assert done.status == 2 and "Traceback" not in done.err
    assert all(len(named(done.err, path)) == 1 for path in bad)
    assert not (tmp_path / "deepgalaxy-report").exists()


# The whole chain


@pytest.fixture(scope="module")
def chain(run, tiny_settings, tmp_path_factory):
    """Two short encounters of 1024 particles, simulated and rendered, and the recipe of a model."""
    folder = tmp_path_factory.mktemp("chain")
    suite = write_yaml(folder / "suite.yaml", {
        "name": "tiny", "resolution": {"n_particles": 1024, "last_time": 30},
        "design": {"kind": "sobol", "n_encounters": 2, "start_time": {"low": 40, "high": 40},
                   "pericentre": {"low": 4, "high": 6}}})
    simulated = run("simulate", suite, "-o", folder / "runs", "--workers", 1, "--json", "-")
    rendered = run("render", folder / "runs", "-o", folder / "suite.h5", "--pixels", 64, "--cameras", 2,
                   "--workers", 1)
    write_yaml(folder / "recipe.yaml", {
        "data": "suite.h5", "output": "model", "epochs": 1, "images_per_epoch": 16, "batch_size": 8,
        "validation_share": 0.5, "validation_images": 8, "model": tiny_settings})
    return folder, simulated, rendered


def test_simulate_writes_the_encounters_and_says_so(chain, run):
    folder, done, _ = chain
    assert done.status == 0, done.err
    result = json.loads(done.out)
    drifting = result.pop("drifting")
    assert result == {"suite": "tiny", "encounters": 2, "run": 2, "failed": {}}
    assert "simulate: 2/2" in done.err
    files = sorted((folder / "runs").glob("*.h5"))
    assert [file.name for file in files] == ["encounter_0000.h5", "encounter_0001.h5"]
    for file in files:  # so few particles may drift by more than 0.3 %: then it is said at once, and by check
        checked = run("check", file)
        assert ("drift" in checked.err) == (file.stem in drifting) == (f"{file.stem}: its energy" in done.err)
        assert ("sound encounter" in checked.out) == (file.stem not in drifting)


def test_simulate_again_runs_nothing(chain, run):
    folder, _, _ = chain
    before = {file: file.stat().st_mtime_ns for file in (folder / "runs").glob("*.h5")}
    done = run("simulate", folder / "suite.yaml", "-o", folder / "runs", "--workers", 1, "--json", "-")
    assert done.status == 0 and json.loads(done.out)["run"] == 0
    assert before == {file: file.stat().st_mtime_ns for file in (folder / "runs").glob("*.h5")}


def test_render_writes_a_sound_data_set(chain, run):
    folder, _, done = chain
    assert done.status == 0 and "render: 2/2" in done.err, done.err
    done = run("check", folder / "suite.h5")
    assert (done.status, done.err) == (0, "") and "sound data set" in done.out


def test_check_finds_a_flipped_byte(chain, run, tmp_path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes((chain[0] / "suite.h5").read_bytes())
    with h5py.File(copy) as f:
        offset = f["encounter_0001/images_camera_01"].id.get_chunk_info(3).byte_offset + 50
    data = bytearray(copy.read_bytes())
    data[offset] ^= 1
    copy.write_bytes(data)
    done = run("check", copy)
    assert done.status == 2 and done.out == "" and len(done.err.splitlines()) == 1
    assert all(word in done.err for word in ("copy.h5", "encounter_0001", "images_camera_01", "snapshot 3"))


def test_train_index_and_search_go_on_from_there(chain, run, png):
    folder, _, _ = chain
    done = run("train", folder / "recipe.yaml", "--json", "-")
    assert done.status == 0, done.err
    answer = json.loads(done.out)
    weights = Path(answer["weights"])
    assert weights == folder / "model" / "model.safetensors" and weights.is_file()
    assert len(answer["epochs"]) == 1 and answer["epochs"][0]["images_per_second"] > 0
    assert "epoch 1/1" in done.err and "images/s per worker" in done.err

    done = run("index", "--model", weights, "--data", folder / "suite.h5", "-o", folder / "model")
    assert done.status == 0 and "temperatures: " in done.err and "library: " in done.err, done.err
    assert run("check", folder / "model").out == f"{folder / 'model'}: sound library\n"

    done = run("search", png, "--model", weights, "--matches", 2, "--json", "-")
    assert done.status == 0, done.err
    (answer,) = json.loads(done.out)
    assert answer["image"] == str(png) and not any("redshift" in flag for flag in answer["flags"])
    assert sorted(match["encounter"] for match in answer["matches"]) == ["encounter_0000", "encounter_0001"]
    done = run("search", png, "--model", weights, "--redshift", 0.02)
    assert done.status == 0 and "the redshift 0.02 is not used" in " ".join(done.out.split()), done.out


def test_a_page_in_a_folder_is_not_asked_for_and_left_out(run, png, tmp_path):
    done = run("predict", png, "--report", tmp_path / "page", "--no-report")
    assert done.status == 2 and len(done.err.splitlines()) == 1 and "--no-report" in done.err
    assert not (tmp_path / "page").exists()


def test_calibrated_on_other_images_a_library_keeps_its_own(chain, run, tiny_dataset, png, tmp_path):
    model = chain[0] / "model"
    done = run("index", "--model", model / "model.safetensors", "--references", model, "--data", tiny_dataset,
               "-o", tmp_path)
    assert done.status == 0 and "temperatures: " in done.err, done.err
    assert run("check", tmp_path).out == f"{tmp_path}: sound library\n"
    before, after = Library(model), Library(tmp_path)
    np.testing.assert_array_equal(after.arrays["z"], before.arrays["z"])
    assert after.encounters == before.encounters and after.model_sha256 != before.model_sha256
    for name in ("unseen_distances", "metric", "local_distance"):
        assert not np.array_equal(after.arrays[name], before.arrays[name]), name
    assert run("search", png, "--model", tmp_path / "model.safetensors").status == 0

    done = run("index", "--model", tmp_path / "model.safetensors", "--references", model, "--data", tiny_dataset,
               "-o", tmp_path / "no")
    assert done.status == 2 and "was made with another model" in done.err and not (tmp_path / "no").exists()


def test_the_best_match_is_simulated_anew_where_the_library_knows_how(chain, run, tiny_model, png, tmp_path):
    done = run("predict", png, "--model", chain[0] / "model" / "model.safetensors", "--twin", "--report", tmp_path)
    assert done.status == 0 and "twin: 100/100" in done.err, done.err
    page = (tmp_path / "index.html").read_text()
    assert page.count('<figure class="twin" data-stars="') == 1 and "<script>" in page

    done = run("predict", png, "--model", tiny_model / "model.safetensors", "--twin", "--report", tmp_path)
    assert done.status == 1 and "no twin" in done.err and "does not say how" in done.err, done.err
    page = (tmp_path / "index.html").read_text()
    assert 'class="twin"' not in page and "<script>" not in page and png.name in page


def test_a_library_of_encounters_that_are_new_to_the_model_knows_what_is_familiar(run, tiny_model, other_dataset, png,
                                                                                 tmp_path):
    done = run("index", "--model", tiny_model / "model.safetensors", "--data", other_dataset, "-o", tmp_path / "lib")
    assert done.status == 0, done.err
    assert len(Library(tmp_path / "lib").arrays["unseen_distances"])
    weights = tmp_path / "lib" / "model.safetensors"
    done = run("predict", png, "--model", weights, "--library", tmp_path / "lib" / "library.h5", "--json", "-",
               "--no-report")
    assert 0 <= json.loads(done.out)[0]["familiarity"] <= 1
    assert weights.stat().st_mode & 0o777 == (tmp_path / "lib" / "library.h5").stat().st_mode & 0o777


def test_two_workers_train_under_torchrun(run, tiny_dataset, tiny_settings, tmp_path):
    recipe = write_yaml(tmp_path / "recipe.yaml", {
        "data": str(tiny_dataset), "output": "two", "epochs": 1, "images_per_epoch": 16, "batch_size": 8,
        "validation_images": 8, "model": tiny_settings})
    done = run("--standalone", "--nproc-per-node", 2, "-m", "deepgalaxy", "train", recipe,
               module="torch.distributed.run")
    assert done.status == 0, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("epoch 1/1")]
    each, both = re.search(r"(\d+) images/s per worker, (\d+) in all \(2 workers\)", line).groups()
    assert int(both) == pytest.approx(2 * int(each), abs=2)
    assert (tmp_path / "two" / "model.safetensors").is_file()
    row = json.loads((tmp_path / "two" / "metrics.jsonl").read_text())
    assert row["workers"] == 2 and row["steps"] == 2


def test_a_line_stays_one_line_whatever_is_in_a_name(run):
    done = run("train", "no\nrecipe\x1b[31m.yaml")
    assert done.status == 2 and len(done.err.splitlines()) == 1
    assert r"no\nrecipe\x1b[31m.yaml" in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_full_disk_behind_standard_output_is_one_line(tiny_dataset):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "deepgalaxy", "check", str(tiny_dataset)], stdout=full,
                              stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "No space left" in done.stderr
