"""Every picture is read the same way up, and every bad one ends in one line."""

import errno
import gzip
import io
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from astropy.io import fits
from PIL import Image

from deepgalaxy.errors import ImageError
from deepgalaxy.image import fits as fits_reader
from deepgalaxy.image import reader
from deepgalaxy.progress import one_line

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "real"


def sky(height=40, width=60):
    """uint8, y upwards: a gradient with one bright block at the lower right."""
    y, x = np.mgrid[:height, :width]
    values = ((y + x) % 200).astype(np.uint8)
    values[5:10, 40:50] = 250
    return values


def write_fits(path, *hdus):
    fits.HDUList(list(hdus)).writeto(path, overwrite=True)
    return path


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def refused(path, *words, ext=None):
    """The file is refused with one line that begins with its name and holds these words."""
    with pytest.raises(ImageError) as caught:
        reader.read(path, ext)
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and said.isprintable()
    assert said.startswith(one_line(os.fsdecode(path)) + ": ")
    for word in words:
        assert word in said
    return said


def sound(picture):
    """What holds for every picture that was read."""
    assert picture.pixels.dtype == np.float32 and picture.pixels.dtype.isnative
    assert picture.pixels.flags.c_contiguous and np.isfinite(picture.pixels).all()
    assert picture.mask.dtype == bool and picture.mask.shape == picture.pixels.shape
    assert picture.display.dtype == np.uint8 and picture.display.shape[2] == 3
    assert max(picture.display.shape) <= 512
    assert all(isinstance(flag, str) and flag.isprintable() for flag in picture.flags)
    return picture


