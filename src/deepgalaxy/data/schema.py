"""The file of images: names, limits and the checker (specified in docs/data_format.md).

A stranger's HDF5 file can make h5py read any file of this machine, or claim more memory than there
is. All access therefore goes through `open_file` and `member`, which look before they read.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ..errors import DatasetError
from ..image.view import cube_views
from ..labels import ENCOUNTER_NAME, LABELS, NO_STAGE, STAGES, UNDISTURBED
from ..progress import one_line

__all__ = [
    "FORMAT", "FORMAT_VERSION", "LOG_SURFACE_DENSITY", "STRETCHED", "UNITS",
    "PUBLISHED_NAME", "REQUIRED_ATTRIBUTES", "POSITIVE_ATTRIBUTES", "PUBLISHED_VIEWS",
    "images_name", "check_dataset", "open_file", "encounters", "cameras", "member", "image_set",
    "table", "attributes", "label_attributes", "require_numbers", "published_ratios", "guard", "LOSSY_FILTERS",
]

FORMAT = "deepgalaxy-images"
FORMAT_VERSION = 1

#: What a pixel holds: ours, and what is assumed of the published files.
LOG_SURFACE_DENSITY = "log10_surface_density"
BRIGHTEST = 20  #: of its values
STRETCHED = "stretched"

UNITS = {"images": "log10(Msun/kpc^2), 0 = no light", "t_myr": "Myr since the first pericentre",
         "pixel_scale": "kpc per pixel", "view": "unit vector to the observer, z = orbital angular momentum",
         "separation": "kpc", "pericentre": "kpc"}

#: A group of the published grid: size ratio, then mass ratio.
PUBLISHED_NAME = re.compile(r"s_(\d+(?:\.\d+)?)_m_(\d+(?:\.\d+)?)")
_IMAGES_NAME = re.compile(r"images_camera_(\d{2,4})")

#: Group attributes without which an encounter of ours is not sound; each a positive number.
REQUIRED_ATTRIBUTES = ("mass_ratio", "size_ratio", "pericentre")
#: Those that must be positive numbers wherever they stand, whatever the group shows.
POSITIVE_ATTRIBUTES = (*REQUIRED_ATTRIBUTES, "primary_stars")
_READ_BY_NAME = (*REQUIRED_ATTRIBUTES, "time", "separation", "pixel_scale", "view_inclination")
_MOST_PROBLEMS = 10  # that are told of one group

#: (14, 3) unit vectors of DeepGalaxy's cameras: 6 faces, then 8 corners of the cube.
PUBLISHED_VIEWS = np.array([view.unit for view in cube_views()], np.float32)

_MAX_PIXELS = 64 * 2**20  # per image, as for every picture that is read
_MAX_SNAPSHOTS = 10**6  # per camera
_MAX_BYTES = 2 * 2**40  # claimed by one file
# Anything else would load a plugin of the stranger's choice.
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}
#: HDF5's own that lose digits, which snapshots may have.
LOSSY_FILTERS = {5: "nbit", 6: "scaleoffset"}
_COMPRESSION = {1, 32000, *LOSSY_FILTERS}
_ELSEWHERE = "is a link to elsewhere; refused, copy the data into the file"
#: What h5py raises on damaged files.
_H5_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)


def images_name(camera: int) -> str:
    """Name of the images of a camera; `t_myr`, `pixel_scale`, `view` replace `images` in the others."""
    return f"images_camera_{camera:02d}"


@contextmanager
def guard(source: str) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into a DatasetError that names `source`."""
    try:
        yield
    except _H5_ERRORS as error:
        raise DatasetError(f"{source}: is damaged ({one_line(error.args[-1] if error.args else error)}); "
                           "fetch or make the file again") from None


