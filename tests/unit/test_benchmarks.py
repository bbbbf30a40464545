"""The benchmark runner: what runs when, that nothing outlives its bound, and that figures are told as they are."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import cage, report, runner, summary
from benchmarks.__main__ import choose_peers, choose_workloads, main
from benchmarks.clock import per_second, percentile
from benchmarks.machine import LIMIT_TITLES, Limits, describe
from benchmarks.peers import ALL, BY_NAME
from benchmarks.runner import Executor, Job, Outcome
from benchmarks.spec import Measure, Workload
from benchmarks.workloads import NAMES, load, load_all
from tests.unit import benchmark_probes as probes

STANDARD = BY_NAME["multiprocessing"]
FUTURES = BY_NAME["concurrent.futures"]
HIGHER = Measure("figure", "a figure", "things", "higher", goal=2.0)
LOWER = Measure("figure", "a figure", "us", "lower", goal=10.0)


def outcome(workload: str, peer: str, status: str = "ok", value: float = 1.0, number: int = 0) -> Outcome:
    return Outcome(workload, peer, number, status, {"figure": value} if status == "ok" else {}, 0.1, 0.0, "why")


def execute(workload: Workload) -> Outcome:
    return Executor({workload.name: workload.timeout}, workers=2, quick=True)(Job(workload.name, STANDARD.name, 0))


def gone(pid: int) -> bool:
    """Whether a process is gone or a zombie that waits for its new parent; asked for up to five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)  # between two looks
    return False


# ------------------------------------------------------------------------------------------ what runs when


def test_rounds_are_interleaved_and_no_peer_is_always_first() -> None:
    first, second = (Workload(name, "pool", (HIGHER,), probes._works) for name in ("first", "second"))
    jobs = list(runner.plan([first, second], [STANDARD, FUTURES, BY_NAME["multiprocessing.fork"]], 2))
    assert jobs == [
        Job("first", "multiprocessing", 0),
        Job("first", "concurrent.futures", 0),
        Job("second", "multiprocessing", 0),
        Job("second", "concurrent.futures", 0),
        Job("first", "concurrent.futures", 1),
        Job("first", "multiprocessing", 1),
        Job("second", "concurrent.futures", 1),
        Job("second", "multiprocessing", 1),
    ]


def test_hangs_are_not_repeated_and_failures_are() -> None:
    asked: list[Job] = []

    def fake(job: Job) -> Outcome:
        asked.append(job)
        return outcome(job.workload, job.peer, {"a": "hangs", "b": "no", "c": "fails"}[job.peer], number=job.round)

    jobs = [Job("w", peer, number) for number in range(3) for peer in "abc"]
    outcomes = runner.run_all(iter(jobs), fake)
    assert [job.peer for job in asked] == ["a", "b", "c", "c", "c"]
    assert [one.status for one in outcomes] == ["hangs", "no", "fails", "fails", "fails"]


def test_choosing_workloads_and_peers() -> None:
    known = load_all()
    assert [one.name for one in choose_workloads(["array_*", "lock"], known)] == ["array_in", "array_out", "lock"]
    assert {one.family for one in choose_workloads(["primitive"], known)} == {"primitive"}
    with pytest.raises(ValueError, match="no workload matches 'nonsense'"):
        choose_workloads(["nonsense"], known)
    peers, _versions, said = choose_peers(["multiprocessing", "unheard-of"])
    assert peers == [STANDARD]
    assert said == ["unknown peer 'unheard-of': no adapter"]


# ------------------------------------------------------------------------------- one measurement, in its cage


def test_a_measurement_yields_its_figures() -> None:
    found = execute(probes.WORKS)
    assert (found.status, found.values) == ("ok", {"figure": 3.0})


def test_an_exception_is_told_with_its_reason() -> None:
    found = execute(probes.RAISES)
    assert found.status == "fails"
    assert found.detail.endswith("ValueError: a very particular reason")


def test_what_a_peer_does_not_offer_is_no() -> None:
    found = execute(probes.REFUSES)
    assert (found.status, found.detail) == ("no", "nothing of the kind")


def test_a_death_is_a_crash() -> None:
    found = execute(probes.DIES)
    assert found.status == "crashes"
    assert "exit code -9" in found.detail


