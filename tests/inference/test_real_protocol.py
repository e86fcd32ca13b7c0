"""Real pictures beside published stories; here the pictures are mock observations."""

import io
import json

import numpy as np
import pytest

from deepgalaxy.errors import DatasetError
from deepgalaxy.image.mock import write_mock_png
from deepgalaxy.inference.real import evaluate_real, read_table


def printed(result):
    """The table as a terminal shows it."""
    from rich.console import Console

    from deepgalaxy.report.terminal import real_table

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(real_table(result))
    return console.export_text()


@pytest.fixture
def folder(sky, tmp_path):
    for k, name in enumerate(("a.png", "b.png", "c.png")):
        write_mock_png(tmp_path / name, np.rot90(sky, k)[:190])
    return tmp_path


def test_published_times_are_compared_with_the_interval(loud, folder):
    story = loud.predict(str(folder / "a.png"), kpc_per_pixel=0.5, mass=9e10, mass_dex=0.3)
    time = story.properties["time_since_pericentre"]
    inside, outside = time["p50"], time["p95"] + 1
    lines = ["file,name,kpc_per_pixel,time_since_pericentre_myr,time_err", f"a.png,Arp 1,0.5,{inside},10",
             f"a.png,Arp 2,0.5,{outside},", "b.png,,,,", "no.png,,,5,"]
    (folder / "real.csv").write_text("\n".join(lines))
    result, stories = evaluate_real(loud, folder)
    assert [row.get("within_90") for row in result["images"]] == [True, False, None, None]
    assert [result[k] for k in ("n_images", "n_failed", "n_published", "published_within_90")] == [4, 1, 2, 1]
    plain = loud.predict(str(folder / "a.png"), kpc_per_pixel=0.5).properties["time_since_pericentre"]
    assert [row.get("within_90_without_mass_error") for row in result["images"]] == [
        plain["p05"] <= inside <= plain["p95"], plain["p05"] <= outside <= plain["p95"], None, None]
    assert result["images"][0]["time"] == time and result["images"][0]["name"] == "Arp 1"
    assert result["most_systems_per_match"] >= 2  # one picture stands there twice
    assert "no.png" in result["images"][3]["error"] and len(stories) == 4
    json.dumps(result)


def test_published_mass_ratios_are_compared_either_way_round(loud, folder):
    """Where a table has the primary over the secondary, the lighter over the heavier one is meant."""
    ratio = loud.predict(str(folder / "a.png")).properties["mass_ratio"]
    inside, outside = min(ratio["p50"], 0.99), min(ratio["p05"] / 2, 0.5)
    lines = ["file,mass_ratio_m1_over_m2", f"a.png,{inside}", f"a.png,{1 / inside}", f"a.png,{1 / outside}", "b.png,",
             "c.png,-1"]
    (folder / "real.csv").write_text("\n".join(lines))
    result, _ = evaluate_real(loud, folder)
    assert [row["ratio_within_90"] for row in result["images"]] == [True, True, False, None, None]
    assert (result["n_published_ratios"], result["published_ratio_within_90"]) == (3, 2)
    assert result["images"][1]["published_mass_ratio"] == pytest.approx(inside) and result["n_published"] == 0
    assert result["images"][0]["mass_ratio"] == ratio


