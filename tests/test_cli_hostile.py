"""Reports, folders and programs that were made to mislead, to hang or to break a run."""

from __future__ import annotations

import json
import os

import pytest
import torch
from cli_case import Rows, bright_rows, refuse, save_data, save_model
from test_cli import a_report
from torch import nn

from goodnet.errors import GoodnetError
from goodnet.pipelines.repair import repair
from goodnet.pipelines.saved import load_report, save_report


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model.pt", Rows())
    save_data(tmp_path / "data.npz", *bright_rows())
    return tmp_path


def _told(folder, change):
    """A report that was written as it should be, and changed afterwards."""
    path = folder / "scan.json"
    save_report(a_report("backdoored"), path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(seconds=float("inf")),
        lambda r: r.update(seconds=-1.0),
        lambda r: r.update(p_value=float("nan")),
        lambda r: r.update(targets=[10]),
        lambda r: r.update(targets=[-1]),
        lambda r: r.update(mapping={"3": 99}),
        lambda r: r["labels"][0].update(mask_l1=-3.0),
        lambda r: r["labels"][0].update(label=4000),
        lambda r: r["labels"].append(r["labels"][0]),
        lambda r: r["clean_accuracy"].update(value=7.0),
        lambda r: r["model"].update(num_classes=0),
    ],
)
def test_a_report_with_numbers_that_no_scan_has(folder, change):
    path = _told(folder, change)
    start = ["repair", folder / "model.pt", "-d", folder / "data.npz", "-o", folder / "out.pt"]
    refuse(folder, [*start, "--report", path], "R002", "scan.json")


def test_a_report_that_is_no_file_is_not_waited_for(folder):
    os.mkfifo(folder / "pipe.json")
    for path in (folder / "pipe.json", "/dev/zero", folder):
        with pytest.raises(GoodnetError) as caught:
            load_report(folder / path)
        assert caught.value.code == "R002"


def test_damaged_triggers_are_named_and_not_the_report(folder):
    path = _told(folder, lambda r: None)
    beside = folder / "scan.triggers.safetensors"
    from safetensors.torch import save_file

    for tensors in ({"junk": torch.zeros(3)}, {"a/patch/3/mask": torch.zeros(1, 2, 2)}):
        save_file(tensors, beside)
        with pytest.raises(GoodnetError, match=r"scan\.triggers\.safetensors") as caught:
            load_report(path)
        assert caught.value.code == "R002"
    assert beside.exists()


def test_a_report_in_memory_of_labels_that_the_model_lacks(folder):
    from goodnet.images import load_images
    from goodnet.pipelines.load import load

    images = load_images(folder / "data.npz")
    classifier = load(folder / "model.pt", images)
    report = a_report("backdoored").model_copy(update={"targets": [12]})
    ours = report.model.model_copy(update={"sha256": classifier.sha256})
    with pytest.raises(GoodnetError, match="10") as caught:
        repair(classifier, images, report.model_copy(update={"model": ours}))
    assert caught.value.code == "R002"


def test_results_do_not_land_among_the_clean_pictures(folder):
    """The pictures of triggers would be a class of clean images in the next run."""
    from PIL import Image

    images, labels = bright_rows()
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / "pictures" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{index}.png")
    start = ["scan", folder / "model.pt", "-d", folder / "pictures", "-o"]
    for output in ("pictures", "pictures/out", "pictures/../pictures"):
        refuse(folder, [*start, folder / output], "O003", "clean images")


class Detached(nn.Module):
    """Answers rightly, and lets no gradient through."""

    def __init__(self):
        super().__init__()
        self.rows = Rows()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows(x.detach())


def test_a_network_without_gradients_is_told_at_once(folder):
    save_model(folder / "detached.pt", Detached())
    start = [folder / "detached.pt", "-d", folder / "data.npz"]
    refuse(folder, ["scan", *start], "M009", "gradients")
    refuse(folder, ["repair", *start, "-o", folder / "out.pt"], "M009", "gradients")


def test_weights_under_numbers_are_no_state_dict(folder):
    torch.save({0: torch.zeros(3), 1: torch.zeros(3)}, folder / "numbers.pt")
    (folder / "net.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 2)\n")
    start = ["scan", folder / "numbers.pt", "--architecture", f"{folder}/net.py:make"]
    refuse(folder, [*start, "-d", folder / "data.npz"], "M008", "numbers.pt")


def test_an_architecture_that_ends_in_anything_is_told(folder):
    torch.save(Rows().state_dict(), folder / "weights.pt")
    (folder / "net.py").write_text("def make():\n    raise BaseException('over')\n")
    start = ["scan", folder / "weights.pt", "--architecture", f"{folder}/net.py:make"]
    refuse(folder, [*start, "-d", folder / "data.npz"], "M008", "over")


@pytest.mark.parametrize("shape", ["(10**21, 3, 12, 12)", "(True, 3, 12, 12)", "(-1, 3, 12, 12)"])
def test_an_archive_with_an_absurd_shape(folder, shape):
    import zipfile

    with zipfile.ZipFile(folder / "odd.npz", "w") as archive:
        for name in ("images", "labels"):
            header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
            header = header.ljust(117) + "\n"
            magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
            archive.writestr(f"{name}.npy", magic + header.encode() + bytes(432))
    result = ["scan", folder / "model.pt", "-d", folder / "odd.npz"]
    refuse(folder, result, "D003", "odd.npz")
