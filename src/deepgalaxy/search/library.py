"""The library: z, labels and a thumbnail of every reference image.

One HDF5 file. Thumbnails are 64-pixel WebP, about 700 bytes each, of the frame as the model sees it.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import h5py
import numpy as np

from ..errors import LibraryError
from ..inference.story import Match
from ..simulate.snapshot import replace_file
from .index import LatentIndex

__all__ = ["Library", "THUMBNAIL_PIXELS", "encode_thumbnail", "write_library"]

FORMAT, FORMAT_VERSION = "deepgalaxy-library", 1
THUMBNAIL_PIXELS = 64
_LABELS = ("time", "mass_ratio", "size_ratio", "view_inclination")
_ARRAYS = ("z", "encounter", "snapshot", "camera", "local_distance", "familiar_distances", "thumbnails",
           "thumbnail_offsets", *_LABELS)


def encode_thumbnail(frame: np.ndarray) -> bytes:
    """A frame (n, n), 0..1, y upwards, as WebP of 64 pixels."""
    from PIL import Image

    picture = Image.fromarray((255 * np.clip(frame, 0, 1)).astype(np.uint8))
    picture = picture.resize((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=60, method=4)
    return buffer.getvalue()


def write_library(path: str | Path, *, z, labels: dict, encounters: list[str], encounter, snapshot, camera,
                  thumbnails: list[bytes], familiar_z, model_sha256: str, config: str = "{}") -> None:
    """Write a library, whole or not at all.

    Parameters
    ----------
    z : (N, D) latent means.
    labels : {name: (N,)} time, mass_ratio, size_ratio, view_inclination.
    encounters : names; encounter (N,) is the row's index into them.
    thumbnails : N WebP files.
    familiar_z : (M, D) of observed images of other encounters, against which new images are compared.
    """
    path = Path(path)
    z = np.asarray(z, np.float16)
    index = LatentIndex(z)
    # How dense the library is around each image: a hub in a dense region is no better match for it.
    local = index.search(z, 11)[0][:, 1:].mean(axis=1)
    familiar = np.sort(index.search(familiar_z, 5)[0].mean(axis=1)) if len(familiar_z) else np.zeros(0)
    arrays = {
        "z": z, "encounter": np.asarray(encounter, np.int32), "snapshot": np.asarray(snapshot, np.int16),
        "camera": np.asarray(camera, np.int16), "local_distance": local.astype(np.float32),
        "familiar_distances": familiar.astype(np.float32),
        "thumbnails": np.frombuffer(b"".join(thumbnails), np.uint8),
        "thumbnail_offsets": np.cumsum([0, *map(len, thumbnails)]).astype(np.int64),
        **{name: np.asarray(labels[name], np.float32) for name in _LABELS},
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(temporary, "w") as f:
            f.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, "model_sha256": model_sha256,
                            "encounters": "\n".join(encounters), "config": config, "sha256": _digest(arrays)})
            for name, values in arrays.items():
                f.create_dataset(name, data=values)
        replace_file(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LibraryError(f"{path}: cannot be written ({error}); free space or choose another folder") from None


class Library:
    """Reference images that can be searched.

    Parameters
    ----------
    path : the file, or the folder that holds `library.h5`.

    Raises
    ------
    LibraryError
        If it is missing, damaged or of another kind.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        if path.is_dir():
            path = path / "library.h5"
        if not path.is_file():
            raise LibraryError(f"{path}: no such library; make one with 'deepgalaxy index'")
        try:
            with h5py.File(path, "r") as f:
                if f.attrs.get("format") != FORMAT:
                    raise LibraryError(f"{path}: is not a library of deepgalaxy")
                for name in _ARRAYS:
                    inside = isinstance(f.get(name, getlink=True), h5py.HardLink)
                    if not inside or f[name].is_virtual or f[name].external:
                        raise LibraryError(f"{path}: '{name}' is missing or lies outside the file; refused")
                arrays = {name: f[name][()] for name in _ARRAYS}
                self.model_sha256 = f.attrs["model_sha256"]
                self.encounters = f.attrs["encounters"].split("\n")
                whole = f.attrs["sha256"] == _digest(arrays)
        except (OSError, KeyError, RuntimeError) as error:
            raise LibraryError(f"{path}: damaged library ({str(error)[:100]}); make it again with "
                               "'deepgalaxy index'") from None
        if not whole:
            raise LibraryError(f"{path}: damaged library, its checksum does not fit; make it again with "
                               "'deepgalaxy index'")
        self.path = path
        self.labels = {name: arrays[name] for name in _LABELS}
        self.encounter, self.snapshot, self.camera = (arrays[n] for n in ("encounter", "snapshot", "camera"))
        self._z = arrays["z"]
        self._local, self._familiar = arrays["local_distance"], arrays["familiar_distances"]
        self._bytes, self._offsets = arrays["thumbnails"], arrays["thumbnail_offsets"]
        self.index = LatentIndex(self._z)

    def __len__(self):
        return len(self.encounter)

    def thumbnail(self, row: int) -> np.ndarray:
        """(64, 64) float32 0..1, y upwards."""
        from PIL import Image

        data = self._bytes[self._offsets[row]:self._offsets[row + 1]].tobytes()
        return np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float32) / 255

    def familiarity(self, z: np.ndarray) -> float:
        """Fraction of observed images of unseen encounters that lie further from the library than z (V, D).

        Near 0: nothing like it was ever simulated here.
        """
        if len(self._familiar) == 0:
            return float("nan")
        distance = float(np.median(self.index.search(z, 5)[0].mean(axis=1)))
        return float(1 - np.searchsorted(self._familiar, distance) / len(self._familiar))

    def matches(self, z: np.ndarray, frames: np.ndarray, k: int = 5, n_candidates: int = 60,
                picture_weight: float = 0.5) -> list[Match]:
        """The k best look-alikes, from k different encounters.

        Candidates near in z are ranked by their latent distance, relative to how crowded the
        library is around them, and by how well the pictures themselves agree.

        Parameters
        ----------
        z : (V, D) latent means of V mirrored or turned views of one image.
        frames : (V, n, n) these views, 0..1.
        picture_weight : 0 ranks by z alone, 1 by pictures alone.
        """
        distances, rows = self.index.search(z, n_candidates)
        reach = float(np.median(distances[:, :10]))
        small = [_standardised(_reduce(frame)) for frame in frames]
        best: dict[int, tuple[float, int, float]] = {}  # encounter -> score, row, distance
        thumbnails: dict[int, np.ndarray] = {}
        for view in range(len(z)):
            for distance, row in zip(distances[view], rows[view], strict=True):
                row = int(row)
                if row not in thumbnails:
                    thumbnails[row] = _standardised(self.thumbnail(row))
                agreement = float((small[view] * thumbnails[row]).mean())
                relative = distance / np.sqrt(max(float(self._local[row]), 1e-6) * max(reach, 1e-6))
                score = (1 - picture_weight) * relative + picture_weight * 3 * (1 - agreement)
                key = int(self.encounter[row])
                if key not in best or score < best[key][0]:
                    best[key] = (score, row, float(distance), view)
        typical = float(np.median(self._local))
        return [self._match(row, distance / typical, view) for _, row, distance, view in sorted(best.values())[:k]]

    def _match(self, row: int, distance: float, view: int) -> Match:
        picture = self.thumbnail(row)
        # The thumbnail is mirrored back, so that it lies as the first view of the query does.
        if view % 4 in (1, 3):
            picture = picture[:, ::-1]
        if view % 4 in (2, 3):
            picture = picture[::-1]
        values = {name: float(self.labels[name][row]) for name in _LABELS}
        return Match(self.encounters[self.encounter[row]], values["time"], values["mass_ratio"],
                     values["size_ratio"], values["view_inclination"], distance, picture.copy())


def _reduce(frame):
    from PIL import Image

    picture = Image.fromarray(np.asarray(frame, np.float32), mode="F")
    return np.asarray(picture.resize((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.BOX))


def _standardised(picture):
    picture = picture - picture.mean()
    return picture / max(float(picture.std()), 1e-6)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
