"""Mock observations: a simulated encounter as a telescope would have seen it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import ImageError
from ..simulate.snapshot import Encounter
from ..units import kpc_per_arcsec
from .render import render, smoothing_lengths
from .view import View

__all__ = ["mock_image", "write_mock_fits", "write_mock_png"]


def mock_image(encounter: Encounter, snapshot: int, view: View, n_pixels: int = 400, field_of_view: float = 180.0,
               psf_fwhm: float = 3.0, noise: float = 2e6, n_stars: int = 25, seed: int = 0) -> np.ndarray:
    """Surface density (n_pixels, n_pixels), y upwards, Msun/kpc^2, blurred, with stars and sky noise.

    Parameters
    ----------
    psf_fwhm : pixels.
    noise : standard deviation of the sky, Msun/kpc^2.
    n_stars : foreground stars, of a steep range of brightness.
    """
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    positions = encounter.positions[snapshot].astype(float)
    positions -= np.median(positions, axis=0)
    image = render(positions, encounter.masses, view, n_pixels, field_of_view, smoothing_lengths(positions))
    image = image * np.exp(0.25 * gaussian_filter(rng.standard_normal(image.shape), 2) / 0.14)  # clumpy light
    x, y = rng.integers(0, n_pixels, (2, n_stars))
    np.add.at(image, (y, x), 1e9 * rng.pareto(1.2, n_stars) * 2)
    image = gaussian_filter(image, psf_fwhm / 2.355)
    return (image + noise * rng.standard_normal(image.shape)).astype(np.float32)


def write_mock_fits(path: str | Path, image: np.ndarray, field_of_view: float, redshift: float,
                    header: dict | None = None) -> None:
    """FITS with a celestial WCS whose pixels are those of the field at this redshift."""
    from astropy.io import fits
    from astropy.wcs import WCS

    n = image.shape[0]
    step = field_of_view / n / kpc_per_arcsec(redshift) / 3600
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix, wcs.wcs.cdelt = [150.0, 2.2], [(n + 1) / 2] * 2, [-step, step]
    hdu = fits.PrimaryHDU(np.asarray(image, np.float32), header=wcs.to_header())
    hdu.header["OBJECT"] = "mock observation"
    hdu.header["REDSHIFT"] = redshift
    for key, value in (header or {}).items():
        hdu.header[key] = value
    try:
        hdu.writeto(path, overwrite=True)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error}); choose another folder") from None


def write_mock_png(path: str | Path, image: np.ndarray) -> None:
    """An asinh-stretched 8-bit picture, as for the press."""
    from PIL import Image

    low, high = np.median(image), np.quantile(image, 0.997)
    soft = max((high - low) / 30, 1e-9)
    y = np.arcsinh((image - low) / soft) / np.arcsinh((high - low) / soft)
    try:
        Image.fromarray((255 * np.clip(y, 0, 1)).astype(np.uint8)[::-1]).save(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error}); choose another folder") from None
