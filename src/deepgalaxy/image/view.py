"""Where the observer stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ViewError

__all__ = ["CameraImages", "View", "cube_views", "random_views", "opposite_views"]


@dataclass(frozen=True)
class View:
    """A line of sight.

    Parameters
    ----------
    direction : (3,) towards the observer, any length; z is the orbital angular momentum.
    position_angle : degrees by which the picture is turned counter-clockwise on the sky.
    """

    direction: tuple[float, float, float]
    position_angle: float = 0.0

    @property
    def unit(self) -> np.ndarray:
        """Unit vector (3,) towards the observer."""
        d = np.asarray(self.direction, float)
        length = np.linalg.norm(d)
        if not np.isfinite(length) or length == 0:
            raise ViewError(f"direction must be a finite vector other than zero, got {self.direction}")
        return d / length

    @property
    def rotation(self) -> np.ndarray:
        """(3, 3), determinant +1: rows are the picture's right, its up and the way to the observer."""
        towards = self.unit
        up = np.array([0.0, 0.0, 1.0]) if abs(towards[2]) < 0.99 else np.array([0.0, 1.0, 0.0])
        right = np.cross(up, towards)
        right /= np.linalg.norm(right)
        up = np.cross(towards, right)
        c, s = np.cos(np.radians(self.position_angle)), np.sin(np.radians(self.position_angle))
        # Turning the picture counter-clockwise turns the axes clockwise.
        return np.array([c * right - s * up, s * right + c * up, towards])

    @property
    def inclination(self) -> float:
        """Angle between orbital plane and sky, degrees, 0 = face-on, on the mirror quotient 0..90."""
        return float(np.degrees(np.arccos(min(abs(self.unit[2]), 1.0))))


def cube_views() -> list[View]:
    """The 14 cameras of DeepGalaxy: the 6 faces and 8 corners of a cube; 7 are independent."""
    faces = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    corners = [(x, y, z) for x in (1, -1) for y in (1, -1) for z in (1, -1)]
    return [View(d) for d in faces + corners]


def random_views(n: int, rng: np.random.Generator) -> list[View]:
    """n isotropic directions, each with a random position angle."""
    directions = rng.standard_normal((n, 3))
    return [View(tuple(d), float(a)) for d, a in zip(directions, rng.uniform(0, 360, n), strict=True)]


def opposite_views(directions: np.ndarray) -> np.ndarray:
    """For each direction (C, 3) the index (C,) of the one opposite to it, -1 where there is none.

    Stars do not hide each other: from there the picture is the mirror image, its right the left. A `View` whose
    position angle is 0 has the same up as its opposite.
    """
    opposite = np.isclose(directions[:, None], -directions[None], atol=1e-3).all(axis=2)
    return np.where(opposite.any(axis=1), opposite.argmax(axis=1), -1)


@dataclass
class CameraImages:
    """What one camera saw of one encounter at its T snapshots."""

    images: np.ndarray  #: (T, H, W) float16, log10(Msun/kpc^2); 0 where there is no light
    times: np.ndarray  #: (T,) Myr since the first pericentre
    pixel_scale: np.ndarray  #: (T,) kpc per pixel
    view: np.ndarray  #: (T, 3) unit vectors towards the observer in the orbital frame
