"""The tables, drawn with rich from a record: nothing in them is typed by hand.

One table a family. Columns are the peers' medians; beside them the best peer, how many times manycore
is ahead of it and of the standard library (each of its faces, in the order of their columns), and
the goal. "no": not offered; "fails": an exception; "crashes": the process died; "hangs": killed at its
bound; empty: not asked.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from benchmarks.machine import LIMIT_TITLES
from benchmarks.summary import Cell, Row, reaches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from benchmarks.peers.base import Peer

BUSY = 0.5  # load average a core above which a note says that the machine was not calm
TITLES = {"pool": "Pools", "process": "Processes", "primitive": "Communication and synchronisation"}


def figure(value: float) -> str:
    """Returns a figure with three significant digits, and thousands apart."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def times(value: float) -> str:
    """Returns a ratio as people read it."""
    return f"{value:,.0f}x" if value >= 100 else f"{value:.2g}x" if value >= 10 else f"{value:.1f}x"


def head(record: dict[str, Any]) -> list[str]:
    """Returns the lines above the tables: the machine, its load, what ran."""
    machine, settings = record["machine"], record["settings"]
    loads = [measurement["load"] for measurement in record["measurements"]] or [machine["load"]]
    lines = [
        "{cores} cores of {cpu}, {memory_gb} GB, Linux {kernel}, {python}".format(**machine),
        f"{settings['workers']} workers, {settings['rounds']} rounds interleaved, medians"
        + (", quick (smallest sizes: a smoke test, not a measurement)" if settings["quick"] else "")
        + f"; load average {min(loads):.2f} to {max(loads):.2f}",
        "; ".join(f"{name} {version}" for name, version in record["versions"].items()),
    ]
    if median(loads) > BUSY * machine["cores"]:
        lines.append("The machine was busy with other work: read the ratios, not the absolute figures.")
    return lines


def _limits_table(limits: Sequence[dict[str, float]]) -> Table:
    table = Table(title="Limits of this machine", title_justify="left")
    table.add_column("limit")
    table.add_column("median", justify="right")
    table.add_column("range", justify="right")
    for key, (title, unit) in LIMIT_TITLES.items():
        values = [one[key] for one in limits if key in one]
        if values:
            spread = f"{figure(min(values))} - {figure(max(values))}"
            table.add_row(title, f"{figure(median(values))} {unit}", spread)
    return table


def _cell_text(cell: Cell, row: Row, *, subject: bool) -> Text:
    if cell.value is None:
        return Text(cell.status, style="red" if cell.status in ("hangs", "crashes", "fails") else "dim")
    style = ""
    if subject and row.measure.goal is not None:
        style = "green" if reaches(cell.value, row.measure) else "yellow"
    return Text(figure(cell.value), style=style)


def _family_table(family: str, table_rows: Sequence[Row], peers: Sequence[Peer]) -> Table:
    table = Table(title=TITLES[family], title_justify="left")
    table.add_column("work")
    table.add_column("unit")
    for peer in peers:
        table.add_column(peer.name.replace(".", ".\n"), justify="right")
    table.add_column("best peer")
    table.add_column("over best", justify="right")
    table.add_column("over standard", justify="right")
    table.add_column("goal", justify="right")
    last = ""
    for row in table_rows:
        if last and row.workload.name != last:
            table.add_section()
        last = row.workload.name
        goal = ""
        if row.measure.goal is not None:
            goal = ("\u2265 " if row.measure.better == "higher" else "\u2264 ") + figure(row.measure.goal)
        table.add_row(
            row.measure.title,
            row.measure.unit,
            *(_cell_text(row.cells[peer.name], row, subject=peer.role == "subject") for peer in peers),
            row.best,
            " / ".join(times(value) for value in row.over_best.values()),
            " / ".join(times(value) for value in row.over_standard.values()),
            goal,
        )
    return table


def show(record: dict[str, Any], table_rows: Sequence[Row], peers: Sequence[Peer], console: Console) -> None:
    """Prints the whole report of a run."""
    for line in head(record):
        console.print(line, soft_wrap=True, highlight=False)
    if any(record["limits"]):
        console.print(_limits_table(record["limits"]))
    for family in TITLES:
        of_family = [row for row in table_rows if row.workload.family == family]
        if of_family:
            taking_part = [peer for peer in peers if family in peer.families]
            console.print(_family_table(family, of_family, taking_part))
    for line in notes(record):
        console.print(line, soft_wrap=True, highlight=False)


def notes(record: dict[str, Any]) -> list[str]:
    """Returns a line for each peer and workload that did not yield figures, with the last line of why."""
    seen: dict[tuple[str, str], str] = {}
    for measurement in record["measurements"]:
        if measurement["status"] not in ("ok", "no"):
            why = (measurement["detail"].strip().splitlines() or [""])[-1][:160]
            seen[measurement["workload"], measurement["peer"]] = f"{measurement['status']}: {why}"
    return [f"{peer}, {workload}: {why}" for (workload, peer), why in seen.items()]
