"""One model of a fleet: what a worker is told, and what it answers, on whatever machine it is."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from goodnet.errors import GoodnetError
from goodnet.reports import FleetResult
from goodnet.version import __version__


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
        return hashlib.sha256(json.dumps([__version__, told], sort_keys=True).encode()).hexdigest()


def scan_job(job: Job) -> FleetResult:
    """Does the job in this process, on one core. That a model cannot be scanned is an answer."""
    started = time.monotonic()
    try:
        from goodnet.pipelines.load import images_for, load
        from goodnet.pipelines.scan import scan

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
        report = scan(
            classifier, images, method=job.method, seed=job.seed, workers=1, budget=job.budget
        )
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
        seconds=round(time.monotonic() - started, 2),
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
