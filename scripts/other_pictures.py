"""Real pictures out of Stellarium: python scripts/other_pictures.py NEBULAE FOLDER

NEBULAE is the folder nebulae/default of Stellarium 0.22.2 (of Debian, package stellarium-data): photographs by Hubble,
ESO and amateurs. docs/other_pictures.csv says which show two interacting galaxies, and where. FOLDER is then one for
`deepgalaxy evaluate --protocol real --data FOLDER`.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from PIL import Image

TABLE = Path(__file__).parent.parent / "docs" / "other_pictures.csv"


def main(nebulae: str, folder: str) -> None:
    """Cut them out, and write the table that `evaluate` reads."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    with open(TABLE, newline="") as table, open(output / "real.csv", "w", newline="") as real:
        rows = csv.writer(real)
        rows.writerow(["file", "name", "kpc_per_pixel"])
        for row in csv.DictReader(table):
            picture = Image.open(Path(nebulae) / row["file"]).convert("RGB")
            if row["left"]:
                picture = picture.crop([int(row[side]) for side in ("left", "top", "right", "bottom")])
            picture.save(output / row["file"])
            rows.writerow([row["file"], row["name"], row["kpc_per_pixel"]])


if __name__ == "__main__":
    main(*sys.argv[1:])
