"""The house rules that no compiler checks: the layers, what is never called, codes, the README."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from goodnet.errors import CODES

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "goodnet"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text("utf-8")) for path in FILES}

LAYERS = (
    {"__init__", "__main__"},
    {"cli"},
    {"demo"},
    {"render"},
    {"pipelines"},
    {"evidence", "remedies"},
    {"verdict", "certificate", "looks", "doubts"},
    {"uncalibrated"},
    {"findings"},
    {"together", "joint"},
    {"scores", "tables"},
    {"inner", "ahead"},
    {"statistics", "calibration"},
    {"inversion", "perturbation", "patches", "head", "stimulus", "family", "attacks"},
    {"preprocess"},
    {"reports"},
    {"trigger", "classifier", "images", "parallel", "warp", "colours", "watching"},
    {"formats"},
    {"patience"},
    {"errors", "version", "memory", "device"},
)
"""From top to bottom, see docs/architecture.md; a module sees its own layer and those below."""

APART = {
    "render": {"pipelines", "evidence", "remedies"},
    "verdict": {"torch"},
    "certificate": {"torch"},
    "looks": {"torch"},
    "doubts": {"torch"},
    "uncalibrated": {"torch"},
    "findings": {"torch"},
    "statistics": {"torch"},
    "calibration": {"torch"},
    "together": {"torch"},
    "joint": {"torch"},
    "scores": {"torch"},
    "inner": {"torch"},
    "ahead": {"torch"},
    "tables": {"torch"},
    "evidence": {"remedies"},
    "remedies": {"evidence"},
}
"""What a part must not see although its layer would allow it."""

UPWARDS = {("reports/scanned.py", "render")}
"""The one arrow that points up: a report in a notebook shows itself, and imports that late."""

ONLY_IN_FORMATS = {"keras", "tensorflow", "h5py", "onnx"}

COMMAND_LINE = {"cli", "__main__"}

ONLY_IN = {
    "eval": (),
    "exec": (),
    "__import__": (),
    "pickle.load": (),
    "pickle.loads": (),
    "torch.export.load": (),
    "keras.models.load_model": (),
    "keras.saving.load_model": (),
    "torch.jit.load": ("formats/torchscript.py",),
    "exec_module": ("formats/architecture.py",),
}
"""Calls that can run what a file says -> the files that may make them, as SECURITY.md tells."""


def part(name: str) -> str:
    """``"formats"`` for ``"formats/guard.py"``, ``"scan"`` for ``"scan.py"``."""
    return name.split("/")[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported anywhere in a file, also late and for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(tree: ast.AST) -> set[str]:
    """The parts of goodnet, and the top-level packages of others, that a file imports."""
    names = [name.split(".") for name in imports(tree)]
    return {name[1] if name[0] == "goodnet" else name[0] for name in names}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted name that is called, as far as it has one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def codes(tree: ast.AST) -> set[str]:
    """Error codes that stand in a file, other than to be compared with."""
    compared = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        for inner in ast.walk(node)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"[MDOR]\d{3}", node.value)
        and id(node) not in compared
    }


def readme_examples() -> list[str]:
    """The Python blocks of the README."""
    return re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )


def test_every_module_stands_in_a_layer():
    known = set().union(*LAYERS)
    unknown = {part(name) for name in TREES} - known
    assert not unknown, f"give {sorted(unknown)} a place in LAYERS and in docs/architecture.md"


@pytest.mark.parametrize("name", TREES)
def test_imports_point_downwards(name):
    above: set[str] = set()
    for layer in LAYERS:
        if part(name) in layer:
            break
        above |= layer - {"__init__"}
    seen = parts_imported(TREES[name]) & (above | APART.get(part(name), set()))
    assert not {other for other in seen if (name, other) not in UPWARDS}


def test_only_formats_know_the_libraries_of_other_formats():
    found = {
        name: sorted(seen)
        for name, tree in TREES.items()
        if part(name) != "formats" and (seen := parts_imported(tree) & ONLY_IN_FORMATS)
    }
    assert not found


def test_the_library_prints_nothing():
    found = [
        name
        for name, tree in TREES.items()
        if part(name) not in COMMAND_LINE and any(called == "print" for called, _ in calls(tree))
    ]
    assert not found


def test_nothing_that_runs_a_strangers_code_is_called():
    found = [
        (name, call.lineno, called)
        for name, tree in TREES.items()
        for called, call in calls(tree)
        for forbidden, places in ONLY_IN.items()
        if (called == forbidden or called.endswith(f".{forbidden}"))
        # A module's or an interpreter's own eval() is another thing than Python's.
        and not (called.endswith(".eval") and forbidden == "eval")
        and name not in places
    ]
    assert not found


def test_torch_load_takes_weights_only():
    for name, tree in TREES.items():
        for called, call in calls(tree):
            if called == "torch.load":
                settings = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert settings.get("weights_only") == "True", f"{name}:{call.lineno}"
            assert not any(
                keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
                for keyword in call.keywords
            ), f"{name}:{call.lineno}"


def test_every_code_that_is_raised_is_known():
    unknown = {name: sorted(codes(tree) - set(CODES)) for name, tree in TREES.items()}
    assert not {name: found for name, found in unknown.items() if found}


def test_every_known_code_is_raised():
    used = set().union(*(codes(tree) for name, tree in TREES.items() if name != "errors.py"))
    unused = sorted(set(CODES) - used)
    assert not unused, f"nothing in src uses {', '.join(unused)}"


@pytest.mark.parametrize("example", readme_examples())
def test_readme_examples_name_what_is_there(example):
    tree = ast.parse(example)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "goodnet":
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "goodnet"
        ):
            assert hasattr(importlib.import_module("goodnet"), node.attr), node.attr
