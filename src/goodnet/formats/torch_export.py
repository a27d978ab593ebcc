"""Files of ``torch.export.save`` (``.pt2``), read without ``torch.export.load``.

``torch.export.load`` unpickles (example inputs, tensor subclasses, custom objects), evaluates
expressions, looks functions up by dotted name and compiles Python text, all from the file. Here
the archive is read as what it is, JSON and raw tensors, and the program is interpreted. Writing
copies the archive with new weights, so everything else in it stays byte for byte.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goodnet.errors import GoodnetError
from goodnet.formats.export_check import read_program
from goodnet.formats.export_program import (
    DTYPES,
    Program,
    materialise,
    parse,
    size_of,
    tensor_sizes,
    view_of,
)
from goodnet.formats.export_widen import MARK, MODEL, widened
from goodnet.formats.guard import check_pickle_free_or_safe, damaged
from goodnet.formats.network import Network
from goodnet.formats.torch_module import as_logits, freeze

_MALFORMED = (KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError)
_FOLDERS = ("data/weights", "data/constants")

MOST_VIEWS, SPARE = 4, 2**26
"""So many times the bytes of the file may its tensors take, and so many bytes more: one record can
be listed under many names, and a stride of nought makes much of one number."""

LARGEST_BATCH = 2**28
"""Numbers in the largest batch that a program may insist on: a gigabyte."""


@dataclass(frozen=True)
class _Archive:
    """A .pt2 file in memory.

    Attributes:
        root: the folder that all records stand in, with its slash.
        records: name (without root) to content, in the file's order.
        tensors: a weight's name to its record and its description.
        parameters: which of these are parameters.
    """

    root: str
    records: dict[str, bytes]
    tensors: dict[str, tuple[str, dict[str, Any]]]
    parameters: frozenset[str]

    def __call__(self, module: nn.Module, path: Path) -> None:
        """Write the archive to ``path`` with the weights of ``module``."""
        if not isinstance(module, ExportModule):
            raise TypeError("expected a copy of the network's module")
        flat: dict[str, Tensor] = {}
        for name, (record, meta) in self.tensors.items():
            if record not in flat:
                raw = bytearray(self.records[record]) or bytearray(16)
                flat[record] = torch.frombuffer(raw, dtype=DTYPES[meta["dtype"]])
            if self.records[record]:
                view_of(meta, flat[record]).copy_(module.tensor(name))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for record, content in self.records.items():
                new = bytes(flat[record].numpy().data) if record in flat and content else content
                archive.writestr(self.root + record, new)


class ExportModule(nn.Module):
    """An exported program that takes any number of NCHW images and answers with logits.

    A final softmax is left out. A program that was exported for a fixed batch size b, and that
    cannot do with another, runs on chunks of b images; the last one is filled up with zeros and
    the surplus rows are dropped.

    Args:
        program: what to run.
        names: for each input of the program the tensor bound to it, or ``""`` for the images.
        dtype: of the images that the program takes.
        channels_last: whether it takes NHWC.
    """

    def __init__(
        self, program: Program, names: tuple[str, ...], dtype: torch.dtype, channels_last: bool
    ) -> None:
        super().__init__()
        self.program = program
        self.names = names
        self.dtype = dtype
        self.channels_last = channels_last
        self.chunk: int | None = None
        """The fixed batch size, where the program insists on one."""

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of this name in the exported program."""
        found: Tensor = getattr(self, _key(name))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """``float32 (n, C, H, W)`` to logits ``float32 (n, K)``."""
        images = images.to(self.dtype)
        if self.channels_last:
            images = images.permute(0, 2, 3, 1)
        if self.chunk is None or len(images) == 0:
            return as_logits(self._run(images))
        surplus = -len(images) % self.chunk
        if surplus:
            images = torch.cat([images, images.new_zeros(surplus, *images.shape[1:])])
        rows = torch.cat([self._run(part) for part in torch.split(images, self.chunk)])
        return as_logits(rows[: len(rows) - surplus])

    def _run(self, images: Tensor) -> Tensor:
        values = {
            given: self.tensor(name) if name else images
            for given, name in zip(self.program.inputs, self.names, strict=True)
        }
        output: Tensor = self.program(values)[0]
        return output