def header_cards(**cards):
    """A FITS header as bytes, with no check of what it claims."""
    lines = ["SIMPLE  =                    T"] + [f"{k:<8}= {v:>20}" for k, v in cards.items()] + ["END"]
    text = "".join(f"{line:<80}" for line in lines)
    return text.ljust(-(-len(text) // 2880) * 2880).encode("latin-1")


# ---- what is read ----------------------------------------------------------------------------------------

def write_any(path, kind, up=None):
    """The same sky in each format."""
    up = sky() if up is None else up
    down = up[::-1]
    if kind == "fits":
        write_fits(path, fits.PrimaryHDU(up))
    elif kind == "fits.gz":
        buffer = io.BytesIO()
        fits.PrimaryHDU(up).writeto(buffer)
        path.write_bytes(gzip.compress(buffer.getvalue()))
    elif kind == "fits.fz":
        write_fits(path, fits.PrimaryHDU(), fits.CompImageHDU(up.astype(np.int16)))
    elif kind == "tiff16":
        tifffile.imwrite(path, down.astype(np.uint16))
    elif kind == "tiff float":
        tifffile.imwrite(path, down.astype(np.float32), compression="zlib", predictor=False)
    elif kind == "tiff lzw16":
        Image.fromarray(down.astype(np.uint16)).save(path, format="TIFF", compression="tiff_lzw")
    elif kind == "tiff rgb16 planar":
        planes = np.stack([down] * 3).astype(np.uint16)
        tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    elif kind == "png16":
        save(path, down.astype(np.uint16), format="PNG")
    elif kind == "png rgb":
        save(path, np.stack([down] * 3, axis=2), format="PNG")
    elif kind == "png palette":
        Image.fromarray(down).convert("P").save(path, format="PNG")
    elif kind == "webp":
        save(path, np.stack([down] * 3, axis=2), format="WEBP", lossless=True)
    else:
        save(path, down, format=kind)
    return path


KINDS = ["fits", "fits.gz", "fits.fz", "tiff16", "tiff float", "tiff lzw16", "tiff rgb16 planar", "tiff",
         "png", "png16", "png rgb", "png palette", "gif", "webp", "jpeg"]


@pytest.mark.parametrize("kind", KINDS)
def test_same_sky_in_every_format_gives_the_same_pixels(tmp_path, kind):
    picture = sound(reader.read(write_any(tmp_path / "sky.any", kind)))
    tolerance = 25 if kind == "jpeg" else 0   # it rings at the block
    np.testing.assert_allclose(picture.pixels, sky(), atol=tolerance)
    assert not picture.mask.any() and picture.flags == [] and picture.arcsec_per_pixel is None
    display = picture.display[..., 0].astype(int)   # y downwards: the block is near the bottom
    assert display.shape == (40, 60)
    assert display[-9:-6, 42:48].min() > display[:20, 42:48].max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_of_any_format_is_refused(tmp_path, kind):
    rng = np.random.default_rng(1)   # noise, so that the cut is in the data
    noise = rng.integers(0, 255, (64, 64)).astype(np.uint8)
    data = write_any(tmp_path / "whole", kind, noise).read_bytes()
    if kind.startswith("fits") and kind != "fits.gz":
        data = data.rstrip(b"\0")   # padding
    for share in (0.02, 0.3, 0.7, 0.98):
        (tmp_path / "cut").write_bytes(data[: int(len(data) * share)])
        refused(tmp_path / "cut")


def test_format_is_decided_by_content(tmp_path):
    png = write_any(tmp_path / "a.fits", "png")
    flat = write_any(tmp_path / "b.png", "fits")
    np.testing.assert_array_equal(reader.read(png).pixels, reader.read(str(flat)).pixels)


def test_name_is_the_path_as_given(tmp_path, monkeypatch):
    write_any(tmp_path / "gálaxy\n.fits", "fits")
    monkeypatch.chdir(tmp_path)
    assert reader.read("gálaxy\n.fits").name == "gálaxy\n.fits"


def test_uint16_with_bzero_has_the_right_values(tmp_path):
    values = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) * 27
    picture = sound(reader.read(write_fits(tmp_path / "u.fits", fits.PrimaryHDU(values))))
    np.testing.assert_array_equal(picture.pixels, values)


def test_uint64_keeps_its_values_and_its_blanks(tmp_path):
    values = np.arange(40 * 60, dtype=np.uint64).reshape(40, 60)
    path = write_fits(tmp_path / "u.fits", fits.PrimaryHDU(values))
    np.testing.assert_array_equal(sound(reader.read(path)).pixels, values)
    with fits.open(path, "update", do_not_scale_image_data=True) as hdus:
        hdus[0].header["BLANK"] = 7 - 2**63
    np.testing.assert_array_equal(np.argwhere(sound(reader.read(path)).mask), [[0, 7]])


@pytest.mark.parametrize("nothing", [-3.4028235e38, 3.4028235e38, -1e32])
def test_the_largest_numbers_stand_for_no_value(tmp_path, nothing):
    values = sky().astype(np.float32)
    values[:, :2] = nothing
    picture = sound(reader.read(write_fits(tmp_path / "n.fits", fits.PrimaryHDU(values))))
    np.testing.assert_array_equal(picture.mask, values == np.float32(nothing))
    np.testing.assert_array_equal(picture.pixels[:, 2:], values[:, 2:])


@pytest.mark.parametrize("bzero", [0, 32768])
def test_blank_is_masked_and_filled_with_the_median(tmp_path, bzero):
    values = sky().astype(np.int16)
    values[:4] = -999
    hdu = fits.PrimaryHDU(values)
    hdu.header["BLANK"] = -999
    if bzero:
        hdu.header["BZERO"] = bzero
    path = tmp_path / "blank.fits"
    path.write_bytes(hdu.header.tostring().encode() + values.astype(">i2").tobytes().ljust(5760, b"\0"))
    picture = sound(reader.read(path))
    np.testing.assert_array_equal(picture.mask, values == -999)
    np.testing.assert_array_equal(picture.pixels[4:], values[4:].astype(int) + bzero)
    assert (picture.pixels[:4] == np.median(picture.pixels[4:])).all()
    assert picture.flags == ["10 % of the pixels have no value"]


def test_nan_and_infinity_are_masked(tmp_path):
    values = sky().astype(np.float64)
    values[0, 0], values[1, 1], values[2, 2] = np.nan, np.inf, -np.inf
    picture = sound(reader.read(write_fits(tmp_path / "n.fits", fits.PrimaryHDU(values))))
    assert np.argwhere(picture.mask).tolist() == [[0, 0]]  # the others have neighbours to take a value from
    assert picture.pixels[1, 1] in (1, 3) and picture.pixels[2, 2] in (3, 5)
    assert picture.flags == ["0.12 % of the pixels have no value"]


def noisy(seed=0, size=120):
    """A blob on a sky of 50 with noise of 1."""
    y, x = np.mgrid[:size, :size] - size / 2
    return 50 + 400 * np.exp(-(x**2 + y**2) / 200) + np.random.default_rng(seed).normal(0, 1, (size, size))


def test_masked_nuclei_take_the_light_beside_them():
    values = noisy()
    values[57:64, 57:64] = np.nan
    picture = sound(reader.from_array(values))
    assert not picture.mask.any() and picture.pixels[57:64, 57:64].min() > 350
    assert any("nuclei" in flag for flag in picture.flags)
    values = noisy()
    values[10:14, 10:14] = np.nan  # a masked star in the sky
    picture = sound(reader.from_array(values))
    assert not any("nuclei" in flag for flag in picture.flags)


@pytest.mark.parametrize("peak", [450, 1e6])  # a sky may be faint against the brightest star
@pytest.mark.parametrize("pad", ["corners", "two sides", "all around"])
def test_padding_of_one_value_takes_the_sky_beside_it(pad, peak):
    values = noisy()
    y, x = np.mgrid[:120, :120]
    where = {"corners": np.abs(x - 59.5) + np.abs(y - 59.5) > 85, "two sides": (x < 18) | (y < 30),
             "all around": (np.abs(x - 59.5) > 50) | (np.abs(y - 59.5) > 45)}[pad]
    values[60, 60] = peak
    picture = sound(reader.from_array(np.where(where, 0, values)))
    np.testing.assert_allclose(picture.pixels[where], 50, atol=1.5)
    np.testing.assert_array_equal(picture.pixels[~where], values[~where].astype(np.float32))
    assert any("padding of one value" in flag for flag in picture.flags) and not picture.mask.any()


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_a_margin_that_a_jpeg_has_smeared_is_padding_to_its_rim(tmp_path, quality):
    inside = pair_on_a_sky(2)
    page = np.full((180, 190), 255, np.uint8)
    page[33:153, 37:157] = inside
    picture = reader.read(save(tmp_path / "page.jpg", page[::-1], quality=quality))
    margin = np.ones(page.shape, bool)
    margin[33:153, 37:157] = False
    sky = np.median(inside)
    # Up to half of the way to white pixels of the rim may be the picture's own.
    assert np.abs(picture.pixels[margin] - sky).max() < (255 - sky) / 2 + 5
    assert np.median(picture.pixels[margin]) == pytest.approx(sky, abs=3)
    away = np.abs(np.mgrid[-8:112, -8:112] - 51.5).max(axis=0) < 44  # not the rim
    np.testing.assert_allclose(picture.pixels[33:153, 37:157][away].mean(), inside[away].mean(), atol=3)


@pytest.mark.parametrize("negative", [False, True])
def test_a_galaxy_that_fades_into_a_flat_sky_keeps_its_outskirts(tmp_path, negative):
    y, x = np.mgrid[:160, :160]
    light = (255 * np.exp(-np.hypot(x - 80, y - 70) / 10)).astype(np.uint8)
    assert 0.3 < (light == 0).mean() < 0.75  # too little to be taken for the sky at once
    picture = reader.read(save(tmp_path / "print.png", (255 - light if negative else light)[::-1]))
    np.testing.assert_allclose(picture.pixels - picture.pixels.min(), light, atol=3)


def test_a_sky_that_was_cut_off_at_black_is_left_alone():
    values = np.maximum(noisy() - 60, 0)
    picture = sound(reader.from_array(values))
    np.testing.assert_array_equal(picture.pixels, values.astype(np.float32))
    assert picture.flags == []


def pair_on_a_sky(sigma, size=120):
    """uint8, y upwards: two Gaussian blobs on a noisy sky."""
    y, x = np.mgrid[:size, :size]
    light = 180 * np.exp(-((x - 50) ** 2 + (y - 60) ** 2) / 90) + 120 * np.exp(-((x - 75) ** 2 + (y - 66) ** 2) / 50)
    noise = np.random.default_rng(0).normal(0, sigma, light.shape)
    return np.clip(light + 20 + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("sigma", [0, 2, 15])
@pytest.mark.parametrize("name", ["grey.png", "colour.png", "pair.jpg"])
def test_a_negative_is_read_as_what_it_shows(tmp_path, name, sigma):
    grey = pair_on_a_sky(sigma)[::-1]
    array = np.repeat(grey[..., None], 3, axis=2) if name == "colour.png" else grey
    options = {"quality": 98} if name.endswith("jpg") else {}
    positive, negative = (reader.read(save(tmp_path / f"{k}{name}", a, **options))
                          for k, a in enumerate((array, 255 - array)))
    assert positive.flags == []
    assert negative.flags == ["dark galaxies on a bright sky: taken as a negative, and inverted"]
    sky = [np.median(picture.pixels) for picture in (positive, negative)]
    tolerance = 4 if options else 0  # JPEG
    np.testing.assert_allclose(negative.pixels - sky[1], positive.pixels - sky[0], atol=tolerance)
    shown = [picture.display.astype(int) - np.median(picture.display) for picture in (positive, negative)]
    if name == "colour.png":
        np.testing.assert_array_equal(*shown)


def test_dead_pixels_of_a_measurement_make_no_negative(tmp_path):
    values = 1000 + pair_on_a_sky(2).astype(np.float32)
    values[:, 30] = 0
    assert reader.read(write_fits(tmp_path / "dead.fits", fits.PrimaryHDU(values))).flags == []


@pytest.mark.parametrize("sigmas", [0.05, 0.4, 0.6])  # 52, 65 and 73 % of the sky are black, and hang together
def test_a_noisy_sky_that_was_cut_off_within_its_noise_is_no_padding(sigmas):
    values = np.maximum(noisy(size=240) - 50 - sigmas, 0) * 40
    picture = sound(reader.from_array(values.clip(0, 255).astype(np.uint8)))
    np.testing.assert_array_equal(picture.pixels, values.clip(0, 255).astype(np.uint8))
    assert picture.flags == []


@pytest.mark.parametrize("factor", [1e40, 1e-40, -1e200])
def test_values_beyond_float32_keep_their_contrast(tmp_path, factor):
    path = write_fits(tmp_path / "erg.fits", fits.PrimaryHDU(sky() * factor))
    picture = sound(reader.read(path))
    np.testing.assert_allclose(picture.pixels, np.sign(factor) * sky() / 250, rtol=1e-6)
    assert "divided" in picture.flags[0]


def test_negative_flux_is_kept():
    picture = sound(reader.from_array(sky().astype(">f4") - 100))
    np.testing.assert_array_equal(picture.pixels, sky().astype(np.float32) - 100)


def test_leading_axes_of_one_are_squeezed(tmp_path):
    path = write_fits(tmp_path / "radio.fits", fits.PrimaryHDU(sky()[None, None]))
    np.testing.assert_array_equal(reader.read(path).pixels, sky())


def test_empty_primary_with_an_extension_uses_the_extension(tmp_path):
    path = write_fits(tmp_path / "e.fits", fits.PrimaryHDU(), fits.ImageHDU(sky(), name="SCI"))
    picture = reader.read(path)
    np.testing.assert_array_equal(picture.pixels, sky())
    assert picture.flags == []


def test_an_image_named_sci_comes_before_masks_and_errors(tmp_path):
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.zeros((40, 60), np.int16), name="DQ"),
            fits.ImageHDU(sky() * 2.0, name="ERR"), fits.ImageHDU(sky() * 1.0, name="SCI")]
    picture = sound(reader.read(write_fits(tmp_path / "m.fits", *hdus)))
    np.testing.assert_array_equal(picture.pixels, sky())
    assert picture.flags == ["several images in the file: SCI is used; choose with --ext"]


