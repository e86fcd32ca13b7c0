"""Nearest neighbours in the latent space."""

from __future__ import annotations

import numpy as np

__all__ = ["LatentIndex"]


class LatentIndex:
    """Exact nearest neighbours among N latent vectors.

    Parameters
    ----------
    z : (N, D).
    metric : (D, D), distances are Euclidean in z @ metric; without it, see `by_spread`.
    """

    def __init__(self, z: np.ndarray, metric: np.ndarray | None = None):
        z = np.asarray(z, np.float32)
        self._metric = self.by_spread(z) if metric is None else np.asarray(metric, np.float32)
        import faiss  # here, because faiss and torch each bring an OpenMP that clash on macOS if loaded early

        self._faiss = faiss
        self._vectors = np.ascontiguousarray(z @ self._metric)
        self._index = faiss.IndexFlatL2(z.shape[1])
        self._index.add(self._vectors)

    @staticmethod
    def by_spread(z: np.ndarray) -> np.ndarray:
        """The metric (D, D) that takes each axis in units of its own spread."""
        # Axes that the encoder left unused would otherwise be blown up to noise.
        spread = np.asarray(z, np.float32).std(axis=0)
        return np.diag(1.0 / np.maximum(spread, 0.1 * max(float(spread.max()), 1e-6))).astype(np.float32)

    @staticmethod
    def by_observation(z: np.ndarray, changes: np.ndarray, floor: float = 0.1) -> np.ndarray:
        """The metric (D, D) that takes z in units of what observation alone does to it.

        Directions in which sky, stars and noise move an image count for little, whatever their spread.

        Parameters
        ----------
        z : (N, D).
        changes : (M, D), z of observed images less z of the same images clean.
        floor : of the variance of every direction, in units of the mean variance of z.
        """
        z, changes = np.asarray(z, np.float64), np.asarray(changes, np.float64)
        noise = changes.T @ changes / len(changes) + floor * z.var(axis=0).mean() * np.eye(z.shape[1])
        values, vectors = np.linalg.eigh(noise)
        # Of one image, or of equal ones, the floor is 0, and observation may leave some directions as they were.
        values = np.maximum(values, 1e-6 * max(float(values[-1]), 1e-6))
        return (vectors / np.sqrt(values)).astype(np.float32)

    def __len__(self):
        return self._index.ntotal

    def search(self, z: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances (Q, k), increasing, and rows (Q, k) of the k nearest of each query (Q, D)."""
        squared, rows = self._index.search(self._query(z), min(k, len(self)))
        return np.sqrt(np.maximum(squared, 0)), rows

    def distances(self, z: np.ndarray) -> np.ndarray:
        """Distances (Q, N) of each query (Q, D) to all of them, in the order of the rows."""
        return np.sqrt(np.maximum(self._faiss.pairwise_distances(self._query(z), self._vectors), 0))

    def _query(self, z):
        return np.ascontiguousarray(np.asarray(z, np.float32) @ self._metric)
