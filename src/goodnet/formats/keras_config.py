"""A Keras model's configuration, in any of its dialects, read into one small tree of data.

The configuration is the JSON in a model file. Nothing in it is imported or run: names of classes
are looked up in our own table of layers later, and serialised Python is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from goodnet.errors import GoodnetError

LayerPath = tuple[str, ...]
"""The names of the models around a layer, then its own, without the outermost model's."""

MAX_DEPTH = 16
MAX_LAYERS = 5000

MALFORMED = (
    KeyError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""What reading settings that are not what they should be raises."""
MODELS = frozenset({"Functional", "Model", "Sequential"})
_CODE = frozenset({"Lambda", "__lambda__"})
_HARMLESS_KWARGS = frozenset({"name", "mask", "training", "cache_key"})


@dataclass(frozen=True)
class Ref:
    """One tensor of the graph: output ``tensor`` of call ``node`` of the layer called ``layer``."""

    layer: str
    node: int
    tensor: int


@dataclass(frozen=True)
class Call:
    """One call of a layer: the tensors and plain numbers it is given, in order."""

    arguments: tuple[Ref | float, ...]


@dataclass(frozen=True)
class Layer:
    """One layer, or one model inside a model.

    Attributes:
        name: unique in its model.
        type: the Keras class, e.g. ``"Conv2D"``; operations of ``keras.ops`` begin with ``"ops."``
            and those of Keras 2's ``TFOpLambda`` with ``"tf."``.
        config: the layer's own settings.
        calls: how it is used in a functional model; empty in a sequential one.
        path: see :data:`LayerPath`.
        model: what is inside, for a nested model.
    """

    name: str
    type: str
    config: Mapping[str, Any]
    calls: tuple[Call, ...]
    path: LayerPath
    model: Model | None = None

    @property
    def trainable(self) -> bool:
        """Whether it was trained: frozen layers change the order of weights in old files."""
        return self.config.get("trainable") is not False


@dataclass(frozen=True)
class Model:
    """A functional or sequential model: its layers, and which tensors enter and leave."""

    layers: tuple[Layer, ...]
    sequential: bool
    inputs: tuple[Ref, ...]
    outputs: tuple[Ref, ...]
    input_shape: tuple[int | None, ...] | None

    def leaves(self) -> Iterator[Layer]:
        """All layers, nested ones in the place of the model that holds them."""
        for layer in self.layers:
            if layer.model is None:
                yield layer
            else:
                yield from layer.model.leaves()


def damaged(what: str) -> GoodnetError:
    """M003 for a Keras file: ``what`` is wrong with it, in one line."""
    return GoodnetError("M003", what, "check the file, or save the model from Keras again")


def untranslatable(name: str, kind: str, why: str = "") -> GoodnetError:
    """M006 for the layer ``name`` of the Keras class ``kind``."""
    return GoodnetError(
        "M006",
        f"the layer '{name}' ({kind}) cannot be translated{why and ': ' + why}",
        "run Keras with KERAS_BACKEND=torch, where a model is a torch.nn.Module, export it with "
        "torch.export and pass the .pt2 file",
    )


def carries_code(name: str) -> GoodnetError:
    """M005: ``name`` is where Python code was found."""
    return GoodnetError(
        "M005",
        f"'{name}' is Python code inside the model file; it was not run",
        "replace it by a built-in layer such as Rescaling, or rebuild the model without it",
    )


def parse(config: object) -> Model:
    """The tree of a whole model.

    Args:
        config: the parsed JSON: ``{"class_name": ..., "config": ...}``.

    Raises:
        GoodnetError: M003 when it is malformed or absurdly large, M005 when Python code is in it,
            M006 when it is no functional or sequential model.
    """
    try:
        _refuse_code(config, 0, [0])
        if not isinstance(config, dict):
            raise TypeError("the configuration is no object")
        kind = _class(config)
        if kind not in MODELS:
            raise untranslatable(str(config.get("name") or kind), kind, "its graph is Python code")
        return _model(config, (), 0)
    except MALFORMED as error:
        raise damaged(f"the model's configuration is malformed: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def _refuse_code(tree: object, depth: int, count: list[int]) -> None:
    count[0] += 1
    if depth > 200 or count[0] > 3_000_000:
        raise damaged("the model's configuration is nested too deeply or too large")
    if isinstance(tree, dict):
        if tree.get("class_name") in _CODE:
            inner = tree.get("config")
            name = inner.get("name") if isinstance(inner, dict) else None
            raise carries_code(str(name or tree.get("name") or tree["class_name"])[:80])
        for value in tree.values():
            _refuse_code(value, depth + 1, count)
    elif isinstance(tree, list):
        for value in tree:
            _refuse_code(value, depth + 1, count)


def _class(entry: Mapping[str, Any]) -> str:
    """The class name, with operations kept apart from the layers that share their names."""
    kind = str(entry["class_name"])
    module = entry.get("module")
    config = entry["config"]
    # Keras 3 leaves the module out of HDF5 files; but every layer is trainable or has a type.
    bare = module is None and isinstance(config, dict) and set(config) <= {"name", "axis"}
    if (isinstance(module, str) and ".ops" in module) or (bare and kind not in MODELS):
        return "ops." + kind
    if kind == "TFOpLambda":
        return "tf." + str(entry["config"].get("function"))
    return kind


def _model(entry: Mapping[str, Any], path: LayerPath, depth: int) -> Model:
    if depth > MAX_DEPTH:
        raise damaged("the models in the model are nested too deeply")
    config = entry["config"]
    # Sequential models of Keras before 2.2.3 are a bare list of layers.
    entries = config if isinstance(config, list) else config["layers"]
    if not isinstance(entries, list) or len(entries) > MAX_LAYERS:
        raise damaged("the model has no list of layers, or an absurdly long one")
    layers = tuple(_layer(item, path, depth) for item in entries)
    if not layers:
        raise damaged("the model has no layers")
    if len({layer.name for layer in layers}) != len(layers):
        raise damaged("two layers of the model have the same name")
    sequential = entry["class_name"] == "Sequential"
    inputs: tuple[Ref, ...] = ()
    outputs: tuple[Ref, ...] = ()
    if sequential:
        shape = _shape(layers[0].config)
        if shape is None and layers[0].model is not None:
            shape = layers[0].model.input_shape
        if shape is None and isinstance(config, dict):
            shape = _dimensions(config.get("build_input_shape"))
    else:
        inputs = tuple(_refs(config["input_layers"]))
        outputs = tuple(_refs(config["output_layers"]))
        by_name = {layer.name: layer for layer in layers}
        shape = _shape(by_name[inputs[0].layer].config) if inputs else None
    return Model(layers, sequential, inputs, outputs, shape)


def _layer(entry: Mapping[str, Any], path: LayerPath, depth: int) -> Layer:
    kind = _class(entry)
    config = entry["config"]
    own: object = config.get("name") if isinstance(config, dict) else None
    name = entry.get("name") or own or kind
    if not isinstance(name, str):
        raise TypeError("a layer's name is no text")
    place = (*path, name)
    model = _model(entry, place, depth + 1) if kind in MODELS else None
    calls = tuple(_call(node, name, kind) for node in entry.get("inbound_nodes") or [])
    return Layer(name, kind, config if isinstance(config, dict) else {}, calls, place, model)


def _call(node: object, name: str, kind: str) -> Call:
    """One element of ``inbound_nodes``: Keras 3 writes a dict, older ones a list of lists."""
    arguments: list[Ref | float] = []
    if isinstance(node, dict):
        _collect(node["args"], arguments, name, kind)
        _keywords(node.get("kwargs") or {}, arguments, name, kind)
        return Call(tuple(arguments))
    if not isinstance(node, list):
        raise TypeError("an inbound node is neither a list nor an object")
    if node and isinstance(node[0], str):
        node = [node]
    for item in node:
        if item[0] == "_CONSTANT_VALUE":
            arguments.append(float(item[2]))
        else:
            arguments.append(Ref(str(item[0]), int(item[1]), int(item[2])))
        keywords = item[3] if len(item) > 3 else {}
        # Keras 3 overrides what it recorded when it predicts, Keras 2 did not.
        if keywords.get("training") is True:
            raise untranslatable(name, kind, "it is called in training mode")
        _keywords(keywords, arguments, name, kind)
    return Call(tuple(arguments))


def _keywords(
    kwargs: Mapping[str, Any], arguments: list[Ref | float], name: str, kind: str
) -> None:
    for key, value in kwargs.items():
        if key in _HARMLESS_KWARGS or value is None:
            continue
        if key not in ("y", "x2", "inputs", "x", "x1"):
            raise untranslatable(name, kind, f"it is called with the argument '{key[:40]}'")
        _collect(value, arguments, name, kind)


def _collect(tree: object, arguments: list[Ref | float], name: str, kind: str) -> None:
    if isinstance(tree, dict) and tree.get("class_name") == "__keras_tensor__":
        layer, node, tensor = tree["config"]["keras_history"]
        arguments.append(Ref(str(layer), int(node), int(tensor)))
    elif isinstance(tree, int | float):
        arguments.append(float(tree))
    elif isinstance(tree, list):
        if len(tree) == 3 and isinstance(tree[0], str):
            arguments.append(Ref(tree[0], int(tree[1]), int(tree[2])))
        else:
            for item in tree:
                _collect(item, arguments, name, kind)
    elif tree is not None:
        raise untranslatable(name, kind, "it is called with something other than tensors")


def _refs(tree: object) -> Iterator[Ref]:
    """``["a", 0, 0]``, a list of such, or a dict of such."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if not isinstance(tree, list):
        raise TypeError("input_layers or output_layers is no list")
    if len(tree) == 3 and isinstance(tree[0], str):
        yield Ref(tree[0], int(tree[1]), int(tree[2]))
    else:
        for item in tree:
            yield from _refs(item)


def _shape(config: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    """The shape, with the batch, that an input layer or a first layer was given."""
    for key in ("batch_shape", "batch_input_shape"):
        if config.get(key) is not None:
            return _dimensions(config[key])
    return None


def _dimensions(shape: object) -> tuple[int | None, ...] | None:
    if not isinstance(shape, list):
        return None
    return tuple(None if size is None else int(size) for size in shape)
