"""From encounter files to the file of images."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ..cluster import LostWorkers, begin_task
from ..errors import ClusterError, DatasetError, SimulationError
from ..image.render import RenderConfig, n_cameras, render_encounter
from ..image.starlight import Starlight
from ..labels import STARLIGHT, UNDISTURBED
from ..progress import one_line
from ..simulate.snapshot import Encounter, parameters_of
from ..simulate.undisturbed import Undisturbed
from .labelled import LABELS_NAMES, LabelledEncounter, Labels, labels_file
from .reader import Dataset
from .writer import DatasetWriter, extend_dataset

__all__ = ["encounter_files", "build_dataset"]

_PIECE = 64 << 20  # bytes of pictures that a worker makes at once


def encounter_files(folder: str | Path, output: str | Path | None = None) -> list[Path]:
    """The encounter files of a folder, by name; the data set that is made of them may lie among them.

    Where a file of labels lies beside a user's own snapshots, NAME.h5 "within" it stands for each encounter.

    Raises
    ------
    DatasetError
        If there are none, or the labels are not sound.
    """
    if (labels := labels_file(folder)) is not None:
        return [labels / f"{name}.h5" for name in Labels(labels).names]
    output = Path(output).resolve() if output is not None else None
    files = [file for file in sorted(Path(folder).glob("*.h5")) if file.resolve() != output]
    if not files:
        raise DatasetError(f"{folder}: holds no encounter files (*.h5); make them with 'deepgalaxy simulate', or put "
                           "a labels.csv beside snapshots of your own")
    return files


def build_dataset(folder: str | Path, path: str | Path, config: RenderConfig, client=None,
                  ) -> Iterator[tuple[str, str | None]]:
    """Render all encounters of a folder into one data set; goes on where it was interrupted, or where the folder ended
    when the data set was made. It is made anew where a user's own snapshots or their labels have changed.

    Pictures stream to the disk: at no time are more than about `_PIECE` bytes of them per worker in memory.

    Parameters
    ----------
    client : a Dask client; without one, this process renders.

    Yields
    ------
    (name, error) : of each encounter once it is in the file, those of an earlier run first; error is None, or one
        line about an encounter that is left out because its file is damaged or its worker died.

    Raises
    ------
    DatasetError
        If `path` holds anything else than earlier pictures of this folder, made in the same way: it stays as it is.
    """
    files = encounter_files(folder, path)
    for name, plain in (("n_undisturbed", 0), ("light", "mass")):
        if (value := getattr(config, name)) != plain and labels_file(folder) is not None:
            raise DatasetError(f"{name} = {value}: needs encounters of 'deepgalaxy simulate', which say what star is "
                               "of which galaxy; leave it out for snapshots of your own")
    made_by = _made_by(folder, config)
    # A picture of an encounter comes with those of its galaxies alone.
    wanted = {"-".join([file.stem, *kind]): (file, kind) for file in files for kind in _kinds(config)}
    held = _finished(Path(path), made_by, wanted)
    _refuse_others(path, held, wanted)
    if set(held) == set(wanted):
        yield from ((file.stem, None) for file in files)
        return
    if held and set(held) < set(wanted):  # the campaign has gone on since: only what is new is rendered
        extend_dataset(path)
    with DatasetWriter(path, made_by) as writer:
        if not held:  # an interrupted run's
            _refuse_others(writer.partial, {name: writer.attributes(name) for name in writer.done}, wanted)
        yield from ((name, None) for name in sorted(writer.done) if name not in wanted or not wanted[name][1])
        missing = [source for name, source in wanted.items() if name not in writer.done]
        last = {file: kind for file, kind in missing}
        errors: dict[Path, str] = {}  # the first of each encounter
        for (file, kind), pieces in _rendered(missing, config, client):
            error = _write_pieces(writer, pieces, config)
            if error is not None:
                errors.setdefault(file, f"{'-'.join([file.stem, *kind])}: {error}" if kind else error)
            if kind == last[file]:
                yield file.stem, errors.get(file)


def _kinds(config: RenderConfig) -> list[tuple[str, ...]]:
    """What follows the encounter's name in those of its groups, the encounter itself last."""
    kinds = [*((kind,) for kind in (UNDISTURBED if config.n_undisturbed else ())), ()]
    return [*((*kind, STARLIGHT) for kind in (kinds if config.light == "both" else ())), *kinds]


def _write_pieces(writer: DatasetWriter, pieces, config: RenderConfig) -> str | None:
    """Write the pieces of one encounter; one line if one of them could not be made."""
    try:
        first, encounter, cameras = next(pieces)
        shape = (len(encounter.time), config.n_pixels, config.n_pixels)
        with writer.encounter(encounter.name, encounter.attributes, len(cameras), shape, encounter.stage,
                              encounter.separation) as write:
            write(first, cameras)
            for first, _, cameras in pieces:
                write(first, cameras)
    except _LeftOut as error:
        return str(error)
    finally:
        pieces.close()
    return None


def _made_by(folder: str | Path, config: RenderConfig) -> str:
    """JSON of what makes the data set: the rendering, and a user's own labels as they are now."""
    labels = labels_file(folder)
    if labels is None:
        return config.to_json()
    return json.dumps({**config.model_dump(mode="json"), "labels_sha256": Labels(labels).digest})


