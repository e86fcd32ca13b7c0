"""The library: z, labels and a thumbnail of every reference image.

One HDF5 file behind a checksum of its bytes. Thumbnails are 64-pixel WebP, about 300 bytes each, of the
frame as the model sees it.
"""

from __future__ import annotations

import io
import json
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import LibraryError
from ..files import open_sealed, read_arrays, sealed_hdf5
from ..inference.story import Match
from ..labels import LABELS
from .index import LatentIndex
from .pictures import (
    PICTURE_PIXELS,
    PictureBasis,
    align,
    at_contrast,
    disc_contrast,
    flipped,
    lit_share,
    map_agreement,
    small,
    smooth_faint,
    structure_agreement,
    tidy,
    with_and_without_sky,
)

__all__ = ["Library", "encode_thumbnail", "extend_library", "rewrite_library", "write_library"]

FORMAT, FORMAT_VERSION = "deepgalaxy-library", 4  # 4: pictures are compared at one contrast
_LABELS = ("time", "mass_ratio", "size_ratio", "view_inclination")
_ARRAYS = ("z", "metric", "encounter", "snapshot", "camera", "local_distance", "thumbnails",
           "usual_features", "feature_metric", "unseen_distances",
           "thumbnail_offsets", "pictures", "picture_basis", *_LABELS)
#: What it takes to simulate an encounter again, where that is known: its configuration, and whence it was seen.
_ORIGIN = ("configs", "view")
#: z of the same images with their scale told, if the model's z depends on it.
_TOLD = ("z_told", "metric_told")
_MAX_CONFIG = 1 << 16  # bytes of each

#: Candidates that are compared picture by picture, turned and shifted, and how many of them by their activation maps.
_COMPARED, _LOOKED_AT = 96, 48

#: Of structure beside light, where pictures are laid on each other; and of activation maps beside both.
_STRUCTURE_WEIGHT, _MAP_WEIGHT = 0.3, 1.75