def open_file(path: str | Path) -> h5py.File:
    """Open a data set for reading, whatever the path is.

    Raises
    ------
    DatasetError
        If it is missing, not a regular file, empty, not HDF5, or cut.
    """
    source = one_line(path)
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise DatasetError(f"{source}: no such file; give the path of a data set") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{source}: cannot be opened ({one_line(error)})") from None
    if not stat.S_ISREG(status.st_mode):  # a FIFO would hang
        raise DatasetError(f"{source}: is not a regular file; give the path of a data set")
    if status.st_size == 0:
        raise DatasetError(f"{source}: is empty; fetch or make the file again")
    try:
        # No chunk cache: HDF5 2.0 keeps up to 8 MiB for each open array, 112 MiB per encounter.
        return h5py.File(path, "r", rdcc_nbytes=0)
    except BlockingIOError:
        raise DatasetError(f"{source}: is being written by another process; wait for it to end") from None
    except PermissionError:
        raise DatasetError(f"{source}: permission denied; make it readable") from None
    except _H5_ERRORS as error:
        if "signature not found" in str(error):
            raise DatasetError(f"{source}: is not an HDF5 file; give the path of a data set") from None
        raise DatasetError(f"{source}: is cut or damaged ({one_line(error)}); "
                           "fetch or make the file again") from None


def encounters(file: h5py.File, source: str) -> tuple[bool, list[str]]:
    """Whether `file` has the published layout, and the names of its groups, sorted.

    Raises
    ------
    DatasetError
        If the file is neither of ours nor published, or a link leads elsewhere.
    """
    with guard(source):
        kind = _text(file.attrs.get("format"))
        version = file.attrs.get("format_version")
        names = sorted(_links(file, source))
        if kind == FORMAT:
            if version != FORMAT_VERSION:
                raise DatasetError(f"{source}: format_version must be {FORMAT_VERSION}, got "
                                   f"{one_line(version)}; use the deepgalaxy that wrote it")
            published = False
        elif kind is not None:
            hint = "; run 'deepgalaxy render' on it first" if kind == "deepgalaxy-encounter" else ""
            raise DatasetError(f"{source}: is a file of format '{one_line(kind)}', not {FORMAT}{hint}")
        else:
            published = True
            names = [name for name in names if PUBLISHED_NAME.fullmatch(name)]
        if not names and any(key.startswith("PartType") for key in file):
            raise DatasetError(f"{source}: is a snapshot, not a data set; photograph its folder with 'deepgalaxy "
                               "render'")
        if not names:
            raise DatasetError(f"{source}: holds no encounters; expected groups such as "
                               "'encounter_0007' or 's_0.25_m_1.50', give a data set of deepgalaxy")
        for name in names:
            if not re.fullmatch(ENCOUNTER_NAME, name) or file.get(name, getclass=True) is not h5py.Group:
                raise DatasetError(f"{source}: '{one_line(name)}' is not a group of an encounter; remove it")
    return published, names


def cameras(group: h5py.Group, source: str) -> list[int]:
    """Numbers of the cameras of a group: 0, 1, ... without a gap."""
    found = []
    with guard(source):
        for name in _links(group, source):
            if match := _IMAGES_NAME.fullmatch(name):
                found.append(int(match[1]))
    if not found or sorted(found) != list(range(len(found))):
        raise DatasetError(f"{source}: group {_name(group)} must have 'images_camera_00', '..01', and so "
                           f"on, got {len(found)} cameras; make the file again")
    return sorted(found)


