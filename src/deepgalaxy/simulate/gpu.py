"""Forces on a GPU: all pairs, summed in torch.

A GPU has more arithmetic than a tree has use for at these numbers of particles, and all pairs have no error.
"""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError
from ..units import G

__all__ = ["DirectForces", "require_device"]

_PAIRS = 1 << 26  # at once: 1.5 GB of intermediate results


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
    """

    def __init__(self, masses: np.ndarray, softening: np.ndarray, device: str = "cuda"):
        import torch

        self._torch, self._device = torch, device
        self._m = torch.as_tensor(masses, dtype=torch.float32, device=device)
        self._half_e2 = torch.as_tensor(0.5 * softening**2, dtype=torch.float32, device=device)

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Acceleration (N, 3) in kpc/Myr^2 and potential (N,) in (kpc/Myr)^2 at positions (N, 3) in kpc."""
        torch = self._torch
        with torch.inference_mode():
            x = torch.as_tensor(positions - positions.mean(axis=0), dtype=torch.float32, device=self._device)
            n = len(x)
            acceleration, potential = torch.empty_like(x), torch.empty(n, device=self._device)
            rows = max(1, _PAIRS // n)
            for start in range(0, n, rows):
                target, half_e2 = x[start:start + rows], self._half_e2[start:start + rows]
                distance2 = half_e2[:, None] + self._half_e2
                for axis in range(3):
                    distance2 += (target[:, axis, None] - x[:, axis]) ** 2
                inverse = distance2.rsqrt_()
                weight = inverse * self._m  # (rows, N)
                # A particle is among its own sources: no force, but a potential to be taken out again.
                own = self._m[start:start + rows] / (2 * half_e2).sqrt()
                potential[start:start + rows] = own - weight.sum(dim=1)
                weight *= inverse
                weight *= inverse
                for axis in range(3):  # differences first: a matrix product would lose three digits
                    acceleration[start:start + rows, axis] = (weight * (x[:, axis] - target[:, axis, None])).sum(dim=1)
        return G * acceleration.double().cpu().numpy(), G * potential.double().cpu().numpy()
