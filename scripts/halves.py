"""Data sets of the first and the second half of one's encounters: halves.py WHOLE FIRST SECOND CAMERAS"""

from __future__ import annotations

import sys

import h5py

from deepgalaxy.data.reader import Dataset


def main(whole: str, first: str, second: str, n_cameras: str) -> None:
    """Only that many cameras are kept; an encounter's single galaxies and chance pairs go with it."""
    dataset = Dataset(whole)
    encounters = sorted(set(dataset.families))
    middle = len(encounters) // 2
    with h5py.File(whole) as f:
        for path, kept in ((first, encounters[:middle]), (second, encounters[middle:])):
            with h5py.File(path, "w", libver=("v108", "v110")) as out:
                out.attrs.update(dict(f.attrs))
                for name, family in zip(dataset.groups, dataset.families, strict=True):
                    if family in kept:
                        _copy(f[name], out.create_group(name), int(n_cameras))


def _copy(group, to, n_cameras):
    to.attrs.update(dict(group.attrs))
    for name in group:
        if "_camera_" not in name or int(name[-2:]) < n_cameras:
            group.copy(name, to)


if __name__ == "__main__":
    main(*sys.argv[1:])
