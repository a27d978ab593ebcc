"""Blocks of labels on one single-threaded worker a core, with progress and a way to stop.

The workers are threads: they share the one frozen model, and PyTorch lets go of the interpreter
lock inside its operations. Blocks are cut before the number of workers is looked at, so that the
answer does not depend on it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from typing import TypeVar

import torch

from goodnet.memory import keep_freed

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``: called in the main thread as work is finished."""

Leading = Callable[[list[int]], None]
"""``leading(labels)``: called in the main thread with the labels that stand out so far."""

Stop = threading.Event
Block = TypeVar("Block")
Result = TypeVar("Result")


class Stopped(Exception):  # noqa: N818 - an interruption is no error
    """Raised inside a worker when the run was interrupted; never reaches a user."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that says nothing."""


def nobody(labels: list[int]) -> None:
    """Whom leading labels are told where nobody watches."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread inside each operation: workers that share cores wait for each other otherwise."""
    keep_freed()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_blocks(
    work: Callable[[Block, Stop], Result],
    blocks: Sequence[Block],
    *,
    stage: str,
    size: Callable[[Block], int],
    workers: int | None = None,
    progress: Progress = silent,
    deadline: float | None = None,
    known: Mapping[int, Result] | None = None,
    keep: Callable[[int, Result], None] | None = None,
) -> dict[int, Result]:
    """``{i: work(blocks[i], stop)}``, several at a time, in the order of ``blocks``.

    Args:
        work: a pure function of its block; it should look at ``stop`` between steps and raise
            :class:`Stopped` when it is set.
        blocks: the pieces of work.
        stage: what the progress callback is told.
        size: how much a block counts in the progress (labels, say).
        workers: threads; by default one a core.
        progress: called here, in the calling thread.
        deadline: a time of :func:`time.monotonic`; what is not done by then is given up.
        known: results that an earlier run has left.
        keep: called here with each new result, so that a later run knows it.

    Returns:
        A result for each block, in their order; without those that the deadline has cut off.

    Raises:
        KeyboardInterrupt: after the workers have stopped.
    """
    results: dict[int, Result] = dict(known or {})
    total, done = sum(map(size, blocks)), sum(size(blocks[index]) for index in results)
    stop = Stop()
    progress(stage, done, total)

    def worker(block: Block) -> Result:
        torch.set_num_threads(1)
        return work(block, stop)

    with single_threaded(), ThreadPoolExecutor(workers or cores()) as pool:
        pending: dict[Future[Result], int] = {}
        try:
            # An interruption while the work is handed out must reach the workers as well.
            for index, block in enumerate(blocks):
                if index not in results:
                    pending[pool.submit(worker, block)] = index
            while pending:
                finished, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    index = pending.pop(future)
                    try:
                        results[index] = future.result()
                    except (Stopped, CancelledError):
                        if not stop.is_set():
                            raise
                        continue
                    if keep is not None:
                        keep(index, results[index])
                    done += size(blocks[index])
                    progress(stage, done, total)
                if deadline is not None and time.monotonic() >= deadline and not stop.is_set():
                    stop.set()
                    for future in pending:
                        future.cancel()
        except BaseException:
            stop.set()
            for future in pending:
                future.cancel()
            raise
    return dict(sorted(results.items()))
