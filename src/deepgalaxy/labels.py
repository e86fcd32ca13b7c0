"""What is predicted: every label is a distribution over ordered bins.

To add a label, add it to LABELS; its column is an attribute of the encounters, or one that `Dataset.labels` has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["ENCOUNTER_NAME", "FRAME_SIDE", "HEADS", "LABELS", "Label", "MASS_RATIO", "NO_SEPARATION", "NO_STAGE",
           "STAGES", "STARLIGHT", "TIME", "UNDISTURBED"]

#: What an encounter may be called (a regular expression): its name is that of a file, and of a group in a data set.
ENCOUNTER_NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,199}"

#: What an encounter is doing, in the order of time, and what is none.
STAGES = ("approach", "first passage", "return", "merged", "single", "chance pair")
NO_STAGE = 255  #: in the place of an index into STAGES, where nobody knows
NO_SEPARATION = -1  #: in the place of kpc, where nobody knows
#: What follows the name of a group that shows once more what the other does, see image/starlight.py.
STARLIGHT = "starlight"
#: What a group of a data set may show besides an encounter (its attribute `kind`), and the stage that stands for it.
UNDISTURBED = {"single": STAGES.index("single"), "chance": STAGES.index("chance pair")}


@dataclass(frozen=True)
class Label:
    """One quantity and the bins that it is sorted into."""

    name: str  #: in the answers
    column: str  #: in a data set's labels
    unit: str
    low: float
    high: float
    n_bins: int
    blur: float  #: standard deviation of the soft target, in bins
    log: bool = False  #: bins are even in the logarithm
    title: str = ""  #: for people

    @property
    def edges(self) -> np.ndarray:
        """(n_bins + 1,) in units of the label."""
        if self.log:
            return np.geomspace(self.low, self.high, self.n_bins + 1)
        return np.linspace(self.low, self.high, self.n_bins + 1)

    def position(self, values, log=np.log):
        """Where values lie, in bins from the lower edge (a bin's centre is at its number + 0.5).

        Of a tensor with log=torch.log.
        """
        if self.log:
            return (log(values) - np.log(self.low)) / np.log(self.high / self.low) * self.n_bins
        return (values - self.low) / (self.high - self.low) * self.n_bins


TIME = Label("time_since_pericentre", "time", "Myr", -210, 1010, 122, 1.0, title="Time since first pericentre")
MASS_RATIO = Label("mass_ratio", "mass_ratio", "secondary/primary", 0.09, 1.6, 44, 1.0, True, "Mass ratio")

#: All that a picture is asked for.
LABELS = (
    TIME,
    MASS_RATIO,
    Label("size_ratio", "size_ratio", "secondary/primary", 0.2, 1.6, 40, 1.0, True, "Size ratio"),
    Label("view_inclination", "view_inclination", "deg", 0, 90, 30, 1.0,
          title="Angle of the orbital plane to the sky"),
)

#: The size on the sky that the picture itself suggests, where nobody says its scale; no column of a data set.
FRAME_SIDE = Label("frame_side", "", "kpc", 12, 700, 40, 1.0, True, "Side of the frame")

#: All that the model has a distribution over bins for.
HEADS = (*LABELS, FRAME_SIDE)