def test_a_hang_ends_at_its_bound() -> None:
    started = time.monotonic()
    found = execute(probes.HANGS)
    assert found.status == "hangs"
    assert 0.9 < time.monotonic() - started < 10


def test_at_the_bound_descendants_die_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "pid"
    monkeypatch.setenv("PROBE_FILE", str(said))
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert execute(probes.HANGS_WITH_FAMILY).status == "hangs"
        assert gone(int(said.read_text()))
        assert bystander.poll() is None, "a process outside the cage was ended"
    finally:
        bystander.kill()
        bystander.wait()


def test_what_a_measurement_leaves_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "pid"
    monkeypatch.setenv("PROBE_FILE", str(said))
    found = execute(probes.LEAVES_A_PROCESS)
    assert (found.status, found.values) == ("ok", {"figure": 1.0})
    assert gone(int(said.read_text()))


def test_figures_survive_a_process_that_cannot_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cage, "EXIT_BOUND", 0.5)
    found = execute(probes.HANGS_AT_EXIT._replace(timeout=2.0))
    assert (found.status, found.values) == ("ok", {"figure": 3.0})
    assert "did not exit by itself" in found.detail


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_what_it_measures_and_keeps_what_was_finished(
    tmp_path: Path, signum: signal.Signals
) -> None:
    written, said = tmp_path / "figures.json", tmp_path / "pid"
    code = (
        "import sys, benchmarks.__main__ as command\n"
        "from tests.unit import benchmark_probes as probes\n"
        "slow = probes.HANGS_WITH_FAMILY._replace(timeout=600.0)\n"
        "command.load_all = lambda: [probes.WORKS, slow]\n"
        "sys.exit(command.main(sys.argv[1:]))"
    )
    runner_process = subprocess.Popen(
        [sys.executable, "-c", code, "--peers", "multiprocessing", "--quick", "--json", str(written)],
        cwd=runner.ROOT,
        env={**os.environ, "PROBE_FILE": str(said)},
        stdout=subprocess.DEVNULL,
    )
    try:
        while not (said.exists() and said.read_text()):
            assert runner_process.poll() is None
            time.sleep(0.01)  # between two looks
        runner_process.send_signal(signum)
        assert runner_process.wait() == 130
    finally:
        runner_process.kill()
        runner_process.wait()
    assert gone(int(said.read_text()))
    assert [one["status"] for one in json.loads(written.read_text())["measurements"]] == ["ok"]


def test_a_cage_returns_the_output() -> None:
    ended = cage.run_caged([sys.executable, "-c", "print('hello'); raise SystemExit(3)"], timeout=30.0)
    assert (ended.returncode, ended.output, ended.killed) == (3, "hello\n", 0)


# --------------------------------------------------------------------------------------------- the figures


def rows_of(measure: Measure, *outcomes: Outcome) -> summary.Row:
    workload = Workload("w", "pool", (measure,), probes._works)
    (row,) = summary.rows([workload], ALL, [one._asdict() for one in outcomes])
    return row


def test_medians_and_ratios_where_more_is_better() -> None:
    row = rows_of(
        HIGHER,
        *(outcome("w", "manycore.Pool", value=value) for value in (60.0, 10.0, 30.0)),
        outcome("w", "multiprocessing", value=3.0),
        outcome("w", "concurrent.futures", value=1.0),
        outcome("w", "loky", value=15.0),
        outcome("w", "billiard", "hangs"),
    )
    assert row.cells["manycore.Pool"] == summary.Cell(30.0, 10.0, 60.0, "ok")
    assert (row.best, row.over_best, row.over_standard) == ("loky", {"manycore.Pool": 2.0}, {"manycore.Pool": 10.0})
    assert row.cells["billiard"].status == "hangs"
    assert row.cells["pebble"].status == ""


def test_ratios_where_less_is_better() -> None:
    row = rows_of(LOWER, outcome("w", "manycore.Pool", value=5.0), outcome("w", "multiprocessing", value=20.0))
    assert row.over_standard == {"manycore.Pool": 4.0}
    assert summary.reaches(5.0, LOWER)
    assert not summary.reaches(20.0, LOWER)


def test_context_is_no_contest() -> None:
    row = rows_of(
        HIGHER._replace(rival=False),
        outcome("w", "manycore.Pool", value=5.0),
        outcome("w", "multiprocessing", value=20.0),
    )
    assert (row.best, row.over_best, row.over_standard) == ("", {}, {})


