"""Hostile and broken files: what they would have done must not happen, and the code must fit."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from goodnet.errors import GoodnetError
from goodnet.formats import read_model
from goodnet.formats.export_check import check_text, resolve
from goodnet.formats.export_numbers import on_numbers
from goodnet.formats.guard import check_exists, check_pickle_free_or_safe, sniff
from goodnet.formats.pickles import pickle_globals

torch.set_num_threads(1)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def refused(path: Path, code: str) -> GoodnetError:
    with pytest.raises(GoodnetError) as caught:
        read_model(path)
    assert caught.value.code == code, caught.value
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def random_bytes(size: int) -> bytes:
    return b"\x00" + np.random.default_rng(size).bytes(size - 1)


def pt2_file(path: Path) -> Path:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    torch.export.save(torch.export.export(model, (torch.rand(2, 3, 2, 2),)), path)
    return path


def rewrite(source: Path, target: Path, change: dict[str, bytes], add: dict[str, bytes]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            new.writestr(name, change.get(name.removeprefix(root + "/"), old.read(name)))
        for name, data in add.items():
            new.writestr(f"{root}/{name}", data)


def test_bomb_goes_off_where_it_is_loaded(tmp_path):
    # Without this the tests below could pass with a bomb that never worked.
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


@pytest.mark.parametrize("name", ["a.pkl", "a.h5", "a.keras", "a.pt2", "a.pth", "a.pt", "a.bin"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_raw_pickle_is_refused_under_any_name(tmp_path, name, protocol):
    path, marker = tmp_path / name, tmp_path / "marker"
    path.write_bytes(pickle.dumps({"weights": Bomb(marker)}, protocol=protocol))
    assert "system" in refused(path, "M004").message
    assert not marker.exists()


@pytest.mark.parametrize("name", ["a.h5", "a.keras", "a.pt2", "a.pth"])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_save_of_a_bomb_is_refused(tmp_path, name, legacy):
    path, marker = tmp_path / name, tmp_path / "marker"
    content = {"state_dict": {"w": torch.ones(2)}, "extra": Bomb(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert "system" in refused(path, "M004").message
    assert not marker.exists()


@pytest.mark.parametrize("name", ["a.zip", "a.keras", "a.pt2", "a.pth"])
def test_pickle_in_a_zip_is_refused(tmp_path, name):
    path, marker = tmp_path / name, tmp_path / "marker"
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("deep.pkl", pickle.dumps(Bomb(marker)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("assets/nested.zip", inner.getvalue())
    assert "system" in refused(path, "M004").message
    assert not marker.exists()


def test_pickle_without_a_telling_name_is_found(tmp_path):
    path = tmp_path / "a.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/data/constants/opaque_obj_0", pickle.dumps(Bomb(tmp_path / "m"), 0))
    refused(path, "M004")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/whatever", pickle.dumps(Bomb(tmp_path / "m"), 4))
    refused(path, "M004")
    assert not (tmp_path / "m").exists()


def test_pt2_with_a_pickle_among_its_example_inputs(tmp_path):
    marker, evil = tmp_path / "marker", io.BytesIO()
    torch.save((Bomb(marker),), evil)
    good = pt2_file(tmp_path / "good.pt2")
    path = tmp_path / "bad.pt2"
    rewrite(good, path, {"data/sample_inputs/model.pt": evil.getvalue()}, {})
    assert "system" in refused(path, "M004").message
    assert not marker.exists()
    read_model(good)


@pytest.mark.parametrize("name", ["data/aotinductor/model/k.so", "data/x.so", "data/constants/x"])
def test_machine_code_is_refused(tmp_path, name):
    path = tmp_path / "bad.pt2"
    rewrite(pt2_file(tmp_path / "good.pt2"), path, {}, {name: b"\x7fELF" + bytes(60)})
    assert "machine code" in refused(path, "M004").message


def mutated(good: Path, path: Path, change) -> None:
    with zipfile.ZipFile(good) as archive:
        root = archive.namelist()[0].split("/")[0]
        program = json.loads(archive.read(f"{root}/models/model.json"))
    change(program, program["graph_module"]["graph"])
    rewrite(good, path, {"models/model.json": json.dumps(program).encode()}, {})


def set_target(name):
    def change(program, graph):
        graph["nodes"][-1]["target"] = name

    return change


def set_size(text):
    def change(program, graph):
        graph["tensor_values"]["linear"]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}

    return change


def set_name(program, graph):
    graph["nodes"][-1]["name"] = "x):\n    import os; os.system('touch m')\ndef g("


def set_parameter(program, graph):
    spec = program["graph_module"]["signature"]["input_specs"][0]["parameter"]
    spec["parameter_name"] = '0"); import os; ("'


def set_tree(program, graph):
    tree = {"type": "collections.defaultdict", "context": "{}", "children_spec": []}
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = json.dumps([1, tree])


def set_guard(program, graph):
    program["guards_code"] = ["__import__('os').system('touch m')"]


@pytest.mark.parametrize(
    "change",
    [
        set_target("torch.os.system"),
        set_target("torch.hub.load"),
        set_target("torch.ops.aten.from_file.default"),
        set_target("torch.ops.aten.linear.__class__"),
        set_target("torch.ops.higher_order.cond"),
        set_target("torch.ops.aten._sparse_coo_tensor_unsafe.default"),
        set_target("torch.ops.aten.set_.source_Tensor"),
        set_target("torch.ops.aten.add.out"),
        set_target("_operator.methodcaller"),
        set_size("__import__('os').system('touch m')"),
        set_size("S('1')"),
        set_size("Symbol('s0').__class__"),
        set_name,
        set_parameter,
        set_tree,
        set_guard,
    ],
)
def test_code_in_an_exported_program_is_refused(tmp_path, change):
    path = tmp_path / "bad.pt2"
    mutated(pt2_file(tmp_path / "good.pt2"), path, change)
    refused(path, "M014")


def first(node):
    """Puts a node before all others."""

    def change(program, graph):
        graph["nodes"].insert(0, {**node, "metadata": {}, "name": "size"})

    return change


def numbers(*values):
    return [{"name": f"a{n}", "arg": {"as_int": v}, "kind": 1} for n, v in enumerate(values)]


def a_power(program, graph):
    outputs = [{"as_sym_int": {"as_name": "size"}}]
    first({"target": "_operator.pow", "inputs": numbers(3, 10**9), "outputs": outputs})(
        program, graph
    )


def a_repeated_list(program, graph):
    inputs = numbers(0, 10**9)
    inputs[0]["arg"] = {"as_ints": [1]}
    outputs = [{"as_sym_int": {"as_name": "size"}}]
    first({"target": "_operator.mul", "inputs": inputs, "outputs": outputs})(program, graph)


@pytest.mark.parametrize("change", [a_power, a_repeated_list])
def test_numbers_that_no_size_has_are_not_counted_out(tmp_path, change):
    path = tmp_path / "bad.pt2"
    mutated(pt2_file(tmp_path / "good.pt2"), path, change)
    assert "does not run" in refused(path, "M003").message


def test_no_list_is_taken_for_a_size():
    """Multiplied, it would fill the memory before anything else is looked at."""
    with pytest.raises(TypeError):
        on_numbers("_operator.mul")([1], 2**60)
    assert on_numbers("torch.sym_sum")([1, 2]) == 3


def test_a_batch_that_would_fill_the_memory_is_refused(tmp_path):
    def change(program, graph):
        image = graph["inputs"][-1]["as_tensor"]["name"]
        graph["tensor_values"][image]["sizes"][0] = {"as_int": 10**9}

    path = tmp_path / "bad.pt2"
    mutated(pt2_file(tmp_path / "good.pt2"), path, change)
    assert "batches of" in refused(path, "M009").message


@pytest.mark.parametrize("what", ["one number", "no bytes", "many names"])
def test_tensors_far_larger_than_their_file_are_refused(tmp_path, what):
    good, path = pt2_file(tmp_path / "good.pt2"), tmp_path / "bad.pt2"
    place = "data/weights/model_weights_config.json"
    with zipfile.ZipFile(good) as archive:
        root = archive.namelist()[0].split("/")[0]
        config = json.loads(archive.read(f"{root}/{place}"))
    payload = next(p for p in config["config"].values() if len(p["tensor_meta"]["sizes"]) == 2)
    meta, change = payload["tensor_meta"], {}
    if what == "many names":
        meta["sizes"], meta["strides"] = [{"as_int": 36}], [{"as_int": 1}]
        for n in range(36):
            # Each is told from the others by its offset.
            other = {**meta, "sizes": [{"as_int": 10**6}], "strides": [{"as_int": 0}]}
            other["storage_offset"] = {"as_int": n}
            config["config"][f"w{n}"] = {**payload, "tensor_meta": other}
    else:
        meta["sizes"] = [{"as_int": 200_000}, {"as_int": 200_000}]
        meta["strides"] = [{"as_int": 0}, {"as_int": 0}]
        change = {f"data/weights/{payload['path_name']}": b""} if what == "no bytes" else {}
    rewrite(good, path, {place: json.dumps(config).encode(), **change}, {})
    refused(path, "M003")


def test_harmless_program_texts_pass():
    check_text({"expr_str": "Symbol('s77', positive=True, integer=True)"}, "f")
    check_text({"expr_str": "Add(Mul(Integer(2), Symbol('s0', integer=True)), Integer(-1))"}, "f")
    check_text({"guards_code": ["L['x'].size()[0] <= 64"]}, "f")
    check_text({"range_constraints": {"s77": {"min_val": 0, "max_val": 64}}}, "f")
    assert resolve("torch.ops.aten.add.Tensor", "f") is torch.ops.aten.add.Tensor


def test_whole_pickled_model_says_what_it_is(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(nn.Sequential(nn.Linear(2, 2)), path)
    error = refused(path, "M004")
    assert "whole pickled model" in error.message
    assert "state_dict" in error.hint
    assert "--architecture" in error.hint


def test_names_hidden_from_the_reader_are_not_believed():
    # Harmless strings stand last, but POP uncovers others: the name looked up is os.system.
    shuffled = b"\x80\x04\x8c\x02os\x8c\x06system\x8c\x0bcollections\x8c\x0bOrderedDict00\x93."
    assert pickle.loads(shuffled) is os.system
    assert list(pickle_globals(io.BytesIO(shuffled))) == ["(a hidden name)"]
    via_memo = pickle.dumps([os.system, os.system], protocol=4)
    assert list(pickle_globals(io.BytesIO(via_memo))) == ["posix.system"]


@pytest.mark.parametrize("suffix", [".h5", ".keras", ".pt2", ".pt", ".pth", ".safetensors", ".x"])
def test_random_and_short_files(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    for size in (1, 7, 5000):
        path.write_bytes(random_bytes(size))
        refused(path, "M003")
    path.write_bytes(b"")
    refused(path, "M003")


def test_truncated_files(tmp_path):
    from safetensors.torch import save_file

    state = {"w": torch.rand(50, 50)}
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "a.safetensors")
    pt2_file(tmp_path / "a.pt2")
    for path in list(tmp_path.iterdir()):
        whole = path.read_bytes()
        for length in (4, len(whole) // 2, len(whole) - 20):
            path.write_bytes(whole[:length])
            refused(path, "M003")


def test_missing_and_directory(tmp_path):
    refused(tmp_path / "none.pt2", "M001")
    refused(tmp_path, "M002")
    check_exists(pt2_file(tmp_path / "a.pt2"))


def test_archives_that_inflate_or_contradict_themselves(tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(20_000_000))
    assert "inflates" in refused(path, "M003").message
    path = tmp_path / "twice.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/DATA.pkl", pickle.dumps({}))
    assert "same name" in refused(path, "M003").message


def test_sniff_goes_by_content(tmp_path):
    import h5py
    from safetensors.torch import save_file

    state = {"w": torch.ones(2)}
    with h5py.File(tmp_path / "hdf5", "w") as file:
        file["x"] = [1]
    torch.save(state, tmp_path / "torch-zip")
    torch.save(state, tmp_path / "torch-legacy", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "safetensors")
    pt2_file(tmp_path / "a.pt2").rename(tmp_path / "pt2")
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "torchscript")
    (tmp_path / "pickle").write_bytes(pickle.dumps([1]))
    (tmp_path / "unknown").write_text("hello. world\n")
    with zipfile.ZipFile(tmp_path / "keras-zip", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", "x")
    for path in tmp_path.iterdir():
        assert sniff(path) == path.name
        if path.name != "pickle":
            check_pickle_free_or_safe(path)
