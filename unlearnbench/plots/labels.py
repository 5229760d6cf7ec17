"""Place names beside points so that none covers another name, a marker or a leader line.

The search is deterministic, and leaves out a name rather than let it overlap; the caller then writes a number.
adjustText moves all names until time is up and keeps those that still overlap: with the 54 rows of one table of this
project's results, 53 pairs of names overlapped and 5 names lay outside the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DISTANCES = (1.5, 4.0, 8.0, 13.0, 19.0, 26.0, 34.0, 43.0, 54.0)
"""From a marker's edge to its name, in points."""
NEAR = 3.0
"""Distance up to which no leader line is drawn."""
ANGLES = 24
GAP = 1.0
"""Free space around a name."""
OVER_BAR, OVER_MARKER, BESIDE = 6.0, 9.0, 5.0
"""Cost, in points of distance, of lying on an error bar, leading across a marker, or lying next to another marker."""
WORST = 45.0
"""Highest cost of a place."""
PASSES = 3
Box = tuple[float, float, float, float]
"""Left, bottom, right, top in points; for a line its ends."""


class Place(NamedTuple):
    """The place of a name."""

    box: Box
    leader: Box | None
    """The line from the marker to the name, where these are apart."""


class _Options(NamedTuple):
    """C candidate places for one name."""

    boxes: np.ndarray
    """(C, 4)"""
    leaders: np.ndarray
    """(C, 4), leader lines."""
    costs: np.ndarray
    """(C,), infinite for impossible places."""
    beside: np.ndarray
    """(C,), whether it is near another marker."""


class LabelArea:
    """A plot's area with its markers and the names placed so far."""

    def __init__(self, area: Box, points: np.ndarray, radii: np.ndarray, bars: np.ndarray, blocked: Sequence[Box] = ()):
        """`points` (N, 2) and `radii` (N,) of markers, `bars` (M, 4) lines that names should avoid."""
        self.area, self.points, self.radii, self.bars, self.blocked = area, points, radii, bars, blocked
        self.markers = np.column_stack([points - radii[:, None], points + radii[:, None]])
        self.placed: dict[int, Place] = {}

    def place(self, sizes: Sequence[tuple[float, float] | None]) -> dict[int, Place]:
        """Find places for names of these widths and heights, by index; names without room, and None, are left out.

        The most crowded names come first. Then each may move to a better place, and names without one are tried again.
        """
        apart = np.linalg.norm(self.points[:, None] - self.points[None], axis=2)
        crowd = (apart < 30).sum(axis=1)
        options = {i: self._options(i, *size) for i, size in enumerate(sizes) if size}
        order = sorted(options, key=lambda i: (crowd[i], i))
        for _ in range(PASSES):
            for i in order:
                self.placed.pop(i, None)
                found = self._best(i, options[i])
                if found:
                    self.placed[i] = found
        return {i: self.placed[i] for i in order if i in self.placed}

    def _best(self, i: int, options: _Options) -> Place | None:
        """The cheapest place that does not cover or cross anything placed before."""
        boxes, leaders, cost, beside = options
        names = np.array([place.box for place in self.placed.values()]).reshape(-1, 4)
        drawn = np.array([place.leader for place in self.placed.values() if place.leader]).reshape(-1, 4)
        bad = overlap(boxes, names).any(axis=1) | _cut(drawn, boxes).any(axis=0)
        bad |= _cut(leaders, names).any(axis=1) | _cross(leaders, drawn).any(axis=1)
        cost = np.where(bad, np.inf, cost)
        best = int(np.argmin(cost))
        if cost[best] > WORST:
            return None
        led = beside[best] or np.hypot(*(leaders[best, 2:] - leaders[best, :2])) > NEAR
        box, leader = tuple(map(float, boxes[best])), tuple(map(float, leaders[best]))
        return Place(box, leader if led else None)  # type: ignore[arg-type]

    def _options(self, i: int, width: float, height: float) -> _Options:
        """The places that are possible if no other name is placed."""
        boxes, leaders, cost = self._candidates(i, width, height)
        blocked, rest = np.array(self.blocked).reshape(-1, 4), np.delete(self.markers, i, axis=0)
        left, bottom, right, top = self.area
        bad = (boxes[:, 0] < left) | (boxes[:, 1] < bottom) | (boxes[:, 2] > right) | (boxes[:, 3] > top)
        bad |= overlap(boxes, np.vstack([blocked, self.markers])).any(axis=1) | _cut(leaders, blocked).any(axis=1)
        beside = overlap(boxes, rest + np.array([-NEAR, -NEAR, NEAR, NEAR])).sum(axis=1)
        cost = cost + OVER_BAR * _cut(self.bars, boxes).sum(axis=0) + OVER_MARKER * _cut(leaders, rest).sum(axis=1)
        return _Options(boxes, leaders, np.where(bad, np.inf, cost + BESIDE * beside), beside > 0)

    def _candidates(self, i: int, width: float, height: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (C, 4), leader lines (C, 4) and costs (C,): to the right first, then all around."""
        turn = 2 * np.pi * np.arange(ANGLES) / ANGLES
        around = np.column_stack([np.cos(turn), np.sin(turn)])
        near = np.repeat(DISTANCES, ANGLES)
        way = np.tile(around, (len(DISTANCES), 1))
        start = self.points[i] + self.radii[i] * way
        end = start + near[:, None] * way
        half = np.array([width, height]) / 2
        centre = end + way * half
        boxes = np.column_stack([centre - half - GAP / 2, centre + half + GAP / 2])
        return boxes, np.column_stack([start, end]), near + 0.3 * (1 - way[:, 0])


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether boxes (N, 4) overlap others (M, 4): (N, M)."""
    a, b = one[:, None], other[None]
    return (a[..., 0] < b[..., 2]) & (b[..., 0] < a[..., 2]) & (a[..., 1] < b[..., 3]) & (b[..., 1] < a[..., 3])


def _cut(lines: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether lines (N, 4) cross boxes (M, 4), by Liang-Barsky clipping: (N, M)."""
    start, step = lines[:, None, :2], (lines[:, 2:] - lines[:, :2])[:, None]
    safe = np.where(step == 0, 1e-9, step)
    one, other = (boxes[None, :, :2] - start) / safe, (boxes[None, :, 2:] - start) / safe
    enters = np.minimum(one, other).max(axis=2).clip(min=0)
    leaves = np.maximum(one, other).min(axis=2).clip(max=1)
    return enters < leaves


def _cross(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether lines (N, 4) cross others (M, 4): (N, M)."""

    def side(line: np.ndarray, point: np.ndarray) -> np.ndarray:
        along, to = line[..., 2:] - line[..., :2], point - line[..., :2]
        return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]

    a, b = one[:, None], other[None]
    return (side(a, b[..., :2]) * side(a, b[..., 2:]) < 0) & (side(b, a[..., :2]) * side(b, a[..., 2:]) < 0)
