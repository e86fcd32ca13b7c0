"""Nearest neighbours in the latent space."""

from __future__ import annotations

import numpy as np

__all__ = ["LatentIndex"]


class LatentIndex:
    """Exact nearest neighbours among N latent vectors, each axis in units of its own spread.

    Parameters
    ----------
    z : (N, D).
    """

    def __init__(self, z: np.ndarray):
        import faiss  # here, because faiss and torch each bring an OpenMP that clash on macOS if loaded early

        z = np.asarray(z, np.float32)
        # Axes that the encoder left unused would otherwise be blown up to noise.
        spread = z.std(axis=0)
        self._scale = 1.0 / np.maximum(spread, 0.1 * max(float(spread.max()), 1e-6))
        self._index = faiss.IndexFlatL2(z.shape[1])
        self._index.add(np.ascontiguousarray(z * self._scale))

    def __len__(self):
        return self._index.ntotal

    def search(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances (Q, k), increasing, and rows (Q, k) of the k nearest of each query (Q, D)."""
        query = np.ascontiguousarray(np.asarray(z, np.float32) * self._scale)
        squared, rows = self._index.search(query, min(k, len(self)))
        return np.sqrt(np.maximum(squared, 0)), rows
