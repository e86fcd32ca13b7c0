"""Reports: what is drawn and written, for stories that are whole, poor or hostile."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from deepgalaxy.errors import DeepGalaxyError
from deepgalaxy.inference.story import QUANTILES, Match, Story, Twin
from deepgalaxy.labels import LABELS, STAGES
from deepgalaxy.report import (
    familiarity_sentence,
    headline,
    json_ready,
    number,
    percent,
    printable,
    scale_sentence,
    short_names,
    shorten,
    write_file,
)
from deepgalaxy.report.evaluation import write_evaluation
from deepgalaxy.report.figures import _posterior, _width, _wrap, save_story, story_figure
from deepgalaxy.report.html import _curve, safe_name, write_report
from deepgalaxy.report.limits import limits
from deepgalaxy.report.terminal import matches_table, story_table

EVIL = "<script>alert(1)</script>.png"
EVIL_NAME = EVIL.replace("/", "\N{DIVISION SLASH}")  # as one file name; a real slash ends a folder


def make_story(image="pair.fits", seed=0, flags=(), scale=None, familiarity=0.6, n_matches=5) -> Story:
    rng = np.random.default_rng(seed)
    properties, distributions = {}, {}
    for label in LABELS:
        bins = np.arange(label.n_bins) + 0.5
        probability = np.exp(-0.5 * ((bins / label.n_bins - rng.uniform(0.3, 0.7)) / 0.1) ** 2)
        probability /= probability.sum()
        cumulative = np.concatenate([[0], np.cumsum(probability)])
        properties[label.name] = {"unit": label.unit} | {
            name: float(np.interp(q, cumulative, label.edges)) for name, q in QUANTILES.items()}
        distributions[label.name] = (label.edges, probability)
    matches = [Match(f"encounter_{i:04d}", float(rng.uniform(-100, 400)), 0.5, 0.8, 30.0, 1.0 + i,
                     rng.random((32, 32), np.float32)) for i in range(n_matches)]
    return Story(
        image=image, model={"name": "tiny", "version": "0.1.0", "sha256": "ab" * 32},
        scale={"kpc_per_pixel": scale, "source": "given" if scale else "content"}, properties=properties,
        stage=dict(zip(STAGES, rng.dirichlet(np.ones(len(STAGES))).tolist(), strict=True)), familiarity=familiarity,
        flags=list(flags), matches=matches, distributions=distributions, z=rng.normal(size=32),
        display=rng.integers(0, 255, (60, 90, 3), np.uint8),
        frame_box=np.array([[10, 5], [70, -5], [80, 55], [20, 65.0]]),
        frame=rng.random((128, 128), np.float32), reconstruction=rng.random((128, 128), np.float32))


def poor_story(image="poor.png") -> Story:
    story = make_story(image, n_matches=0, familiarity=float("nan"))
    story.display = story.frame_box = story.frame = story.reconstruction = None
    story.distributions = {}
    return story


def text_of(table, width=100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


# figures

@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("story", [
    make_story(), poor_story(), make_story("a" * 500 + ".fits", flags=["A long flag. " * 60] * 12),
    make_story("cost_$x_and_$\\frac{.png", flags=["$\\nonsense{"]),
    make_story("银河\udcff\n\x1b[31m.png", flags=["x" * 900]),
], ids=["whole", "poor", "long", "dollar", "odd characters"])
def test_figure_is_1600_px_wide_and_draws_without_a_warning(story, tmp_path):
    with Image.open(save_story(story, tmp_path / "story.png")) as image:
        assert image.format == "PNG" and image.width == 1600 and 1100 < image.height < 4000


def test_no_text_leaves_the_figure_or_overlaps():
    story = make_story("name_" * 60 + ".fits", flags=["A flag that needs more than a line. " * 8] * 4)
    story.matches[1].encounter = "a_very_long_name_of_an_encounter_of_another_suite"
    figure = story_figure(story)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.texts if text.get_text().strip()]
    height = figure.bbox.height
    assert all(box.x0 >= 0 and box.x1 <= 1600 and box.y0 >= 0 and box.y1 <= height for box in boxes)
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1:]
                if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1]
    assert not overlaps


def test_wrapped_lines_keep_all_text_and_fit():
    text = "words and a" + "very" * 60 + "long one"
    lines = _wrap(text, 15, 300)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(_width(line, 15) <= 300 for line in lines)


def test_thumbnails_stand_upright_and_the_picture_hangs():
    figure = story_figure(make_story())
    origins = [axes.images[0].origin for axes in figure.axes if axes.images]
    assert origins == ["upper"] + ["lower"] * 7


# words

def test_numbers_are_rounded_as_people_say_them():
    time, ratio = LABELS[0], LABELS[1]
    assert number(time, 212.4, sign=True) == "+212" and number(time, -0.3) == "0"
    assert number(ratio, 0.6249) == "0.62" and number(ratio, float("nan")) == "?"
    assert [percent(p) for p in (0, 0.004, 0.5, 0.996, 1)] == ["0 %", "<1 %", "50 %", ">99 %", "100 %"]
    assert shorten("encounter_0123456", 9) == "enco…3456"


def test_what_is_not_known_is_said():
    assert "Milky Way" in scale_sentence({"kpc_per_pixel": None, "source": "content"})
    assert scale_sentence({"kpc_per_pixel": 0.35, "source": "wcs"}).startswith("Scale 0.35 kpc per pixel")
    assert "hardly seen the like" in familiarity_sentence(0.001)  # the flag beside it says: do not trust
    assert "not known" in familiarity_sentence(float("nan"))
    assert "first pericentre" in headline(make_story())


# the page

def test_page_has_a_section_and_a_figure_per_image(tmp_path):
    stories = [make_story("a/pair.fits"), ("bad.png", "bad.png: is empty; choose another"),
               make_story("b/pair.png", 1, flags=["cropped"], scale=0.3), poor_story()]
    page = write_report(stories, tmp_path / "new" / "report")
    html = page.read_text("utf-8")
    assert page.name == "index.html"
    assert html.count('<section class="story"') == 3
    assert "bad.png: is empty" in html and "cropped" in html and "What this page does not know" in html
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "index.html", "pair_2_story.png", "pair_story.png", "poor_story.png", "stories.json"]
    for name in ("pair_story.png", "pair_2_story.png", "poor_story.png"):
        assert f'href="{name}"' in html
        with Image.open(page.parent / name) as image:
            assert image.width == 1600


def test_json_is_what_predict_gives(tmp_path):
    stories = [make_story(familiarity=float("nan")), ("bad.png", "bad.png: is empty")]
    write_report(stories, tmp_path)
    answers = json.loads((tmp_path / "stories.json").read_text())
    assert answers[0] == json_ready(stories[0].to_dict()) and answers[0]["familiarity"] is None
    assert answers[1] == {"image": "bad.png", "error": "bad.png: is empty"}


OF_THE_SHIPPED = ("disc galaxies", "Milky Way in mass and size", "disc scale length", "discs with bulges", "0.15 dex",
                  "model that ships")


def test_a_page_says_of_a_training_only_what_is_true_of_it(tmp_path):
    story = make_story()
    for training, told in (({"shipped": True}, True), ({"shipped": False, "n_encounters": 3}, False), ({}, False)):
        story.training = training
        html = write_report([story], tmp_path).read_text("utf-8")
        assert [text for text in OF_THE_SHIPPED if text in html] == (list(OF_THE_SHIPPED) if told else [])
        assert ("of its own training" in html) != told and "square root of size" in html
        assert ("like the Milky Way in mass and size" in " ".join(text_of(story_table([story])).split())) == told
        assert ("whose primary" in text_of(matches_table([story]))) == told
    both = [make_story("a.png"), make_story("b.png")]
    both[0].training = {"shipped": True}
    html = write_report(both, tmp_path).read_text("utf-8")
    assert html.count("disc galaxies") == 1 and "0.15 dex" not in html
    assert "0.15 dex" not in write_report([("a", "a: is empty")], tmp_path).read_text("utf-8")


@pytest.mark.parametrize("n, text", [(3, "from the 3 encounters of"), (1, "from the encounter of"),
                                     (0, "from the encounters of")])
def test_limits_count_the_encounters_of_the_training(n, text):
    story = make_story()
    story.training = {"shipped": False, "n_encounters": n}
    assert text in limits(story)


def test_stages_that_no_image_showed_are_not_told_apart(tmp_path):
    story = make_story()
    for unseen, text in (([], "told apart as well as one picture allows"), (["return"], "told apart as well as"),
                         (["single"], "showed single galaxies: these are not told from"),
                         (["single", "chance pair"], "showed single galaxies or chance alignments: these are not")):
        story.training = {"shipped": False, "n_encounters": 3, "unseen_stages": unseen}
        html = write_report([story], tmp_path).read_text("utf-8")
        assert text in html and ("stages of their own" in html) == ("told apart" in text)


def test_hostile_text_is_shown_not_run(tmp_path):
    story = make_story(EVIL_NAME, flags=[f"flag {EVIL}"])
    story.model["name"] = story.matches[0].encounter = '"><script>alert(2)</script>'
    html = write_report([story, (EVIL, f"{EVIL}: is a page")], tmp_path).read_text("utf-8")
    assert "<script" not in html and "&lt;script&gt;" in html
    assert (tmp_path / "script_alert_1_script_story.png").exists()


def test_page_needs_nothing_from_elsewhere(tmp_path):
    html = write_report([make_story(), poor_story()], tmp_path).read_text("utf-8")
    assert "http://" not in html and "https://" not in html and "url(" not in html and "@import" not in html
    for link in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert link.startswith(("data:image/", "#")) or (tmp_path / link).is_file(), link
    for target in re.findall(r'href="#([^"]*)"', html):
        assert f'id="{target}"' in html


def test_page_of_failures_only_and_of_nothing(tmp_path):
    assert "is empty" in write_report([("a", "a: is empty")], tmp_path).read_text("utf-8")
    assert write_report([], tmp_path).exists()


def test_file_names_are_safe_and_unique():
    taken = {"index"}
    names = [safe_name(name, taken) for name in (
        "x/Pair.fits.gz", "pair.png", "pair_2.png", "../../etc/passwd", "index.html", "...", "银河.png",
        ".hidden", "a b&c?.jpg", "C:\\data\\con figuration.tif", "y" * 300)]
    assert names[:8] == ["Pair", "pair_2", "pair_2_2", "passwd", "index_2", "image", "image_2", "hidden"]
    assert names[8:10] == ["a_b_c", "con_figuration"] and len(names[10]) <= 80
    assert printable("a\x1b[31m\udcff") == "a\ufffd[31m?"


def test_a_second_report_replaces_the_first_and_leaves_no_temporary_file(tmp_path):
    write_report([make_story()], tmp_path)
    write_report([make_story(flags=["a second time"])], tmp_path)
    assert "a second time" in (tmp_path / "index.html").read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "pair_story.png", "stories.json"]


@pytest.mark.parametrize("name", ["pair.png", "pair_story.png"])
def test_a_report_beside_its_picture_does_not_write_over_it(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"the picture")
    monkeypatch.chdir(tmp_path)
    write_report([make_story(name), make_story("pair.fits")], ".")
    assert (tmp_path / name).read_bytes() == b"the picture"
    assert len(list(tmp_path.glob("*_story.png"))) == 2 + (name == "pair_story.png")


def test_in_myr_of_a_light_system_the_page_draws_the_whole_curve():
    label = LABELS[0]
    edges, p = np.linspace(559, 2142, label.n_bins + 1), np.full(label.n_bins, 1 / label.n_bins)
    quantiles = {"p05": 640, "p16": 812, "p50": 1350, "p84": 1890, "p95": 2060}
    svg = str(_curve(label, quantiles, (edges, p)))
    (median,) = re.findall(r'class="median" x1="([0-9.]+)"', svg)
    assert float(median) == pytest.approx(10 + 300 * (1350 + 210) / (2142 + 210), abs=0.1)
    (tick,) = re.findall(r'<text x="([0-9.]+)" y="94">1000<', svg)
    assert float(tick) < float(median)


def test_pictures_of_the_same_name_are_told_apart_by_their_folders():
    paths = ["a/pair.png", "b/pair.png", "c/b/pair.png", "x.fits", "x.fits", "/"]
    assert short_names([(path, "no picture") for path in paths]) == {
        "a/pair.png": "a/pair.png", "b/pair.png": "b/pair.png", "c/b/pair.png": "c/b/pair.png", "x.fits": "x.fits",
        "/": "/"}
    assert short_names([("run\x1b[31m/pair.png", ""), ("/data/x/a.png", "")]) == {
        "run\x1b[31m/pair.png": "pair.png", "/data/x/a.png": "a.png"}


def test_no_number_of_an_axis_is_cut_by_its_end():
    label = LABELS[0]
    svg = str(_curve(label, {"p05": 40, "p16": 80, "p50": 120, "p84": 150, "p95": 190}, None))
    ticks = re.findall(r'<text x="([0-9.]+)" y="94"([^>]*)>([^<]*)<', svg)
    assert ticks[-1][2] == "1000"
    for x, anchor, text in ticks:  # at 11 px, a digit is about 6 wide
        left = float(x) - {"": 0.5, "start": 0, "end": 1}[anchor[20:-1]] * 6 * len(text)
        assert left >= 0 and left + 6 * len(text) <= 320, (x, anchor, text)


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "taken" / "pair_story.png").mkdir(parents=True)
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "taken"):
        with pytest.raises(DeepGalaxyError, match="cannot be written") as caught:
            write_report([make_story()], folder)
        assert "\n" not in str(caught.value) and caught.value.__cause__ is None
    with pytest.raises(DeepGalaxyError, match="cannot be written"):
        write_evaluation({}, None, tmp_path / "file")
    assert not list((tmp_path / "taken").glob(".*"))
    for path in (".", "/", ""):
        with pytest.raises(DeepGalaxyError, match="cannot be written"):
            write_file(path, "text")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = write_file(tmp_path / "page.html", "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(DeepGalaxyError, match="no space left"):
        write_file(path, "new")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on the PATH")
def test_page_opens_in_a_browser(tmp_path):
    stories = [make_story("a.png"), make_story(EVIL_NAME, 1), ("bad", "bad: is empty")]
    page = write_report(stories, tmp_path / "report")
    shot = tmp_path / "shot.png"
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", "--window-size=1280,2000",
         page.as_uri()], check=True, capture_output=True, timeout=120)
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (2000, 1280, 3) and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000


def with_twin(story: Story, n_times=9) -> Story:
    """Two galaxies that part along the frame's right: the primary stays, the secondary flies out by 2 kpc a step."""
    rng = np.random.default_rng(5)
    places = rng.normal(0, 1, (n_times, 60, 3)).astype(np.float32)
    places[:, 40:, 0] += 10 + 2 * np.arange(n_times)[:, None]
    story.twin = Twin("wide:encounter_0007", -40.0 + 10 * np.arange(n_times), places,
                      np.repeat([0, 1], [40, 20]).astype(np.int8), at=3, side=60.0, agreement=0.9)
    story.frame_box = np.array([[70, 50], [70, 10], [30, 10], [30, 50.0]])  # the frame's right is the picture's up
    return story


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on the PATH")
def test_the_twin_stands_beside_the_picture_as_it_lies_there(tmp_path):
    page = write_report([with_twin(make_story("a.png")), make_story("b.png", 1)], tmp_path)
    text = page.read_text()
    assert text.count('class="twin"') == 1
    # The canvas says what it shows: where the light of each galaxy is, in its own pixels.
    probe = """<script>setTimeout(() => {
      const canvas = document.querySelector(".twin canvas"), n = canvas.width;
      const pixels = canvas.getContext("2d").getImageData(0, 0, n, n).data, at = [[0, 0, 0], [0, 0, 0]];
      for (let i = 0; i < n * n; i++) for (const k of [0, 1]) {
        const light = Math.max(0, (1 - 2 * k) * (pixels[4 * i] - pixels[4 * i + 2]));
        at[k][0] += light; at[k][1] += light * (i % n) / n; at[k][2] += light * Math.floor(i / n) / n;
      }
      document.title = JSON.stringify(at.map(sums => [sums[1] / sums[0], sums[2] / sums[0]]));
    }, 400)</script>"""
    page.write_text(text.replace("</body>", probe + "</body>"))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=1000",
         "--window-size=1280,3000", "--dump-dom", page.as_uri()],
        check=True, capture_output=True, text=True, timeout=120)
    assert "Uncaught" not in done.stderr, done.stderr
    assert "<output>−10 Myr</output>" in done.stdout
    first, second = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    # 16 kpc of a frame of 60, of which the canvas shows 1.2 times as much; upwards in the picture.
    assert first == pytest.approx([0.5, 0.5], abs=0.02)
    assert second == pytest.approx([0.5, 0.5 - 16 / 60 / 1.2], abs=0.02)


