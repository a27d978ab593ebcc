"""A fleet on this machine: one process a model, one core a process; a lost one is done again."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from goodnet.errors import GoodnetError
from goodnet.parallel import cores
from goodnet.pipelines.fleet_job import Job, failed, scan_job
from goodnet.reports import FleetResult, write_text

TRIES = 3
"""How often a job is begun whose process ends without an answer: killed, or out of memory."""


@dataclass
class _Run:
    """A job that is being done, by which process, for the how manieth time."""

    job: Job
    process: BaseProcess
    answer: Path
    turn: int


def run_locally(jobs: Sequence[Job], workers: int | None) -> Iterator[FleetResult]:
    """The answers, as they come.

    Args:
        jobs: in the order in which they are begun.
        workers: processes at a time; one a core by default.

    Raises:
        KeyboardInterrupt: after the processes have been ended.
    """
    # A fork would take over the locks of torch's threads.
    start = multiprocessing.get_context("spawn")
    waiting = deque((job, 1) for job in jobs)
    running: list[_Run] = []
    with tempfile.TemporaryDirectory(prefix="goodnet-fleet-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < (workers or cores()):
                    job, turn = waiting.popleft()
                    answer = Path(folder) / f"{job.key}.json"
                    process = start.Process(target=_child, args=(job, str(answer)), daemon=True)
                    process.start()
                    running.append(_Run(job, process, answer, turn))
                connection.wait([run.process.sentinel for run in running])
                for run in [run for run in running if not run.process.is_alive()]:
                    running.remove(run)
                    result = _answer(run)
                    if result is None and run.turn < TRIES:
                        waiting.append((run.job, run.turn + 1))
                    else:
                        yield result or _lost(run)
        finally:
            for run in running:
                run.process.kill()
                run.process.join()


def _child(job: Job, answer: str) -> None:
    """Runs in the new process."""
    # Ctrl-C reaches every process of a terminal; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    write_text(Path(answer), scan_job(job))


def _answer(run: _Run) -> FleetResult | None:
    run.process.join()
    try:
        return FleetResult.model_validate_json(run.answer.read_bytes())
    except (OSError, ValueError):
        return None


def _lost(run: _Run) -> FleetResult:
    error = GoodnetError(
        "R007",
        f"the process of {run.job.name} ended without an answer {TRIES} times "
        f"(exit code {run.process.exitcode})",
        "scan this model by itself, on a machine with more memory",
    )
    return failed(run.job, error)