@pytest.mark.parametrize("sign", [1, -1])
def test_published_values_in_our_order_correlate_by_one_and_reversed_by_minus_one(loud, folder, sign):
    """Times are ours times the sign: that they differ by 0, or by twice ours, and what a guess is off by, is known."""
    names = ["a.png", "b.png", "c.png"]
    stories = [loud.predict(str(folder / name), kpc_per_pixel=0.5, mass=9e10, mass_dex=0.3) for name in names]
    times, ratios = (np.array([story.properties[name]["p50"] for story in stories])
                     for name in ("time_since_pericentre", "mass_ratio"))
    assert len(set(times)) == len(set(ratios)) == 3
    published = sign * times
    lines = [f"{name},0.5,{time},{0.5 + 0.1 * rank}" for name, time, rank in zip(
        names, published, sign * ratios.argsort().argsort(), strict=True)]
    head = "file,kpc_per_pixel,time_since_pericentre_myr,mass_ratio_m1_over_m2"
    (folder / "real.csv").write_text("\n".join([head, *lines]))
    result, stories = evaluate_real(loud, folder)
    assert result["published_rank_correlation"] == pytest.approx(sign)
    assert result["published_ratio_rank_correlation"] == pytest.approx(sign)
    apart = np.median(np.abs(times - published))
    assert result["published_median_abs_difference"] == pytest.approx(apart)
    low, middle, high = np.sort(published)
    guess = np.median([(middle + high) / 2 - low, abs(middle - (low + high) / 2), high - (low + middle) / 2])
    assert result["published_median_abs_difference_of_guess"] == pytest.approx(guess)
    assert result["published_within_68"] == sum(
        row["time"]["p16"] <= row["published_time"] <= row["time"]["p84"] for row in result["images"])
    said = (f"rank correlation {sign:.2f} (1 in the same order); {apart:.0f} Myr apart in the median, {guess:.0f} if "
            "one answers")
    assert said in " ".join(printed(result).split())
    from deepgalaxy.report.real import write_real

    page = write_real(result, stories, folder / "out").read_text()
    assert said in page and f"Mass ratios: rank correlation {sign:.2f}." in page

    (folder / "real.csv").write_text("\n".join([head, *lines[:2]]))
    result, _ = evaluate_real(loud, folder)
    assert result["n_published"] == 2 and "rank correlation" not in printed(result)
    assert {result[f"published_{name}"] for name in ("rank_correlation", "ratio_rank_correlation",
                                                     "median_abs_difference",
                                                     "median_abs_difference_of_guess")} == {None}


def test_equal_answers_have_no_order(loud, folder):
    lines = [f"a.png,{time}" for time in (100, 200, 300)]
    (folder / "real.csv").write_text("\n".join(["file,time_since_pericentre_myr", *lines]))
    result, _ = evaluate_real(loud, folder)
    assert result["published_rank_correlation"] is None and result["published_median_abs_difference_of_guess"] == 150
    assert "rank correlation ?" in printed(result)


def test_a_table_from_a_spreadsheet_with_a_byte_order_mark_is_read(folder):
    (folder / "real.csv").write_text("file,name\na.png,Arp 1\n", encoding="utf-8-sig")
    assert read_table(folder) == [{"file": "a.png", "name": "Arp 1"}]


def test_a_folder_without_a_table_is_read_as_it_is(folder):
    for name in ("d.webp", "e.GIF", "notes.txt"):
        (folder / name).write_text("no picture")
    assert [row["file"] for row in read_table(folder)] == ["a.png", "b.png", "c.png", "d.webp", "e.GIF"]


@pytest.mark.parametrize("table, words", [("name\nArp 1\n", "column 'file'"), ("file\n", "no pictures"),
                                          ("file,kpc_per_pixel\na.png,wide\n", "must be a number"),
                                          ("file\n../a.png\n", "in the folder"), ("file\n/a.png\n", "in the folder")])
def test_bad_tables_are_refused(loud, folder, table, words):
    (folder / "real.csv").write_text(table)
    with pytest.raises(DatasetError, match=words):
        evaluate_real(loud, folder)


