"""Who measures what of a fleet: small models as a whole, those with many labels in shares."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from goodnet.pipelines.fleet_job import Job, Task, Workforce
from goodnet.reports import FleetResult

ROUNDS = 8
"""How often shares wait for each other at most; a default scan needs four. What is missing then
(of a node whose arithmetic differs, say, so that its blocks count as another scan's) the last task
measures by itself: the report is right in any case."""


@dataclass
class _Shares:
    """How far the shares of one model have come.

    Attributes:
        waiting: those without an answer in this round.
        again: those that have to go on when the others' blocks are there.
        rounds: that were begun.
        spent: seconds of all tasks so far.
    """

    waiting: set[int]
    again: list[int] = field(default_factory=list)
    rounds: int = 1
    spent: float = 0.0


def answers(jobs: Sequence[Job], workforce: Workforce) -> Generator[tuple[Job, FleetResult]]:
    """Jobs with their answers, as they come.

    Args:
        jobs: in the order in which they are begun; a model that is begun goes before the next.
        workforce: does the tasks of a queue, to which an answer may add more.
    """
    queue = deque(Task(job) for job in jobs)
    begun: dict[str, _Shares] = {}
    over: set[str] = set()
    with contextlib.closing(workforce(queue)) as done:
        for task, answer in done:
            job = task.job
            if job.file in over:
                continue
            if isinstance(answer, FleetResult):
                # Where a share cannot be done, the others are of no use.
                over.add(job.file)
                for other in [other for other in queue if other.job == job]:
                    queue.remove(other)
                yield job, answer
                continue
            if task.shares == 0:
                everything = range(answer.shares)
                begun[job.file] = _Shares(set(everything), spent=answer.seconds)
                _add(queue, job, answer.shares, everything, 0.0)
                continue
            shares = begun[job.file]
            shares.spent += answer.seconds
            shares.waiting.discard(task.share)
            if not answer.done:
                shares.again.append(task.share)
            if shares.waiting:
                continue
            if shares.again and shares.rounds < ROUNDS:
                shares.waiting, shares.again = set(shares.again), []
                shares.rounds += 1
                _add(queue, job, answer.shares, sorted(shares.waiting), shares.spent)
            else:
                _add(queue, job, answer.shares, [answer.shares], shares.spent)


def _add(queue: deque[Task], job: Job, shares: int, wanted: Sequence[int], spent: float) -> None:
    """Puts tasks at the head of the queue, in their order."""
    queue.extendleft(Task(job, share, shares, spent) for share in reversed(wanted))