def test_without_a_subject_there_are_no_ratios() -> None:
    row = rows_of(HIGHER, outcome("w", "multiprocessing", value=20.0), outcome("w", "loky", "crashes"))
    assert (row.best, row.over_best) == ("multiprocessing", {})


def test_the_report_shows_all_that_happened() -> None:
    workload = Workload("close_and_join", "pool", (LOWER,), probes._works)
    outcomes = [
        outcome("close_and_join", "manycore.Pool", value=2.0),
        outcome("close_and_join", "multiprocessing", value=2500.0),
        outcome("close_and_join", "concurrent.futures", "hangs"),
        outcome("close_and_join", "loky", "no"),
    ]
    record = runner.record(
        outcomes,
        machine=describe(),
        limits=[{"memcpy_64mb_gb_s": 11.5}],
        versions={"loky": "1.0"},
        settings={"workers": 2, "rounds": 1, "quick": False},
    )
    record = json.loads(json.dumps(record))
    peers = [peer for peer in ALL if peer.name in {one.peer for one in outcomes}]
    table = summary.rows([workload], peers, record["measurements"])
    console = Console(width=200, file=io.StringIO(), force_terminal=False)
    report.show(record, table, peers, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in ("memcpy of 64 MB", "11.5 GB/s", "2,500", "1,250x", "hangs", " no ", "\u2264 10", "2 workers"):
        assert part in text
    assert "concurrent.futures, close_and_join: hangs: why" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1.5, "1.5"),
        (99.96, "100"),
        (1234.4, "1,230"),
        (240_123, "240,000"),
        (147, "147"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert report.figure(value) == text


def test_percentiles() -> None:
    samples = list(range(100, 0, -1))
    assert (percentile(samples, 0.5), percentile(samples, 0.99), percentile([7.0], 0.99)) == (51, 100, 7.0)


def test_a_rate_grows_to_the_full_size_and_no_further() -> None:
    sizes: list[int] = []
    assert per_second(sizes.append, full=5_000, seconds=1.0) > 0
    assert sizes == [200, 4_000, 5_000]


# ------------------------------------------------------------------------------------------- the real thing


def test_the_limits_of_the_machine_are_measured() -> None:
    limits = Limits(quick=True)
    try:
        if limits.missing:
            pytest.skip(limits.missing)
        found = limits.measure()
    finally:
        limits.close()
    assert set(found) <= set(LIMIT_TITLES)
    assert found["memcpy_64mb_gb_s"] > 0


def test_workloads_are_declared_once_and_whole() -> None:
    files = {path.stem for path in Path(load_all.__code__.co_filename).parent.glob("*.py")} - {"__init__"}
    assert files == set(NAMES)
    for workload in load_all():
        assert load(workload.name) == workload
        assert len({measure.key for measure in workload.measures}) == len(workload.measures) > 0


def in_standard_library(workload: Workload) -> str:
    if workload.name == "killed_worker":  # a Pool never answers
        return FUTURES.name
    return next(peer.name for peer in ALL if peer.role == "standard" and workload.family in peer.families)


@pytest.mark.parametrize("name", NAMES)
def test_each_workload_runs_for_the_standard_library(name: str) -> None:
    workload = load(name)
    found = Executor({name: 30.0}, workers=2, quick=True)(Job(name, in_standard_library(workload), 0))
    if name in {"closures", "lock_death"}:
        assert found.status == "no", found.detail
        return
    assert found.status == "ok", found.detail
    optional = {"many", "ready", "blocked", "module", "own"}  # what the standard library does not have
    assert set(found.values) == {measure.key for measure in workload.measures} - optional
    assert all(value >= 0 for value in found.values.values())


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "figures.json"
    assert main(["close_and_join", "--peers", "multiprocessing", "--quick", "--json", str(written)]) == 0
    printed = capsys.readouterr().out
    record = json.loads(written.read_text())
    assert [one["status"] for one in record["measurements"]] == ["ok"]
    assert record["summary"][0]["medians"].keys() == {"multiprocessing"}
    assert record["machine"]["cores"] >= 1
    assert main(["--show", str(written)]) == 0
    assert capsys.readouterr().out == printed


def test_the_command_refuses_an_unknown_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err


def test_the_command_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