def member(group: h5py.Group, name: str, source: str, also: dict[int, str] | None = None) -> h5py.Dataset:
    """Array `name` of `group`, if it is safe to read; with filters of `also` too.

    Raises
    ------
    DatasetError
        If it is missing, lies outside the file (link, external storage, virtual), is no array of
        numbers, needs an unknown filter, or claims more than the file holds.
    """
    where = f"{source}: group {_name(group)}: '{name}'"
    with guard(where):
        # The low-level calls halve the time to open a file: a thousand encounters have 42,000 arrays.
        key = name.encode()
        if not group.id.links.exists(key):
            raise DatasetError(f"{source}: group {_name(group)} has no array '{name}'; "
                               f"run 'deepgalaxy check {source}'")
        if group.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise DatasetError(f"{where} {_ELSEWHERE}")
        identifier = h5py.h5o.open(group.id, key)
        if not isinstance(identifier, h5py.h5d.DatasetID):
            raise DatasetError(f"{where} is not an array; make the file again")
        data = h5py.Dataset(identifier)
        plist = data.id.get_create_plist()
        if plist.get_external_count() or plist.get_layout() == h5py.h5d.VIRTUAL:
            raise DatasetError(f"{where} is stored outside the file; refused, copy the data into it")
        if data.dtype.kind not in "fiu" or data.shape is None:
            raise DatasetError(f"{where} must be an array of numbers, got {data.dtype}")
        filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
        allowed = {**_FILTERS, **(also or {})}
        if unknown := filters - set(allowed):
            raise DatasetError(f"{where} needs filter {min(unknown)}; allowed: {', '.join(allowed.values())}; "
                               "'h5repack -f GZIP=4' writes it with one of these")
        # Chunks that were never written are read as zeros: refused as well.
        stored, claimed = data.id.get_storage_size(), _claimed(data)
        chunk = int(np.prod(data.chunks or (1,), dtype=object)) * data.dtype.itemsize
        if claimed > _MAX_BYTES or chunk > 8 * _MAX_PIXELS or (
                stored < claimed if not filters & _COMPRESSION else stored * 1100 < claimed):
            raise DatasetError(f"{where} claims {claimed / 2**30:.3g} GiB and holds "
                               f"{stored / 2**30:.3g} GiB; refused, fetch or make the file again")
    return data


def image_set(group: h5py.Group, camera: int, source: str) -> h5py.Dataset:
    """Square images (T, H, H, 1) of a camera, float16 or uint8, within the limits of size."""
    data = member(group, images_name(camera), source)
    where = f"{source}: group {_name(group)}: '{images_name(camera)}'"
    if data.ndim != 4 or data.shape[3] != 1 or 0 in data.shape:
        raise DatasetError(f"{where} must have shape (T, H, W, 1), got {data.shape}; make the file again")
    if data.shape[1] != data.shape[2]:
        raise DatasetError(f"{where} must hold square images, got {data.shape[1]} x {data.shape[2]} pixels; cut or pad "
                           "them")
    if data.dtype not in (np.float16, np.uint8):
        raise DatasetError(f"{where} must be float16 or uint8, got {data.dtype}; make the file again")
    if data.shape[1] * data.shape[2] > _MAX_PIXELS or data.shape[0] > _MAX_SNAPSHOTS:
        raise DatasetError(f"{where} must have at most {_MAX_PIXELS} pixels per image and {_MAX_SNAPSHOTS} "
                           f"snapshots, got {data.shape}; make the file smaller")
    return data


def table(group: h5py.Group, name: str, shape: tuple[int, ...], source: str) -> np.ndarray:
    """Values of a small array that must have `shape`."""
    data = member(group, name, source)
    if data.shape != shape:
        raise DatasetError(f"{source}: group {_name(group)}: '{name}' must have shape {shape}, "
                           f"got {data.shape}; make the file again")
    with guard(f"{source}: group {_name(group)}: '{name}'"):
        values = np.empty(shape, data.dtype)
        data.id.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        return values


