"""`manycore doctor`: look at the machine, and say what each finding means."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

import manycore
from manycore._cli.checks import Finding, examine
from manycore._cli.exits import FAILED

__all__ = ["command"]

# status -> the mark and its style; the mark alone says it where there is no colour
_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "fail": ("FAIL", "bold red")}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Write the findings as one JSON object.")
def command(*, as_json: bool) -> None:
    """Check this machine, and say what each finding means for you.

    The exit status is 0 where manycore works, and 1 where it cannot.
    """
    findings = examine()
    failures = [finding for finding in findings if finding.status == "fail"]
    if as_json:
        report = {
            "version": manycore.__version__,
            "ok": not failures,
            "findings": [asdict(finding) for finding in findings],
        }
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        # Into a pipe or a file lines need not be short.
        console = Console(highlight=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = 120
        console.print(_table(findings))
        console.print(_verdict(findings, failures), soft_wrap=True)
    if failures:
        raise click.exceptions.Exit(FAILED)


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("Looked at", no_wrap=True)
    table.add_column("Found", overflow="fold", max_width=34)
    table.add_column("What it means for you", overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.status]
        table.add_row(Text(mark, style), Text(finding.name), Text(finding.value), Text(finding.meaning))
    return table


def _verdict(findings: list[Finding], failures: list[Finding]) -> Text:
    if failures:
        names = ", ".join(finding.name for finding in failures)
        return Text(f"manycore cannot work here: {names}", "bold red")
    notes = sum(finding.status == "note" for finding in findings)
    rest = (
        "" if not notes else f" {notes} note{'s' if notes > 1 else ''} above deserve{'' if notes > 1 else 's'} a look."
    )
    return Text(f"manycore works here.{rest}", "bold green")
