"""Equilibrium galaxies: an exponential disc, a Hernquist bulge and a truncated Hernquist halo.

Disc velocities follow from moments (Hernquist 1993, ApJS 86, 389), bulge and halo from Eddington's
inversion in the composite potential. Every force that enters is the softened one that the
integrator will use, with the softening of each pair: a disc set up for the Newtonian force rings, and
grows by 12 % in 50 Myr; with the stars' softening for the halo too, all of it is 1 % too hot.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pydantic import Field

from ..config import Config
from ..units import G
from .gravity import Tree

__all__ = ["DISC", "BULGE", "HALO", "GalaxyConfig", "Particles", "Galaxy"]

DISC, BULGE, HALO = 0, 1, 2


class GalaxyConfig(Config):
    """A galaxy; the secondary is a scaled copy (`scaled`) of the primary unless it is given."""

    disc_mass: float = Field(5e10, gt=0, description="Msun")
    disc_scale_length: float = Field(3.0, gt=0, description="kpc, exponential")
    disc_scale_height: float = Field(0.6, gt=0, description="kpc, of sech^2(z / z0)")
    toomre_q: float = Field(1.5, gt=0.5, le=5, description="at 2.43 scale lengths")
    bulge_mass: float = Field(1e10, gt=0, description="Msun")
    bulge_scale: float = Field(0.6, gt=0, description="kpc, Hernquist")
    halo_mass: float = Field(6e11, gt=0, description="Msun, before truncation")
    halo_scale: float = Field(18.0, gt=0, description="kpc, Hernquist")
    halo_truncation: float = Field(100.0, gt=0, description="kpc, of exp(-(r/rt)^2)")

    def scaled(self, mass_ratio: float, size_ratio: float) -> GalaxyConfig:
        """All masses times mass_ratio and all lengths times size_ratio; Q stays as it is."""
        factor = {"mass": mass_ratio, "length": size_ratio, "height": size_ratio,
                  "scale": size_ratio, "truncation": size_ratio, "q": 1.0}
        return GalaxyConfig(**{k: v * factor[k.rsplit("_", 1)[1]] for k, v in self.model_dump().items()})

    def resized(self, disc_size: float, bulge_share: float | None = None) -> GalaxyConfig:
        """The same stellar mass and halo with a disc larger by a factor, and another share of the stars in the bulge.

        A bulge grows with the root of its mass.
        """
        disc_mass, bulge_mass, bulge_scale = self.disc_mass, self.bulge_mass, self.bulge_scale
        if bulge_share is not None:
            stars = disc_mass + bulge_mass
            disc_mass, bulge_mass = (1 - bulge_share) * stars, bulge_share * stars
            bulge_scale *= (bulge_mass / self.bulge_mass) ** 0.5
        return self.model_copy(update={
            "disc_mass": disc_mass, "bulge_mass": bulge_mass, "bulge_scale": bulge_scale,
            "disc_scale_length": self.disc_scale_length * disc_size,
            "disc_scale_height": self.disc_scale_height * disc_size})


@dataclass
class Particles:
    """N particles: positions (N, 3) kpc, velocities (N, 3) kpc/Myr, masses (N,) Msun,
    component (N,) one of DISC, BULGE, HALO, galaxy (N,) 0 for the primary, softening (N,) kpc."""

    positions: np.ndarray
    velocities: np.ndarray
    masses: np.ndarray
    component: np.ndarray
    galaxy: np.ndarray
    softening: np.ndarray

    @property
    def stars(self) -> np.ndarray:
        """Mask (N,) of disc and bulge."""
        return self.component != HALO

    @staticmethod
    def join(parts: list[Particles]) -> Particles:
        """All particles of several galaxies as one set."""
        names = Particles.__dataclass_fields__
        return Particles(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


class Galaxy:
    """The smooth model of one galaxy, from which particles are drawn.

    Parameters
    ----------
    config : masses and lengths.
    softening : Plummer-equivalent length of the stars, kpc.
    """

    def __init__(self, config: GalaxyConfig, softening: float):
        self.config, self.softening = config, softening
        c = config
        outer = max(2e3, 24 * c.halo_truncation / c.disc_scale_length)  # a tiny disc's halo is to fit in too
        self.radius = r = np.geomspace(1e-3, outer, 3000) * c.disc_scale_length / 3
        self.halo_density, self.halo_enclosed = _hernquist(r, c.halo_mass, c.halo_scale, c.halo_truncation)
        self.bulge_density, self.bulge_enclosed = _hernquist(
            r, c.bulge_mass, c.bulge_scale, 30 * c.bulge_scale)
        x = r / c.disc_scale_length
        disc_enclosed = c.disc_mass * (1 - (1 + x) * np.exp(-x))
        self.enclosed = self.halo_enclosed + self.bulge_enclosed + disc_enclosed
        self.mass = float(self.enclosed[-1])
        self.psi = self._potential(softening, softening)

    def _potential(self, softening: float, softening_halo: float) -> np.ndarray:
        """Relative potential psi >= 0 (kpc/Myr)^2 on self.radius, for a particle of this softening (kpc).

        All components are taken as spheres; the softening of their particles enters as in a pair.
        """
        r, stars = self.radius, self.enclosed - self.halo_enclosed
        force = r * (_pull(r, r, stars, _pair(softening, self.softening))
                     + _pull(r, r, self.halo_enclosed, _pair(softening, softening_halo)))
        inner = _cumulative(force * r, np.log(r))
        return inner[-1] - inner + G * self.mass / r[-1]

    def _disc_moments(self, softening_halo: float) -> dict[str, np.ndarray]:
        """Mean rotation and dispersions (kpc/Myr) on a grid of cylindrical radii (kpc)."""
        c = self.config
        rd = c.disc_scale_length
        table = _unit_disc_forces(round(c.disc_scale_height / rd, 4), round(self.softening / rd, 4))
        R = np.geomspace(0.01, 12, 1500) * rd
        # All forces are averaged over the sech^2 profile: stars above the mid-plane feel less of them.
        z = c.disc_scale_height * np.arctanh(np.linspace(-0.999, 0.999, 201))
        r = np.sqrt(R[:, None] ** 2 + z**2)
        spheres = sum(
            _pull(r, self.radius, enclosed, _pair(self.softening, softening))
            for enclosed, softening in ((self.bulge_enclosed, self.softening), (self.halo_enclosed, softening_halo)))
        vc2 = R**2 * spheres.mean(axis=1) + G * c.disc_mass / rd * np.interp(R / rd, table[0], table[1])
        omega2 = vc2 / R**2
        kappa2 = np.clip(R * np.gradient(omega2, R) + 4 * omega2, omega2, 4 * omega2)
        surface_density = c.disc_mass / (2 * np.pi * rd**2) * np.exp(-R / rd)
        # sigma_R^2 follows the density, flattened inside a quarter scale length (Hernquist 1993, 2.2.3).
        R_soft = np.sqrt(R**2 + 2 * (rd / 4) ** 2)
        profile = np.exp(-R_soft / rd)
        i = np.argmin(np.abs(R - 2.43 * rd))
        sigma_q = c.toomre_q * 3.36 * G * surface_density[i] / np.sqrt(kappa2[i])
        sigma_R2 = sigma_q**2 * profile / profile[i]
        anisotropy = kappa2 / (4 * omega2)
        # Asymmetric drift: v_c^2 - <v_phi>^2 (Binney & Tremaine 2008, eq. 4.228, epicyclic).
        mean2 = vc2 + sigma_R2 * (1 - anisotropy - R / rd - R * R / (R_soft * rd))
        # <v_z^2> = <-z a_z> over the sech^2 profile: the disc's own part and that of the spheres.
        sigma_z2 = (z**2 * spheres).mean(axis=1)
        sigma_z2 += G * c.disc_mass / rd * np.interp(R / rd, table[0], table[2])
        return {
            "R": R, "circular": np.sqrt(vc2), "rotation": np.sqrt(np.clip(mean2, 0, None)),
            "sigma_R": np.sqrt(sigma_R2), "sigma_phi": np.sqrt(sigma_R2 * anisotropy),
            "sigma_z": np.sqrt(sigma_z2),
        }

    def circular_velocity(self, R):
        """In kpc/Myr at cylindrical radii R (kpc), averaged over the disc's thickness; the halo softened like stars."""
        moments = self._disc_moments(self.softening)
        return np.interp(R, moments["R"], moments["circular"])

    def sample(self, n_disc: int, n_bulge: int, n_halo: int, softening_halo: float,
               rng: np.random.Generator, galaxy: int = 0) -> Particles:
        """Draw particles; the disc spins about +z, each of stars and halo is centred and at rest."""
        c = self.config
        parts = []
        for component, n, mass, softening in (
            (DISC, n_disc, c.disc_mass, self.softening),
            (BULGE, n_bulge, self.bulge_enclosed[-1], self.softening),
            (HALO, n_halo, self.halo_enclosed[-1], softening_halo),
        ):
            if n == 0:
                continue
            if component == DISC:
                x, v = self._sample_disc(n, softening_halo, rng)
            elif component == BULGE:
                x, v = self._sample_sphere(self.bulge_density, self.bulge_enclosed, softening, softening_halo, n, rng)
            else:
                x, v = self._sample_sphere(self.halo_density, self.halo_enclosed, softening, softening_halo, n, rng)
            # The outskirts make up for it: 23,000 particles of the halo would move its cusp by 0.2 kpc otherwise.
            weight = np.linalg.norm(x, axis=1, keepdims=True)
            weight /= weight.mean()
            x -= x.mean(axis=0) * weight
            v -= v.mean(axis=0) * weight
            parts.append(Particles(
                x, v, np.full(n, mass / n), np.full(n, component, np.int8),
                np.full(n, galaxy, np.int8), np.full(n, softening)))
        return Particles.join(parts)

    def _sample_disc(self, n, softening_halo, rng):
        c, k = self.config, self._disc_moments(softening_halo)
        x = np.linspace(0, 8, 4000)
        enclosed = 1 - (1 + x) * np.exp(-x)
        rank = rng.permutation(n)
        R = np.interp((rank + rng.random(n)) / n * enclosed[-1], enclosed, x) * c.disc_scale_length
        # Neighbours in radius stand at the golden angle: without the noise of chance there is less for spiral waves to
        # grow from, and the scale length stays as it is.
        phi = 2 * np.pi * ((rank * 0.6180339887498949 + rng.random()) % 1)
        z = c.disc_scale_height * np.arctanh(rng.uniform(-0.9995, 0.9995, n))
        v_R, v_phi, v_z = (
            np.interp(R, k["R"], k[name]) * np.clip(rng.standard_normal(n), -3, 3)
            for name in ("sigma_R", "sigma_phi", "sigma_z"))
        v_phi = v_phi + np.interp(R, k["R"], k["rotation"])
        cos, sin = np.cos(phi), np.sin(phi)
        return (np.column_stack([R * cos, R * sin, z]),
                np.column_stack([v_R * cos - v_phi * sin, v_R * sin + v_phi * cos, v_z]))

    def _sample_sphere(self, density, enclosed, softening, softening_halo, n, rng):
        grows = np.r_[True, np.diff(enclosed) > 0]
        r = np.interp(_stratified(n, rng) * enclosed[-1] * 0.9995, enclosed[grows], self.radius[grows])
        potential = self._potential(softening, softening_halo)
        energy, f = _distribution_function(density, potential)
        # For each radius of a coarse grid, the cumulative distribution of v / v_escape.
        q = np.linspace(0, 1, 400)
        grid = np.geomspace(self.radius[0] * 2, r.max() * 1.01, 300)
        psi = np.interp(np.log(grid), np.log(self.radius), potential)
        weight = q**2 * np.interp(psi[:, None] * (1 - q**2), energy, f)
        cdf = np.zeros((300, 400))
        np.cumsum(0.5 * (weight[:, 1:] + weight[:, :-1]), axis=1, out=cdf[:, 1:])
        cdf /= cdf[:, -1:]
        row = np.minimum(np.interp(np.log(r), np.log(grid), np.arange(300.0)) + rng.random(n), 299).astype(int)
        u, fraction = _stratified(n, rng), np.empty(n)
        for i in np.unique(row):
            fraction[row == i] = np.interp(u[row == i], cdf[i], q)
        speed = fraction * np.sqrt(2 * np.interp(np.log(r), np.log(self.radius), potential))
        return _isotropic(n, rng) * r[:, None], _isotropic(n, rng) * speed[:, None]