# the terminal

def test_table_fits_100_columns_and_tells_all():
    flags = ["cropped at the edge"]
    stories = [make_story("pair.fits", flags=flags), ("bad.png", "bad.png: is empty; try another"),
               make_story("[red]long_name_of_a_picture_" * 8, 1, flags=flags), poor_story()]
    text = text_of(story_table(stories))
    assert max(map(len, text.splitlines())) <= 100
    assert "bad.png: is empty; try another" in text and "failed" in text
    assert text.count("cropped at the edge") == 1 and "[red]" in text
    assert re.search(r"[+-]\d+ \(-?\d+…-?\d+\) Myr", text)
    assert "encounter_0000" in text and "Myr" in text


def test_table_has_a_row_per_image():
    assert story_table([make_story(), ("bad", "bad: is empty"), poor_story()]).row_count == 3
    assert story_table([]).row_count == 0


# the evaluation

def samples_of(n=300):
    rng = np.random.default_rng(0)
    samples = {}
    for label in LABELS:
        truth = rng.uniform(label.low, label.high, n)
        middle = truth * rng.normal(1, 0.05, n)
        samples[label.name] = {"truth": truth, "p16": 0.9 * middle, "p50": middle, "p84": 1.1 * middle,
                               "pit": rng.random(n)}
    return samples


