"""The inside of one measurement: `python -m benchmarks.child CONFIG`, a fresh process for each.

CONFIG is JSON: workload, peer, workers, quick, folder, result. The outcome is written to `result` by a
rename, before the pools are closed, so that a peer that cannot close loses time and not its figures.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from benchmarks.peers import BY_NAME
from benchmarks.spec import Run, Unsupported
from benchmarks.workloads import load

DETAIL = 2000  # characters of an error's text that are kept


def run_one(config: dict[str, Any]) -> tuple[dict[str, Any], Run]:
    """Runs one workload for one peer; returns its outcome as data, and the run to be closed."""
    workload = load(config["workload"])
    run = Run(BY_NAME[config["peer"]], workers=config["workers"], quick=config["quick"], folder=config["folder"])
    try:
        values = workload.run(run)
    except Unsupported as error:
        return {"status": "no", "values": {}, "detail": str(error)}, run
    except Exception as error:
        import traceback

        text = "".join(traceback.format_exception(error))[-DETAIL:]
        return {"status": "fails", "values": {}, "detail": text}, run
    return {"status": "ok", "values": values, "detail": ""}, run


def main() -> None:
    """Runs the measurement that the command line describes."""
    config = json.loads(sys.argv[1])
    outcome, run = run_one(config)
    partial = config["result"] + ".part"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(outcome, file)
    os.rename(partial, config["result"])
    if run.abandoned:
        sys.stdout.flush()
        os._exit(0)
    run.close()


if __name__ == "__main__":
    main()
