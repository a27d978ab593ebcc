"""An interpreter for the programs of torch.export: lists of tensor operations, and no Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from goodnet.errors import GoodnetError
from goodnet.formats.export_check import HIGHER_ORDER, resolve

DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
"""The schema's numbers of the element types."""

_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_SOFTMAXES = ("softmax.int", "_softmax.default", "log_softmax.int", "_log_softmax.default")
_COPIES = ("clone.default", "contiguous.default", "alias.default", "to.dtype", "_to_copy.default")
_PLAIN = {"as_int", "as_ints", "as_bool", "as_bools", "as_string", "as_strings", "as_int_lists"}


class Ref(NamedTuple):
    """A place where the value of an earlier step goes."""

    name: str


HERE = Ref("(device)")
"""Whatever device a program was exported on: the one that it is run on."""


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        target: its dotted name.
        run: what carries it out.
        args: positional arguments; values of earlier steps as :class:`Ref`.
        kwargs: keyword arguments.
        outputs: for each result its name, or a tuple of names for a list of tensors.
        drop: names that no later step needs.
    """

    target: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[str | tuple[str, ...], ...]
    drop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """A graph ready to run: pure data, shared by all copies of a network.

    Attributes:
        inputs: the names that must be bound before the first step.
        steps: in order.
        outputs: the names of the results.
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Any, ...]

    @classmethod
    def of(
        cls, inputs: tuple[str, ...], steps: Sequence[Step], outputs: tuple[Any, ...]
    ) -> Program:
        """A program that lets go of every value after the last step that needs it."""
        return cls(inputs, tuple(_free_early(steps, outputs)), outputs)

    def __call__(self, values: dict[str, Any]) -> list[Any]:
        """The results, given a value for every name in ``inputs``."""
        known = _with_device(values)
        for step in self.steps:
            result = step.run(
                *_fill(step.args, known), **{k: _fill(v, known) for k, v in step.kwargs.items()}
            )
            _bind(step.outputs, result, known)
            for name in step.drop:
                known.pop(name, None)
        return [_fill(output, known) for output in self.outputs]

    def everything(self, values: dict[str, Any]) -> dict[str, Any]:
        """What every step makes, by name, and ``values`` themselves."""
        known = _with_device(values)
        for step in self.steps:
            keywords = {k: _fill(v, known) for k, v in step.kwargs.items()}
            _bind(step.outputs, step.run(*_fill(step.args, known), **keywords), known)
        return known

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self

    def logits(self, output: str) -> str:
        """The name of the scores behind ``output``: what a final softmax was given."""
        makers = {step.outputs[0]: step for step in self.steps if len(step.outputs) == 1}
        name = output
        while (step := makers.get(name)) is not None and step.args:
            operation = step.target.removeprefix("torch.ops.aten.")
            source = step.args[0]
            if not isinstance(source, Ref):
                break
            if operation in _SOFTMAXES:
                dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
                return source.name if dim in (1, -1) else output
            if operation not in _COPIES:
                break
            name = source.name
        return output


def parse(graph: dict[str, Any], where: str, keep: tuple[str, ...] | None = None) -> Program:
    """Make a program of a serialised graph.

    Args:
        graph: as it stands in the JSON document.
        where: the file, for messages.
        keep: the names to answer with; None for the graph's own outputs.

    Raises:
        GoodnetError: M006 an argument or a mode that is not understood, M014 an operator from
            outside the tensor library.
        KeyError: (or TypeError, ValueError, AttributeError) the document is malformed.
    """
    inputs = tuple(_input_name(item) for item in graph["inputs"])
    steps = [step for node in graph["nodes"] if (step := _step(node, where)) is not None]
    outputs = tuple(_argument(item, where) for item in graph["outputs"])
    if keep is not None:
        outputs = tuple(Ref(name) for name in keep)
    return Program.of(inputs, steps, outputs)


def _with_device(values: dict[str, Any]) -> dict[str, Any]:
    devices = (value.device for value in values.values() if isinstance(value, Tensor))
    return {**values, HERE.name: next(devices, torch.device("cpu"))}


def _input_name(item: dict[str, Any]) -> str:
    ((kind, value),) = item.items()
    if kind == "as_tensor":
        return str(value["name"])
    # A number or None in place of an input; it is baked into the graph and never read.
    return f"({kind})"


def _step(node: dict[str, Any], where: str) -> Step | None:
    target = str(node["target"])
    outputs = tuple(_output(item) for item in node["outputs"])
    if not outputs and any(word in target for word in ("_assert", "sym_constrain")):
        # They hold the batch to what it was at export time, which is not ours to keep.
        return None
    for item in node["inputs"]:
        if item["name"] in ("training", "train") and item["arg"].get("as_bool"):
            raise GoodnetError(
                "M006",
                f"{where} was exported in training mode ({target})",
                "call model.eval() before torch.export.export",
            )
    if target == HIGHER_ORDER:
        return _inline(node, where, outputs)
    args = [_argument(i["arg"], where) for i in node["inputs"] if i.get("kind") != 2]
    kwargs = {i["name"]: _argument(i["arg"], where) for i in node["inputs"] if i.get("kind") == 2}
    return Step(target, resolve(target, where), tuple(args), kwargs, outputs)


