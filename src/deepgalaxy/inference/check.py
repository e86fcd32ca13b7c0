"""Is a file sound?"""

from __future__ import annotations

from pathlib import Path

from ..errors import DatasetError, DeepGalaxyError
from ..files import has_seal, open_sealed
from ..simulate.snapshot import MAX_DRIFT

__all__ = ["check_file"]


def check_file(path: str | Path) -> tuple[str, list[str]]:
    """What kind of file it is, and what is wrong with it (empty if nothing is).

    Kinds: data set, encounter, library, model, image.
    """
    path = Path(path)
    try:
        if path.is_dir() and (path / "library.h5").is_file():
            path = path / "library.h5"
        if path.suffix == ".safetensors":
            from ..models.weights import load_weights

            load_weights(path)
            return "model", []
        kind = _hdf5_kind(path)
        if kind == "encounter":
            from ..simulate.snapshot import Encounter

            return kind, _check_encounter(Encounter.read(path))
        if kind == "library":
            from ..search.library import Library

            Library(path)
            return kind, []
        if kind == "data set":
            from ..data.schema import check_dataset

            return kind, check_dataset(path)
        from ..image.reader import read

        read(path)
        return "image", []
    except DeepGalaxyError as error:
        return "file", [f"{type(error).__name__}: {error}"]


def _hdf5_kind(path: Path) -> str | None:
    if not path.is_file():  # a pipe would never end
        return None
    try:
        sealed = has_seal(path)
        with open(path, "rb") as f:
            plain = f.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return None
    if not sealed:
        return "data set" if plain or path.suffix in (".h5", ".hdf5") else None
    try:
        with open_sealed(path) as f:
            return "library" if f.attrs.get("format") == "deepgalaxy-library" else "encounter"
    except OSError as error:
        raise DatasetError(f"{path}: is damaged ({error}); make it again") from None


def _check_encounter(encounter) -> list[str]:
    problems = []
    for name in ("energy_drift", "angular_momentum_drift"):
        drift = encounter.parameters.get(name, float("nan"))
        if not drift <= MAX_DRIFT:
            problems.append(f"{encounter.name}: {name} is {100 * drift:.2f} %, more than {100 * MAX_DRIFT:g} %; "
                            "simulate it again with a smaller step_factor, and if need be a smaller opening_angle")
    return problems
