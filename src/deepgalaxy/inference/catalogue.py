"""A catalogue: a table of pictures, and what is known of each."""

from __future__ import annotations

import csv
from dataclasses import fields
from pathlib import Path

from ..errors import ConfigError, DatasetError
from .predictor import Scale

__all__ = ["COLUMNS", "read_catalogue", "read_rows", "said_once"]

#: Columns that are read, if they are there: the size of a pixel and the mass, as of `Scale`.
COLUMNS = tuple(field.name for field in fields(Scale))


def read_catalogue(path: str | Path) -> list[tuple[str, dict[str, float]]]:
    """The pictures of a CSV, and the arguments of `Predictor.predict` that it gives for each.

    Parameters
    ----------
    path : with a column `file`, the picture's path from the table's folder, and any of the fields of `Scale`; an empty
        cell says nothing. Other columns are left alone. Where there is both `kpc_per_pixel` and `redshift`, the former
        says all.

    Raises
    ------
    DatasetError
        If it is no such table.
    ConfigError
        If a value is not allowed, with the line that it stands in.
    """
    path = Path(path)
    rows = read_rows(path)
    if not rows or "file" not in rows[0][1]:
        missing = "lines" if not rows else "column file"
        raise DatasetError(f"{path}: has no {missing}; give a table with a column 'file' and any of "
                           f"{', '.join(COLUMNS)}")
    return [_picture(path, line, row) for line, row in rows]


def read_rows(path: str | Path) -> list[tuple[int, dict]]:
    """The lines of a CSV with a head, and their numbers in the file.

    Raises
    ------
    DatasetError
        If it cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path}: cannot be read as CSV ({reason}); give a table with a column 'file'") from None


def said_once(options: dict[str, float]) -> dict[str, float]:
    """Fields of `Scale` without those that `kpc_per_pixel` makes superfluous, if it is there."""
    superfluous = ("redshift", "arcsec_per_pixel") if "kpc_per_pixel" in options else ()
    return {name: value for name, value in options.items() if name not in superfluous}


def _picture(path: Path, line: int, row: dict) -> tuple[str, dict[str, float]]:
    where = f"{path}: line {line}"
    if not (row["file"] or "").strip():
        raise DatasetError(f"{where}: 'file' is empty; give the path of a picture")
    options = {}
    for name in COLUMNS:
        if text := (row.get(name) or "").strip():
            try:
                options[name] = float(text)
            except ValueError:
                raise ConfigError(f"{where}: {name} = {text!r}: must be a number, or empty") from None
    options = said_once(options)
    try:
        Scale(**options)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return str(path.parent / row["file"].strip()), options