@pytest.mark.parametrize("ext, factor", [(None, 1), (1, 1), ("1", 1), (2, 2), ("err", 2), ("SCI", 1)])
def test_the_first_of_several_images_is_used_unless_ext_chooses(tmp_path, ext, factor):
    path = write_fits(tmp_path / "m.fits", fits.PrimaryHDU(), fits.ImageHDU(sky(), name="SCI"),
                      fits.ImageHDU(sky() * 2.0, name="ERR"))
    picture = reader.read(path, ext)
    np.testing.assert_array_equal(picture.pixels, sky() * float(factor))
    several = "several images in the file: the first is used; choose with --ext"
    assert picture.flags == ([several] if ext is None else [])


@pytest.mark.parametrize("page, value", [(None, 1), (0, 1), ("1", 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_ext_chooses_the_page_of_a_tiff(tmp_path, dtype, page, value):
    with tifffile.TiffWriter(tmp_path / "t.tif") as tiff:
        for factor in (1, 2):
            tiff.write((sky()[::-1] // 2 * factor).astype(dtype))
    picture = sound(reader.read(tmp_path / "t.tif", page))
    np.testing.assert_array_equal(picture.pixels, sky() // 2 * value)
    assert bool(picture.flags) == (page is None)


def wcs_header(**cards):
    header = fits.Header()
    header.update(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=150.0, CRVAL2=2.0, CRPIX1=30.0, CRPIX2=20.0,
                  CUNIT1="deg", CUNIT2="deg")
    header.update(cards)
    return header


@pytest.mark.parametrize("cards", [
    dict(CDELT1=-0.396 / 3600, CDELT2=0.396 / 3600),
    dict(CD1_1=0.0, CD1_2=0.396 / 3600, CD2_1=0.396 / 3600, CD2_2=0.0),
    dict(CDELT1=-0.394 / 3600, CDELT2=0.398 / 3600)])
@pytest.mark.parametrize("naxis", [2, 4])
def test_a_sound_wcs_gives_the_pixel_scale(tmp_path, cards, naxis):
    header = wcs_header(**cards)
    if naxis == 4:
        header.update(CTYPE3="FREQ", CRVAL3=1.4e9, CDELT3=1e6, CTYPE4="STOKES", CRVAL4=1, CDELT4=1)
        header.update(CD3_3=1e6, CD4_4=1.0) if "CD1_1" in cards else None
    data = sky() if naxis == 2 else sky()[None, None]
    picture = reader.read(write_fits(tmp_path / "w.fits", fits.PrimaryHDU(data, header)))
    assert picture.arcsec_per_pixel == pytest.approx(0.396, rel=1e-6)
    assert picture.flags == []


@pytest.mark.parametrize("cards", [
    dict(CDELT1=-1e-4, CDELT2=2e-4),                              # oblong
    dict(CDELT1=0.0, CDELT2=0.0),                                 # singular
    dict(CD1_1=1e-4, CD1_2=0.9e-4, CD2_1=0.0, CD2_2=0.4e-4),      # sheared: the axes alone agree
    dict(CDELT1=-1e-4, CDELT2=1e-4, CTYPE2="RA---TAN"),
    dict(CDELT1=-1e-4, CDELT2=1e-4, CTYPE2="GLAT-CAR"),
    dict(CDELT1=-1e-4, CDELT2=1e-4, CUNIT1="furlong")])
def test_a_wcs_that_contradicts_itself_is_not_used(tmp_path, cards, capfd):
    path = write_fits(tmp_path / "w.fits", fits.PrimaryHDU(sky(), wcs_header(**cards)))
    picture = reader.read(path)
    assert picture.arcsec_per_pixel is None
    assert picture.flags == ["the WCS gives no single pixel scale and is not used"]
    assert capfd.readouterr() == ("", "")


def test_a_wcs_without_cdelt_says_a_degree_per_pixel_and_is_not_used(tmp_path):
    picture = reader.read(write_fits(tmp_path / "w.fits", fits.PrimaryHDU(sky(), wcs_header())))
    assert picture.arcsec_per_pixel is None
    assert picture.flags == ["the WCS says 3600 arcsec per pixel, as where CDELT is missing, and is not used"]


@pytest.mark.filterwarnings("error")
def test_odd_headers_are_read_in_silence(tmp_path, capfd, caplog):
    header = wcs_header(CDELT1=-1e-4, CDELT2=1e-4, RADECSYS="FK5", EQUINOX=2000.0, A_ORDER=2, A_2_0=1e-9,
                        B_ORDER=2, B_0_2=1e-9)
    path = write_fits(tmp_path / "odd.fits", fits.PrimaryHDU(sky(), header))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"EQUINOX =", b"equi ox =") + b"rubbish")
    assert reader.read(path).arcsec_per_pixel == pytest.approx(0.36)
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_alpha_zero_is_masked(tmp_path):
    rgba = np.dstack([sky()[::-1]] * 3 + [np.full((40, 60), 255, np.uint8)])
    rgba[:10, :, 3] = 0     # at the top
    rgba[10, :, 3] = 1
    picture = sound(reader.read(save(tmp_path / "a.png", rgba)))
    assert picture.mask[-10:].all() and not picture.mask[:-10].any()
    np.testing.assert_array_equal(picture.pixels[:-10], sky()[:-10])
    assert picture.flags == ["25 % of the pixels have no value"]


def assert_the_block_has_no_value(picture):
    """It lies inside the picture: it is filled from beside it, and said."""
    block = sky() == 250
    assert picture.flags == [f"{100 * block.mean():.2g} % of the pixels have no value"] and not picture.mask.any()
    assert picture.pixels[block].max() <= picture.pixels[~block].max()
    assert set(picture.pixels[block]) <= set(picture.pixels[~block])


def test_sixteen_bit_transparency_is_masked(tmp_path):
    deep = sky()[::-1].astype(np.uint16) * 200
    Image.fromarray(deep).save(tmp_path / "t.png", transparency=50_000)
    assert_the_block_has_no_value(sound(reader.read(tmp_path / "t.png")))


def test_sixteen_bits_keep_their_depth(tmp_path):
    deep = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) + 30_000
    for name in ("d.png", "d.tif"):
        picture = sound(reader.read(save(tmp_path / name, deep)))
        np.testing.assert_array_equal(picture.pixels, deep[::-1])


def png_bytes(width, height, depth, colour, rows):
    def chunk(tag, data):
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_sixteen_bit_colour_png_says_that_it_loses_depth(tmp_path):
    rows = b"".join(b"\0" + np.repeat(row.astype(">u2") * 257, 3).tobytes() for row in sky()[::-1])
    (tmp_path / "c.png").write_bytes(png_bytes(60, 40, 16, 2, rows))
    picture = sound(reader.read(tmp_path / "c.png"))
    np.testing.assert_array_equal(picture.pixels, sky())
    assert "16-bit colour" in picture.flags[0]


def test_sixteen_bit_colour_tiff_keeps_its_depth_or_says_that_it_loses_it(tmp_path):
    import tifffile

    deep = np.repeat(sky()[::-1, :, None].astype(np.uint16) * 257, 3, axis=2)
    tifffile.imwrite(tmp_path / "plain.tif", deep, photometric="rgb")
    picture = sound(reader.read(tmp_path / "plain.tif"))
    np.testing.assert_array_equal(picture.pixels, deep[::-1, :, 0])
    assert picture.flags == []
    # Compressed by LZW, as other programs write it: one code per byte, and the table is never used.
    (tmp_path / "lzw.tif").write_bytes(lzw_tiff(deep))
    picture = sound(reader.read(tmp_path / "lzw.tif"))
    np.testing.assert_array_equal(picture.pixels, sky())
    assert "16-bit colour TIFF" in picture.flags[0]


def lzw_tiff(array):
    """A little-endian TIFF (H, W, 3) of 16 bits in one strip of LZW, with a clear code before every 200 bytes."""
    codes = []
    for k, byte in enumerate(array.astype("<u2").tobytes()):
        codes += [256] * (k % 200 == 0) + [byte]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    strip = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    height, width, _ = array.shape
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8), (259, 3, 1, 5), (262, 3, 1, 2), (273, 4, 1, 14),
            (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(strip))]
    head = struct.pack("<2sHI3H", b"II", 42, 14 + len(strip) + len(strip) % 2, 16, 16, 16)
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return head + strip + b"\0" * (len(strip) % 2) + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("mode, name", [("1", "x.png"), ("P", "x.gif"), ("CMYK", "x.jpg"), ("CMYK", "x.tif"),
                                        ("LA", "x.png"), ("YCbCr", "x.jpg"), ("LAB", "x.tif")])
def test_every_mode_has_a_conversion(tmp_path, mode, name):
    image = Image.fromarray(np.dstack([sky()[::-1]] * 3))
    if mode == "LAB":
        from PIL import ImageCms
        image = ImageCms.applyTransform(image, ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"))
    else:
        image = image.convert(mode, palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / name)
    picture = sound(reader.read(tmp_path / name))
    assert not picture.mask.any()
    want = sky() if mode != "1" else np.where(sky() == 250, 255, 0)
    share = 0.35 if mode == "1" else 0.01   # dithered; JPEG rings at the block
    assert (np.abs(picture.pixels - want) > 15).mean() <= share


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["o.jpg", "o.png", "o8.tif", "o16.tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, name):
    """Oracle: the eight definitions, as where row 0 and column 0 of the file lie in the picture."""
    down = sky()[::-1].astype(np.uint8)
    stored = {1: down, 2: down[:, ::-1], 3: down[::-1, ::-1], 4: down[::-1], 5: down.T,
              6: np.rot90(down, 1), 7: np.rot90(down, 2).T, 8: np.rot90(down, -1)}[orientation]
    path = tmp_path / name
    if name == "o16.tif":
        tifffile.imwrite(path, stored.astype(np.uint16), extratags=[(274, "H", 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[274] = orientation
        extra = {"quality": 100} if name == "o.jpg" else {}
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **extra)
    picture = sound(reader.read(path))
    np.testing.assert_allclose(picture.pixels, sky(), atol=5)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_the_first_frame_of_an_animation_is_used(tmp_path, name):
    frames = [Image.fromarray(np.dstack([f] * 3)) for f in (sky()[::-1], 255 - sky())]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    picture = sound(reader.read(tmp_path / name))
    np.testing.assert_allclose(picture.pixels, sky(), atol=1)
    assert picture.flags == ["animated: the first frame is used"]


def test_white_is_zero_tiff_is_inverted(tmp_path):
    tifffile.imwrite(tmp_path / "w.tif", 65535 - sky()[::-1].astype(np.uint16), photometric="miniswhite")
    np.testing.assert_array_equal(reader.read(tmp_path / "w.tif").pixels, sky())


def test_display_is_at_most_512_px(tmp_path):
    picture = sound(reader.from_array(np.random.default_rng(0).normal(size=(300, 1700))))
    assert picture.display.shape[1] <= 512 and picture.display.shape[0] == pytest.approx(90, abs=20)
    picture = sound(reader.read(save(tmp_path / "l.png", np.dstack([sky(1024, 300)] * 3))))
    assert picture.display.shape == (512, 150, 3)


# ---- arrays ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", ["u1", "i2", "<f4", ">f4", ">f8", "i8", "f2"])
def test_two_axes_are_taken_with_y_upwards(dtype):
    array = sky().astype(dtype)
    before = array.copy()
    picture = sound(reader.from_array(array, "mine"))
    np.testing.assert_array_equal(picture.pixels, sky())
    assert picture.name == "mine" and not np.shares_memory(picture.pixels, array)
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("dtype, top", [("u1", 255), ("f8", 1), ("f4", 255), ("u2", 65535)])
@pytest.mark.parametrize("channels", [3, 4])
def test_colour_arrays_are_taken_with_y_downwards(dtype, top, channels):
    array = (np.dstack([sky()[::-1]] * channels).astype(np.float64) * top / 255).astype(dtype)
    if channels == 4:
        array[..., 3] = top
    picture = sound(reader.from_array(array))
    np.testing.assert_allclose(picture.pixels, array[::-1, :, 0], rtol=1e-6)
    assert (picture.display[..., 0].astype(int) - sky()[::-1]).max() <= 255 * 0.03


def test_booleans_and_masked_arrays_are_taken():
    assert set(np.unique(reader.from_array(sky() > 60).pixels)) == {0, 1}
    assert_the_block_has_no_value(sound(reader.from_array(np.ma.masked_equal(sky(), 250))))


@pytest.mark.parametrize("array, word", [
    (np.zeros((40, 40)), "constant"), (np.full((40, 40), np.nan), "no valid pixel"),
    (np.zeros((0, 5)), "empty"), (np.ones((1, 1)), "px"), (np.ones((15, 40)), "px"),
    (np.zeros((20, 401)), "1:20"), (np.zeros(100), "shape"), (np.zeros((40, 40, 2)), "shape"),
    (np.zeros((5, 40, 40)), "shape"), (np.zeros((40, 40), complex), "complex"),
    (np.full((40, 40), "a"), "real numbers"), ([[1, 2], None], "decoded"),
    (np.broadcast_to(np.float32(0), (9000, 9000)), "64 megapixels"),
    (np.zeros((40, 40, 4), np.uint8), "transparent")])
def test_bad_arrays_are_refused(array, word):
    with pytest.raises(ImageError, match=word) as caught:
        reader.from_array(array, "it\n")
    assert str(caught.value).startswith("it\\n: ") and "\n" not in str(caught.value)


# ---- what is refused -------------------------------------------------------------------------------------

BAD_BYTES = {
    "empty": (b"", "is empty"),
    "html": (b"<!DOCTYPE html>\n<html>404</html>", "HTML"),
    "html after a blank": (b"\xef\xbb\xbf\n <html>", "HTML"),
    "text": (b"a galaxy\n", "is no FITS"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "zip": (b"PK\3\4" + bytes(99), "zip"),
    "cut in the header": (header_cards(BITPIX=8, NAXIS=2)[:1000], ""),
    "BITPIX 7": (header_cards(BITPIX=7, NAXIS=2, NAXIS1=50, NAXIS2=50) + bytes(2880), ""),
    "negative NAXIS1": (header_cards(BITPIX=8, NAXIS=2, NAXIS1=-50, NAXIS2=50) + bytes(2880), ""),
    "NAXIS 999": (header_cards(BITPIX=8, NAXIS=999) + bytes(2880), ""),
    "NAXIS1 missing": (header_cards(BITPIX=8, NAXIS=2, NAXIS2=50) + bytes(2880), ""),
    "NAXIS a text": (header_cards(BITPIX=8, NAXIS="'two'") + bytes(2880), ""),
    "200k x 200k": (header_cards(BITPIX=-64, NAXIS=2, NAXIS1=200_000, NAXIS2=200_000) + bytes(2880),
                    "64 megapixels"),
    "8k x 8k and no data": (header_cards(BITPIX=-64, NAXIS=2, NAXIS1=8000, NAXIS2=8000), ""),
    "zero height": (header_cards(BITPIX=8, NAXIS=2, NAXIS1=50, NAXIS2=0), "is empty"),
    "one axis": (header_cards(BITPIX=8, NAXIS=1, NAXIS1=2880) + bytes(2880), "holds no image"),
    "header only": (header_cards(BITPIX=8, NAXIS=0), "holds no image"),
    "header without end": (header_cards(BITPIX=8, NAXIS=0).replace(b"END", b"DNE") + b" " * 288_000, ""),
    "rubbish after the magic": (b"SIMPLE" + bytes(range(256)) * 40, ""),
    "gzip of rubbish": (gzip.compress(b"a galaxy" * 99), ""),
    "gzip cut": (gzip.compress(header_cards(BITPIX=8, NAXIS=0))[:60], ""),
    "gzip header": (b"\x1f\x8b" + bytes(30), ""),
    "png header": (b"\x89PNG\r\n\x1a\n", ""),
    "png of zero width": (png_bytes(0, 50, 8, 0, bytes(50)), ""),
    "png of 100 megapixels": (png_bytes(10_000, 10_000, 8, 0, b""), "64 megapixels"),
    "png of 4 gigapixels": (png_bytes(65_000, 65_000, 8, 0, b""), "64 megapixels"),
    "png of 1 x 1": (png_bytes(1, 1, 8, 0, b"\0\7"), "16 px"),
    "png of 16 x 1600": (png_bytes(16, 1600, 8, 0, bytes(17 * 1600)), "1:20"),
    "constant png": (png_bytes(50, 50, 8, 0, bytes(51 * 50)), "is constant, there is no light to measure"),
    "jpeg magic": (b"\xff\xd8\xff\xe0" + bytes(40), ""),
    "gif magic": (b"GIF89a" + bytes(40), ""),
    "tiff magic": (b"II*\0" + bytes(40), ""),
    "tiff that points nowhere": (b"II*\0\xff\xff\xff\x7f" + bytes(40), ""),
    "webp magic": (b"RIFF\x28\0\0\0WEBPVP8 " + bytes(40), ""),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_bad_bytes_are_refused_in_one_line(tmp_path, case, capfd):
    data, word = BAD_BYTES[case]
    for name in ("bad.fits", "bad.png"):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, word)
    assert capfd.readouterr() == ("", "")


def test_non_ascii_header_is_read_or_refused(tmp_path):
    path = write_fits(tmp_path / "n.fits", fits.PrimaryHDU(sky(), fits.Header({"OBJECT": "Maus"})))
    path.write_bytes(path.read_bytes().replace(b"Maus", "Mäus".encode("latin-1")))
    try:
        np.testing.assert_array_equal(reader.read(path).pixels, sky())
    except ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("codec", ["RICE_1", "GZIP_1", "GZIP_2", "HCOMPRESS_1"])
def test_a_corrupt_tile_is_an_error_or_other_values_but_never_a_crash(tmp_path, codec):
    noise = np.random.default_rng(0).integers(0, 3000, (64, 64)).astype(np.int16)
    path = write_fits(tmp_path / "t.fits", fits.PrimaryHDU(),
                      fits.CompImageHDU(noise, compression_type=codec))
    data = bytearray(path.read_bytes())
    with fits.open(path, disable_image_compression=True) as hdus:
        info = hdus[1].fileinfo()
        start = info["datLoc"] + hdus[1].header["NAXIS1"] * hdus[1].header["NAXIS2"]
    data[start + 100: start + 400] = b"\xff" * 300
    path.write_bytes(data)
    program = ("import sys; from deepgalaxy.image import reader; from deepgalaxy.errors import ImageError\n"
               "try: reader.read(sys.argv[1])\nexcept ImageError as e: assert len(str(e).splitlines()) == 1")
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_gzipped_tile_that_unpacks_to_more_than_a_tile_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 3000, (64, 64)).astype(np.int16)
    path = write_fits(tmp_path / "t.fits", fits.PrimaryHDU(),
                      fits.CompImageHDU(noise, compression_type="GZIP_1", tile_shape=(64, 64)))
    bomb = gzip.compress(bytes(3_000_000))
    with fits.open(path, disable_image_compression=True) as hdus:
        start = hdus[1].fileinfo()["datLoc"]
    data = bytearray(path.read_bytes())
    data[start:start + 4] = struct.pack(">i", len(bomb))
    data[start + 8:start + 8 + len(bomb)] = bomb
    path.write_bytes(data)
    refused(path, "compressed tile larger")


def test_a_tile_shape_that_lies_is_refused(tmp_path):
    path = write_fits(tmp_path / "t.fits", fits.PrimaryHDU(), fits.CompImageHDU(sky().astype(np.int16)))
    data = path.read_bytes()
    old = b"ZTILE1  =                   60"
    assert old in data
    path.write_bytes(data.replace(old, b"ZTILE1  =           4000000000"))
    refused(path, "64 megapixels")


def test_a_deflated_tiff_strip_that_unpacks_to_more_is_refused(tmp_path):
    path = tmp_path / "t.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint16), compression="zlib", tile=(64, 64))
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        where = page.tags["TileByteCounts"].valueoffset
        where_offset = page.tags["TileOffsets"].valueoffset
    bomb = zlib.compress(bytes(3_000_000))
    data = bytearray(data)
    size = len(data)
    code = "<H" if page.tags["TileByteCounts"].dtype == 3 else "<I"
    data[where:where + struct.calcsize(code)] = struct.pack(code, len(bomb))
    data[where_offset:where_offset + 4] = struct.pack("<I", size)
    path.write_bytes(bytes(data) + bomb)
    refused(path, "larger than they claim")


def test_a_gzip_bomb_is_stopped_at_the_cap(tmp_path, monkeypatch):
    monkeypatch.setattr(fits_reader, "MAX_BYTES", 2**22)
    path = tmp_path / "bomb.fits.gz"
    path.write_bytes(gzip.compress(header_cards(BITPIX=8, NAXIS=2, NAXIS1=4000, NAXIS2=4000) + bytes(2**24)))
    refused(path, "4 MiB")


def test_no_memory_is_taken_for_a_header_that_lies(tmp_path):
    path = tmp_path / "lie.fits"
    path.write_bytes(BAD_BYTES["200k x 200k"][0])
    tracemalloc.start()
    try:
        refused(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6   # bytes, at the most; numpy's arrays count
    finally:
        tracemalloc.stop()


def test_values_without_light_are_refused(tmp_path):
    for values, word in [(np.full((40, 40), np.nan), "no valid pixel"),
                         (np.full((40, 40), 7.0), "is constant"),
                         (np.where(sky() > 50, np.nan, 3.0), "is constant")]:
        refused(write_fits(tmp_path / "v.fits", fits.PrimaryHDU(values)), word)


def test_a_cube_asks_for_a_plane(tmp_path):
    path = write_fits(tmp_path / "c.fits", fits.PrimaryHDU(np.zeros((3, 40, 60))))
    refused(path, "cube of shape (3, 40, 60)", "plane")
    refused(path, "cube", ext=0)
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((32, 48, 64), np.uint16), photometric="minisblack",
                     volumetric=True, tile=(16, 16, 16))
    refused(tmp_path / "c.tif", "axes ZYX")


def test_a_table_only_says_so(tmp_path):
    table = fits.BinTableHDU.from_columns([fits.Column("flux", "E", array=np.ones(5))], name="CAT")
    path = write_fits(tmp_path / "t.fits", fits.PrimaryHDU(), table)
    refused(path, "only tables", "1 CAT")
    refused(path, "has no image in extension 'CAT'", ext="CAT")
    refused(path, "has no image in extension 'SCI'", "0 PRIMARY, 1 CAT", ext="SCI")
    refused(path, ext=9)
    refused(path, ext=-1)


@pytest.mark.parametrize("kind", ["png", "tiff", "tiff16"])
@pytest.mark.parametrize("ext", [1, "SCI", -1, "²"])
def test_ext_that_a_picture_lacks_is_refused(tmp_path, kind, ext):
    refused(write_any(tmp_path / "p", kind), "--ext", ext=ext)


def test_places_that_are_no_files_are_refused(tmp_path):
    refused(tmp_path, "directory")
    refused(tmp_path / "missing.fits", "no such file")
    refused("", "no such file")
    refused(write_any(tmp_path / "f", "png") / "below.png", "no such file")
    refused("a\0b.png", "NUL" if sys.platform == "win32" else "null byte")
    refused("n\n.png", "n\\n.png")
    refused("n" * 5000, os.strerror(errno.ENAMETOOLONG))
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    refused(tmp_path / "a", os.strerror(errno.ELOOP))
    refused("/dev/null", "regular")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    start = time.monotonic()
    refused(tmp_path / "fifo", "regular file")
    assert time.monotonic() - start < 5


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = write_any(tmp_path / "p", "png")
    path.chmod(0)
    refused(path, "permission")


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_never_escape_as_another_error(tmp_path, kind):
    data = write_any(tmp_path / "whole", kind).read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(12):
        bad = bytearray(data)
        for where in rng.integers(0, min(len(bad), 3000), 4):
            bad[where] = rng.integers(256)
        (tmp_path / "flipped").write_bytes(bad)
        try:
            sound(reader.read(tmp_path / "flipped"))
        except ImageError as error:
            assert len(str(error).splitlines()) == 1


def test_importing_the_reader_is_cheap():
    program = ("import sys, deepgalaxy.image.reader\n"
               "print([m for m in ('astropy', 'tifffile', 'PIL') if m in sys.modules])")
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real images in {REAL}")
def test_real_images_are_read():
    files = sorted(REAL.glob("*.jpg"))
    assert len(files) >= 21
    for path in files:
        picture = sound(reader.read(path))
        with Image.open(path) as image:
            assert picture.pixels.shape == (image.height, image.width)
            rgb = np.asarray(image.convert("RGB"), dtype=float)
        grey = rgb[::-1].mean(axis=2)
        if path.name == "sdss_arp_318.jpg":  # at the edge of the survey's field: black below
            assert ["padding" in flag for flag in picture.flags] == [True]
            picture.pixels[grey == 0] = 0
        else:
            assert picture.flags == []
        np.testing.assert_allclose(picture.pixels, grey, rtol=1e-5, atol=1e-5)
        assert picture.arcsec_per_pixel is None
