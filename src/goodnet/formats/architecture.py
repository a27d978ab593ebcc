"""The network that a file of bare weights belongs to, made by the user's own code."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from goodnet.errors import GoodnetError

_HINT = "pass --architecture FILE.py:FUNCTION; FUNCTION() returns the untrained network"


def load_architecture(spec: str) -> object:
    """Run a function of the user's and take the network that it makes.

    This executes ``FILE.py`` with all rights of the user, like ``python FILE.py``. That is in
    order because the file is the user's own; never pass one that came with a stranger's weights
    without having read it.

    Args:
        spec: ``"FILE.py:FUNCTION"``; the function takes no arguments. ``FILE.py`` may import its
            neighbours. Keras runs on PyTorch unless ``KERAS_BACKEND`` says otherwise.

    Returns:
        An ``nn.Module`` or a ``keras.Model``.

    Raises:
        GoodnetError: M008 when the file or the function is missing, raises, or returns something
            else.
    """
    file, colon, function = spec.rpartition(":")
    if not colon or not function.isidentifier():
        raise GoodnetError("M008", f"{spec!r} does not read FILE.py:FUNCTION", _HINT)
    path = Path(file)
    if not path.is_file():
        raise GoodnetError("M008", f"there is no architecture file {file}", _HINT)
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    module = _run(path)
    maker = getattr(module, function, None)
    if not callable(maker):
        raise GoodnetError("M008", f"{file} has no function {function}", _HINT)
    try:
        result: object = maker()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever foreign code ends with, it ends no scan untold
        raise _failed(f"{function}() in {file}", error) from error
    if not isinstance(result, nn.Module) and not is_keras(result):
        raise GoodnetError(
            "M008", f"{function}() in {file} returned a {type(result).__name__}", _HINT
        )
    return result


def is_keras(model: object) -> bool:
    """Whether an object is a ``keras.Model``; Keras is not imported to find out."""
    keras = sys.modules.get("keras")
    kind = getattr(keras, "Model", None)
    return isinstance(kind, type) and isinstance(model, kind)


def _run(path: Path) -> ModuleType:
    name = f"goodnet_architecture_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise GoodnetError("M008", f"{path} is not a Python file", _HINT)
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[name] = module
    # A scan leaves nothing in the folder that a model came in, compiled bytecode neither.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever foreign code ends with, it ends no scan untold
        sys.modules.pop(name, None)
        raise _failed(str(path), error) from error
    finally:
        sys.dont_write_bytecode = writes
        if folder in sys.path:
            sys.path.remove(folder)
    return module


def _failed(what: str, error: BaseException) -> GoodnetError:
    reason = (str(error).strip().splitlines() or [""])[0]
    return GoodnetError(
        "M008", f"{what} raised {type(error).__name__}: {reason}", "mend the architecture file"
    )