def attributes(group: h5py.Group, source: str) -> dict:
    """Scalar attributes of a group of ours, those that must be positive numbers checked."""
    with guard(f"{source}: group {_name(group)}"):
        found = {one_line(k): _plain(v) for k, v in group.attrs.items()}
    for name, value in found.items():
        if not isinstance(value, (str, bool, int, float)) or (name == "seed" and not _is_whole(value)):
            raise DatasetError(f"{source}: group {_name(group)}: attribute '{name}' must be a single "
                               f"{'whole number' if name == 'seed' else 'number or text'}, got {one_line(value)}; make "
                               "the file again")
    if found.get("kind", "encounter") not in ("encounter", *UNDISTURBED):
        raise DatasetError(f"{source}: group {_name(group)}: attribute 'kind' must be encounter, "
                           f"{' or '.join(UNDISTURBED)}, got {one_line(found['kind'])!r}; make the file again")
    for name in POSITIVE_ATTRIBUTES:
        if name in found:
            value = found[name]
            if not isinstance(value, (int, float)) or not 0 < value < np.inf:
                raise DatasetError(f"{source}: group {_name(group)}: attribute '{name}' must be a positive "
                                   f"number, got {one_line(value)}; make the file again")
        elif name in REQUIRED_ATTRIBUTES and found.get("kind", "encounter") == "encounter":
            raise DatasetError(f"{source}: group {_name(group)} has no attribute '{name}'; "
                               f"run 'deepgalaxy check {source}'")
    if found.get("quantity") != LOG_SURFACE_DENSITY:
        raise DatasetError(f"{source}: group {_name(group)}: attribute 'quantity' must be "
                           f"'{LOG_SURFACE_DENSITY}', got {one_line(found.get('quantity'))!r}")
    if found.pop("complete", False) is not True:
        raise DatasetError(f"{source}: group {_name(group)} was not written to its end; "
                           "run 'deepgalaxy render' again, it goes on from what is whole")
    return found


def label_attributes() -> list[str]:
    """Columns of labels that are attributes of the groups: all but those that every data set has."""
    return [label.column for label in LABELS if label.column not in _READ_BY_NAME]


def require_numbers(found: dict, group: str, source: str) -> None:
    """Attributes that a label is read from are numbers; NaN where not known."""
    for name in label_attributes():
        value = found.get(name, 0)
        if not isinstance(value, (int, float)) or abs(value) > float(np.finfo(np.float32).max):
            raise DatasetError(f"{source}: group {group}: attribute '{name}' must be a finite number, because a label "
                               f"is read from it, got {one_line(value)}; make the file again, or give the label "
                               "another column")


def published_ratios(name: str) -> tuple[float, float]:
    """(mass_ratio, size_ratio) from a name such as s_0.25_m_1.50."""
    size, mass = PUBLISHED_NAME.fullmatch(name).groups()
    return float(mass), float(size)


def check_dataset(path: str | Path) -> list[str]:
    """Read the whole file and list what is wrong with it.

    Returns
    -------
    problems : list of str
        One line each, with the name of the file; of one group at most ten and a line that counts the others.
        Empty if the file is sound.
    """
    source = one_line(path)
    try:
        file = open_file(path)
    except DatasetError as error:
        return [str(error)]
    problems, shapes, claimed = [], set(), 0
    with file:
        try:
            published, names = encounters(file, source)
        except DatasetError as error:
            return [str(error)]
        for name in names:
            found: list[str] = []
            with _collect(found):
                with guard(f"{source}: group {name}"):
                    group = file[name]
                check_group(group, published, source, found.append)
                if not published:
                    require_numbers(attributes(group, source), name, source)
                for camera in cameras(group, source):
                    images = image_set(group, camera, source)
                    shapes.add(images.shape[1:])
                    claimed += _claimed(images)
            found = list(dict.fromkeys(found))
            problems += found[:_MOST_PROBLEMS]
            if (more := len(found) - _MOST_PROBLEMS) > 0:
                problems.append(f"{source}: group {name}: and {more} more")
    if claimed > _MAX_BYTES:
        problems.append(f"{source}: claims {claimed / 2**40:.3g} TiB of images, at most 2 TiB are allowed")
    if len(shapes) > 1:
        problems.append(f"{source}: all images must have the same shape, got {sorted(shapes)}")
    return problems