@lru_cache(maxsize=64)
def _unit_disc_forces(height: float, softening: float):
    """Forces of a disc of unit mass and scale length, G = 1.

    Returns radii (K,), <-R a_R> (K,) and <-z a_z> (K,), both averaged over azimuth and the sech^2 profile.
    Measured on an eightfold symmetric set of particles with the tree itself, so that finite
    thickness and softening enter as they do in the run.
    """
    rng = np.random.default_rng(0)
    n = 20000
    x = np.linspace(0, 8, 4000)
    enclosed = 1 - (1 + x) * np.exp(-x)
    R = np.interp((np.arange(n) + 0.5) / n * enclosed[-1], enclosed, x)
    phi = 2 * np.pi * ((np.arange(n) * 0.6180339887) % 1)
    z = height * np.arctanh(rng.permutation((np.arange(n) + 0.5) / n) * 0.9995)
    copies = [np.column_stack([R * np.cos(phi + k * np.pi / 2), R * np.sin(phi + k * np.pi / 2), s * z])
              for k in range(4) for s in (-1, 1)]
    positions = np.concatenate(copies)
    tree = Tree(positions, np.full(len(positions), 1 / len(positions)),
                np.full(len(positions), softening), opening_angle=0.5)
    radii = np.geomspace(0.02, 12, 100)
    angles = np.linspace(0, np.pi / 2, 8, endpoint=False)
    heights = height * np.arctanh((np.arange(12) + 0.5) / 12 * 0.9995)

    def probe(angles, heights):
        r, a, h = (v.ravel() for v in np.meshgrid(radii, angles, heights, indexing="ij"))
        points = np.column_stack([r * np.cos(a), r * np.sin(a), h])
        acceleration, _ = tree.field_at(points, np.full(len(points), softening))
        return points, acceleration / G

    points, a = probe(angles, heights)
    radial = -(a[:, :2] * points[:, :2]).sum(axis=1).reshape(len(radii), -1).mean(axis=1)
    vertical = -(a[:, 2] * points[:, 2]).reshape(len(radii), -1).mean(axis=1)
    return radii, _smooth(radial), _smooth(vertical)


