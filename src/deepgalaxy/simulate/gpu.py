"""Forces on a GPU: all pairs, in one Triton kernel, or in plain torch where there is no Triton.

A GPU has more arithmetic than a tree has use for at these numbers of particles, and all pairs have no error.
"""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np

from ..errors import ConfigError, DeepGalaxyWarning
from ..progress import one_line
from ..units import G

__all__ = ["DirectForces", "require_device"]

_PAIRS = 1 << 26  # at once, in plain torch: 1.5 GB of intermediate results
# Targets, sources at once and warps of one program of the kernel: 16,384 particles make 512 programs, four for each of
# the 132 multiprocessors of an H100.
_TILE = 32, 32, 4


def require_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises
    ------
    ConfigError
        If it is neither "cpu" nor "cuda", or there is no GPU.
    """
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device = {device}: must be cpu or cuda")
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigError("device = cuda: torch sees no GPU on this machine; leave --device out to use the cores")


class DirectForces:
    """Plummer-softened forces of all pairs, softening_ij^2 = (softening_i^2 + softening_j^2) / 2.

    Parameters
    ----------
    masses : (N,) in Msun.
    softening : (N,) Plummer-equivalent length in kpc.
    device : of torch; "cpu" is for tests.
    fused : by the Triton kernel (True) or in plain torch (False); without it, by the kernel on a GPU, unless Triton
        cannot be imported or compiles nothing there.
    """

    def __init__(self, masses: np.ndarray, softening: np.ndarray, device: str = "cuda", fused: bool | None = None):
        import torch

        self._torch, self._device = torch, device
        self._gm = torch.as_tensor(G * masses, dtype=torch.float32, device=device)
        self._half_e2 = torch.as_tensor(0.5 * softening**2, dtype=torch.float32, device=device)
        self._sum = self._sum_in_torch
        if fused or (fused is None and device != "cpu"):
            try:
                self._kernel, self._sum = _pair_kernel(), self._sum_fused
                self(np.zeros((len(masses), 3)))  # compiles; what Triton needs for that (gcc, Python.h) may be missing
            except Exception as error:
                if fused:
                    raise
                self._sum = self._sum_in_torch
                warnings.warn("forces in plain torch, 25 times slower: Triton fails here "
                              f"({one_line(error)[:120]}); it needs gcc and Python's headers", DeepGalaxyWarning,
                              stacklevel=2)

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Acceleration (N, 3) in kpc/Myr^2 and potential (N,) in (kpc/Myr)^2 at positions (N, 3) in kpc."""
        torch, n = self._torch, len(positions)
        with torch.inference_mode():
            x = torch.as_tensor(positions, device=self._device)
            x = (x - x.mean(dim=0)).T.float().contiguous()  # (N, 3) -> (3, N)
            field = torch.empty(4 * n, dtype=torch.float64, device=self._device)  # one, to come back in one piece
            self._sum(x, field[:3 * n].view(n, 3), field[3 * n:])
            field = field.cpu().numpy()
        return field[:3 * n].reshape(n, 3), field[3 * n:]

    def _sum_fused(self, x, acceleration, potential) -> None:
        """Fill acceleration (N, 3) and potential (N,) for positions (3, N) about their mean."""
        n, (n_targets, n_sources, n_warps) = x.shape[1], _TILE
        # Fused multiply-adds are no default of Triton's from 3.10 on; without them a pair takes 20 operations, not 14.
        self._kernel[(-(-n // n_targets),)](x, self._gm, self._half_e2, acceleration, potential, n, n_targets,
                                            n_sources, num_warps=n_warps, enable_fp_fusion=True)

    def _sum_in_torch(self, x, acceleration, potential) -> None:
        """The same in plain torch: 25 GB through the memory for 16,384 particles."""
        n = x.shape[1]
        rows = max(1, _PAIRS // n)
        for start in range(0, n, rows):
            target, half_e2 = x[:, start:start + rows], self._half_e2[start:start + rows]
            distance2 = half_e2[:, None] + self._half_e2
            for axis in range(3):
                distance2 += (target[axis, :, None] - x[axis]) ** 2
            inverse = distance2.rsqrt_()
            weight = inverse * self._gm  # (rows, N)
            # A particle is among its own sources: no force, but a potential to be taken out again.
            own = self._gm[start:start + rows] / (2 * half_e2).sqrt()
            potential[start:start + rows] = own - weight.sum(dim=1)
            weight *= inverse
            weight *= inverse
            for axis in range(3):  # differences first: a matrix product would lose three digits
                acceleration[start:start + rows, axis] = (weight * (x[axis] - target[axis, :, None])).sum(dim=1)


@cache
def _pair_kernel():
    """What `DirectForces._sum_fused` launches; made on demand, so that nobody without a GPU imports Triton."""
    global tl  # Triton's interpreter, which the tests use, looks for it there
    import triton
    import triton.language as tl

    @triton.jit
    def sum_pairs(x, gm, half_e2, acceleration, potential, n, n_targets: tl.constexpr, n_sources: tl.constexpr):
        """One program's n_targets particles and all n sources, n_sources at a time."""
        i = tl.program_id(0) * n_targets + tl.arange(0, n_targets)
        px, py, pz = tl.load(x + i, i < n, 0.0), tl.load(x + n + i, i < n, 0.0), tl.load(x + 2 * n + i, i < n, 0.0)
        half_i = tl.load(half_e2 + i, i < n, 1.0)  # not 0, which with the fill of a last source's would be 1 / 0
        # Every pair of the tile has sums of its own until the end: no traffic between threads in the loop, and sums of
        # N / n_sources terms instead of N, so that single precision keeps five digits of them.
        ax, ay = tl.zeros((n_targets, n_sources), tl.float32), tl.zeros((n_targets, n_sources), tl.float32)
        az, phi = tl.zeros((n_targets, n_sources), tl.float32), tl.zeros((n_targets, n_sources), tl.float32)
        for start in range(0, n, n_sources):
            j = start + tl.arange(0, n_sources)
            dx = tl.load(x + j, j < n, 0.0)[None, :] - px[:, None]
            dy = tl.load(x + n + j, j < n, 0.0)[None, :] - py[:, None]
            dz = tl.load(x + 2 * n + j, j < n, 0.0)[None, :] - pz[:, None]
            e2 = tl.load(half_e2 + j, j < n, 0.0)[None, :] + half_i[:, None]
            inverse = tl.rsqrt(e2 + dx * dx + dy * dy + dz * dz)
            weight = inverse * tl.load(gm + j, j < n, 0.0)[None, :]
            phi -= weight
            weight *= inverse * inverse
            ax += weight * dx
            ay += weight * dy
            az += weight * dz
        tl.store(acceleration + 3 * i, tl.sum(ax, axis=1), i < n)
        tl.store(acceleration + 3 * i + 1, tl.sum(ay, axis=1), i < n)
        tl.store(acceleration + 3 * i + 2, tl.sum(az, axis=1), i < n)
        own = tl.load(gm + i, i < n, 0.0) * tl.rsqrt(2 * half_i)  # as in plain torch
        tl.store(potential + i, tl.sum(phi, axis=1) + own, i < n)

    return sum_pairs
