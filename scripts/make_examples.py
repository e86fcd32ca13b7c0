"""Make examples/: mock observations of encounters that the shipped model has never seen.

Usage: python scripts/make_examples.py [FOLDER]

Simulates some encounters of recipes/examples_suite.yaml, and photographs them as a telescope would. The truth goes into
docs/examples.csv and into the FITS headers.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from deepgalaxy.image.mock import mock_image, write_mock_fits, write_mock_png
from deepgalaxy.image.view import View
from deepgalaxy.simulate.encounter import simulate
from deepgalaxy.simulate.suite import SuiteConfig

#: Encounter, time in Myr, direction to the observer, field of view in kpc, redshift, format.
MOCKS = [
    ("encounter_0001", 120, (0.3, 0.2, 1.0), 150, 0.020, "fits"),
    ("encounter_0004", 220, (0.5, -0.4, 0.8), 220, 0.030, "fits"),
    ("encounter_0006", -60, (-0.3, 0.6, 0.7), 130, 0.025, "png"),
    ("encounter_0009", 330, (0.1, 0.3, 0.9), 200, 0.020, "png"),
]


def main(folder: str = "examples") -> None:
    """Write the mocks and their truth."""
    output = Path(folder)
    output.mkdir(exist_ok=True)
    suite = SuiteConfig.from_yaml(Path(__file__).resolve().parents[1] / "recipes" / "examples_suite.yaml")
    encounters = {encounter.name: encounter for encounter in suite.encounters()}
    rows = []
    for i, (name, wanted, direction, field, redshift, kind) in enumerate(MOCKS):
        encounter = simulate(encounters[name])
        snapshot = int(np.argmin(np.abs(encounter.time - wanted)))
        view, p = View(direction), encounter.parameters
        image = mock_image(encounter, snapshot, view, n_pixels=360, field_of_view=field, seed=i)
        file = output / f"mock_{i + 1}.{kind}"
        truth = {"TIME": float(encounter.time[snapshot]), "QMASS": p["mass_ratio"], "QSIZE": p["size_ratio"],
                 "VIEWINC": view.inclination}
        if kind == "fits":
            write_mock_fits(file, image, field, redshift, truth)
        else:
            write_mock_png(file, image)
        rows.append([file.name, f"{truth['TIME']:.1f}", f"{p['mass_ratio']:.3f}", f"{p['size_ratio']:.3f}",
                     f"{view.inclination:.1f}", f"{field / 360:.4f}", redshift])
    with open(output.parent / "docs" / "examples.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["file", "time_myr", "mass_ratio", "size_ratio", "view_inclination_deg", "kpc_per_pixel",
                         "redshift"])
        writer.writerows(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
