"""Real pictures of interacting galaxies: all get an answer. Whether it is true, nobody knows."""

import csv
import math
from pathlib import Path

import pytest

from deepgalaxy.inference.story import QUANTILES
from deepgalaxy.labels import LABELS

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"


@pytest.fixture(scope="module")
def table():
    if not (REAL / "real.csv").is_file():
        pytest.skip(f"{REAL} is missing: real pictures do not come with the repository")
    with open(REAL / "real.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_real_picture_gets_an_answer(shipped, table):
    for row in table:
        kpc = float(row["kpc_per_pixel"]) if row["kpc_per_pixel"] else None
        story = shipped.predict(str(REAL / row["file"]), kpc_per_pixel=kpc)
        assert story.scale == {"kpc_per_pixel": kpc, "source": "given" if kpc else "content"}
        for label in LABELS:
            values = [story.properties[label.name][name] for name in QUANTILES]
            assert values == sorted(values) and all(map(math.isfinite, values)), row["file"]
        assert sum(story.stage.values()) == pytest.approx(1, abs=1e-4)
        assert 0 <= story.familiarity <= 1
        assert len({match.encounter for match in story.matches}) == 5, row["file"]


def test_real_pictures_get_different_answers(shipped, table):
    """The original DeepGalaxy maps 4 of its 14 Hubble pictures to one snapshot."""
    stories = [shipped.predict(str(REAL / row["file"])) for row in table]
    best = [(story.matches[0].encounter, story.matches[0].time_myr) for story in stories]
    assert max(best.count(match) for match in best) <= 2
    medians = [story.properties["time_since_pericentre"]["p50"] for story in stories]
    assert max(medians) - min(medians) > 50
