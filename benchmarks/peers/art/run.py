"""Neural Cleanse of the Adversarial Robustness Toolbox (ART), by its own code, on a Keras model.

    .peers/art/bin/python benchmarks/peers/art/run.py --model M.h5 --data D.npz -o OUT.json

The user's path is taken: ``KerasClassifier``, ``NeuralCleanse(classifier)(classifier)``,
``outlier_detection``. ART's pattern lies in [0, 1] whatever ``clip_values`` say and it takes every
model's output for probabilities, so by default the scale and a missing softmax are put inside the
model; ``--as-is`` hands the model over as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

import bench


def main() -> int:
    """Reads the command line and scans."""
    options = bench.parser(__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, help="instead of ART's 1000")
    options.add_argument("--as-is", action="store_true", help="no scale, no softmax inside")
    return bench.execute("art", options.parse_args(), scan)


def scan(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs ART's Neural Cleanse; see :func:`bench.execute`."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import art
    import keras
    import tensorflow as tf
    from art.defences.transformer.poisoning import NeuralCleanse
    from art.estimators.classification import KerasClassifier

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    tf.random.set_seed(arguments.seed)
    images, labels = bench.clean_images(arguments)
    factor, offset = bench.SCALES[arguments.scale]
    model = load(arguments.model)
    outputs = model.predict(images * factor + offset, verbose=0)
    logits, num_classes = bench.gives_logits(outputs), int(outputs.shape[1])
    if arguments.as_is:
        images = images * factor + offset
    else:
        model = _self_contained(model, factor, offset, logits)
    classifier = KerasClassifier(model=model, use_logits=False, clip_values=(0.0, 1.0))
    changed = {} if arguments.steps is None else {"steps": arguments.steps}
    cleanse = NeuralCleanse(classifier)(classifier, **changed)

    rows: dict[int, dict[str, Any]] = {}
    generate = cleanse.generate_backdoor

    def recorded(x: np.ndarray, y: np.ndarray, target: np.ndarray) -> Any:
        """ART's own search, timed; ``outlier_detection`` keeps the masks of flagged labels only."""
        with bench.stopwatch() as times:
            mask, pattern = generate(x, y, target)
        stamped = ((1 - mask) * x + mask * pattern).astype(np.float32)
        hits = np.asarray(model(stamped, training=False)).argmax(1) == target.argmax()
        rows[int(target.argmax())] = {
            "l1": float(np.abs(mask).sum()),
            "attack_success": float(hits.mean()),
            **times,
        }
        return mask, pattern

    cleanse.generate_backdoor = recorded
    wanted, one_hot = bench.chosen_labels(arguments, num_classes), np.eye(num_classes)
    began = time.perf_counter()
    if len(wanted) == num_classes:
        flagged = [label for label, _, _ in cleanse.outlier_detection(images, one_hot[labels])]
    else:
        for label in wanted:
            recorded(images, one_hot[labels], one_hot[label])
        flagged = None
    seconds = time.perf_counter() - began
    _judge(rows, flagged)
    return {
        "version": f"adversarial-robustness-toolbox {art.__version__}",
        "num_classes": num_classes,
        "clean_accuracy": float((outputs.argmax(1) == labels).mean()),
        "seconds": seconds,
        "labels": rows,
        "settings": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "python": sys.version.split()[0],
            "images": len(images),
            "scale": arguments.scale,
            "logits": logits,
            "scale_and_softmax_inside": not arguments.as_is,
            # 0 with Keras 3: ART's reset() sets every variable of the optimiser to zero.
            "learning_rate_in_force": float(np.asarray(cleanse.opt.learning_rate)),
            **{
                name: getattr(cleanse, name) for name in NeuralCleanse.params if _has(cleanse, name)
            },
        },
    }


def load(path: Path) -> Any:
    """A Keras model from ``.h5`` or ``.keras``, also where Keras 2 is to read a Keras 3 file."""
    import keras

    try:
        return keras.models.load_model(path, compile=False)
    except (TypeError, ValueError) as error:
        if not keras.__version__.startswith("2."):
            raise
        if path.suffix == ".keras":
            return _from_keras3_archive(path)
        if path.suffix in {".h5", ".hdf5"}:
            return _from_keras3_hdf5(path)
        raise ValueError(f"{path.name}: {error}") from error