def load(path: Path) -> Network:
    """A network from a file of ``torch.export.save``; no code of the file runs.

    Args:
        path: a ``.pt2`` file with one program that takes one batch of images and nothing else.

    Returns:
        A :class:`Network` of kind ``"pt2"``. A program whose images end in 1 or 3 channels is
        taken to be channels-last and gets its images permuted.

    Raises:
        GoodnetError: M003 damaged or of an older layout, M004 pickled or compiled code inside,
            M006 not translatable, M009 not an image classifier, M014 code hidden in the program.
    """
    check_pickle_free_or_safe(path)
    try:
        archive = _read(path)
        return _network(archive, path)
    except GoodnetError:
        raise
    except (*_MALFORMED, ArithmeticError, MemoryError, zipfile.BadZipFile, OSError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def _network(archive: _Archive, path: Path) -> Network:
    where = str(path)
    document = read_program(archive.records[MODEL], where)
    module, shape, classes = _build(document["graph_module"], archive, where)
    _settle_batch(module, document["graph_module"]["graph"], shape, where)

    def widen(weight: str, bias: str, axis: int) -> Network:
        names = {_key(name): name for name in archive.tensors}
        inputs = dict(zip(module.program.inputs, module.names, strict=True))
        grown = (names[weight], axis)
        records = widened(
            archive.records, archive.tensors, module.program, inputs, grown, names[bias]
        )
        return _network(_described(archive.root, records, where), path)

    filtered = MARK in archive.records
    return Network(
        module, shape, classes, "pt2", path.suffix, archive, filtered=filtered, widen=widen
    )


def _key(name: str) -> str:
    # A parameter of a module may have any name without a dot.
    return name.replace(".", "/")


def _read(path: Path) -> _Archive:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = names[0].split("/")[0] + "/"
        records = {n.removeprefix(root): archive.read(n) for n in names if not n.endswith("/")}
    if MODEL not in records or "data/weights/model_weights_config.json" not in records:
        raise GoodnetError(
            "M003",
            f"{path} holds no program in the present layout of torch.export",
            "load it with the PyTorch that wrote it, and torch.export.save it with 2.10 or later",
        )
    if records.get("byteorder", b"little") != b"little":
        raise damaged(path, "its numbers are big-endian")
    return _described(root, records, str(path))


def _described(root: str, records: dict[str, bytes], where: str) -> _Archive:
    """The archive with what it says of its tensors."""
    tensors: dict[str, tuple[str, dict[str, Any]]] = {}
    parameters = set()
    for folder in _FOLDERS:
        config = records.get(f"{folder}/model_{folder.split('/')[1]}_config.json", b'{"config":{}}')
        for name, payload in json.loads(config)["config"].items():
            if payload["use_pickle"] or "tensor_meta" not in payload or not payload["tensor_meta"]:
                raise GoodnetError(
                    "M004",
                    f"{where} keeps {name[:80]} as a pickled object",
                    "export a model of plain tensors and layers",
                )
            tensors[name] = (f"{folder}/{payload['path_name']}", payload["tensor_meta"])
            if payload["is_param"]:
                parameters.add(name)
    return _Archive(root, records, tensors, frozenset(parameters))


def _build(
    graph_module: dict[str, Any], archive: _Archive, where: str
) -> tuple[ExportModule, tuple[int, int, int] | None, int | None]:
    graph, signature = graph_module["graph"], graph_module["signature"]
    output = _output_name(signature["output_specs"], where)
    program = parse(graph, where, keep=(output,))
    scores = program.logits(output)
    if scores != output:
        program = parse(graph, where, keep=(scores,))
    names, image = _bindings(signature["input_specs"], program, where)
    meta = graph["tensor_values"][image]
    sizes = tensor_sizes(meta)
    dtype = DTYPES[meta["dtype"]]
    if len(sizes) != 4 or not dtype.is_floating_point:
        raise GoodnetError(
            "M009",
            f"{where} takes {dtype} of {len(sizes)} dimensions, not a batch of float images",
            "export the classifier itself, from images (n, C, H, W) to class scores",
        )
    channels_last = sizes[3] in (1, 3) and sizes[1] not in (1, 3)
    module = ExportModule(program, names, dtype, channels_last)
    _register(module, archive)
    freeze(module)
    _, first, second, third = sizes
    if first is None or second is None or third is None:
        shape = None
    else:
        shape = (third, first, second) if channels_last else (first, second, third)
    scores_sizes = tensor_sizes(graph["tensor_values"][scores])
    return module, shape, scores_sizes[1] if len(scores_sizes) == 2 else None


def _output_name(specs: list[dict[str, Any]], where: str) -> str:
    for spec in specs:
        argument = spec.get("user_output", {}).get("arg", {})
        if "as_tensor" in argument:
            return str(argument["as_tensor"]["name"])
    raise GoodnetError(
        "M009", f"{where} answers with no tensor", "export a model that returns class scores"
    )


def _bindings(
    specs: list[dict[str, Any]], program: Program, where: str
) -> tuple[tuple[str, ...], str]:
    """For each input the name of its tensor ("" for the images), and the name of the images."""
    keys = {
        "parameter": "parameter_name",
        "buffer": "buffer_name",
        "tensor_constant": "tensor_constant_name",
    }
    names, images = [], []
    for given, spec in zip(program.inputs, specs, strict=True):
        ((kind, content),) = spec.items()
        if kind == "user_input" and "as_tensor" in content["arg"]:
            names.append("")
            images.append(given)
        elif kind in keys:
            names.append(str(content[keys[kind]]))
        else:
            raise GoodnetError(
                "M006",
                f"{where} has an input of the kind {kind!r}, which goodnet cannot translate",
                "export a model that takes one batch of images",
            )
    if len(images) != 1:
        raise GoodnetError(
            "M009",
            f"{where} takes {len(images)} inputs",
            "export a model that takes one batch of images",
        )
    return tuple(names), images[0]


def _register(module: ExportModule, archive: _Archive) -> None:
    # Weights that two layers share must stay one parameter, or a repair would part them.
    shared: dict[str, Tensor] = {}
    left = MOST_VIEWS * sum(map(len, archive.records.values())) + SPARE
    for name, (record, meta) in archive.tensors.items():
        identity = record + json.dumps([meta["sizes"], meta["strides"], meta["storage_offset"]])
        if identity not in shared:
            left -= size_of(meta)
            if left < 0:
                raise ValueError("its tensors are far larger than the file")
            tensor = materialise(meta, archive.records[record])
            is_parameter = name in archive.parameters
            shared[identity] = nn.Parameter(tensor, False) if is_parameter else tensor
        tensor = shared[identity]
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(_key(name), tensor)
        else:
            module.register_buffer(_key(name), tensor)


def _settle_batch(
    module: ExportModule, graph: dict[str, Any], shape: tuple[int, int, int] | None, where: str
) -> None:
    """Find out by trying whether a program for b images does with any other number."""
    names = dict(zip(module.program.inputs, module.names, strict=True))
    image = next(given for given, name in names.items() if not name)
    batch = tensor_sizes(graph["tensor_values"][image])[0]
    if batch is None or shape is None:
        return
    if (batch + 1) * math.prod(shape) > LARGEST_BATCH:
        raise GoodnetError(
            "M009",
            f"{where} takes batches of {batch} images of {shape[0]} x {shape[1]} x {shape[2]}",
            "export the classifier for any number of images, or for a few",
        )
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand((batch + 1, *shape), generator=generator)
    with torch.no_grad():
        free = _attempt(module, probe)
        module.chunk = batch
        fixed = _attempt(module, probe)
    if fixed is None:
        raise damaged(where, "the program does not run on the images that it was made for")
    if free is not None and free.shape == fixed.shape and torch.allclose(free, fixed, 1e-4, 1e-5):
        module.chunk = None


def _attempt(module: Callable[[Tensor], Tensor], images: Tensor) -> Tensor | None:
    try:
        return module(images)
    # That it fails is the answer: the caller refuses a program that runs in neither way.
    except (*_MALFORMED, ArithmeticError, MemoryError, NotImplementedError):
        return None
