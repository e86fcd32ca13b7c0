"""From encounter files to the file of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import DatasetError
from ..image.render import RenderConfig, render_encounter
from ..simulate.snapshot import Encounter
from .reader import Dataset
from .writer import DatasetWriter

__all__ = ["encounter_files", "build_dataset"]


def encounter_files(folder: str | Path) -> list[Path]:
    """The encounter files of a folder, by name.

    Raises
    ------
    DatasetError
        If there are none.
    """
    files = sorted(Path(folder).glob("*.h5"))
    if not files:
        raise DatasetError(f"{folder}: holds no encounter files (*.h5); make them with 'deepgalaxy simulate'")
    return files


def build_dataset(folder: str | Path, path: str | Path, config: RenderConfig, client=None) -> Iterator[str]:
    """Render all encounters of a folder into one data set; goes on where it was interrupted.

    Parameters
    ----------
    client : a Dask client; without one, this process renders.

    Yields
    ------
    name : of each encounter once it is in the file, those of an earlier run first.
    """
    files = encounter_files(folder)
    if _is_finished(Path(path), files, config):
        yield from (file.stem for file in files)
        return
    with DatasetWriter(path, config.to_json()) as writer:
        yield from sorted(writer.done)
        missing = [f for f in files if f.stem not in writer.done]
        for encounter, cameras in _rendered(missing, config, client):
            writer.write_encounter(encounter.name, encounter.parameters, cameras, encounter.stage,
                                   encounter.separation)
            yield encounter.name


def _is_finished(path: Path, files: list[Path], config: RenderConfig) -> bool:
    """Does the data set hold these encounters already, photographed in this way?"""
    if not path.is_file() or path.with_name(path.name + ".partial").exists():
        return False
    try:
        dataset = Dataset(path)
    except DatasetError:
        return False
    return dataset.config == config.to_json() and set(dataset.groups) == {file.stem for file in files}


def _render_file(file: str, config_json: str):
    encounter = Encounter.read(file)
    cameras = render_encounter(encounter, RenderConfig.from_json(config_json))
    encounter.positions = encounter.positions[:0]  # the pictures are enough to send back
    return encounter, cameras


def _rendered(files, config, client):
    if client is None:
        for file in files:
            yield _render_file(str(file), config.to_json())
        return
    # A few more than there are workers are under way, so that memory holds few encounters at once.
    waiting, running = list(files), []
    ahead = 2 * max(1, len(client.scheduler_info()["workers"]))
    while waiting or running:
        while waiting and len(running) < ahead:
            running.append(client.submit(_render_file, str(waiting.pop(0).resolve()), config.to_json(), pure=False))
        future = running.pop(0)
        yield future.result()
        future.release()
