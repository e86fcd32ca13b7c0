"""The simulated twin on the page: its stars as data, and a few lines of script that turn them."""

from __future__ import annotations

import base64

import numpy as np
from markupsafe import Markup

from ..image.neighbours import neighbour_distances
from ..inference.story import Story
from . import percent, short_name, shorten

__all__ = ["MEASURES", "twin_data"]

#: The canvas shows so many half sides of the frame from its middle; positions are kept to four times as many.
_FIELD, _REACH = 1.2, 4.8
_MAX_SMOOTHING = 0.25  # half sides
_N_NEIGHBOURS = 8

#: What the script has to know of the data, half sides of the frame.
MEASURES = {"field": _FIELD, "reach": _REACH, "smoothing": _MAX_SMOOTHING}


def twin_data(story: Story) -> dict | None:
    """What the template shows of a story's twin: words, and attributes for the script.

    `stars` is base64 of T x N x 3 little-endian int16 (right, up, towards the observer; 32767 is `_REACH` half sides of
    the frame) and then T x N bytes, the smoothing lengths (255 is a quarter of a half side).
    """
    twin = story.twin
    if twin is None:
        return None
    scaled = twin.positions / (twin.side / 2)
    places = np.round(scaled.clip(-_REACH, _REACH) * (32767 / _REACH)).astype("<i2")
    sizes = np.stack([neighbour_distances(x.astype(float), min(_N_NEIGHBOURS, len(x) - 1)) for x in scaled])
    sizes = np.round(sizes.clip(0, _MAX_SMOOTHING) * (255 / _MAX_SMOOTHING)).astype(np.uint8)
    return {
        "encounter": shorten(short_name(twin.encounter), 40), "agreement": percent(max(twin.agreement, 0)),
        "time": f"{twin.time[twin.at]:+.0f}".replace("-", "−"),
        "attributes": Markup(" ").join(
            Markup('data-{}="{}"').format(name, value) for name, value in {
                "stars": base64.b64encode(places.tobytes() + sizes.tobytes()).decode(), "n": twin.positions.shape[1],
                "primary": int((twin.galaxy == 0).sum()), "times": ",".join(f"{t:.0f}" for t in twin.time),
                "at": twin.at, "roll": f"{_roll(story):.4f}"}.items()),
    }


def _roll(story: Story) -> float:
    """Radians, counter-clockwise, from the picture's right to the frame's."""
    if story.frame_box is None:
        return 0.0
    (x0, y0), (x1, y1) = np.asarray(story.frame_box, float)[:2]  # y downwards
    return float(np.arctan2(y0 - y1, x1 - x0))
