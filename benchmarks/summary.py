"""Medians and ratios: from a record of measurements to the rows of the tables. No process, no output.

A ratio says how many times better the subject is than another, whichever direction is better: above 1
is ahead. It is a ratio of medians over rounds that were interleaved.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.base import Peer
    from benchmarks.spec import Measure, Workload


class Cell(NamedTuple):
    """What one peer reached in one measure.

    Attributes:
        value: Median over the rounds that succeeded; None if there was none.
        low: Smallest of them.
        high: Largest of them.
        status: "ok", or what happened instead; empty where the peer was not asked.
    """

    value: float | None
    low: float | None
    high: float | None
    status: str


class Row(NamedTuple):
    """One measure of one workload, for all peers.

    Attributes:
        workload: The workload.
        measure: The measure.
        cells: By the peer's name.
        best: Name of the best peer that is not the subject; empty if there is none.
        over_best: Ratio over that peer, by the subject's name.
        over_standard: Ratio over the better of the standard library's, by the subject's name.
    """

    workload: Workload
    measure: Measure
    cells: dict[str, Cell]
    best: str
    over_best: dict[str, float]
    over_standard: dict[str, float]


def rows(workloads: Sequence[Workload], peers: Sequence[Peer], measurements: Sequence[dict[str, Any]]) -> list[Row]:
    """Summarises measurements into one row a measure."""
    return [
        _row(workload, measure, [peer for peer in peers if workload.family in peer.families], measurements)
        for workload in workloads
        for measure in workload.measures
    ]


def _row(workload: Workload, measure: Measure, peers: Sequence[Peer], measurements: Sequence[dict[str, Any]]) -> Row:
    cells = {peer.name: _cell(workload.name, measure.key, peer.name, measurements) for peer in peers}
    known = {name: cell.value for name, cell in cells.items() if cell.value is not None}
    roles = {peer.name: peer.role for peer in peers}
    subjects = [name for name in known if roles[name] == "subject"]
    rivals = [name for name in known if roles[name] != "subject"]
    standard = [name for name in rivals if roles[name] == "standard"]
    if not measure.rival:
        return Row(workload, measure, cells, "", {}, {})
    best = _best(rivals, known, measure)
    best_standard = _best(standard, known, measure)
    return Row(
        workload,
        measure,
        cells,
        best,
        {name: ratio(known[name], known[best], measure) for name in subjects} if best else {},
        {name: ratio(known[name], known[best_standard], measure) for name in subjects} if best_standard else {},
    )


def _cell(workload: str, key: str, peer: str, measurements: Sequence[dict[str, Any]]) -> Cell:
    asked = [m for m in measurements if m["workload"] == workload and m["peer"] == peer]
    values = [m["values"][key] for m in asked if m["status"] == "ok" and key in m["values"]]
    if values:
        return Cell(median(values), min(values), max(values), "ok")
    if not asked:
        return Cell(None, None, None, "")
    status = asked[-1]["status"]
    return Cell(None, None, None, "no" if status == "ok" else status)


def _best(names: Sequence[str], known: dict[str, float], measure: Measure) -> str:
    if not names:
        return ""
    choose = max if measure.better == "higher" else min
    return choose(names, key=lambda name: known[name])


def ratio(ours: float, theirs: float, measure: Measure) -> float:
    """Returns how many times better `ours` is than `theirs`; above 1 is ahead."""
    better, worse = (ours, theirs) if measure.better == "higher" else (theirs, ours)
    if worse == 0:
        return float("inf") if better > 0 else 1.0
    return better / worse


def reaches(value: float, measure: Measure) -> bool:
    """Whether a value reaches the measure's goal (which must be there)."""
    if measure.goal is None:
        raise ValueError(f"{measure.key} has no goal")
    return value >= measure.goal if measure.better == "higher" else value <= measure.goal


def as_data(table: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the rows as plain data, for the JSON file."""
    return [
        {
            "workload": row.workload.name,
            "measure": row.measure.key,
            "title": row.measure.title,
            "unit": row.measure.unit,
            "better": row.measure.better,
            "goal": row.measure.goal,
            "medians": {name: cell.value for name, cell in row.cells.items() if cell.value is not None},
            "spread": {name: [cell.low, cell.high] for name, cell in row.cells.items() if cell.value is not None},
            "without": {name: cell.status for name, cell in row.cells.items() if cell.status not in ("ok", "")},
            "best": row.best,
            "over_best": row.over_best,
            "over_standard": row.over_standard,
        }
        for row in table
    ]
