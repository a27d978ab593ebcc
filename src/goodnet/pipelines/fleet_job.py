"""One model of a fleet: what a worker is told, and what it answers, on whatever machine it is.

A model with few labels is one task. Of one with many, several tasks measure a share of the blocks
each, and a last one makes the report from what they have left.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from goodnet.errors import GoodnetError
from goodnet.evidence import Share
from goodnet.reports import Data, FleetResult
from goodnet.tables import digest
from goodnet.version import __version__

LABELS = {"default": 256, "neural-cleanse": 16}
"""Method -> labels for a share: some minutes of work, next to which loading the model is little."""


@dataclass(frozen=True)
class Job:
    """A scan to be done.

    Attributes:
        name: the model's path below the folder that was given.
        file: that its result gets, below the output.
        model: the model file.
        data: clean images: a file or a folder.
        model_sha256: of the model file, hex.
        data_sha256: of the data, hex.
        architecture: for weights only, ``FILE.py:FUNCTION``; None otherwise.
        architecture_sha256: of that file, hex.
        preprocess: ``"auto"`` or a name.
        size: that the pictures of a folder are brought to; None for what the model states.
        method: of the scan.
        seed: of the scan.
        budget: seconds for this model, or None.
    """

    name: str
    file: str
    model: str
    data: str
    model_sha256: str
    data_sha256: str
    architecture: str | None = None
    architecture_sha256: str = ""
    preprocess: str = "auto"
    size: tuple[int, int] | None = None
    method: str = "default"
    seed: int = 0
    budget: float | None = None

    @property
    def key(self) -> str:
        """SHA-256, hex, of all that the answer depends on; not of where the files lie."""
        places = ("name", "file", "model", "data")
        told = {k: v for k, v in asdict(self).items() if k not in places}
        # Of the architecture the function's name: the file is known by its digest.
        told["architecture"] = (self.architecture or "").rpartition(":")[2]
        known = [__version__, digest(), told]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Task:
    """What one worker does of a job.

    Attributes:
        job: the scan.
        share: which share of the blocks, from 0; ``shares`` for the report after all of them.
        shares: how many there are; 0 before anybody has looked at the model: then one with few
            labels is scanned as a whole, and of one with many it is told how many shares it has.
        spent: seconds that the job has taken in other tasks.
    """

    job: Job
    share: int = 0
    shares: int = 0
    spent: float = 0.0


class Shared(Data):
    """The answer of a task that has measured a share, or has found out how many there are.

    Attributes:
        shares: how many the model's blocks are in.
        done: whether the share is; if not, it has to wait for the others.
        seconds: that it took.
    """

    shares: int
    done: bool
    seconds: float


Answer = FleetResult | Shared
ANSWERS: TypeAdapter[Answer] = TypeAdapter(Answer)
"""From JSON; the two have no field in common but ``seconds``, and none to spare."""

Workforce = Callable[[deque[Task]], Generator[tuple[Task, Answer]]]
"""Does the tasks of a queue and gives each with its answer, until none is left. Whoever is given an
answer may add tasks before asking for the next."""


def do(task: Task, state: Path, *, one_machine: bool = True) -> Answer:
    """Does the task in this process, on one core. That a model cannot be scanned is an answer.

    Args:
        task: what is to be done.
        state: a folder for what shares have measured; all tasks of a job are given the same.
        one_machine: whether all of them run on this one. Where they do not, shares are measured in
            float32: with gradients in bfloat16, which not every processor has, the block of one
            would be none of another's.
    """
    started, job = time.monotonic(), task.job
    try:
        from goodnet.pipelines.load import images_for, load
        from goodnet.pipelines.placing import FULL_PRECISION
        from goodnet.pipelines.scan import measure_share, scan

        images = images_for(Path(job.model), Path(job.data), job.architecture, job.size)
        classifier = load(
            job.model, images, architecture=job.architecture, preprocess=job.preprocess
        )
        if (classifier.sha256, images.sha256) != (job.model_sha256, job.data_sha256):
            raise GoodnetError(
                "R002",
                f"{job.name} or the data are not what they were when the fleet set out",
                "run the fleet again",
            )
        shares = task.shares or -(-classifier.num_classes // LABELS[job.method])
        # A budget is of one clock, and is for a scan that has it to itself.
        split = shares > 1 and job.budget is None
        # There is a worker for each core, and not a card for each worker.
        device = f"cpu,{FULL_PRECISION}" if split and not one_machine else "cpu"
        if split and task.shares == 0:
            # Nothing is measured yet: the others would stand idle.
            took = round(time.monotonic() - started, 2)
            return Shared(shares=shares, done=False, seconds=took)
        if split and task.share < shares:
            share, method, seed = Share(task.share, shares), job.method, job.seed
            done = measure_share(
                classifier, images, share, state, method=method, seed=seed, workers=1, device=device
            )
            took = round(time.monotonic() - started, 2)
            return Shared(shares=shares, done=done, seconds=took)
        report = scan(
            classifier,
            images,
            method=job.method,
            seed=job.seed,
            workers=1,
            # Reading the files is part of it.
            budget=job.budget and max(0.01, job.budget + started - time.monotonic()),
            state=state if split else None,
            device=device,
        )
        seconds = round(report.seconds + task.spent, 2)
        report = report.model_copy(update={"seconds": seconds})
    except GoodnetError as error:
        return failed(job, error, time.monotonic() - started)
    except Exception as error:  # one model's defect is not the others'
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        told = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        hint = "scan this model by itself; GOODNET_DEBUG=1 shows where it happened"
        return failed(job, GoodnetError("R006", told, hint), time.monotonic() - started)
    return FleetResult(
        name=job.name,
        key=job.key,
        seconds=round(task.spent + time.monotonic() - started, 2),
        report=report,
    )


def failed(job: Job, error: GoodnetError, seconds: float = 0.0) -> FleetResult:
    """The answer for a model that could not be scanned."""
    return FleetResult(
        name=job.name,
        key=job.key,
        seconds=round(seconds, 2),
        error_code=error.code,
        error=error.message,
        hint=error.hint,
    )
