"""A fleet on an existing Ray cluster: a task a model; Ray does those of a lost node again."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from goodnet.errors import GoodnetError
from goodnet.pipelines.fleet_job import Job, failed, scan_job
from goodnet.reports import FleetResult

TRIES = 5
"""How often Ray begins a task again whose worker or node was lost. For tasks that were ended for
want of memory a cluster has a number of its own (``RAY_task_oom_retries`` where it is started)."""

AHEAD = 2
"""Tasks that are sent for each core of the cluster."""


def run_on_ray(jobs: Sequence[Job], address: str) -> Generator[tuple[Job, FleetResult]]:
    """Jobs with their answers, as they come.

    Model and data travel with the task: the nodes need goodnet, but none of the driver's files,
    unless the data are a folder or there is an ``architecture``; those paths must be theirs, too.

    Args:
        jobs: the models.
        address: of the cluster, as ``ray.init`` takes it.

    Raises:
        GoodnetError: R008 without Ray, or when the cluster does not answer.
    """
    ray, ours = _connect(address)
    try:
        remote = ray.remote(num_cpus=1, max_retries=TRIES)(_task)
        shipped: dict[str, Any] = {}
        queue = deque(jobs)
        waiting: dict[Any, Job] = {}
        # A cluster that grows is filled as it grows; a hub's models are not all sent at once.
        while queue or waiting:
            while queue and len(waiting) < AHEAD * max(
                1, int(ray.cluster_resources().get("CPU", 1))
            ):
                job = queue.popleft()
                try:
                    if job.data not in shipped:
                        shipped[job.data] = ray.put(_content(Path(job.data)))
                    model = Path(job.model).read_bytes()
                except OSError as error:
                    yield job, failed(job, GoodnetError("M001", str(error), "check the file"))
                    continue
                waiting[remote.remote(job, model, shipped[job.data])] = job
            done, _ = ray.wait(list(waiting), num_returns=1) if waiting else ([], [])
            for task in done:
                job = waiting.pop(task)
                yield job, _answer(ray, task, job)
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
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except Exception as error:  # Ray's own kinds, and sockets'
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        raise GoodnetError(
            "R008",
            f"no Ray cluster answers at {address}: {reason}",
            "start one with 'ray start --head', and give the address that it prints",
        ) from error
    return ray, True


def _task(job: Job, model: bytes, data: bytes | None) -> str:
    """Runs on a node."""
    with tempfile.TemporaryDirectory(prefix="goodnet-fleet-") as folder:
        # A format is told by its suffix.
        copy = Path(folder) / f"model{Path(job.model).suffix}"
        copy.write_bytes(model)
        here = replace(job, model=str(copy))
        if data is not None:
            pictures = Path(folder) / f"data{Path(job.data).suffix}"
            pictures.write_bytes(data)
            here = replace(here, data=str(pictures))
        result = scan_job(here)
        if result.report is not None:
            report = result.report
            # Where the copies lay is of no use to anybody.
            told = {
                "model": report.model.model_copy(update={"path": job.model}),
                "data": report.data.model_copy(update={"path": job.data}),
            }
            result = result.model_copy(update={"report": report.model_copy(update=told)})
        return result.model_dump_json()


def _answer(ray: Any, task: Any, job: Job) -> FleetResult:
    try:
        return FleetResult.model_validate_json(ray.get(task))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        lost = GoodnetError(
            "R007",
            f"the cluster gave {job.name} up: {reason}",
            "scan this model by itself, on a machine with more memory",
        )
        return failed(job, lost)
