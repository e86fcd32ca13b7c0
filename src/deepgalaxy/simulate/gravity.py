"""Self-gravity: a group-walk Barnes-Hut tree.

Particles are sorted along a Morton curve; a node is a range of that order. The tree is walked once
per group of neighbouring particles (Barnes 1990, J. Comput. Phys. 87, 161), which leaves long lists
of sources that the inner loop takes in single precision, in coordinates centred on the group, so
that the compiler vectorises it. A node that is far enough is taken with its quadrupole. Forces are
Plummer-softened with softening_ij^2 = (softening_i^2 + softening_j^2) / 2.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, prange

from ..units import G

__all__ = ["Tree", "direct", "along_curve", "build_nodes", "group_ranges"]

_LEVELS = 21  # bits per axis of a Morton key
_POINT_ANGLE = 0.5  # times the opening angle: what looks smaller is a point
_N_CELL = 12  # numbers that describe a node
# Lengths of the interaction lists before they are worked off: what fits the first-level cache.
_MAX_CELLS, _MAX_SOURCES, _MAX_LEAF = 512, 1024, 256


class Tree:
    """Particles arranged for fast forces.

    Parameters
    ----------
    positions : (N, 3) in kpc.
    masses : (N,) in Msun.
    softening : (N,) Plummer-equivalent length in kpc.
    opening_angle : a node is taken whole if its radius is below this times its distance from the
        nearest edge of the group. 1.0 gives a median relative force error of 2.7e-3, 0.8 one of 1.3e-3.
    leaf_size : a node with this many particles or fewer is not divided.
    """

    def __init__(self, positions, masses, softening, opening_angle=0.95, leaf_size=16):
        self._origin, keys, self._order = along_curve(positions)
        self._nodes = build_nodes(keys, leaf_size)
        x, self._m, self._e2 = positions[self._order] - self._origin, masses[self._order], softening[self._order] ** 2
        self._cells, self._reach = _moments(x, self._m, self._e2, *self._nodes)
        # Single precision: 1e-5 kpc at 200 kpc, far below any softening.
        self._x = x.astype(np.float32)
        self._particles = np.empty((5, len(x)), np.float32)
        self._particles[:3], self._particles[3], self._particles[4] = self._x.T, self._m, 0.5 * self._e2
        self._opening_angle = opening_angle

    def accelerations(self, group_size=64):
        """Forces of all particles on each other.

        Returns
        -------
        acceleration : (N, 3) in kpc/Myr^2.
        potential : (N,) in (kpc/Myr)^2, without the particle's own.
        """
        field = self._walk(self._x, self._e2, group_ranges(*self._nodes, group_size))
        # A particle is among its own sources: no force, but a potential to be taken out again.
        field[:, 3] += self._m / np.sqrt(self._e2)
        out = np.empty_like(field)
        out[self._order] = G * field
        return np.ascontiguousarray(out[:, :3]), out[:, 3]

    def field_at(self, points, softening, group_size=64):
        """Acceleration (P, 3) and potential (P,) at other points (P, 3); softening (P,) in kpc."""
        _, keys, order = along_curve(points)
        groups = group_ranges(*build_nodes(keys, group_size), group_size)
        field = self._walk((points[order] - self._origin).astype(np.float32), (softening**2)[order], groups)
        out = np.empty_like(field)
        out[order] = G * field
        return out[:, :3], out[:, 3]

    def _walk(self, targets, targets_e2, groups):
        field = _walk(targets, targets_e2.astype(np.float32), *groups, self._particles, self._cells, self._reach,
                      self._opening_angle, *self._nodes, 8 * numba.get_num_threads())
        return field.astype(np.float64)


def direct(points, points_softening, positions, masses, softening):
    """Acceleration (P, 3) and potential (P,) at points by summing over all pairs, in double precision."""
    field = G * _direct(points, points_softening, positions, masses, softening)
    return field[:, :3], field[:, 3]


def along_curve(positions):
    """Middle (3,) of the positions, their Morton keys in increasing order, and the order (N,) that sorts them so."""
    low, high = _corners(positions)
    extent = max(float((high - low).max()), 1e-12)
    keys = _morton_keys(positions, low, (2**_LEVELS - 1) / (extent * 1.0001))
    order = np.argsort(keys, kind="stable")
    return 0.5 * (low + high), keys[order], order


@njit(cache=True)
def _corners(x):
    low, high = x[0].copy(), x[0].copy()
    for i in range(len(x)):
        for axis in range(3):
            low[axis], high[axis] = min(low[axis], x[i, axis]), max(high[axis], x[i, axis])
    return low, high


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
def build_nodes(keys, leaf_size):
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


@njit(cache=True)
def _moments(x, m, e2, start, stop, after, is_leaf):
    """What a node does to those who are far from it, and how far that is.

    Returns
    -------
    cells : float32 (12, n_nodes), rows as `_sum_cells` wants them.
    reach : float32 (n_nodes, 4), centre of mass, and radius^2 about it.
    """
    cells, reach = np.empty((_N_CELL, len(start)), np.float32), np.empty((len(start), 4), np.float32)
    raw = np.empty((len(start), 11))  # mass, its sums with x, y, z, softening^2 and xx, yy, zz, xy, xz, yz
    box, softening2 = np.empty((len(start), 6)), np.empty((len(start), 2))  # lowest and highest
    for i in range(len(start) - 1, -1, -1):  # children stand behind their parents
        r, b, s = raw[i], box[i], softening2[i]
        r[:], b[:3], b[3:], s[0], s[1] = 0.0, np.inf, -np.inf, np.inf, -np.inf
        if is_leaf[i]:
            for j in range(start[i], stop[i]):
                u, v, w = x[j, 0], x[j, 1], x[j, 2]
                r[0] += m[j]
                r[1] += m[j] * u
                r[2] += m[j] * v
                r[3] += m[j] * w
                r[4] += m[j] * e2[j]
                r[5] += m[j] * u * u
                r[6] += m[j] * v * v
                r[7] += m[j] * w * w
                r[8] += m[j] * u * v
                r[9] += m[j] * u * w
                r[10] += m[j] * v * w
                for k in range(3):
                    b[k], b[3 + k] = min(b[k], x[j, k]), max(b[3 + k], x[j, k])
                s[0], s[1] = min(s[0], e2[j]), max(s[1], e2[j])
        else:
            child = i + 1
            while child < len(start) and start[child] < stop[i]:
                for k in range(11):
                    r[k] += raw[child, k]
                for k in range(3):
                    b[k], b[3 + k] = min(b[k], box[child, k]), max(b[3 + k], box[child, 3 + k])
                s[0], s[1] = min(s[0], softening2[child, 0]), max(s[1], softening2[child, 1])
                child = after[child]
        cx, cy, cz = r[1] / r[0], r[2] / r[0], r[3] / r[0]
        # Second moments about the centre of mass, times 3.
        xx, yy, zz = 3 * (r[5] - r[1] * cx), 3 * (r[6] - r[2] * cy), 3 * (r[7] - r[3] * cz)
        xy, xz, yz = 3 * (r[8] - r[1] * cy), 3 * (r[9] - r[1] * cz), 3 * (r[10] - r[2] * cz)
        cells[0, i], cells[1, i], cells[2, i], cells[3, i] = cx, cy, cz, r[0]
        cells[4, i], cells[5, i] = 0.5 * r[4] / r[0], 0.5 * (xx + yy + zz)
        cells[6, i], cells[7, i], cells[8, i] = xx, yy, zz
        cells[9, i], cells[10, i], cells[11, i] = xy, xz, yz
        reach[i, 0], reach[i, 1], reach[i, 2] = cx, cy, cz
        reach[i, 3] = (max(cx - b[0], b[3] - cx) ** 2 + max(cy - b[1], b[4] - cy) ** 2
                       + max(cz - b[2], b[5] - cz) ** 2 + (s[1] - s[0]) + 1e-30)
    return cells, reach


@njit(cache=True)
def group_ranges(start, stop, after, is_leaf, group_size):
    """Ranges of particles: neighbouring children of one node, together at most group_size unless a single leaf."""
    first, last = np.empty(len(start), np.int32), np.empty(len(start), np.int32)
    n = 0
    if is_leaf[0] or stop[0] <= group_size:
        first[0], last[0], n = start[0], stop[0], 1
    for i in range(len(start)):
        if is_leaf[i] or stop[i] - start[i] <= group_size:
            continue
        open_from, child = -1, i + 1
        while child < len(start) and start[child] < stop[i]:
            whole = is_leaf[child] or stop[child] - start[child] <= group_size
            if open_from >= 0 and (not whole or stop[child] - open_from > group_size):
                first[n], last[n] = open_from, start[child]
                n, open_from = n + 1, -1
            if whole and open_from < 0:
                open_from = start[child]
            child = after[child]
        if open_from >= 0:
            first[n], last[n] = open_from, stop[i]
            n += 1
    return first[:n].copy(), last[:n].copy()


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


@njit(fastmath=True, inline="always")
def _sum_cells(px, py, pz, half_e2, cell, n):
    """Monopole and quadrupole of softened nodes: with D^2 = r^2 + softening^2 and second moments S about the
    centre of mass, potential = -M/D - 3/2 r.S.r / D^5 + 1/2 tr S / D^3. Rows of a cell: x, y, z, M,
    softening^2 / 2, 3/2 tr S, then 3 S as xx, yy, zz, xy, xz, yz."""
    ax, ay, az, phi = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    third, half, five_halves = np.float32(1 / 3), np.float32(0.5), np.float32(2.5)
    for j in range(n):
        dx, dy, dz = cell[0, j] - px, cell[1, j] - py, cell[2, j] - pz
        inverse = np.float32(1) / np.sqrt(dx * dx + dy * dy + dz * dz + cell[4, j] + half_e2)
        inverse2 = inverse * inverse
        inverse3 = inverse2 * inverse
        sx = cell[6, j] * dx + cell[9, j] * dy + cell[10, j] * dz
        sy = cell[9, j] * dx + cell[7, j] * dy + cell[11, j] * dz
        sz = cell[10, j] * dx + cell[11, j] * dy + cell[8, j] * dz
        along = (sx * dx + sy * dy + sz * dz) * inverse2
        phi -= (cell[3, j] + (half * along - third * cell[5, j]) * inverse2) * inverse
        weight = (cell[3, j] + (five_halves * along - cell[5, j]) * inverse2) * inverse3
        inverse5 = inverse3 * inverse2
        ax += weight * dx - inverse5 * sx
        ay += weight * dy - inverse5 * sy
        az += weight * dz - inverse5 * sz
    return ax, ay, az, phi


@njit(parallel=True, fastmath=True, cache=True)
def _walk(targets, targets_e2, group_start, group_stop, particles, nodes, reach, opening_angle,
          start, stop, after, is_leaf, n_tasks):
    field = np.zeros((len(targets), 4), np.float32)
    angle2, point2 = np.float32(opening_angle**2), np.float32((_POINT_ANGLE * opening_angle) ** 2)
    for task in prange(n_tasks):
        chosen = np.empty(_MAX_CELLS, np.int32)
        cells = np.empty((_N_CELL, _MAX_CELLS), np.float32)
        sources = np.empty((5, _MAX_SOURCES), np.float32)
        for group in range(task, len(group_start), n_tasks):
            a, b = group_start[group], group_stop[group]
            x0, y0, z0 = targets[a, 0], targets[a, 1], targets[a, 2]
            x1, y1, z1 = x0, y0, z0
            for j in range(a, b):
                x0, x1 = min(x0, targets[j, 0]), max(x1, targets[j, 0])
                y0, y1 = min(y0, targets[j, 1]), max(y1, targets[j, 1])
                z0, z1 = min(z0, targets[j, 2]), max(z1, targets[j, 2])
            half = np.float32(0.5)
            gx, gy, gz = half * (x0 + x1), half * (y0 + y1), half * (z0 + z1)
            hx, hy, hz = half * (x1 - x0), half * (y1 - y0), half * (z1 - z0)
            n_cells, n_sources, node = 0, 0, 0
            while True:
                done = node >= len(start)
                if done or n_cells >= _MAX_CELLS - 1 or n_sources >= _MAX_SOURCES - _MAX_LEAF:
                    for k in range(_N_CELL):
                        for j in range(n_cells):
                            cells[k, j] = nodes[k, chosen[j]]
                    for j in range(a, b):
                        px, py, pz, half_e2 = targets[j, 0], targets[j, 1], targets[j, 2], half * targets_e2[j]
                        far = _sum_cells(px, py, pz, half_e2, cells, n_cells)
                        near = _sum_sources(px, py, pz, half_e2, sources, n_sources)
                        for k in range(4):
                            field[j, k] += far[k] + near[k]
                    n_cells, n_sources = 0, 0
                    if done:
                        break
                ex = max(np.float32(0), abs(reach[node, 0] - gx) - hx)
                ey = max(np.float32(0), abs(reach[node, 1] - gy) - hy)
                ez = max(np.float32(0), abs(reach[node, 2] - gz) - hz)
                gap2 = ex * ex + ey * ey + ez * ez
                if gap2 * point2 > reach[node, 3]:
                    for k in range(5):
                        sources[k, n_sources] = nodes[k, node]
                    n_sources += 1
                    node = after[node]
                elif gap2 * angle2 > reach[node, 3]:
                    chosen[n_cells] = node
                    n_cells += 1
                    node = after[node]
                elif is_leaf[node]:
                    n = stop[node] - start[node]
                    if n > _MAX_LEAF:  # coincident particles
                        for j in range(a, b):
                            near = _sum_sources(targets[j, 0], targets[j, 1], targets[j, 2], half * targets_e2[j],
                                                particles[:, start[node]:stop[node]], n)
                            for k in range(4):
                                field[j, k] += near[k]
                        n = 0
                    for k in range(5):
                        for j in range(n):
                            sources[k, n_sources + j] = particles[k, start[node] + j]
                    n_sources += n
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
