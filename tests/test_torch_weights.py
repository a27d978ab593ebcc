"""Bare PyTorch weights and the architecture that they belong to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_torch_formats import IMAGES, change, check_logits, plain
from torch import nn

from goodnet.errors import GoodnetError
from goodnet.formats import read_model

ARCHITECTURE = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(144, 5), nn.Softmax(1))

def other():
    return nn.Sequential(nn.Linear(3, 3))

def broken():
    raise ValueError("no such file\\nor so")

def wrong():
    return 3
"""


@pytest.fixture
def architecture(tmp_path):
    (tmp_path / "arch.py").write_text(ARCHITECTURE)
    return f"{tmp_path / 'arch.py'}:make"


def sequential() -> nn.Sequential:
    torch.manual_seed(9)
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)]
    return nn.Sequential(*parts, nn.Softmax(1)).eval()


@pytest.mark.parametrize("nest", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict_is_read_and_written_in_its_shape(tmp_path, architecture, nest, prefix, legacy):
    model = sequential()
    state = {prefix + name: value for name, value in model.state_dict().items()}
    optimiser = {"param_groups": [{"lr": 0.1}]}
    best = np.float64(0.5)
    content = {nest: state, "optimizer": optimiser, "best": best} if nest else state
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = read_model(path, architecture)
    assert found.kind == ("torch-legacy" if legacy else "torch-zip")
    check_logits(found.module, model[:5](IMAGES).detach())
    changed = change(found.module, "4.weight")
    found.write(changed, tmp_path / "new.pth")
    written = torch.load(tmp_path / "new.pth", weights_only=False)
    if nest:
        assert written["optimizer"] == optimiser
        assert written["best"] == best
        written = written[nest]
    assert list(written) == list(state)
    assert not written[prefix + "4.weight"][2].any()
    again = read_model(tmp_path / "new.pth", architecture)
    assert again.kind == found.kind
    assert torch.equal(again.module(IMAGES), changed(IMAGES))


def test_state_dict_written_runs_in_plain_torch(tmp_path, architecture):
    torch.save(sequential().state_dict(), tmp_path / "w.pt")
    found = read_model(tmp_path / "w.pt", architecture)
    changed = change(found.module, "4.weight")
    found.write(changed, tmp_path / "new.pt")
    code = """
sys.path.insert(0, "."); import arch
model = arch.make().eval(); model.load_state_dict(torch.load(path)); answer = model(images)"""
    answer = plain(tmp_path / "new.pt", code)
    torch.testing.assert_close(answer, changed(IMAGES).softmax(1))


def test_safetensors(tmp_path, architecture):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    save_file(sequential().state_dict(), tmp_path / "w.safetensors", metadata={"made": "by hand"})
    found = read_model(tmp_path / "w.safetensors", architecture)
    assert found.kind == "safetensors"
    check_logits(found.module, sequential()[:5](IMAGES).detach())
    found.write(change(found.module, "4.weight"), tmp_path / "new.safetensors")
    assert not load_file(tmp_path / "new.safetensors")["4.weight"][2].any()
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        assert file.metadata() == {"made": "by hand"}


def test_weights_without_or_with_a_bad_architecture(tmp_path, architecture):
    path = tmp_path / "w.pt"
    torch.save(sequential().state_dict(), path)
    file = architecture.removesuffix(":make")
    cases = {
        None: "M007",
        "arch.py": "M008",
        f"{tmp_path}/none.py:make": "M008",
        f"{file}:missing": "M008",
        f"{file}:broken": "M008",
        f"{file}:wrong": "M008",
        f"{file}:other": "M008",
    }
    messages = {}
    for spec, code in cases.items():
        with pytest.raises(GoodnetError) as caught:
            read_model(path, spec)
        assert caught.value.code == code, spec
        assert "\n" not in caught.value.message
        messages[spec] = caught.value.message
    assert "0.weight" in messages[f"{file}:other"]
    assert "ValueError: no such file" in messages[f"{file}:broken"]
