"""How far the n-th neighbour is, for all stars of a snapshot at once.

The stars are sorted along a Morton curve. The n-th nearest of those close by on the curve bounds the distance; a
walk of the tree then gathers, for a whole group of stars, all that may be nearer. Three times as fast as scipy's
cKDTree, whose queries took three quarters of all rendering (125 of 165 ms per snapshot of 21,000 stars).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ..simulate.gravity import along_curve, build_nodes, group_ranges

__all__ = ["neighbour_distances"]

_GROUP = 16
_WINDOW = 24  # of stars on either side along the curve, beyond n


def neighbour_distances(positions: np.ndarray, n: int) -> np.ndarray:
    """Distance (N,) to the n-th nearest of the stars at positions (N, 3); a star itself counts as its first."""
    n = min(n, len(positions))
    _, keys, order = along_curve(np.asarray(positions, np.float64))
    nodes = build_nodes(keys, 16)
    x = np.ascontiguousarray(np.asarray(positions, np.float64)[order].T)
    out = np.empty(len(order))
    out[order] = np.sqrt(_search(x, *nodes, *group_ranges(*nodes, _GROUP), n))
    return out


@njit(cache=True)
def _boxes(x, start, stop, after, is_leaf):
    box = np.empty((len(start), 6))
    for i in range(len(start) - 1, -1, -1):  # children stand behind their parents
        b = box[i]
        b[:3], b[3:] = np.inf, -np.inf
        if is_leaf[i]:
            for k in range(3):
                for j in range(start[i], stop[i]):
                    b[k], b[3 + k] = min(b[k], x[k, j]), max(b[3 + k], x[k, j])
        else:
            child = i + 1
            while child < len(start) and start[child] < stop[i]:
                for k in range(3):
                    b[k], b[3 + k] = min(b[k], box[child, k]), max(b[3 + k], box[child, 3 + k])
                child = after[child]
    return box


@njit(cache=True, fastmath=True)
def _distances2(x, p, first, last, out):
    px, py, pz = x[0, p], x[1, p], x[2, p]
    for j in range(first, last):
        out[j - first] = (x[0, j] - px) ** 2 + (x[1, j] - py) ** 2 + (x[2, j] - pz) ** 2


@njit(cache=True, fastmath=True)
def _count(values, count, limit):
    inside = 0
    for j in range(count):
        inside += values[j] <= limit
    return inside


@njit(cache=True)
def _bound(values, count, n, guess):
    """A limit that at least n of values[:count] keep, not far above the n-th smallest; 1 < n <= count."""
    low, high = 0.0, max(guess, 1e-12)
    while _count(values, count, high) < n:
        low, high = high, 2 * high
    for _ in range(4):
        middle = 0.5 * (low + high)
        if _count(values, count, middle) < n:
            low = middle
        else:
            high = middle
    return high


@njit(cache=True, fastmath=True)
def _nth(values, count, n, high):
    """The n-th smallest of values[:count], all of which are at most `high`.

    Counting is quicker than moving: 0.2 against 1 us for a quickselect of 70.
    """
    low, n_low, n_high = -1e-300, 0, count
    for k in range(100):
        if n_high == n:
            break
        share = 0.5 if k % 3 == 2 else (n - 0.5 - n_low) / (n_high - n_low)
        middle = low + share * (high - low)
        if not low < middle < high:  # equal values
            break
        inside = _count(values, count, middle)
        if inside < n:
            low, n_low = middle, inside
        else:
            high, n_high = middle, inside
    largest = 0.0
    for j in range(count):
        if values[j] <= high:
            largest = max(largest, values[j])
    return largest


@njit(cache=True, fastmath=True)
def _search(x, start, stop, after, is_leaf, group_start, group_stop, n):
    total = x.shape[1]
    box = _boxes(x, start, stop, after, is_leaf)
    out = np.empty(total)
    near = np.empty((3, total))
    distance2, few = np.empty(total), np.empty(total)
    for g in range(len(group_start)):
        a, b = group_start[g], group_stop[g]
        # Bounds from the neighbours along the curve.
        first, last = max(0, a - n - _WINDOW), min(total, b + n + _WINDOW)
        widest, guess = 0.0, 1.0
        for p in range(a, b):
            _distances2(x, p, first, last, distance2)
            guess = _bound(distance2, last - first, n, guess)
            out[p] = guess
            widest = max(widest, out[p])
        x0, y0, z0, x1, y1, z1 = np.inf, np.inf, np.inf, -np.inf, -np.inf, -np.inf
        for p in range(a, b):
            x0, x1 = min(x0, x[0, p]), max(x1, x[0, p])
            y0, y1 = min(y0, x[1, p]), max(y1, x[1, p])
            z0, z1 = min(z0, x[2, p]), max(z1, x[2, p])
        # All stars that may be nearer than the widest bound.
        count, node = 0, 0
        while node < len(start):
            dx = max(0.0, box[node, 0] - x1, x0 - box[node, 3])
            dy = max(0.0, box[node, 1] - y1, y0 - box[node, 4])
            dz = max(0.0, box[node, 2] - z1, z0 - box[node, 5])
            if dx * dx + dy * dy + dz * dz > widest:
                node = after[node]
            elif is_leaf[node]:
                for j in range(start[node], stop[node]):
                    near[0, count], near[1, count], near[2, count] = x[0, j], x[1, j], x[2, j]
                    count += 1
                node = after[node]
            else:
                node += 1
        for p in range(a, b):
            px, py, pz, bound = x[0, p], x[1, p], x[2, p], out[p]
            for j in range(count):
                distance2[j] = (near[0, j] - px) ** 2 + (near[1, j] - py) ** 2 + (near[2, j] - pz) ** 2
            inside = 0
            for j in range(count):
                few[inside] = distance2[j]
                inside += distance2[j] <= bound
            out[p] = _nth(few, inside, n, bound)
    return out