def _inline(node: dict[str, Any], where: str, outputs: tuple[str | tuple[str, ...], ...]) -> Step:
    _, body, *operands = (item["arg"] for item in node["inputs"])
    program = parse(body["as_graph"]["graph"], where)
    one = len(outputs) == 1 and isinstance(outputs[0], str)

    # Whether it recorded gradients is not kept: the scan needs them all the way to the image.
    def run(*values: Any) -> Any:
        results = program(dict(zip(program.inputs, values, strict=True)))
        return results[0] if one else results

    return Step(HIGHER_ORDER, run, tuple(_argument(item, where) for item in operands), {}, outputs)


def _output(item: dict[str, Any]) -> str | tuple[str, ...]:
    ((kind, value),) = item.items()
    if kind == "as_tensors":
        return tuple(str(tensor["name"]) for tensor in value)
    if kind == "as_tensor":
        return str(value["name"])
    if kind == "as_none":
        return ""
    return str(value["as_name"])


def _argument(item: dict[str, Any], where: str) -> Any:
    ((kind, value),) = item.items()
    if kind in _PLAIN:
        return value
    readers: dict[str, Callable[[Any], Any]] = {
        "as_none": lambda _: None,
        "as_tensor": lambda v: Ref(v["name"]),
        "as_tensors": lambda v: [Ref(t["name"]) for t in v],
        "as_optional_tensor": _optional,
        "as_optional_tensors": lambda v: [_optional(t) for t in v],
        "as_float": float,
        "as_floats": lambda v: [float(number) for number in v],
        "as_sym_int": _symbol,
        "as_sym_ints": lambda v: [_symbol(s) for s in v],
        "as_sym_float": _symbol,
        "as_sym_bool": _symbol,
        "as_scalar_type": lambda v: DTYPES[v],
        "as_memory_format": lambda v: _MEMORY_FORMATS[v],
        "as_layout": lambda _: torch.strided,
        "as_device": lambda _: HERE,
    }
    if kind not in readers:
        raise GoodnetError(
            "M006",
            f"{where} has an argument of the kind {kind!r}, which goodnet cannot translate",
            "export the model again with ordinary PyTorch layers only",
        )
    return readers[kind](value)


def _optional(value: dict[str, Any]) -> Ref | None:
    tensor = value.get("as_tensor")
    return None if tensor is None else Ref(tensor["name"])


def _symbol(value: dict[str, Any]) -> Any:
    ((kind, content),) = value.items()
    return Ref(content) if kind == "as_name" else content


def _fill(argument: Any, known: dict[str, Any]) -> Any:
    if isinstance(argument, Ref):
        return known[argument.name]
    if isinstance(argument, list | tuple):
        return [_fill(item, known) for item in argument]
    return argument


def _bind(outputs: tuple[str | tuple[str, ...], ...], result: Any, known: dict[str, Any]) -> None:
    results = [result] if len(outputs) == 1 else result
    for output, value in zip(outputs, results if outputs else (), strict=True):
        if isinstance(output, tuple):
            known.update(zip(output, value, strict=True))
        else:
            known[output] = value


def _free_early(steps: Sequence[Step], outputs: tuple[Any, ...]) -> list[Step]:
    """Note at each step what nobody needs after it: a deep network need not stay in memory."""
    needed = names_in(outputs)
    freed = []
    for step in reversed(steps):
        used = names_in([step.args, list(step.kwargs.values())])
        made = {n for o in step.outputs for n in (o if isinstance(o, tuple) else (o,))}
        drop = tuple(sorted((used | made) - needed))
        needed |= used
        freed.append(Step(step.target, step.run, step.args, step.kwargs, step.outputs, drop))
    return freed[::-1]


def names_in(argument: Any) -> set[str]:
    """The steps' values that an argument, or a list of them, refers to."""
    if isinstance(argument, Ref):
        return {argument.name}
    if isinstance(argument, list | tuple):
        return {name for item in argument for name in names_in(item)}
    return set()


def tensor_sizes(meta: dict[str, Any]) -> list[int | None]:
    """The sizes of a tensor; None where the program leaves one open."""
    return [size.get("as_int") for size in meta["sizes"]]


def materialise(meta: dict[str, Any], data: bytes) -> Tensor:
    """A tensor from the raw bytes of its record.

    Args:
        meta: its element type, sizes, strides and offset.
        data: the record, which other tensors may share.

    Raises:
        KeyError: (or ValueError, RuntimeError) the record does not hold such a tensor.
    """
    dtype = DTYPES[meta["dtype"]]
    if not data:
        sizes = [int(size["as_int"]) for size in meta["sizes"]]
        if math.prod(sizes):
            raise ValueError("a tensor has no record")
        return torch.zeros(sizes, dtype=dtype)
    flat = torch.frombuffer(bytearray(data), dtype=dtype)
    return view_of(meta, flat).clone()


def size_of(meta: dict[str, Any]) -> int:
    """The bytes that a tensor takes, by what stands of it in the file; 0 where it is nonsense."""
    sizes = [int(size["as_int"]) for size in meta["sizes"]]
    return math.prod(sizes) * DTYPES[meta["dtype"]].itemsize


def view_of(meta: dict[str, Any], flat: Tensor) -> Tensor:
    """The part of a record that is one tensor, as a view that can be written to."""
    sizes = [int(size["as_int"]) for size in meta["sizes"]]
    strides = [int(stride["as_int"]) for stride in meta["strides"]]
    last = meta["storage_offset"]["as_int"] + sum(
        (size - 1) * stride for size, stride in zip(sizes, strides, strict=True)
    )
    if min([*sizes, *strides, 0]) < 0 or last >= len(flat):
        raise ValueError("a tensor reaches beyond its record")
    return torch.as_strided(flat, sizes, strides, meta["storage_offset"]["as_int"])
