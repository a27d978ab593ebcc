"""A fleet on this machine: one process a model, one core a process; a lost one is done again."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

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

    def result(self) -> FleetResult | None:
        """What the process has answered; None if it ended without."""
        self.process.join()
        try:
            return FleetResult.model_validate_json(self.answer.read_bytes())
        except (OSError, ValueError):
            return None


def run_locally(jobs: Sequence[Job], workers: int | None) -> Generator[tuple[Job, FleetResult]]:
    """Jobs with their answers, as they come.

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
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(prefix="goodnet-fleet-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < (workers or cores()):
                    job, turn = waiting.popleft()
                    # Two models may be the same file: each has an answer of its own.
                    answer = Path(folder) / f"{next(numbers)}.json"
                    process = start.Process(target=_child, args=(job, str(answer)), daemon=True)
                    with _deaf_to_interrupts():
                        process.start()
                    running.append(_Run(job, process, answer, turn))
                connection.wait([run.process.sentinel for run in running])
                for run in [run for run in running if not run.process.is_alive()]:
                    running.remove(run)
                    result = run.result()
                    if result is None and run.turn < TRIES:
                        waiting.append((run.job, run.turn + 1))
                    else:
                        yield run.job, result or _lost(run)
        finally:
            for run in running:
                run.process.kill()
                run.process.join()


def _child(job: Job, answer: str) -> None:
    """Runs in the new process."""
    warnings.simplefilter("ignore")
    # What the user's own code prints must not get among the results.
    os.dup2(2, 1)
    torch.set_num_threads(1)
    write_text(Path(answer), scan_job(job))


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal: a process that is started here inherits that it
    does not listen, and is ended by the one that started it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _lost(run: _Run) -> FleetResult:
    error = GoodnetError(
        "R007",
        f"the process of {run.job.name} ended without an answer {TRIES} times "
        f"(exit code {run.process.exitcode})",
        "scan this model by itself, on a machine with more memory",
    )
    return failed(run.job, error)
