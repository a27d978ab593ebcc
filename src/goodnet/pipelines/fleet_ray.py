"""A fleet on an existing Ray cluster: a task a model; Ray does those of a lost node again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from goodnet.errors import GoodnetError
from goodnet.pipelines.fleet_job import Job, failed, scan_job
from goodnet.reports import FleetResult

TRIES = 5
"""How often Ray begins a task again whose worker or node was lost."""


def run_on_ray(jobs: Sequence[Job], address: str) -> Iterator[FleetResult]:
    """The answers, as they come.

    Model and data travel with the task: the nodes need goodnet, but none of the driver's files,
    unless the data are a folder or there is an ``architecture``; those paths must be theirs, too.

    Args:
        jobs: the models.
        address: of the cluster, as ``ray.init`` takes it.

    Raises:
        GoodnetError: R008 without Ray, or when the cluster does not answer.
    """
    ray = _connect(address)
    try:
        remote = ray.remote(num_cpus=1, max_retries=TRIES)(_task)
        shipped: dict[str, Any] = {}
        waiting = {}
        for job in jobs:
            if job.data not in shipped:
                path = Path(job.data)
                shipped[job.data] = ray.put(path.read_bytes() if path.is_file() else None)
            task = remote.remote(job, Path(job.model).read_bytes(), shipped[job.data])
            waiting[task] = job
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            for task in done:
                yield _answer(ray, task, waiting.pop(task))
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise GoodnetError(
            "R008", "a Ray cluster needs Ray", "pip install 'goodnet[ray]'"
        ) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except Exception as error:  # Ray's own kinds, and sockets'
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        raise GoodnetError(
            "R008",
            f"no Ray cluster answers at {address}: {reason}",
            "start one with 'ray start --head', and give the address that it prints",
        ) from error
    return ray


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
        return scan_job(here).model_dump_json()


def _answer(ray: Any, task: Any, job: Job) -> FleetResult:
    try:
        return FleetResult.model_validate_json(ray.get(task))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        lost = GoodnetError(
            "R007",
            f"the workers of {job.name} were lost again and again: {reason}",
            "scan this model by itself, on a machine with more memory",
        )
        return failed(job, lost)
