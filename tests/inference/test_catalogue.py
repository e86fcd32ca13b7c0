"""A table of pictures: what is known of each goes to its own prediction."""

import json

import numpy as np
import pytest

from deepgalaxy.errors import ConfigError, DatasetError
from deepgalaxy.image.mock import write_mock_png
from deepgalaxy.inference.catalogue import read_catalogue


@pytest.fixture
def folder(sky, tmp_path):
    for k, name in enumerate(("a.png", "b.png")):
        write_mock_png(tmp_path / name, np.rot90(sky, k))
    return tmp_path


def test_each_picture_has_what_stands_in_its_line(folder):
    (folder / "pairs.csv").write_text(
        "name,file, redshift ,kpc_per_pixel, mass\nArp 1,a.png,0.02,0.4,9e10\nArp 2, b.png ,,,\n"
        "Arp 3,sub/c.fits,0.03,,\n",
        encoding="utf-8-sig")
    assert read_catalogue(folder / "pairs.csv") == [
        (str(folder / "a.png"), {"kpc_per_pixel": 0.4, "mass": 9e10}), (str(folder / "b.png"), {}),
        (str(folder / "sub" / "c.fits"), {"redshift": 0.03})]


@pytest.mark.parametrize("table, error, words", [
    ("name\nArp 1\n", DatasetError, "column file"), ("", DatasetError, "no lines"),
    ("file\n", DatasetError, "no lines"),
    ("file,redshift\na.png,near\n", ConfigError, "line 2: redshift = 'near'"),
    ("file,redshift\na.png,0.02\n,0.02\n", DatasetError, "line 3: 'file' is empty"),
    ("file,redshift\na.png,3000\n", ConfigError, "line 2: redshift must be in .*km/s"),
    ("file,mass\na.png,1e11\n", ConfigError, "line 2: mass = 1e.11: needs the size of a pixel")])
def test_a_table_that_cannot_be_used_is_one_line(tmp_path, table, error, words):
    (tmp_path / "pairs.csv").write_text(table)
    with pytest.raises(error, match=words) as caught:
        read_catalogue(tmp_path / "pairs.csv")
    assert str(caught.value).startswith(str(tmp_path / "pairs.csv")) and "\n" not in str(caught.value)


def test_a_missing_table_is_one_line(tmp_path):
    with pytest.raises(DatasetError, match="pairs.csv: cannot be read"):
        read_catalogue(tmp_path / "pairs.csv")


def test_the_command_line_answers_a_table_and_names_what_it_cannot_read(run, folder, tiny_model):
    (folder / "pairs.csv").write_text("file,kpc_per_pixel\na.png,0.4\nb.png,\nno.png,0.4\n")
    done = run("predict", "--table", folder / "pairs.csv", "--model", tiny_model / "model.safetensors", "--no-report",
               "--json", "-")
    assert done.status == 1 and "no.png" in done.err
    first, second, third = json.loads(done.out)
    assert first["scale"]["kpc_per_pixel"] == 0.4 and second["scale"]["kpc_per_pixel"] is None and "error" in third


@pytest.mark.parametrize("arguments, words", [
    (["a.png", "--table", "pairs.csv"], "one of the two"),
    (["--table", "pairs.csv", "--redshift", "0.02"], "redshift: is a column")])
def test_a_table_and_what_stands_in_it_are_given_once(run, folder, arguments, words):
    (folder / "pairs.csv").write_text("file\na.png\n")
    done = run("predict", *arguments, cwd=folder)
    assert done.status == 2 and words in done.err and len(done.err.splitlines()) == 1