def _self_contained(model: Any, factor: float, offset: float, logits: bool) -> Any:
    """The model with its scale in front and a softmax behind, where it needs them."""
    import keras

    inputs = keras.Input(model.input_shape[1:])
    outputs = inputs
    if (factor, offset) != (1.0, 0.0):
        outputs = keras.layers.Rescaling(factor, offset)(outputs)
    outputs = model(outputs)
    if logits:
        outputs = keras.layers.Softmax()(outputs)
    return keras.Model(inputs, outputs)


def _judge(rows: dict[int, dict[str, Any]], flagged: list[int] | None) -> None:
    """Adds ART's anomaly index, and its rule where ART has not judged for want of labels."""
    norms = np.array([row["l1"] for row in rows.values()])
    deviation = np.abs(norms - np.median(norms))
    with np.errstate(invalid="ignore", divide="ignore"):
        index = deviation / (1.4826 * np.median(deviation))
    for (label, row), value in zip(rows.items(), index, strict=True):
        row["anomaly_index"] = float(value)
        row["flagged"] = (
            label in flagged
            if flagged is not None
            else bool(row["l1"] <= np.median(norms) and value > bench.THRESHOLD)
        )


def _has(thing: Any, name: str) -> bool:
    """Whether a setting can be read back as a plain value."""
    return isinstance(getattr(thing, name, None), (bool, int, float, str))


def _from_keras3_hdf5(path: Path) -> Any:
    """A whole-model HDF5 file of Keras 3, in Keras 2."""
    import h5py
    from keras.src.saving.legacy import hdf5_format

    with h5py.File(path, "r") as file:
        model = _from_config(json.loads(file.attrs["model_config"]))
        hdf5_format.load_weights_from_hdf5_group(file["model_weights"], model)
    return model


def _from_keras3_archive(path: Path) -> Any:
    """A ``.keras`` file of Keras 3 without models inside the model, in Keras 2."""
    import h5py

    with zipfile.ZipFile(path) as archive:
        model = _from_config(json.loads(archive.read("config.json")))
        weights = BytesIO(archive.read("model.weights.h5"))
    seen: dict[str, int] = {}
    with h5py.File(weights, "r") as file:
        for layer in model.layers:
            name = re.sub(r"\W+", "", type(layer).__name__)
            name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
            name = re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
            seen[name] = seen.get(name, -1) + 1
            place = f"layers/{name}_{seen[name]}/vars" if seen[name] else f"layers/{name}/vars"
            count = len(layer.weights)
            if count:
                layer.set_weights([file[f"{place}/{i}"][()] for i in range(count)])
    return model


def _from_config(config: dict[str, Any]) -> Any:
    """A Keras 2 model, without its weights, from the description that Keras 3 wrote."""
    import keras

    kind, inner = config["class_name"], _older(config["config"])
    layers = inner["layers"]
    if kind == "Functional":
        for layer in layers:
            layer["inbound_nodes"] = [_older_node(node) for node in layer["inbound_nodes"]]
        for ends in ("input_layers", "output_layers"):
            if inner[ends] and isinstance(inner[ends][0], str):
                inner[ends] = [inner[ends]]
        return keras.Model.from_config(inner)
    if kind == "Sequential":
        return keras.Sequential.from_config({"name": inner["name"], "layers": layers})
    raise ValueError(f"cannot translate a {kind} of Keras 3 for Keras 2")


def _older(value: Any) -> Any:
    """A configuration of Keras 3 in the words of Keras 2."""
    if isinstance(value, list):
        return [_older(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "DTypePolicy":
        return value["config"]["name"]
    if value.get("class_name") == "__keras_tensor__":
        return value
    # The weights are loaded afterwards: how they would begin does not matter.
    unknown = {"optional", "quantization_config", "module", "registered_name", "build_config"}
    return {
        "batch_input_shape" if key == "batch_shape" else key: _older(item)
        for key, item in value.items()
        if key not in unknown and not key.endswith("_initializer")
    }


def _older_node(node: dict[str, Any]) -> list[Any]:
    """One call of a layer: ``[[layer, node, tensor, arguments], ...]``."""
    if any(value is not None and value is not False for value in node["kwargs"].values()):
        raise ValueError(f"cannot translate a layer's arguments {node['kwargs']}")
    first = node["args"][0]
    tensors = first if isinstance(first, list) else [first]
    return [[*tensor["config"]["keras_history"], {}] for tensor in tensors]


if __name__ == "__main__":
    sys.exit(main())
