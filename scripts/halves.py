"""Data sets of the first and the second half of one's encounters: halves.py WHOLE FIRST SECOND CAMERAS"""

from __future__ import annotations

import sys

import h5py


def main(whole: str, first: str, second: str, n_cameras: str) -> None:
    """Only that many cameras are kept; an encounter's single galaxies and chance pairs go with it."""
    with h5py.File(whole) as f:
        families = sorted({name.split("-")[0] for name in f})
        middle = len(families) // 2
        for path, kept in ((first, families[:middle]), (second, families[middle:])):
            with h5py.File(path, "w", libver=("v108", "v110")) as out:
                out.attrs.update(dict(f.attrs))
                for name in f:
                    if name.split("-")[0] in kept:
                        _copy(f[name], out.create_group(name), int(n_cameras))


def _copy(group, to, n_cameras):
    to.attrs.update(dict(group.attrs))
    for name in group:
        if "_camera_" not in name or int(name[-2:]) < n_cameras:
            group.copy(name, to)


if __name__ == "__main__":
    main(*sys.argv[1:])
