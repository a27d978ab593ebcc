"""A hub's worth of models: one scan each, on this machine or on a cluster, and a table over all.

Every answer is written as it comes, one file a model. What lies there already, of the same model,
data, settings and version, is not done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from goodnet.errors import GoodnetError
from goodnet.formats.files import sha256
from goodnet.formats.place import Place
from goodnet.images import load_images
from goodnet.parallel import Progress, silent
from goodnet.pipelines.begin import METHODS, check_seed
from goodnet.pipelines.fleet_job import Job, failed
from goodnet.pipelines.fleet_local import run_locally
from goodnet.pipelines.fleet_ray import run_on_ray
from goodnet.pipelines.fleet_shares import answers
from goodnet.pipelines.saved import TRIGGERS
from goodnet.reports import FleetReport, FleetResult, FleetRow
from goodnet.version import __version__

SUFFIXES = (".h5", ".hdf5", ".keras", ".pt", ".pth", ".pt2", ".safetensors")
"""Of the files in a folder that are taken for models."""

TABLE = "fleet.json"

LONGEST = 200
"""Bytes of the name of a result: file systems take 255, and some room is for temporary files."""

UNFINISHED = ".unfinished"
"""What has been measured of models in shares, below an output on this machine."""


def fleet(
    models: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    architecture: str | None = None,
    preprocess: str = "auto",
    size: tuple[int, int] | None = None,
    method: str = "default",
    seed: int = 0,
    budget: float | None = None,
    workers: int | None = None,
    ray: str | None = None,
    progress: Progress = silent,
) -> FleetReport:
    """Scans many models with the same clean images.

    Each model is scanned in a process that is started for it, one with more than some hundred
    labels in several, a share of the labels each: in a script of yours the call belongs under
    ``if __name__ == "__main__":``, as with :mod:`multiprocessing`. The reports are those of scans
    of one model after the other.

    Args:
        models: a folder (its model files, and those of the folders in it), or a text file with a
            path in each line, relative to the file.
        data: clean images, a file or a folder.
        output: a folder, or a URL that fsspec knows. Gets ``NAME.json`` for each model
            (``/`` in a name becomes ``__``) and ``fleet.json`` with a line for each.
        architecture: for files of weights only.
        preprocess: ``"auto"``, or one for all models.
        size: of the pictures of a folder, where a model does not state its own.
        method: of the scans.
        seed: of the scans.
        budget: seconds for each model, or None. With one, no model is split.
        workers: processes, one a core by default; of this machine only.
        ray: the address of a Ray cluster, or None for this machine.
        progress: told how many models are done.

    Raises:
        GoodnetError: M001 for no models, D001 to D013 for unusable data, O001 to O003 for an output
            that cannot be written, R003 for an option, R008 for a cluster that cannot be used.
    """
    check_seed(seed)
    if method not in METHODS:
        raise GoodnetError(
            "R003", f"unknown method '{method}'", f"choose one of {', '.join(METHODS)}"
        )
    if workers is not None and workers < 1:
        raise GoodnetError("R003", f"{workers} workers can do nothing", "give 1 or more")
    place, found = Place(str(output)), model_files(Path(models), Path(data))
    if not place.remote and Path(output).exists() and not Path(output).is_dir():
        raise GoodnetError("O001", f"{output} is no folder", "name a folder for the results")
    base = Path(models) if Path(models).is_dir() else Path(models).absolute().parent
    # Who scans may be in another folder, on another machine.
    data = Path(data).expanduser().absolute()
    if architecture is not None:
        file, colon, function = architecture.rpartition(":")
        architecture = f"{Path(file).expanduser().absolute()}{colon}{function}"
    digest = _data_digest(data)
    place.check()
    plan = Job(
        name="",
        file="",
        model="",
        data=str(data),
        model_sha256="",
        data_sha256=digest,
        architecture=architecture,
        architecture_sha256=_digest(Path(architecture.rpartition(":")[0])) if architecture else "",
        preprocess=preprocess,
        size=size,
        method=method,
        seed=seed,
        budget=budget,
    )
    jobs = [
        replace(plan, name=name, file=file, model=str(path), model_sha256=_digest(path))
        for name, file, path in _named(found, base)
    ]
    if place.folder is not None:
        _spare(place.folder, [TABLE, *(job.file for job in jobs)], [models, data, *found])
    known: dict[str, FleetResult] = {}
    todo = []
    for job in jobs:
        result = _known(place, job) if job.model_sha256 else None
        if result is not None:
            known[job.file] = result
        elif job.model_sha256:
            todo.append(job)
        else:
            # Not written: it may be away for a moment, and an earlier answer is still good.
            absent = GoodnetError("M001", f"{job.model} cannot be read", "check the path")
            known[job.file] = failed(job, absent)
    progress("scanning models", len(known), len(jobs))
    state = place.folder / UNFINISHED if place.folder is not None else None
    if state is not None and state.is_symlink():
        raise GoodnetError(
            "O001",
            f"{state} is a link; a fleet keeps no state in one",
            "name another place for the output",
        )
    workforce = (
        partial(run_on_ray, address=ray)
        if ray is not None and todo
        else partial(run_locally, workers=workers, state=state)
    )
    # Closed at once when a result cannot be written: nobody waits for the answers of the others.
    with contextlib.closing(answers(todo, workforce)) as results:
        for job, result in results:
            known[job.file] = result
            place.write(job.file, result.model_dump_json(indent=1).encode() + b"\n")
            progress("scanning models", len(known), len(jobs))
    report = FleetReport(
        version=__version__,
        data=str(data),
        data_sha256=digest,
        rows=[_row(known[job.file], job) for job in jobs],
    )
    place.write(TABLE, report.model_dump_json(indent=1).encode() + b"\n")
    return report


def model_files(models: Path, data: Path | None = None) -> list[Path]:
    """The models that a folder holds or a list names.

    Args:
        models: the folder or the list.
        data: clean images, which may lie in that folder and are none.

    Raises:
        GoodnetError: M001 where there are none.
    """
    models = models.expanduser()
    if models.is_dir():
        files = (p for p in sorted(models.rglob("*")) if p.suffix.lower() in SUFFIXES)
        # The triggers of a scan may lie beside the model.
        # A link that leads nowhere is told, not passed over.
        found = [
            p for p in files if (p.is_file() or not p.exists()) and not p.name.endswith(TRIGGERS)
        ]
        if data is not None:
            mine = data.expanduser().resolve()
            if models.resolve() in mine.parents:
                found = [p for p in found if mine not in (p.resolve(), *p.resolve().parents)]
    elif models.is_file():
        try:
            lines = models.read_text("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise GoodnetError(
                "M001",
                f"{models} is no list of models",
                "give a text file with a path in each line",
            ) from error
        told = [line.strip() for line in lines]
        found = [models.absolute().parent / line for line in told if line and line[0] != "#"]
    else:
        raise GoodnetError("M001", f"{models} does not exist", "give a folder or a list of models")
    if not found:
        raise GoodnetError(
            "M001",
            f"{models} holds no models",
            f"models end in {', '.join(SUFFIXES)}; a list has one path in each line",
        )
    return found


def _named(found: Sequence[Path], base: Path) -> Iterator[tuple[str, str, Path]]:
    """Each model once: its name, the file of its result, its path.

    Names are paths below ``base`` as far as they are; files lie side by side, and no two are alike:
    those that would be get a mark each, so that none depends on the order of a list.
    """
    plain, long = [], set()
    for path in dict.fromkeys(path.absolute() for path in found):
        inside = path.is_relative_to(base.absolute()) and ".." not in path.parts
        name = path.relative_to(base.absolute()).as_posix() if inside else path.name
        # A file system holds names that are no text.
        name = os.fsencode(name).decode("utf-8", "backslashreplace").replace("\0", "\\x00")
        file = f"{name.replace('/', '__')}.json"
        if len(file.encode()) > LONGEST:
            file = f"{file.encode()[: LONGEST - 20].decode('utf-8', 'ignore')}.json"
            long.add(file)  # always with its mark
        plain.append((name, file, path))
    wanted = Counter([TABLE, *(file for _, file, _ in plain)])
    for name, file, path in plain:
        if wanted[file] == 1 and file not in long:
            yield name, file, path
            continue
        mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
        yield f"{name} ({mark})", f"{file.removesuffix('.json')}-{mark}.json", path


def _digest(path: Path) -> str:
    """SHA-256 of a file, hex; empty where it cannot be read."""
    try:
        # A pipe would be waited for, and a device never ends.
        return sha256(path) if path.is_file() else ""
    except (OSError, ValueError):  # a name with a zero byte is none
        return ""


def _spare(folder: Path, written: Sequence[str], given: Sequence[str | Path]) -> None:
    """Refuses to write over what a run is given.

    Raises:
        GoodnetError: O003.
    """
    inputs = {os.path.realpath(os.fsencode(path).replace(b"\0", b"?")) for path in given}
    for name in written:
        if os.path.realpath(os.fsencode(folder / name)) in inputs:
            raise GoodnetError(
                "O003",
                f"{folder / name} is an input of this run",
                "name another folder for the output",
            )


def _data_digest(data: Path) -> str:
    if data.is_file():
        # Read once here, so that data of no use end the run before it begins.
        load_images(data)
        return sha256(data)
    # The size is that of the first model that is asked; the digest is of names and contents.
    return load_images(data, size=(32, 32)).sha256


def _known(place: Place, job: Job) -> FleetResult | None:
    """An earlier answer to the same question; what is not sound, or failed, counts as none."""
    content = place.read(job.file)
    if content is None:
        return None
    try:
        result = FleetResult.model_validate_json(content)
    except ValueError:
        return None
    return result if result.key == job.key and result.report is not None else None


def _row(result: FleetResult, job: Job) -> FleetRow:
    report = result.report
    error = f"{result.error_code}: {result.error}" if result.error_code else None
    return FleetRow(
        name=result.name,
        sha256=job.model_sha256,
        verdict=report.verdict if report else None,
        p_value=report.p_value if report else None,
        targets=report.targets if report else [],
        clean_accuracy=report.clean_accuracy if report else None,
        seconds=result.seconds,
        error=error,
    )