@pytest.mark.filterwarnings("error")
def test_evaluation_page_shows_figures_and_plots(tmp_path):
    figures = {label.name: {"median_abs_error": 12.345, "coverage68": 0.671} for label in LABELS}
    samples = samples_of()
    samples["mass_ratio"] = {name: values[:1] for name, values in samples["mass_ratio"].items()}
    samples["size_ratio"] = {name: np.full(3, np.nan) for name in samples["size_ratio"]}
    result = {"protocol": "<b>unseen</b>", "n_images": 300, "n_encounters": 9, "clean": figures,
              "reconstruction": {"ssim_fcae": 0.912, "ssim_vae": None},
              "neighbours": {"median_abs_dt_5": np.float32(41), "median_abs_dt_shown": 40.0}}
    figures["stage"] = {"accuracy": 0.8, "confusion": (np.diag([5, 0, 3, 2, 0, 0]) + np.eye(6, k=1)).tolist()}
    result["realism_without_scale"] = {"frame_side": {"unit": "kpc", "median_abs_error": 19.984}}
    result["robustness"] = {"mirrored": {label.name: {"within": 0.934} for label in LABELS}}
    result["confusion"] = {"camera": [[3, 1], [0, 4]]}
    page = write_evaluation(result, {"clean": samples}, tmp_path)
    assert {p.name for p in tmp_path.glob("confusion_*.png")} == {"confusion_stage_clean.png", "confusion_camera.png"}
    html = page.read_text("utf-8")
    assert page.name == "evaluation.html" and "&lt;b&gt;unseen" in html and "<b>unseen" not in html
    for text in ("300 images", "9 encounters", "12.3 Myr", "67.1 %", "0.912", ">41<", "20.0 kpc", "shown first",
                 "Mass ratio", "93 %", "taken for what: stage clean"):
        assert text in html, text
    assert "http" not in html and html.count('class="plot"') == 3
    with Image.open(tmp_path / "evaluation_clean.png") as image:
        assert image.width == 1600


def test_evaluation_without_samples_or_figures_is_a_page(tmp_path):
    html = write_evaluation({"protocol": "paper", "top1": 0.25}, None, tmp_path).read_text("utf-8")
    assert "0.25" in html and "same\nencounter" in html and 'class="plot"' not in html


def test_the_clock_of_a_system_leaves_its_axis_readable():
    """In Myr of a heavy system the curve is narrow: the axis still spans the label's range and has its ticks."""
    axes, label = Figure().subplots(), LABELS[0]
    edges, probability = np.linspace(40.0, 190.0, label.n_bins + 1), np.full(label.n_bins, 1 / label.n_bins)
    quantiles = dict(zip(("p05", "p16", "p50", "p84", "p95"), np.quantile(edges, (0.05, 0.16, 0.5, 0.84, 0.95)),
                         strict=True))
    _posterior(axes, label, quantiles, (edges, probability))
    low, high = axes.get_xlim()
    assert (low, high) == (label.low, label.high) and sum(low <= tick <= high for tick in axes.get_xticks()) >= 3
