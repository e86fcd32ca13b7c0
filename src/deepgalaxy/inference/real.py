"""Real pictures with published stories beside ours: a folder of images and a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np
from scipy.stats import spearmanr

from ..errors import DatasetError
from ..labels import MASS_RATIO, TIME
from ..units import REFERENCE_STARS, REFERENCE_TIME
from .catalogue import COLUMNS, read_rows, said_once
from .predictor import Predictor
from .story import UNFAMILIAR, Story

__all__ = ["evaluate_real", "read_table"]

#: Stellar masses of bright pairs scatter by so many dex; without a mass, a published Myr is no clock of ours.
_MASS_DEX = 0.3

_PICTURES = (".fits", ".fit", ".fz", ".gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".gif")

#: Of fewer published values nothing is said but how many lie in our intervals.
_MIN_PUBLISHED = 3


def evaluate_real(predictor: Predictor, folder: str | Path, on_image: Callable[[int], None] | None = None,
                  ) -> tuple[dict, list[Story | tuple[str, str]]]:
    """The stories of all real pictures in a folder, compared with what was published.

    Parameters
    ----------
    folder : pictures, and a CSV with a column `file`, and if known `name`, `kpc_per_pixel` (or `redshift` and
        `arcsec_per_pixel`), `stellar_mass_msun` (or `mass`) and `mass_dex`, `time_since_pericentre_myr`, `time_err`,
        `mass_ratio_m1_over_m2` (whichever of the two is heavier: the lighter over the heavier one is compared). Without
        a CSV all pictures are read, at unknown scale. Where the scale is known and the mass is not, the system is taken
        to be as heavy as the simulated ones within 0.3 dex, because published times are in Myr of the system.

    Returns
    -------
    result : {"protocol": "real", "n_images", "n_failed", "n_published", "published_within_90",
        "published_within_90_without_mass_error" (of a primary as heavy as simulated, as `predict` answers without one),
        "published_within_68", "published_rank_correlation" (Spearman's, of our medians),
        "published_median_abs_difference" (of our medians, Myr), "published_median_abs_difference_of_guess" (of who
        answers with the median of the others' published times), "n_published_ratios", "published_ratio_within_90",
        "published_ratio_rank_correlation", "most_systems_per_match", "familiar", "images": [...]}, one row per
        picture: its quantiles of time and mass ratio, what was published, whether that lies within our 90 %, its best
        match. Correlations and differences are None of fewer than three, correlations also of equal values; "familiar"
        is where the library does not know.
    stories : of the pictures, in their order; (name, error) for one that has none.

    Raises
    ------
    DatasetError
        If the folder holds no picture, or its table is no table.
    """
    rows, images, stories = read_table(folder), [], []
    for row in rows:
        [story] = predictor.predict_many([str(Path(folder) / row["file"])], **_known(row))
        stories.append(story)
        images.append(_compare(row, story))
        if on_image:
            on_image(1)
    answered = [image for image in images if "error" not in image]
    published = [image for image in answered if image["published_time"] is not None]
    ratios = [image for image in answered if image["published_mass_ratio"] is not None]
    times, theirs = [image["time"]["p50"] for image in published], [image["published_time"] for image in published]
    difference, of_guess = _differences(times, theirs)
    # Without a library, or with one that has nothing to compare with, nothing is known of that.
    known = [image["familiarity"] for image in answered if math.isfinite(image["familiarity"])]
    best = Counter((image["match"]["encounter"], image["match"]["time_myr"]) for image in answered if image["match"])
    return {"protocol": "real", "model": predictor.weights.identity, "n_images": len(images),
            "n_failed": len(images) - len(answered), "n_published": len(published),
            "published_within_90": sum(image["within_90"] for image in published),
            "published_within_90_without_mass_error": sum(image["within_90_without_mass_error"] for image in published),
            "published_within_68": sum(image["time"]["p16"] <= image["published_time"] <= image["time"]["p84"]
                                       for image in published),
            "published_rank_correlation": _rank_correlation(times, theirs),
            "published_median_abs_difference": difference, "published_median_abs_difference_of_guess": of_guess,
            "n_published_ratios": len(ratios),
            "published_ratio_within_90": sum(image["ratio_within_90"] for image in ratios),
            "published_ratio_rank_correlation": _rank_correlation(
                [_at_most_1(image["mass_ratio"]["p50"]) for image in ratios],
                [image["published_mass_ratio"] for image in ratios]),
            "most_systems_per_match": max(best.values(), default=0),
            "familiar": sum(value >= UNFAMILIAR for value in known) if known else None, "images": images}, stories


def _rank_correlation(ours: list[float], published: list[float]) -> float | None:
    """Spearman's, -1 to 1; None of too few, and where all of ours or of theirs are equal."""
    if len(published) < _MIN_PUBLISHED or len(set(ours)) == 1 or len(set(published)) == 1:
        return None
    return float(spearmanr(ours, published).statistic)


def _differences(ours: list[float], published: list[float]) -> tuple[float, float] | tuple[None, None]:
    """Median distance of ours from the published ones, and that of who answers with the median of the others."""
    if len(published) < _MIN_PUBLISHED:
        return None, None
    guesses = [np.median(np.delete(published, k)) for k in range(len(published))]
    return tuple(float(np.median(np.abs(np.subtract(answers, published)))) for answers in (ours, guesses))


def _at_most_1(ratio: float) -> float:
    """The lighter over the heavier one."""
    return min(ratio, 1 / ratio)


def _known(row: dict) -> dict[str, float]:
    """Scale and mass of a picture, as `predict` takes them; nothing where no scale is known."""
    given = {name: value for name in COLUMNS if (value := _positive(row, name)) is not None}
    if "kpc_per_pixel" not in given and "redshift" not in given:
        return {}
    mass = _positive(row, "stellar_mass_msun") or given.get("mass", 1.5 * REFERENCE_STARS)
    return said_once({"mass_dex": _MASS_DEX, **given, "mass": mass})


def _compare(row: dict, story: Story | tuple[str, str]) -> dict:
    entry = {"image": row["file"], "name": row.get("name") or row["file"]}
    if isinstance(story, tuple):
        return {**entry, "error": story[1]}
    time, published = story.properties[TIME.name], _number(row, "time_since_pericentre_myr")
    error = _number(row, "time_err")
    within = published is not None and time["p05"] <= published <= time["p95"]
    ticks = story.clock["time_in_dynamical_times"]
    without = published is not None and ticks["p05"] <= published / REFERENCE_TIME <= ticks["p95"]
    error = error if error is not None and error >= 0 else None
    ratio, ours = _positive(row, "mass_ratio_m1_over_m2"), story.properties[MASS_RATIO.name]
    ratio = _at_most_1(ratio) if ratio is not None else None
    return {**entry, "time": time, "published_time": published, "published_error": error,
            "within_90": within if published is not None else None,
            "within_90_without_mass_error": without if published is not None else None, "clock": story.clock["basis"],
            "mass_ratio": ours, "published_mass_ratio": ratio,
            "ratio_within_90": None if ratio is None else any(ours["p05"] <= either <= ours["p95"]
                                                              for either in (ratio, 1 / ratio)),
            "stage": max(story.stage, key=story.stage.get),
            "familiarity": story.familiarity, "match": story.matches[0].to_dict() if story.matches else None}


def read_table(folder: str | Path) -> list[dict]:
    """One row per picture of a folder, see `evaluate_real`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; give one with pictures, and a CSV with a column 'file'")
    tables = [path for path in sorted(folder.glob("*.csv")) if path.is_file()]  # a pipe would never end
    if not tables:
        rows = [{"file": path.name} for path in sorted(folder.iterdir())
                if path.suffix.lower() in _PICTURES and path.is_file()]
    else:
        rows = [row for _, row in read_rows(tables[0])]
        inside = [PurePath(row.get("file") or "") for row in rows]
        if any(not path.name or path.is_absolute() or ".." in path.parts for path in inside):
            raise DatasetError(f"{tables[0]}: every line needs a column 'file', the name of a picture in the folder")
    if not rows:
        raise DatasetError(f"{folder}: holds no pictures; give a folder of FITS, PNG, JPEG, TIFF, WebP or GIF "
                           "files")
    return rows


def _number(row: dict, column: str) -> float | None:
    try:
        value = float(row.get(column) or "nan")
    except ValueError:
        raise DatasetError(f"{row['file']}: {column} = {row[column]!r}: must be a number, or empty") from None
    return value if math.isfinite(value) else None


def _positive(row: dict, column: str) -> float | None:
    """None for what is not positive too: tables write -1 or so where they have none."""
    value = _number(row, column)
    return value if value is not None and value > 0 else None
