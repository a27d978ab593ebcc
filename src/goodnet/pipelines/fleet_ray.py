"""A fleet on an existing Ray cluster; Ray does the tasks of a lost node again."""

from __future__ import annotations

import logging
import socket
import tempfile
from collections import deque
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from goodnet.errors import GoodnetError
from goodnet.evidence.store import SUFFIX
from goodnet.pipelines.fleet_job import ANSWERS, Answer, Job, Task, do, failed
from goodnet.reports import FleetResult

TRIES = 5
"""How often Ray begins a task again whose worker or node was lost. For tasks that were ended for
want of memory a cluster has a number of its own (``RAY_task_oom_retries`` where it is started)."""

KNOCK = 10.0
"""Seconds in which somebody has to answer at a cluster's address."""

AHEAD = 2
"""Tasks that are sent for each core of the cluster."""


def run_on_ray(queue: deque[Task], address: str) -> Generator[tuple[Task, Answer]]:
    """Tasks with their answers, as they come.

    Model and data travel with the task: the nodes need goodnet, but none of the driver's files,
    unless the data are a folder or there is an ``architecture``; those paths must be theirs, too.
    What shares measure stays in the cluster, and travels to the tasks that need it; what a lost
    node held of it is measured again.

    Args:
        queue: in the order in which they are begun; who gets an answer may add to it.
        address: of the cluster, as ``ray.init`` takes it.

    Raises:
        GoodnetError: R008 without Ray, or when the cluster does not answer.
    """
    ray, ours = _connect(address)
    try:
        remote = ray.remote(num_cpus=1, max_retries=TRIES, num_returns=2)(_task)
        shipped: dict[str, Any] = {}
        blocks: dict[str, list[Any]] = {}
        waiting: dict[Any, tuple[Task, Any]] = {}
        # A cluster that grows is filled as it grows; a hub's models are not all sent at once.
        while queue or waiting:
            while queue and len(waiting) < AHEAD * max(
                1, int(ray.cluster_resources().get("CPU", 1))
            ):
                task = queue.popleft()
                job = task.job
                try:
                    if job.data not in shipped:
                        shipped[job.data] = ray.put(_content(Path(job.data)))
                    model = Path(job.model).read_bytes()
                except OSError as error:
                    yield task, failed(job, GoodnetError("M001", str(error), "check the file"))
                    continue
                told = (task, model, shipped[job.data], *blocks.get(job.file, ()))
                answer, measured = remote.remote(*told)
                waiting[answer] = task, measured
            done, _ = ray.wait(list(waiting), num_returns=1) if waiting else ([], [])
            for reference in done:
                task, measured = waiting.pop(reference)
                result = _answer(ray, reference, task.job)
                if isinstance(result, FleetResult):
                    blocks.pop(task.job.file, None)
                else:
                    blocks.setdefault(task.job.file, []).append(measured)
                yield task, result
    finally:
        if ours:
            ray.shutdown()


def _content(data: Path) -> bytes | None:
    return data.read_bytes() if data.is_file() else None


def _connect(address: str) -> tuple[Any, bool]:
    """Ray, and whether the connection is ours to close."""
    try:
        import ray
    except ImportError as error:
        raise GoodnetError(
            "R008", "a Ray cluster needs Ray", "pip install 'goodnet[ray]'"
        ) from error
    if ray.is_initialized():
        return ray, False
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray's own kinds, and sockets'
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        raise GoodnetError(
            "R008",
            f"no Ray cluster answers at {address}: {reason}",
            "start one with 'ray start --head', and give the address that it prints",
        ) from error
    return ray, True


def _knock(address: str) -> None:
    """Whether anybody is there: Ray itself tries for minutes. Names like "auto" are for Ray.

    Raises:
        OSError: nobody answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()


def _task(
    task: Task, model: bytes, data: bytes | None, *known: dict[str, bytes]
) -> tuple[str, dict[str, bytes]]:
    """Runs on a node.

    Args:
        task: what is to be done.
        model: the content of the model's file.
        data: that of the data's; None for a folder, which the node has itself.
        known: what the shares before have measured, file name -> content.

    Returns:
        The answer, JSON, and what this task has measured.
    """
    job = task.job
    with tempfile.TemporaryDirectory(prefix="goodnet-fleet-") as folder:
        # A format is told by its suffix.
        copy = Path(folder) / f"model{Path(job.model).suffix}"
        copy.write_bytes(model)
        here = replace(job, model=str(copy))
        if data is not None:
            pictures = Path(folder) / f"data{Path(job.data).suffix}"
            pictures.write_bytes(data)
            here = replace(here, data=str(pictures))
        state = Path(folder) / "state"
        state.mkdir()
        before = {name: content for blocks in known for name, content in blocks.items()}
        for name, content in before.items():
            (state / name).write_bytes(content)
        result = do(replace(task, job=here), state, one_machine=False)
        if isinstance(result, FleetResult):
            return _at_home(result, job).model_dump_json(), {}
        measured = {path.name: path for path in state.glob(f"*{SUFFIX}")}
        return result.model_dump_json(), {
            name: path.read_bytes() for name, path in measured.items() if name not in before
        }


def _at_home(result: FleetResult, job: Job) -> FleetResult:
    """The result with the paths that the driver knows; where the copies lay is of no use."""
    report = result.report
    if report is None:
        return result
    told = {
        "model": report.model.model_copy(update={"path": job.model}),
        "data": report.data.model_copy(update={"path": job.data}),
    }
    return result.model_copy(update={"report": report.model_copy(update=told)})


def _answer(ray: Any, reference: Any, job: Job) -> Answer:
    try:
        return ANSWERS.validate_json(ray.get(reference))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        lost = GoodnetError(
            "R007",
            f"the cluster gave {job.name} up: {reason}",
            "scan this model by itself, on a machine with more memory",
        )
        return failed(job, lost)
