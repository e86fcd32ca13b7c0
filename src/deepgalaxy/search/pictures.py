"""Pictures compared with each other: fast over the whole library, and carefully for the few that remain.

All pictures are 64 x 64, 0..1, y upwards, of the frame as the model sees it. How deep a photograph is and how it was
stretched says nothing about the galaxies: pictures are compared at one contrast.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from ..image.preprocess import opened

__all__ = ["PICTURE_PIXELS", "PictureBasis", "align", "at_contrast", "disc_contrast", "flipped", "lit_share",
           "map_agreement", "small", "smooth_faint", "structure_agreement", "tidy", "with_and_without_sky"]

PICTURE_PIXELS = 64

_COARSE = 32  # pixels on a side of what the principal components are made of
_SKY = 0.12  # stretched light below this is sky or noise
_LIT = 0.02  # of a tidy picture above this is lit
_LEVELS = 1024  # of brightness that are told apart
_SHARE = 0.7  # lit share at which the whole library is compared
_FAINT, _SMOOTH = 0.15, 1.2  # light below this is smoothed by so many pixels
_STRUCTURE = (1.0, 5.0)  # standard deviations in pixels between which light counts as structure
_DIM = 0.1  # light around it below which structure counts as if there were so much

#: Correlation above which a decoder's picture is taken for one of the frame: of mock observations all have more than
#: 0.35, of real pictures more than 0.55, of decoders that have hardly learnt less than 0.2.
_SHOWN = 0.3

#: What `align` tries: degrees, zoom, and the largest shift in pixels.
_TURNS, _ZOOMS, _SHIFT = (-16.0, -8.0, 0.0, 8.0, 16.0), (0.87, 1.0, 1.15), 6


def small(frames: np.ndarray) -> np.ndarray:
    """Frames (..., n, n) in as many pixels as a picture has."""
    x = torch.from_numpy(np.ascontiguousarray(frames, np.float32))
    x = F.interpolate(x.reshape(-1, 1, *x.shape[-2:]), size=(PICTURE_PIXELS,) * 2, mode="area")
    return x.reshape(*np.shape(frames)[:-2], PICTURE_PIXELS, PICTURE_PIXELS).numpy()


def tidy(frames: np.ndarray) -> np.ndarray:
    """Frames (..., n, n) as pictures: smaller, without sky, with stars cut down to what is around them."""
    pictures = torch.from_numpy(small(frames))
    x = pictures.reshape(-1, 1, PICTURE_PIXELS, PICTURE_PIXELS)
    x = torch.minimum(x, F.avg_pool2d(opened(x), 3, 1, 1) + 0.12)
    return ((x - _SKY) / (1 - _SKY)).clamp(0, 1).reshape(pictures.shape).numpy()


def with_and_without_sky(frame: np.ndarray, clean: np.ndarray | None) -> np.ndarray:
    """What pictures are compared with: (2, n, n) tidy, the frame and the decoder's picture of it.

    The frame alone, (1, n, n), where there is no decoder, or one that has hardly learnt and shows something else.
    """
    both = tidy(np.stack([small(frame), small(frame if clean is None else clean)]))
    varied = clean is not None and (np.ptp(both, axis=(1, 2)) > 0).all()
    return both if varied and np.corrcoef(both.reshape(2, -1))[0, 1] > _SHOWN else both[:1]


def lit_share(picture: np.ndarray) -> float:
    """Share of a tidy picture that is lit, 0.05 to 0.9."""
    return float(np.clip((picture > _LIT).mean(), 0.05, 0.9))


def disc_contrast(share: float) -> np.ndarray:
    """Brightnesses (4096,), from dark to bright, of a disc that fills a share of its picture.

    An exponential disc, stretched by a logarithm: from the middle outwards brightness falls with the square root of the
    area within. Library pictures are like that in the mean, to 0.04, their brightest tenth to 0.13.
    """
    brighter = 1 - (np.arange(PICTURE_PIXELS**2) + 0.5) / PICTURE_PIXELS**2
    return np.maximum(0, 1 - np.sqrt(brighter / share)).astype(np.float32)


def at_contrast(pictures: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """Pictures (K, n, n) in other brightnesses (M,), sorted: what is brighter stays brighter."""
    ranks = (np.arange(len(contrast)) + 0.5) / len(contrast)
    out = np.empty(np.shape(pictures), np.float32)
    for picture, into in zip(pictures, out, strict=True):
        level = np.rint(np.clip(picture, 0, 1) * (_LEVELS - 1)).astype(np.int32)
        count = np.bincount(level.ravel(), minlength=_LEVELS)
        into[:] = np.interp((np.cumsum(count) - count / 2) / level.size, ranks, contrast)[level]
    return out


def smooth_faint(pictures: np.ndarray) -> np.ndarray:
    """Pictures (K, n, n) whose faint parts are smoother: what compression left there would show where it is bright."""
    smooth = gaussian_filter(pictures, (0, _SMOOTH, _SMOOTH))
    share = np.clip(smooth / _FAINT, 0, 1)
    return share * pictures + (1 - share) * smooth


def flipped(picture: np.ndarray, view: int) -> np.ndarray:
    """The mirror image of a picture (..., n, n): views count as those of `posterior.views_of` do."""
    if view % 4 in (1, 3):
        picture = picture[..., ::-1]
    if view % 4 in (2, 3):
        picture = picture[..., ::-1, :]
    return picture


class PictureBasis:
    """Principal components of pictures at one contrast, in which a scalar product is nearly their correlation.

    Parameters
    ----------
    components : (K, 1024), orthonormal, of standardised 32 x 32 pictures.
    """

    def __init__(self, components: np.ndarray):
        self.components = np.asarray(components, np.float32)

    @classmethod
    def of(cls, pictures: np.ndarray, n_components: int = 64) -> PictureBasis:
        """The basis of pictures (N, 64, 64); 4,000 of them at most are looked at."""
        chosen = np.random.default_rng(0).permutation(len(pictures))[:4000]
        square = _coarse(pictures[chosen]).reshape(-1, _COARSE, _COARSE)
        # Mirror images are as likely, and the basis must treat them alike. About zero, not about the
        # mean: products of what is projected are then correlations, less what is not spanned.
        moment = sum(flat.T @ flat for flat in (flipped(square, view).reshape(len(square), -1) for view in range(4)))
        _, vectors = np.linalg.eigh(moment)
        return cls(vectors[:, ::-1][:, :n_components].T)

    def project(self, pictures: np.ndarray) -> np.ndarray:
        """(N, 64, 64) -> (N, K) float32, of length 1 but for what the basis does not span."""
        return _coarse(pictures) @ self.components.T


def _coarse(pictures) -> np.ndarray:
    """(N, 64, 64) -> (N, 1024): at one contrast, softened, standardised, of length 1."""
    n = PICTURE_PIXELS // _COARSE
    cells = at_contrast(pictures, disc_contrast(_SHARE)).reshape(-1, _COARSE, n, _COARSE, n)
    flat = cells.mean(axis=(2, 4)).reshape(-1, _COARSE**2)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


@torch.inference_mode()
def align(query: np.ndarray, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn, zoom and shift each picture a little, so that it lies on the query as well as it can.

    Parameters
    ----------
    query : (64, 64).
    pictures : (K, 64, 64), mirrored as the query is.

    Returns
    -------
    agreement : (K,) correlation with the query, at best 1.
    aligned : (K, 64, 64).
    """
    n = PICTURE_PIXELS
    x = torch.from_numpy(np.ascontiguousarray(pictures, np.float32))[:, None]
    changes = [(np.radians(turn), zoom) for turn in _TURNS for zoom in _ZOOMS]
    affine = torch.tensor([[[np.cos(a) / z, -np.sin(a) / z, 0], [np.sin(a) / z, np.cos(a) / z, 0]]
                           for a, z in changes], dtype=torch.float32)
    grid = F.affine_grid(affine, (len(changes), 1, n, n), align_corners=False)
    turned = torch.stack([F.grid_sample(x, g.expand(len(x), -1, -1, -1), align_corners=False, padding_mode="zeros")
                          for g in grid], dim=1)[:, :, 0]  # (K, changes, n, n)
    standard = _standardised(turned)
    target = torch.fft.rfft2(_standardised(torch.from_numpy(np.ascontiguousarray(query, np.float32))))
    # The correlation at all shifts at once; circular, but a frame's border is empty.
    at_shift = torch.fft.irfft2(target * torch.fft.rfft2(standard).conj(), s=(n, n)) / n**2
    reach = torch.cat([torch.arange(0, _SHIFT + 1), torch.arange(n - _SHIFT, n)])
    near = at_shift[:, :, reach][:, :, :, reach].flatten(1)
    agreement, best = near.max(dim=1)
    change, shift = best // len(reach) ** 2, best % len(reach) ** 2
    dy, dx = reach[shift // len(reach)], reach[shift % len(reach)]
    aligned = torch.zeros_like(turned[:, 0])
    for k in range(len(x)):
        y0, x0 = (int(d) - n if d > n // 2 else int(d) for d in (dy[k], dx[k]))
        (to_y, from_y), (to_x, from_x) = _overlap(y0, n), _overlap(x0, n)
        aligned[k, to_y, to_x] = turned[k, change[k], from_y, from_x]
    return agreement.numpy(), aligned.numpy()


def structure_agreement(query: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Correlation (K,) of the structure of aligned pictures (K, n, n) with that of the query (n, n), at best 1.

    Arms, tails and nuclei are what a person looks at; the correlation of light is mostly that of where there is any.
    """
    ours, theirs = _structure(query[None]), _structure(pictures)
    return (ours * theirs).mean(axis=(1, 2)) / np.maximum(ours.std() * theirs.std(axis=(1, 2)), 1e-9)


def _structure(pictures: np.ndarray) -> np.ndarray:
    """Pictures (K, n, n) less what is around each pixel, over that, less their mean.

    A faint arm or companion is seen as well as a nucleus: by its contrast.
    """
    fine, coarse = (gaussian_filter(pictures, (0, sigma, sigma)) for sigma in _STRUCTURE)
    contrast = (fine - coarse) / (coarse + _DIM)
    return contrast - contrast.mean(axis=(1, 2), keepdims=True)


def map_agreement(query: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """How alike activation maps (K, C, h, w) are to those of the query (C, h, w): (K,), at best 1.

    The cosine between the channels of each cell, where the query's are unusual above all.
    """
    lengths = np.linalg.norm(query, axis=0)  # (h, w)
    cosine = (maps * query).sum(axis=1) / np.maximum(np.linalg.norm(maps, axis=1) * lengths, 1e-9)
    return (cosine * lengths).sum(axis=(1, 2)) / np.maximum(lengths.sum(), 1e-9)


def _overlap(shift: int, n: int) -> tuple[slice, slice]:
    """Where to put n pixels moved by shift, and which of them."""
    return slice(max(shift, 0), n + min(shift, 0)), slice(max(-shift, 0), n - max(shift, 0))


def _standardised(x):
    x = x - x.mean(dim=(-2, -1), keepdim=True)
    return x / x.square().mean(dim=(-2, -1), keepdim=True).sqrt().clamp(min=1e-6)
