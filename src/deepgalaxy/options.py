"""What several commands are asked with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .errors import ConfigError

__all__ = ["ArcsecOption", "ExtOption", "Images", "ImagesOrTable", "JsonOption", "KpcOption", "LibraryOption",
           "MassDexOption", "MassOption", "ModelOption", "PatienceOption", "RedshiftOption", "SchedulerOption",
           "WorkersOption"]


def _place(json_file: str | None) -> str | None:
    """Refuse a place where the JSON cannot be before the work, not after it."""
    if json_file not in (None, "-"):
        path = Path(json_file).absolute()
        there = next(folder for folder in path.parents if folder.exists())
        if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
            raise ConfigError(f"{json_file}: nothing can be written there; choose another place for the JSON")
    return json_file


Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="FITS, PNG, JPEG, TIFF, WebP or GIF",
                                             show_default=False)]
ImagesOrTable = Annotated[list[str] | None, typer.Argument(metavar="IMAGE...", show_default=False, help="FITS, PNG, "
                                                           "JPEG, TIFF, WebP or GIF")]
ModelOption = Annotated[Path | None, typer.Option("--model", help="weights; without it, the shipped ones")]
LibraryOption = Annotated[Path | None, typer.Option("--library", help="a library; without it, the shipped one")]
JsonOption = Annotated[str | None, typer.Option("--json", metavar="FILE|-", callback=_place, help="write "
                                                "JSON to a file, or to standard output")]
SchedulerOption = Annotated[str | None, typer.Option("--scheduler", metavar="ADDRESS", help="of a Dask scheduler; "
                                                     "without it, a local cluster")]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="processes of the local cluster")]
PatienceOption = Annotated[float, typer.Option("--patience", metavar="SECONDS", min=0, help="without any worker, "
                                               "before giving up")]
KpcOption = Annotated[float | None, typer.Option("--kpc-per-pixel", help="of the picture as it is")]
ArcsecOption = Annotated[float | None, typer.Option("--arcsec-per-pixel", help="needs --redshift")]
RedshiftOption = Annotated[float | None, typer.Option("--redshift", help="with --arcsec-per-pixel or a FITS WCS")]
MassOption = Annotated[float | None, typer.Option("--mass", help="of the stars of both galaxies, Msun: times are then "
                                                  "in Myr of this system; needs the size of a pixel")]
MassDexOption = Annotated[float | None, typer.Option("--mass-dex", help="error of --mass, in dex; 0.2 without it")]
ExtOption = Annotated[str | None, typer.Option("--ext", help="extension of a FITS file, number or name")]
