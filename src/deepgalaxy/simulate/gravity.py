"""Self-gravity: a group-walk Barnes-Hut tree.

Particles are sorted along a Morton curve; a node is a range of that order. The tree is walked once
per group of neighbouring particles (Barnes 1990, J. Comput. Phys. 87, 161), which leaves long lists
of sources that the inner loop takes in single precision, in coordinates centred on the group, so
that the compiler vectorises it. Forces are Plummer-softened with
softening_ij^2 = (softening_i^2 + softening_j^2) / 2.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, prange

from ..units import G

__all__ = ["Tree", "direct"]

_LEVELS = 21  # bits per axis of a Morton key
_MAX_CELLS, _MAX_SOURCES = 4096, 8192  # length of an interaction list before it is worked off


class Tree:
    """Particles arranged for fast forces.

    Parameters
    ----------
    positions : (N, 3) in kpc.
    masses : (N,) in Msun.
    softening : (N,) Plummer-equivalent length in kpc.
    opening_angle : a node is taken whole if its radius is below this times its distance from the
        nearest edge of the group. 0.6 gives a median relative force error of 2e-3.
    leaf_size : a node with this many particles or fewer is not divided.
    """

    def __init__(self, positions, masses, softening, opening_angle=0.6, leaf_size=32):
        low, scale = _cube(positions)
        keys = _morton_keys(positions, low, scale)
        self._order = np.argsort(keys, kind="stable")
        self._x = positions[self._order]
        self._m = masses[self._order]
        self._e2 = (softening**2)[self._order]
        self._start, self._stop, self._next, self._is_leaf = _build(keys[self._order], leaf_size)
        self._moments = _node_moments(self._x, self._m, self._e2, self._start, self._stop)
        self._opening_angle = opening_angle

    def accelerations(self, group_size=64):
        """Forces of all particles on each other.

        Returns
        -------
        acceleration : (N, 3) in kpc/Myr^2.
        potential : (N,) in (kpc/Myr)^2, without the particle's own.
        """
        groups = _groups(self._start, self._stop, self._next, self._is_leaf, group_size)
        field = self._walk(self._x, self._e2, self._start[groups], self._stop[groups])
        # A particle is among its own sources: no force, but a potential to be taken out again.
        field[:, 3] += self._m / np.sqrt(self._e2)
        out = np.empty_like(field)
        out[self._order] = G * field
        return out[:, :3], out[:, 3]

    def field_at(self, points, softening, group_size=64):
        """Acceleration (P, 3) and potential (P,) at other points (P, 3); softening (P,) in kpc."""
        low, scale = _cube(points)
        keys = _morton_keys(points, low, scale)
        order = np.argsort(keys, kind="stable")
        start, stop, _, is_leaf = _build(keys[order], group_size)
        field = self._walk(points[order], (softening**2)[order], start[is_leaf], stop[is_leaf])
        out = np.empty_like(field)
        out[order] = G * field
        return out[:, :3], out[:, 3]

    def _walk(self, targets, targets_e2, group_start, group_stop):
        field = _walk(
            targets, targets_e2, group_start, group_stop, self._x, self._m, self._e2,
            self._start, self._stop, self._next, self._is_leaf, self._moments,
            self._opening_angle, 8 * numba.get_num_threads(),
        )
        return field.astype(np.float64)


def direct(points, points_softening, positions, masses, softening):
    """Acceleration (P, 3) and potential (P,) at points by summing over all pairs, in double precision."""
    field = G * _direct(points, points_softening, positions, masses, softening)
    return field[:, :3], field[:, 3]


def _cube(positions):
    """Corner and scale that map the positions onto the integer grid of the Morton keys."""
    low = positions.min(axis=0)
    extent = max(float((positions.max(axis=0) - low).max()), 1e-12)
    return low, (2**_LEVELS - 1) / (extent * 1.0001)


@njit(cache=True)
def _morton_keys(x, low, scale):
    keys = np.empty(len(x), np.uint64)
    for i in range(len(x)):
        key = np.uint64(0)
        for axis in range(3):
            v = np.uint64((x[i, axis] - low[axis]) * scale)
            # Spread the 21 bits two places apart.
            v = (v | (v << np.uint64(32))) & np.uint64(0x1F00000000FFFF)
            v = (v | (v << np.uint64(16))) & np.uint64(0x1F0000FF0000FF)
            v = (v | (v << np.uint64(8))) & np.uint64(0x100F00F00F00F00F)
            v = (v | (v << np.uint64(4))) & np.uint64(0x10C30C30C30C30C3)
            v = (v | (v << np.uint64(2))) & np.uint64(0x1249249249249249)
            key |= v << np.uint64(2 - axis)
        keys[i] = key
    return keys


@njit(cache=True)
def _build(keys, leaf_size):
    """Nodes in depth-first order: range of particles, the node after the whole subtree, leaf or not."""
    n = len(keys)
    capacity = 4096 + n + 4 * n // leaf_size
    start = np.empty(capacity, np.int32)
    stop = np.empty(capacity, np.int32)
    is_leaf = np.empty(capacity, np.bool_)
    stack = np.empty((8 * _LEVELS + 8, 3), np.int32)
    stack[0] = (0, n, 0)
    depth, n_nodes = 1, 0
    while depth > 0:
        depth -= 1
        a, b, level = stack[depth]
        start[n_nodes], stop[n_nodes] = a, b
        is_leaf[n_nodes] = b - a <= leaf_size or level >= _LEVELS - 1
        if not is_leaf[n_nodes]:
            shift = np.uint64(3 * (_LEVELS - 1 - level))
            end = b
            for octant in range(7, -1, -1):  # pushed last to first, so popped first to last
                low, high = a, end
                while low < high:
                    middle = (low + high) >> 1
                    if np.int64((keys[middle] >> shift) & np.uint64(7)) < octant:
                        low = middle + 1
                    else:
                        high = middle
                if low < end:
                    stack[depth] = (low, end, level + 1)
                    depth += 1
                end = low
        n_nodes += 1
    after = np.empty(n_nodes, np.int32)
    for i in range(n_nodes - 1, -1, -1):
        j = i + 1
        while not is_leaf[i] and j < n_nodes and start[j] < stop[i]:
            j = after[j]
        after[i] = j
    return start[:n_nodes].copy(), stop[:n_nodes].copy(), after, is_leaf[:n_nodes].copy()


@njit(parallel=True, cache=True)
def _node_moments(x, m, e2, start, stop):
    """Per node: mass, centre of mass (3), mean softening^2, radius about the centre."""
    moments = np.empty((len(start), 6))
    for i in prange(len(start)):
        mass, cx, cy, cz, soft = 0.0, 0.0, 0.0, 0.0, 0.0
        x0, y0, z0 = np.inf, np.inf, np.inf
        x1, y1, z1 = -np.inf, -np.inf, -np.inf
        for j in range(start[i], stop[i]):
            mass += m[j]
            cx += m[j] * x[j, 0]
            cy += m[j] * x[j, 1]
            cz += m[j] * x[j, 2]
            soft += m[j] * e2[j]
            x0, x1 = min(x0, x[j, 0]), max(x1, x[j, 0])
            y0, y1 = min(y0, x[j, 1]), max(y1, x[j, 1])
            z0, z1 = min(z0, x[j, 2]), max(z1, x[j, 2])
        cx, cy, cz, soft = cx / mass, cy / mass, cz / mass, soft / mass
        radius2 = max(cx - x0, x1 - cx) ** 2 + max(cy - y0, y1 - cy) ** 2 + max(cz - z0, z1 - cz) ** 2
        moments[i, 0], moments[i, 1], moments[i, 2], moments[i, 3] = mass, cx, cy, cz
        moments[i, 4], moments[i, 5] = soft, np.sqrt(radius2)
    return moments


@njit(cache=True)
def _groups(start, stop, after, is_leaf, group_size):
    """The largest nodes of at most group_size particles."""
    groups = np.empty(len(start), np.int32)
    n, i = 0, 0
    while i < len(start):
        if is_leaf[i] or stop[i] - start[i] <= group_size:
            groups[n] = i
            n += 1
            i = after[i]
        else:
            i += 1
    return groups[:n].copy()


@njit(fastmath=True, inline="always")
def _sum_sources(px, py, pz, half_e2, source, n):
    ax, ay, az, phi = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for j in range(n):
        dx, dy, dz = source[0, j] - px, source[1, j] - py, source[2, j] - pz
        inverse = np.float32(1) / np.sqrt(dx * dx + dy * dy + dz * dz + source[4, j] + half_e2)
        weight = source[3, j] * inverse
        phi -= weight
        weight *= inverse * inverse
        ax += weight * dx
        ay += weight * dy
        az += weight * dz
    return ax, ay, az, phi


@njit(parallel=True, fastmath=True, cache=True)
def _walk(targets, targets_e2, group_start, group_stop, x, m, e2, start, stop, after, is_leaf,
          moments, opening_angle, n_tasks):
    field = np.zeros((len(targets), 4), np.float32)
    for task in prange(n_tasks):
        cells = np.empty((5, _MAX_CELLS), np.float32)
        sources = np.empty((5, _MAX_SOURCES), np.float32)
        for group in range(task, len(group_start), n_tasks):
            a, b = group_start[group], group_stop[group]
            x0, y0, z0 = np.inf, np.inf, np.inf
            x1, y1, z1 = -np.inf, -np.inf, -np.inf
            for j in range(a, b):
                x0, x1 = min(x0, targets[j, 0]), max(x1, targets[j, 0])
                y0, y1 = min(y0, targets[j, 1]), max(y1, targets[j, 1])
                z0, z1 = min(z0, targets[j, 2]), max(z1, targets[j, 2])
            gx, gy, gz = 0.5 * (x0 + x1), 0.5 * (y0 + y1), 0.5 * (z0 + z1)
            hx, hy, hz = 0.5 * (x1 - x0), 0.5 * (y1 - y0), 0.5 * (z1 - z0)
            n_cells, n_sources, node = 0, 0, 0
            while True:
                done = node >= len(start)
                if done or n_cells >= _MAX_CELLS - 1 or n_sources >= _MAX_SOURCES - 512:
                    for j in range(a, b):
                        px = np.float32(targets[j, 0] - gx)
                        py = np.float32(targets[j, 1] - gy)
                        pz = np.float32(targets[j, 2] - gz)
                        half_e2 = np.float32(0.5 * targets_e2[j])
                        far = _sum_sources(px, py, pz, half_e2, cells, n_cells)
                        near = _sum_sources(px, py, pz, half_e2, sources, n_sources)
                        for k in range(4):
                            field[j, k] += far[k] + near[k]
                    n_cells, n_sources = 0, 0
                    if done:
                        break
                dx, dy, dz = moments[node, 1] - gx, moments[node, 2] - gy, moments[node, 3] - gz
                ex, ey, ez = max(0.0, abs(dx) - hx), max(0.0, abs(dy) - hy), max(0.0, abs(dz) - hz)
                gap2 = ex * ex + ey * ey + ez * ez
                radius = moments[node, 5]
                if gap2 * opening_angle * opening_angle > radius * radius and gap2 > 0.0:
                    cells[0, n_cells], cells[1, n_cells], cells[2, n_cells] = dx, dy, dz
                    cells[3, n_cells] = moments[node, 0]
                    cells[4, n_cells] = 0.5 * moments[node, 4]
                    n_cells += 1
                    node = after[node]
                elif is_leaf[node]:
                    for j in range(start[node], stop[node]):
                        if n_sources >= _MAX_SOURCES:  # only coincident particles fill a leaf so
                            break
                        sources[0, n_sources] = x[j, 0] - gx
                        sources[1, n_sources] = x[j, 1] - gy
                        sources[2, n_sources] = x[j, 2] - gz
                        sources[3, n_sources] = m[j]
                        sources[4, n_sources] = 0.5 * e2[j]
                        n_sources += 1
                    node = after[node]
                else:
                    node += 1
    return field


@njit(parallel=True, cache=True)
def _direct(points, points_softening, x, m, softening):
    field = np.zeros((len(points), 4))
    for i in prange(len(points)):
        for j in range(len(x)):
            dx, dy, dz = x[j, 0] - points[i, 0], x[j, 1] - points[i, 1], x[j, 2] - points[i, 2]
            e2 = 0.5 * (points_softening[i] ** 2 + softening[j] ** 2)
            r2 = dx * dx + dy * dy + dz * dz
            inverse = 1.0 / np.sqrt(r2 + e2)
            if r2 > 0.0:
                field[i, 3] -= m[j] * inverse
            weight = m[j] * inverse**3
            field[i, 0] += weight * dx
            field[i, 1] += weight * dy
            field[i, 2] += weight * dz
    return field