def encode_thumbnail(frame: np.ndarray) -> bytes:
    """A frame (n, n), 0..1, y upwards, as WebP of 64 pixels."""
    from PIL import Image

    picture = Image.fromarray((255 * np.clip(frame, 0, 1)).astype(np.uint8))
    picture = picture.resize((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=60, method=4)
    return buffer.getvalue()


def _decode(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float32) / 255


def write_library(path: str | Path, *, z, labels: dict, encounters: list[str], encounter, snapshot, camera,
                  thumbnails: list[bytes], usual_features, unseen_features, model_sha256: str, config: str = "{}",
                  metric=None, configs: list[str | None] = (), view=None, z_told=None, metric_told=None) -> None:
    """Write a library, whole or not at all.

    Parameters
    ----------
    z : (N, D) latent means.
    labels : {name: (N,)} time, mass_ratio, size_ratio, view_inclination.
    encounters : names; encounter (N,) is the row's index into them.
    thumbnails : N WebP files.
    usual_features : (M, K) what the classifier sees in many observed images: what is usual.
    unseen_features : (L, K) the same of encounters held out of training, to which new images are compared.
    metric : (D, D), distances are measured in z @ metric; without it, each axis in units of its spread.
    configs : JSON of the `EncounterConfig` of each of `encounters`, None where there is none.
    view : (N, 3) unit vectors to the observer, in the axes of the encounter; NaN where not known.
    z_told, metric_told : the same as z and metric where the scale of each image was told, if z depends on it.
    """
    path = Path(path)
    z, metric = _with_metric(z, metric)
    usual, feature_metric = whitening(usual_features)
    unseen = np.sort(np.linalg.norm((unseen_features - usual) @ feature_metric, axis=1)) if len(
        unseen_features) else np.zeros(0)
    pictures = np.stack([tidy(_decode(data)) for data in thumbnails])
    basis = PictureBasis.of(pictures)
    arrays = {
        "z": z, "metric": metric, "local_distance": _local_distances(z, metric),
        "encounter": np.asarray(encounter, np.int32), "snapshot": np.asarray(snapshot, np.int16),
        "camera": np.asarray(camera, np.int16),
        "usual_features": usual, "feature_metric": feature_metric, "unseen_distances": unseen.astype(np.float32),
        "pictures": basis.project(pictures).astype(np.float16), "picture_basis": basis.components,
        "thumbnails": np.frombuffer(b"".join(thumbnails), np.uint8),
        "thumbnail_offsets": np.cumsum([0, *map(len, thumbnails)]).astype(np.int64),
        **{name: np.asarray(labels[name], np.float32) for name in _LABELS},
    }
    if z_told is not None:
        arrays |= dict(zip(_TOLD, _with_metric(z_told, metric_told), strict=True))
    lines = [_one_line_of_json(config) for config in configs]
    if view is not None and any(lines):
        arrays |= {"view": np.asarray(view, np.float16), "configs": _packed(lines)}
    _write(path, arrays, encounters, model_sha256, config)


def extend_library(library: Library, path: str | Path, *, z, labels: dict, encounters: list[str], encounter, snapshot,
                   camera, thumbnails: list[bytes], configs: list[str | None] = (), view=None, z_told=None) -> None:
    """Write a library anew with further images of the same weights beside its own; parameters as in `write_library`.

    An encounter of the same configuration, or of the same name where none is known, is the same one: only one of its
    images is shown beside others.
    """
    old, n = library.arrays, len(z)
    names, lines, number = list(library.encounters), list(library.configs), []
    known = {config or name: k for k, (name, config) in reversed(list(enumerate(zip(names, lines, strict=True))))}
    for name, config in zip(encounters, map(_one_line_of_json, configs or [None] * len(encounters)), strict=True):
        number.append(known.setdefault(config or name, len(names)))
        if number[-1] == len(names):
            names.append(name)
            lines.append(config)
    pictures = PictureBasis(old["picture_basis"]).project(np.stack([tidy(_decode(data)) for data in thumbnails]))
    new = {"z": z, "encounter": np.array(number)[encounter], "snapshot": snapshot, "camera": camera,
           "pictures": pictures, "thumbnails": np.frombuffer(b"".join(thumbnails), np.uint8),
           "thumbnail_offsets": len(old["thumbnails"]) + np.cumsum([len(data) for data in thumbnails]),
           **{name: labels[name] for name in _LABELS}}
    if z_told is not None:
        new["z_told"] = z_told
    arrays = {**old, **{name: np.concatenate([old[name], np.asarray(values).astype(old[name].dtype)])
                        for name, values in new.items()}}
    arrays["local_distance"] = _local_distances(arrays["z"], arrays["metric"])
    if "view" in old or any(lines):
        views = [np.full((m, 3), np.nan) if seen is None else np.asarray(seen)
                 for m, seen in ((len(library), old.get("view")), (n, view))]
        arrays |= {"view": np.concatenate(views).astype(np.float16), "configs": _packed(lines)}
    _write(Path(path), arrays, names, library.model_sha256, library.config)


def _packed(lines) -> np.ndarray:
    return np.frombuffer(zlib.compress("\n".join(lines).encode(), 9), np.uint8)


def _one_line_of_json(config) -> str:
    """Anything may stand in a data set under this name; what is no JSON object is left out."""
    try:
        tree = json.loads(config) if isinstance(config, str) and len(config) < _MAX_CONFIG else None
    except ValueError:
        tree = None
    return json.dumps(tree, separators=(",", ":")) if isinstance(tree, dict) else ""


def _odd(arrays: dict[str, np.ndarray], n_encounters: int) -> str | None:
    """The first array that is not as `write_library` makes it, if there is one."""
    n, axes = (arrays["z"].shape + (0, 0))[:2]
    features, parts = (len(arrays[name]) if arrays[name].ndim else 0 for name in ("usual_features", "picture_basis"))
    shapes = {"z": (n, axes), "metric": (axes, axes), "usual_features": (features,),
              "feature_metric": (features, features), "unseen_distances": arrays["unseen_distances"].shape[:1],
              "thumbnails": arrays["thumbnails"].shape[:1], "thumbnail_offsets": (n + 1,), "pictures": (n, parts),
              "picture_basis": (parts, *arrays["picture_basis"].shape[1:2]), "view": (n, 3), "z_told": (n, axes),
              "metric_told": (axes, axes)}
    if "configs" in arrays:
        shapes["configs"] = arrays["configs"].shape[:1]
    whole = {"encounter", "snapshot", "camera", "thumbnails", "thumbnail_offsets", "configs"}
    for name, values in arrays.items():
        if values.shape != shapes.get(name, (n,)) or values.dtype.kind not in ("iu" if name in whole else "f"):
            return name
        if name not in whole and name not in (*_LABELS, "view") and not np.isfinite(values).all():
            return name
    offsets = arrays["thumbnail_offsets"]
    if (np.diff(offsets) <= 0).any() or offsets[0] != 0 or offsets[-1] != len(arrays["thumbnails"]):
        return "thumbnail_offsets"
    if n == 0 or not 0 <= arrays["encounter"].min() <= arrays["encounter"].max() < n_encounters:
        return "encounter"
    return None


def _with_metric(z, metric) -> tuple[np.ndarray, np.ndarray]:
    """z (N, D) and the metric (D, D) of its distances as they are stored."""
    z = np.asarray(z, np.float16)
    return z, LatentIndex.by_spread(z) if metric is None else np.asarray(metric, np.float32)


def _local_distances(z: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """How dense the library is around each image (N,): a hub in a dense region is no better match for it."""
    if len(z) < 2:
        return np.ones(len(z), np.float32)
    return LatentIndex(z, metric).search(z, 11)[0][:, 1:].mean(axis=1).astype(np.float32)


def rewrite_library(library: Library, path: str | Path, *, unseen_features, model_sha256: str, metric=None,
                    metric_told=None) -> None:
    """Write a library anew with the same images, for the same weights calibrated on other images.

    Parameters
    ----------
    unseen_features, model_sha256 : as in `write_library`.
    metric, metric_told : (D, D), others for the distances; without them, they stay.
    """
    arrays = {**library.arrays, "unseen_distances": np.sort(library.strangeness(unseen_features)).astype(np.float32)}
    if metric is not None:
        _, metric = _with_metric(arrays["z"], metric)
        arrays |= {"metric": metric, "local_distance": _local_distances(arrays["z"], metric)}
    if metric_told is not None and "z_told" in arrays:
        arrays["metric_told"] = np.asarray(metric_told, np.float32)
    _write(Path(path), arrays, library.encounters, model_sha256, library.config)


def _write(path: Path, arrays: dict[str, np.ndarray], encounters: list[str], model_sha256: str, config: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with sealed_hdf5(path) as f:
            f.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, "model_sha256": model_sha256,
                            "config": config})
            f["encounters"] = np.frombuffer("\n".join(encounters).encode(), np.uint8)
            for name, values in arrays.items():
                f.create_dataset(name, data=values)
    except OSError as error:
        raise LibraryError(f"{path}: cannot be written ({error}); free space or choose another folder") from None


def whitening(features: np.ndarray, floor: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """Mean (K,) of features (N, K), and the metric (K, K) in which they scatter by 1 in every direction.

    Directions of less than `floor` of the mean variance count as if they had it.
    """
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    scatter = np.atleast_2d(np.cov(features.T)) if len(features) > 1 else np.eye(features.shape[1])
    values, vectors = np.linalg.eigh(scatter + floor * np.trace(scatter) / len(scatter) * np.eye(len(scatter)))
    return mean.astype(np.float32), (vectors / np.sqrt(np.maximum(values, 1e-12))).astype(np.float32)


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
        self.arrays = arrays = self._read(path)
        self.path = path
        self.labels = {name: arrays[name] for name in _LABELS}
        self.encounter, self.snapshot, self.camera = (arrays[n] for n in ("encounter", "snapshot", "camera"))
        self._usual, self._feature_metric = arrays["usual_features"], arrays["feature_metric"]
        self._unseen, self._local = arrays["unseen_distances"], arrays["local_distance"]
        self._bytes, self._offsets = arrays["thumbnails"], arrays["thumbnail_offsets"]
        self.index = LatentIndex(arrays["z"], arrays["metric"])
        #: Where the scale of a picture is told; the same one if z does not depend on it.
        self.told_index = LatentIndex(arrays["z_told"], arrays["metric_told"]) if "z_told" in arrays else self.index
        self._basis = PictureBasis(arrays["picture_basis"])
        self._pictures = arrays["pictures"].astype(np.float32)

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        again = "make it again with 'deepgalaxy index'"
        try:
            with open_sealed(path) as f:
                if f.attrs.get("format") != FORMAT or f.attrs.get("format_version") != FORMAT_VERSION:
                    raise LibraryError(f"{path}: is no library of this version of deepgalaxy; {again}")
                self.model_sha256, self.config = f.attrs["model_sha256"], f.attrs["config"]
                told = _TOLD if _TOLD[0] in f else ()
                arrays = read_arrays(f, (*_ARRAYS, *told, *(name for name in _ORIGIN if name in f), "encounters"))
                self.encounters = arrays.pop("encounters").tobytes().decode().split("\n")
        except (OSError, KeyError, RuntimeError, UnicodeDecodeError) as error:
            raise LibraryError(f"{path}: damaged library, or none at all ({str(error)[:100]}); {again}") from None
        if (odd := _odd(arrays, len(self.encounters))) is not None:
            raise LibraryError(f"{path}: '{odd}' does not fit the other arrays or holds what is no number; {again}")
        return arrays

    def __len__(self):
        return len(self.encounter)

    @cached_property
    def configs(self) -> list[str]:
        """JSON of the `EncounterConfig` of each encounter, empty where it is not known."""
        lines = []
        if all(name in self.arrays for name in _ORIGIN):
            try:
                packed, most = self.arrays["configs"].tobytes(), _MAX_CONFIG * len(self.encounters)
                lines = zlib.decompressobj().decompress(packed, most).decode().split("\n")
            except (zlib.error, UnicodeDecodeError):
                pass
        return lines if len(lines) == len(self.encounters) else [""] * len(self.encounters)

    def origin(self, row: int) -> tuple[str, np.ndarray]:
        """JSON of the `EncounterConfig` behind a reference image, and the unit vector (3,) to its observer.

        Raises
        ------
        LibraryError
            If the library does not hold them: it was made of pictures of another program, or before libraries did.
        """
        number, view = int(self.encounter[row]), self.arrays.get("view")
        config = self.configs[number]
        named = bool(config) and json.loads(config).get("name") == self.encounters[number].rpartition(":")[2]
        if not named or not np.isfinite(view[row]).all():
            raise LibraryError(f"{self.path}: does not say how {self.encounters[number]} was simulated. If it was read "
                               "from labelled snapshots, or from published files, there is no twin to simulate; if it "
                               "is of a suite, render that into a new file with this version, and make the library "
                               "again with 'deepgalaxy index'")
        direction = view[row].astype(float)
        return config, direction / max(np.linalg.norm(direction), 1e-6)

    def thumbnail(self, row: int) -> np.ndarray:
        """(64, 64) float32 0..1, y upwards."""
        return _decode(self._bytes[self._offsets[row]:self._offsets[row + 1]].tobytes())

    def strangeness(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distance (B,) of what the classifier sees (B, K) from what it usually sees.

        References
        ----------
        Lee et al. (2018), arXiv 1807.03888.
        """
        return np.linalg.norm((features - self._usual) @ self._feature_metric, axis=1)

    def familiarity(self, features: np.ndarray) -> float:
        """Fraction of observed images of unseen encounters that are stranger than this one, seen V times (V, K).

        Near 0: nothing like it was ever simulated here.
        """
        if len(self._unseen) == 0:
            return float("nan")
        distance = float(np.median(self.strangeness(features)))
        return float(1 - np.searchsorted(self._unseen, distance) / len(self._unseen))

    def implausibility(self, probability: dict[str, np.ndarray]) -> np.ndarray:
        """How far each reference image (N,) is from what a picture's posteriors say: 0 at their peaks.

        Mean over the labels of -log(p / its largest value), each at most 5; looks alone tell neither scale nor time.

        Parameters
        ----------
        probability : {label: (n_bins,)}, one picture's posteriors.
        """
        total, n = np.zeros(len(self)), 0
        for label in LABELS:
            if label.column in self.labels and label.name in probability:
                p = np.asarray(probability[label.name], float)
                position = label.position(self.labels[label.column])
                bins = np.clip(np.nan_to_num(position).astype(int), 0, label.n_bins - 1)
                cost = np.minimum(-np.log(np.maximum(p / p.max(), 1e-9)), 5)
                total += np.where(np.isfinite(position), cost[bins], 0)
                n += 1
        return total / max(n, 1)

    def matches(self, z: np.ndarray, frames: np.ndarray, k: int = 5, n_candidates: int = 400,
                picture_weight: float = 0.85, implausibility: np.ndarray | None = None,
                posterior_weight: float = 0.1, clean: np.ndarray | None = None,
                see: Callable[[np.ndarray], np.ndarray] | None = None) -> list[Match]:
        """The k best look-alikes, from k different encounters, turned as the query is and as bright as that.

        Candidates are the nearest in z, those whose pictures agree best, and those that do well in all, over the
        whole library. They are ranked by their latent distance, relative to how crowded the library is around them,
        by how well light and structure agree when pictures are laid on each other, and by whether the answers agree
        with them; the best of them by how alike their activation maps are too.

        Parameters
        ----------
        z : (V, D) latent means of an image and its mirror images, in the order of `posterior.views_of`, V up to 4; of
            no known scale: looks have none, and what is said of it is in the answers.
        frames : (V, n, n) the images themselves, stretched: the first, and mirrored as `flipped` does.
        clean : (n, n) 0..1, the first of them as the decoder sees it, without sky and stars. What is faint shows in
            frames alone, what lies in the glare of a deep picture here: pictures have to agree with both. A decoder
            that has hardly learnt, and shows something else, is not asked.
        picture_weight : 0 does not compare pictures, 1 takes no account of the distance in z.
        implausibility : (N,) see there; counts with `posterior_weight`.
        see : the activation maps (K, C, h, w) of pictures (K, n, n), 0..1; without it, maps are not compared.
        """
        unlikely = posterior_weight * (np.zeros(len(self)) if implausibility is None else implausibility)
        seen = with_and_without_sky(frames[0], clean)
        queries = [np.stack([flipped(one, view) for view in range(len(frames))]) for one in seen]
        agreement = sum(self._basis.project(query) @ self._pictures.T for query in queries) / len(queries)  # (views, N)
        distance = self.index.distances(z)
        reach = float(np.median(np.sort(distance, axis=1)[:, :10]))
        relative = distance / np.sqrt(np.maximum(self._local, 1e-6) * max(reach, 1e-6))
        score = _score(relative, agreement, picture_weight) + unlikely
        pool = self._candidates(distance, agreement, score, n_candidates, max(k, 1), picture_weight)
        pictures = np.stack([flipped(self.thumbnail(row), view) for view, row in pool])
        # Mirrored back, all are laid on the image itself, at one contrast, as much of them lit as of the image.
        tidied = tidy(pictures)
        alike = sum(_alike(one, tidied) for one in seen) / len(seen)
        cost = np.array([_score(relative[view, row], one, picture_weight) + unlikely[row]
                         for (view, row), one in zip(pool, alike, strict=True)])
        # They are shown in the brightnesses of the image, without sky if that is known, and if it has any; made as
        # bright as that, faint parts would show what compression left of them.
        light = seen[0] if len(seen) == 1 else small(clean)
        brightnesses = np.sort(light, axis=None) if light.any() else disc_contrast(lit_share(light))

        def laid(which) -> np.ndarray:
            return align(seen[0], at_contrast(smooth_faint(pictures[which]), brightnesses))[1]

        # As many by their maps, whatever k is: who asks for more look-alikes gets the same ones first.
        first = np.argsort(cost[:_COMPARED], kind="stable")[:_LOOKED_AT]
        others = np.setdiff1d(np.arange(len(pool)), first)
        if see is not None and picture_weight > 0:
            agreement = _maps_alike(see, frames[:1] if len(seen) == 1 else np.stack([frames[0], clean]), laid(first))
            first = first[np.argsort(cost[first] - picture_weight * _MAP_WEIGHT * agreement, kind="stable")]
        best: dict[int, int] = {}
        for n in (*first, *others[np.argsort(cost[others], kind="stable")]):
            best.setdefault(int(self.encounter[pool[n][1]]), int(n))
        ranked = list(best.values())[:k]
        typical = max(float(np.median(self._local)), 1e-6)
        return [self._match(row, float(distance[view, row]) / typical, picture)
                for (view, row), picture in zip((pool[n] for n in ranked), laid(ranked) if ranked else (), strict=True)]

    def _candidates(self, distance, agreement, score, n, k, picture_weight) -> list[tuple[int, int]]:
        """(view, row) of what is compared in full: the best two of each encounter, of k encounters at least.

        The best in z, the best as pictures, and the best by their score, in which the answers count too.
        """
        near = set()
        for values, weight in ((distance, 1 - picture_weight), (-agreement, picture_weight), (score, 1)):
            count = min(n, values.shape[1]) if weight > 0 else 0
            for view in range(len(values) if count else 0):
                near.update((view, int(row)) for row in np.argpartition(values[view], count - 1)[:count])
        pool, taken = [], Counter()
        for view, row in sorted(near, key=lambda at: score[at]):
            key = int(self.encounter[row])
            taken[key] += 1
            if taken[key] <= 2:
                pool.append((view, row))
        pool = pool[:max(_COMPARED, 2 * k)]
        names = {int(self.encounter[row]) for _, row in pool}
        if len(names) < k:  # one encounter crowds out the others: their best images come too
            view, by_score = score.argmin(axis=0), np.argsort(score.min(axis=0))
            _, first = np.unique(self.encounter[by_score], return_index=True)
            pool += [(int(view[row]), int(row)) for row in by_score[np.sort(first)]
                     if int(self.encounter[row]) not in names][:k - len(names)]
        return pool

    def _match(self, row: int, distance: float, picture: np.ndarray) -> Match:
        values = {name: float(self.labels[name][row]) for name in _LABELS}
        return Match(self.encounters[self.encounter[row]], values["time"], values["mass_ratio"],
                     values["size_ratio"], values["view_inclination"], distance, picture.copy(), row)


def _alike(query: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """How well light and structure of pictures (K, n, n) agree with those of a query (n, n), laid on it: (K,)."""
    contrast = disc_contrast(lit_share(query))
    own = at_contrast(query[None], contrast)[0]
    light, laid = align(own, at_contrast(pictures, contrast))
    return (1 - _STRUCTURE_WEIGHT) * light + _STRUCTURE_WEIGHT * structure_agreement(own, laid)


def _maps_alike(see, queries: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """How well maps of pictures (K, n, n) agree with those of a few queries (Q, m, m), in the mean: (K,)."""
    maps = see(pictures)
    return np.mean([map_agreement(one, maps) for one in see(queries)], axis=0)


def _score(relative, agreement, picture_weight):
    return (1 - picture_weight) * relative + picture_weight * 3 * (1 - agreement)