def test_no_folder_is_refused(loud, tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        evaluate_real(loud, tmp_path / "nowhere")


def test_the_page_shows_every_picture_and_says_what_it_does_not_know(loud, folder):
    from deepgalaxy.report.real import write_real

    (folder / "real.csv").write_text("file,name,time_since_pericentre_myr\na.png,<Arp>,99999\nb.png,B,\n")
    result, stories = evaluate_real(loud, folder)
    page = write_real(result, stories, folder / "out").read_text()
    assert "&lt;Arp&gt;" in page and "<Arp>" not in page and "99999" in page and "does not know" in page
    assert (folder / "out" / "real_0.png").read_bytes()[:4] == b"\x89PNG"


def test_odd_tables_make_a_page_and_a_table(loud, folder):
    """A name is text, whatever matplotlib and rich make of $ and [; -1 stands for nothing."""
    from deepgalaxy.report.real import write_real

    (folder / "real.csv").write_text("file,name,time_since_pericentre_myr,time_err,kpc_per_pixel,stellar_mass_msun\n"
                                     "a.png,$\\bad{$ x,5000,-1,-1,-99\nb.png,NGC [/b],4000,2,0.5,-99\n"
                                     "c.png,Arp 299 [vv 118],,,,\n")
    result, stories = evaluate_real(loud, folder)
    assert [story.scale["source"] for story in stories] == ["content", "given", "content"]
    assert [row["published_error"] for row in result["images"]] == [None, 2.0, None]
    assert "NGC [/b]" in write_real(result, stories, folder / "out").read_text()
    assert "Arp 299 [vv 118]" in printed(result)


def test_scales_are_those_of_a_catalogue_too(loud, folder):
    """The columns that `predict --table` takes; the mass goes with either scale."""
    (folder / "real.csv").write_text("file,kpc_per_pixel,redshift,arcsec_per_pixel,mass,mass_dex\n"
                                     "a.png,,0.02,0.9,2e11,0.1\nb.png,0.5,0.02,0.9,,\nc.png,,,0.9,2e11,\n")
    _, stories = evaluate_real(loud, folder)
    alone = loud.predict(folder / "a.png", redshift=0.02, arcsec_per_pixel=0.9, mass=2e11, mass_dex=0.1)
    assert stories[0].properties == alone.properties and stories[0].scale == alone.scale
    assert stories[1].scale["kpc_per_pixel"] == 0.5 and stories[1].clock["basis"] == "mass"
    assert stories[2].scale["source"] == "content" and stories[2].clock["basis"] != "mass"


def test_without_a_library_nothing_is_said_of_familiarity(loud, folder):
    from deepgalaxy.inference.predictor import Predictor
    from deepgalaxy.report.real import write_real

    result, stories = evaluate_real(Predictor(loud.weights), folder)
    assert result["familiar"] is None and result["most_systems_per_match"] == 0
    page = write_real(result, stories, folder / "out").read_text()
    assert "familiar" not in page and "without a library" in page


def test_a_library_that_does_not_know_what_is_familiar_says_nothing_of_it(loud, folder):
    from deepgalaxy.inference.predictor import Predictor
    from deepgalaxy.report.real import write_real
    from deepgalaxy.search.library import Library, rewrite_library

    nothing = np.zeros((0, 2 * loud.weights.model.config.classifier_width))
    rewrite_library(loud.library, folder / "library.h5", unseen_features=nothing, model_sha256=loud.weights.sha256)
    result, stories = evaluate_real(Predictor(loud.weights, Library(folder)), folder)
    assert result["familiar"] is None and result["most_systems_per_match"] >= 1
    assert "familiar" not in write_real(result, stories, folder / "out").read_text() + printed(result)
    assert "familiar" in printed(evaluate_real(loud, folder)[0])


def test_pictures_that_cannot_be_read_are_said_and_count(run, tiny_model, folder, tmp_path):
    (folder / "bad.png").write_text("no picture")
    done = run("evaluate", "--protocol", "real", "--data", folder, "--model", tiny_model / "model.safetensors",
               "--json", "-")
    assert done.status == 1 and "ImageError: " in done.err and "bad.png" in done.err
    assert json.loads(done.out)["n_failed"] == 1
    (tmp_path / "only").mkdir()
    (folder / "bad.png").rename(tmp_path / "only" / "bad.png")
    done = run("evaluate", "--protocol", "real", "--data", tmp_path / "only", "--model",
               tiny_model / "model.safetensors")
    assert done.status == 2 and "Traceback" not in done.err
