"""One more output for the last layer of a torch.export archive.

The weights grow, and so do the shapes that the program notes for what they make. Which those are is
found by carrying the program out before and after. A program in which the number of outputs stands
as a number (a ``view``) fails the second time, and is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from goodnet.formats.export_check import HIGHER_ORDER
from goodnet.formats.export_program import DTYPES, Program, materialise, tensor_sizes
from goodnet.formats.network import FILTER, cannot_widen

MARK = f"extra/{FILTER}"
"""The record that tells of the filter; torch.export keeps users' own files in this folder."""

MODEL = "models/model.json"
_UNKNOWN = 2
"""Images, where the program takes any number."""

_Tensors = Mapping[str, tuple[str, dict[str, Any]]]


def widened(
    records: Mapping[str, bytes],
    tensors: _Tensors,
    program: Program,
    inputs: Mapping[str, str],
    weight: tuple[str, int],
    bias: str,
) -> dict[str, bytes]:
    """The records of the archive with one more output, and the mark.

    Args:
        records: name to content.
        tensors: a weight's name to its record and its description.
        program: what the archive holds.
        inputs: for each input of the program the tensor bound to it, or ``""`` for the images.
        weight: the name of the last layer's weight, and the axis along which it counts outputs.
        bias: the name of its bias.

    Raises:
        GoodnetError: M015 where the weights share a record with others, or the program insists on
            the number of outputs.
    """
    old = {name: materialise(meta, records[record]) for name, (record, meta) in tensors.items()}
    new = dict(old)
    changed = dict(records)
    for name, axis in (weight, (bias, 0)):
        record, _ = tensors[name]
        if [other for other, _ in tensors.values()].count(record) > 1 or not records[record]:
            raise cannot_widen("the weights of its last layer serve another one, too")
        more = torch.zeros_like(old[name].narrow(axis, 0, 1))
        new[name] = torch.cat([old[name], more], dim=axis).contiguous()
        changed[record] = new[name].view(torch.uint8).numpy().tobytes()
        _describe(changed, name, record, new[name])
    document = json.loads(records[MODEL])
    graph = document["graph_module"]["graph"]
    image = next(given for given, name in inputs.items() if not name)
    meta = graph["tensor_values"][image]
    sizes = [size or _UNKNOWN for size in tensor_sizes(meta)]
    probe = torch.zeros(sizes, dtype=DTYPES[meta["dtype"]])
    before, after = (
        _values(program, {given: held.get(name, probe) for given, name in inputs.items()})
        for held in (old, new)
    )
    _note_shapes(graph, program, before, after)
    changed[MODEL] = json.dumps(document).encode()
    changed[MARK] = b"the last output means: backdoored input\n"
    return changed


def _describe(records: dict[str, bytes], name: str, record: str, tensor: Tensor) -> None:
    """Puts the new shape into the list of the folder's tensors."""
    folder = record.rpartition("/")[0]
    place = f"{folder}/model_{folder.split('/')[1]}_config.json"
    listed = json.loads(records[place])
    meta = listed["config"][name]["tensor_meta"]
    meta["sizes"] = [{"as_int": size} for size in tensor.shape]
    meta["strides"] = [{"as_int": stride} for stride in tensor.stride()]
    meta["storage_offset"] = {"as_int": 0}
    records[place] = json.dumps(listed).encode()


def _values(program: Program, given: dict[str, Tensor]) -> dict[str, Any]:
    try:
        with torch.no_grad():
            return program.everything(given)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise cannot_widen("its program insists on the number of classes") from error


def _note_shapes(
    graph: dict[str, Any], program: Program, before: dict[str, Any], after: dict[str, Any]
) -> None:
    inside = {name for s in program.steps if s.target == HIGHER_ORDER for name in s.outputs}
    for name, meta in graph["tensor_values"].items():
        was, now = before.get(name), after.get(name)
        if not isinstance(was, Tensor) or not isinstance(now, Tensor) or was.shape == now.shape:
            continue
        if name in inside:
            raise cannot_widen("its last layer lies in a part of the program with its own shapes")
        for key, old, new in (
            ("sizes", was.shape, now.shape),
            ("strides", was.stride(), now.stride()),
        ):
            for axis, noted in enumerate(meta[key]):
                if old[axis] == new[axis]:
                    continue
                if noted.get("as_int") != old[axis]:
                    raise cannot_widen("its program leaves the number of classes open")
                noted["as_int"] = new[axis]