def check_group(group: h5py.Group, published: bool, source: str, report: Callable[[str], None]) -> None:
    """Read one group whole and `report` each problem; a DatasetError ends the checks of this group."""
    n_snapshots = None
    if not published:
        attributes(group, source)
    for camera in cameras(group, source):
        images = image_set(group, camera, source)
        where = f"{source}: group {_name(group)}: '{images_name(camera)}'"
        n = images.shape[0]
        if n_snapshots not in (None, n):
            report(f"{where} has {n} snapshots, camera 0 has {n_snapshots}")
        n_snapshots = n_snapshots or n
        _check_chunks(images, where, report)
        top = 255 if images.dtype == np.uint8 else 1 if published else BRIGHTEST
        for i in range(n):
            with guard(f"{where}, snapshot {i}"):
                image = images[i]
            low, high = image.min(), image.max()
            if not (low >= 0 and high <= top):  # of NaN too
                report(f"{where}, snapshot {i}: values must be in [0, {top}]")
            elif low == high:
                report(f"{where}, snapshot {i}: shows nothing, all of its pixels are equal; leave it out")
        _check_table(group, f"t_myr_camera_{camera:02d}", (n,), source, report)
        if not published:
            scale = _check_table(group, f"pixel_scale_camera_{camera:02d}", (n,), source, report)
            view = _check_table(group, f"view_camera_{camera:02d}", (n, 3), source, report)
            if not (scale > 0).all():
                report(f"{source}: group {_name(group)}: pixel_scale of camera {camera} must be positive")
            if not np.allclose(np.sum(view.astype(float) ** 2, axis=1), 1, atol=1e-3):
                report(f"{source}: group {_name(group)}: view of camera {camera} must be unit vectors")
    if not published:
        stage = _check_table(group, "stage", (n_snapshots,), source, report)
        _check_table(group, "separation", (n_snapshots,), source, report)
        if not np.isin(stage, [*range(len(STAGES)), NO_STAGE]).all():
            report(f"{source}: group {_name(group)}: stage must be 0..{len(STAGES) - 1} or {NO_STAGE}")


def _check_table(group, name, shape, source, report) -> np.ndarray:
    values = table(group, name, shape, source)
    where = f"{source}: group {_name(group)}: '{name}'"
    _check_chunks(group[name], where, report)
    if not np.isfinite(values).all():
        report(f"{where} holds values that are not finite")
    return values


def _check_chunks(data: h5py.Dataset, where: str, report) -> None:
    """Every chunk is there, once, and none is exempt from its checksum, which every array of our format has."""
    if "format" in data.file.attrs and not data.fletcher32:
        report(f"{where} has no checksum (the filter fletcher32): a flipped byte would be a value; make the file again")
    if data.chunks is None:
        return
    found = []
    with guard(where):
        data.id.chunk_iter(found.append)
    expected = int(np.prod([-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True)]))
    if len({chunk.chunk_offset for chunk in found}) != expected or any(
            n % c for chunk in found for n, c in zip(chunk.chunk_offset, data.chunks, strict=True)) or any(
            n >= s for chunk in found for n, s in zip(chunk.chunk_offset, data.shape, strict=True)):
        report(f"{where} lacks some of its chunks; fetch or make the file again")
    if any(chunk.filter_mask for chunk in found):
        report(f"{where} has chunks without a checksum; fetch or make the file again")


@contextmanager
def _collect(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except DatasetError as error:
        problems.append(str(error))


def _links(group: h5py.Group, source: str) -> list[str]:
    """Names in a group, all of them objects of this file."""
    found: list[tuple[bytes, int]] = []
    group.id.links.iterate(lambda name, info: found.append((name, info.type)), info=True)
    names = []
    for raw, kind in found:
        name = raw.decode("utf-8", "surrogateescape")
        if kind != h5py.h5l.TYPE_HARD:
            raise DatasetError(f"{source}: '{one_line(name)}' {_ELSEWHERE}")
        names.append(name)
    return names


def _claimed(data: h5py.Dataset) -> int:
    return int(np.prod(data.shape, dtype=object)) * data.dtype.itemsize


def _name(group: h5py.Group) -> str:
    return one_line(group.name.strip("/"))


def _text(value: object) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else (
        None if value is None else str(value))


def _is_whole(value) -> bool:
    return isinstance(value, (int, float)) and float(value).is_integer()


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return _text(value)
    return value.item() if isinstance(value, np.generic) else value
