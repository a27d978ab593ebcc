"""A fleet on this machine: one process a task, one core a process; a lost one is done again."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import signal
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from goodnet.errors import GoodnetError
from goodnet.evidence.store import clear
from goodnet.parallel import cores
from goodnet.patience import left_behind
from goodnet.pipelines.fleet_job import ANSWERS, Answer, Job, Task, do, failed
from goodnet.reports import FleetResult, write_text

TRIES = 3
"""How often a task is begun whose process ends without an answer: killed, or out of memory."""


@dataclass
class _Run:
    """A task that is being done, by which process, for the how manieth time."""

    task: Task
    process: BaseProcess
    answer: Path
    turn: int

    def result(self) -> Answer | None:
        """What the process has answered; None if it ended without."""
        self.process.join()
        try:
            return ANSWERS.validate_json(self.answer.read_bytes())
        except (OSError, ValueError):
            return None


def run_locally(
    queue: deque[Task], workers: int | None, state: Path | None = None
) -> Generator[tuple[Task, Answer]]:
    """Tasks with their answers, as they come.

    Args:
        queue: in the order in which they are begun; who gets an answer may add to it.
        workers: processes at a time; one a core by default.
        state: a folder for what has been measured of models in shares, which a later run takes up;
            None to keep it for this run only.

    Raises:
        KeyboardInterrupt: after the processes have been ended.
    """
    # A fork would take over the locks of torch's threads.
    start = multiprocessing.get_context("spawn")
    lost: deque[tuple[Task, int]] = deque()
    running: list[_Run] = []
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(prefix="goodnet-fleet-") as folder:
        try:
            while queue or lost or running:
                while (queue or lost) and len(running) < (workers or cores()):
                    task, turn = (queue.popleft(), 1) if queue else lost.popleft()
                    # Two models may be the same file: each has an answer of its own.
                    answer = Path(folder) / f"{next(numbers)}.json"
                    kept = _kept(state or Path(folder), task.job)
                    told = (task, str(answer), str(kept))
                    process = start.Process(target=_child, args=told, daemon=True)
                    with _deaf_to_interrupts():
                        process.start()
                    running.append(_Run(task, process, answer, turn))
                connection.wait([run.process.sentinel for run in running])
                for run in [run for run in running if not run.process.is_alive()]:
                    running.remove(run)
                    result = run.result()
                    if result is None and run.turn < TRIES:
                        lost.append((run.task, run.turn + 1))
                        continue
                    yield run.task, result or _lost(run)
                    # Only now is the report safe.
                    if isinstance(result, FleetResult) and result.report is not None:
                        clear(_kept(state or Path(folder), run.task.job))
            if state is not None:
                with contextlib.suppress(OSError):
                    state.rmdir()
        finally:
            for run in running:
                run.process.kill()
                run.process.join()


def _kept(state: Path, job: Job) -> Path:
    """The folder of what has been measured of a job."""
    return state / hashlib.sha256(f"{job.key} {job.file}".encode()).hexdigest()[:24]


def _child(task: Task, answer: str, state: str) -> None:
    """Runs in the new process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    # What the user's own code prints must not get among the results.
    os.dup2(2, 1)
    torch.set_num_threads(1)
    write_text(Path(answer), do(task, Path(state)))
    if left_behind():
        os._exit(0)


def _end_with_parent() -> None:
    """A fleet that was killed leaves nobody who would take the answer, and who starts it again
    wants the cores.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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
        f"the process of {run.task.job.name} ended without an answer {TRIES} times "
        f"(exit code {run.process.exitcode})",
        "scan this model by itself, on a machine with more memory",
    )
    return failed(run.task.job, error)