def _finished(path: Path, made_by: str, wanted: dict) -> dict[str, dict]:
    """The encounters of a finished data set, and their attributes; none if it is not there, or to be made anew.

    Raises
    ------
    DatasetError
        If the file holds what these pictures would not replace.
    """
    if not path.is_file():
        return {}
    where, remedy = one_line(path), "choose another output, or delete it to photograph them anew"
    try:
        dataset = Dataset(path)
    except DatasetError as error:
        raise DatasetError(f"{error}; it is not written over: choose another output, or delete it") from None
    now, then = json.loads(made_by), _settings(dataset.config)
    labels = now.pop("labels_sha256", None), then.pop("labels_sha256", None)
    differ = [key for key in dict.fromkeys([*now, *then]) if then.get(key, "unknown") != now.get(key, "unknown")]
    if differ:
        key, more = differ[0], f" (and {len(differ) - 1} more differ)" if len(differ) > 1 else ""
        raise DatasetError(f"{where}: was rendered with {key} = {one_line(then.get(key, 'unknown'))}, here "
                           f"{now.get(key, 'unknown')}{more}; {remedy}")
    if None in labels and labels != (None, None):
        raise DatasetError(f"{where}: was rendered {'with' if labels[1] else 'without'} a file of labels, which is "
                           f"{'not ' if labels[1] else ''}there now; {remedy}")
    changed = labels[0] != labels[1]
    strange = [name for name in dataset.groups if name not in wanted]
    # With changed labels an encounter may have got another name; not all of them.
    if strange and (not changed or len(strange) == len(dataset.groups)):
        raise DatasetError(f"{where}: holds {strange[0]}, which is not in the folder; {remedy}")
    if changed or path.with_name(path.name + ".partial").exists():
        return {}
    return dict(zip(dataset.groups, dataset.attributes, strict=True))


def _settings(config: str) -> dict:
    """Those in a data set; none if they are no JSON of settings."""
    try:
        settings = json.loads(config)
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _refuse_others(path: str | Path, held: dict[str, dict], wanted: dict[str, tuple[Path, tuple[str, ...]]]) -> None:
    """Encounters of all suites have the same names: what a data set holds must be of those in the folder."""
    for name, attributes in held.items():
        if name not in wanted:
            raise DatasetError(f"{path}: holds {one_line(name)}, which is not in the folder; choose another output, or "
                               "delete it to photograph them anew")
        file, _ = wanted[name]
        if not file.is_file():  # a user's own: the labels' digest is in the config
            continue
        try:
            parameters = parameters_of(file)
        except SimulationError:  # damaged since: its pictures are there
            continue
        for key, value in parameters.items():
            before = attributes.get(key, value)
            if before != value and before == before and value == value:
                raise DatasetError(f"{path}: its {name} is another encounter than {file} ({key} {before}, "
                                   f"here {value}); choose another output, or delete it to photograph them anew")


class _LeftOut(Exception):
    """An encounter that cannot be rendered, in one line."""


def _render_piece(file: str, kind: tuple[str, ...], config_json: str, first: int, n_snapshots: int):
    encounter, config = _read(Path(file)), RenderConfig.from_json(config_json)
    for part in kind:
        encounter = Starlight(encounter) if part == STARLIGHT else Undisturbed(encounter, part, config.n_undisturbed)
    cameras = render_encounter(encounter, config, first, n_snapshots)
    return first, encounter.without_stars(), cameras  # the pictures are enough to send back


def _read(file: Path) -> Encounter | LabelledEncounter:
    """An encounter by its name from `encounter_files`."""
    if file.parent.name in LABELS_NAMES and file.parent.is_file():
        tables = (path for name in LABELS_NAMES if (path := file.parent.with_name(name)).is_file())
        return _labels(file.parent, tuple(path.stat().st_mtime_ns for path in tables)).encounter(file.stem)
    encounter = Encounter.read(file)
    if encounter.name != file.stem:
        raise SimulationError(f"{file}: holds the encounter {encounter.name!r}; give the file back that name")
    return encounter


@lru_cache(maxsize=1)
def _labels(path: Path, _changed: tuple[int, ...]) -> Labels:
    """Read once per worker, not once per piece; the rows of a labels.yaml may stand in the labels.csv beside it."""
    return Labels(path)


def _rendered(sources: list[tuple[Path, tuple[str, ...]]], config: RenderConfig, client):
    """(source, its pieces in order), one after the other; a source is a file, and one of `_kinds`."""
    n_snapshots = max(1, _PIECE // (n_cameras(config) * config.n_pixels**2 * 2))
    # A few more than there are workers are under way, so that memory holds few pieces at once.
    ahead = 2 * max(1, len(client.scheduler_info()["workers"])) if client is not None else 1

    def begin(source: tuple[Path, tuple[str, ...]], first: int):
        """Start a piece; what comes back waits for it."""
        arguments = os.path.abspath(source[0]), source[1], config.to_json(), first, n_snapshots
        if client is None:
            return lambda: _render_piece(*arguments)
        return begin_task(client, _render_piece, *arguments)

    def pieces(source, piece):
        try:
            first, encounter, cameras = piece()
            yield first, encounter, cameras
            rest, running = deque(range(n_snapshots, len(encounter.time), n_snapshots)), deque()
            while rest or running:
                while rest and len(running) < ahead:
                    running.append(begin(source, rest.popleft()))
                yield running.popleft()()
        except LostWorkers as error:
            raise _LeftOut(f"{source[0].name}: {error}, of memory perhaps; try fewer --workers or fewer "
                           "pixels") from None
        except ClusterError:
            raise
        except Exception as error:  # whatever it is, it is this encounter's alone
            raise _LeftOut(f"{type(error).__name__}: {one_line(error)}") from None

    waiting, begun = deque(sources), deque()
    while waiting or begun:
        while waiting and len(begun) < ahead:
            begun.append((waiting[0], begin(waiting.popleft(), 0)))
        source, piece = begun.popleft()
        yield source, pieces(source, piece)