def _distribution_function(density, potential):
    """Eddington's f(E) of a density in a relative potential (Binney & Tremaine 2008, eq. 4.46)."""
    psi, rho = potential[::-1], density[::-1]
    slope = np.gradient(rho, psi)
    energy = np.geomspace(psi[0] * 1.02, psi[-1] * 0.9999, 400)
    t = np.linspace(0, np.pi / 2, 400)  # psi = E sin^2 t takes the root's singularity away
    at = energy[:, None] * np.sin(t) ** 2
    integrand = np.interp(at, psi, slope, left=0) * 2 * np.sqrt(energy)[:, None] * np.sin(t)
    f = np.gradient(np.trapezoid(integrand, t, axis=1), energy) / (np.sqrt(8) * np.pi**2)
    return energy, np.clip(f, 0, None)


def _pull(r, radius: np.ndarray, enclosed: np.ndarray, softening2: float, n: int = 800) -> np.ndarray:
    """Inward acceleration over r (1/Myr^2), of the shape of r (kpc), by a sphere whose particles are softened.

    Each shell pulls with its own softened force: softening the mass enclosed as if it lay in the centre makes the pull
    on a star up to 4 % too strong between 0.5 and 4 kpc, and a galaxy that is set up for it expands by 2 %.

    Parameters
    ----------
    radius, enclosed : (M,) kpc and Msun within.
    softening2 : kpc^2, within a pair.
    """
    edges = np.geomspace(radius[0], radius[-1], n)  # every shell is within or outside of each of them
    inside = np.interp(np.log(edges), np.log(radius), enclosed)
    mass, shell = np.diff(inside, prepend=0.0), np.sqrt(edges * np.concatenate([edges[:1], edges[:-1]]))
    far, near = edges[:, None] + shell, edges[:, None] - shell
    s_far, s_near = np.sqrt(far**2 + softening2), np.sqrt(near**2 + softening2)
    # Of the potential -G m (s_far - s_near) / (2 r shell).
    slope = (s_far - s_near) / edges[:, None] - (far / s_far - near / s_near)
    pull = G * (mass / (2 * shell) * slope).sum(axis=1) / edges**2
    return np.interp(np.log(r), np.log(edges), pull)


def _pair(a, b):
    """Softening squared (kpc^2) between particles of these softenings."""
    return (a**2 + b**2) / 2


def _hernquist(r, mass, scale, truncation):
    """Density (Msun/kpc^3) and enclosed mass (Msun) of a Hernquist sphere times exp(-(r/rt)^2)."""
    density = mass * scale / (2 * np.pi * r * (r + scale) ** 3) * np.exp(-((r / truncation) ** 2))
    shell = 4 * np.pi * r**3 * density
    return density, _cumulative(shell, np.log(r)) + shell[0] / 2


def _cumulative(y, x):
    return np.concatenate([[0], np.cumsum(0.5 * (y[1:] + y[:-1]) * np.diff(x))])


def _smooth(y):
    return np.convolve(np.pad(y, 3, "edge"), np.ones(7) / 7, "valid")


def _stratified(n, rng):
    """n uniform numbers, one in each of n equal intervals, in random order: less noise than i.i.d."""
    return rng.permutation((np.arange(n) + rng.random(n)) / n)


def _isotropic(n, rng):
    v = rng.standard_normal((n, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)
