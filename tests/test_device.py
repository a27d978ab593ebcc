"""Where a network is looked at, and how exactly: the answer must not hang on it."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from goodnet.attacks.networks import build
from goodnet.classifier import Classifier, Preprocess
from goodnet.device import CPU
from goodnet.errors import GoodnetError
from goodnet.formats.network import Network
from goodnet.inversion import QUICK, invert
from goodnet.perturbation import added, ascend, row_margins
from goodnet.pipelines import placing
from goodnet.pipelines.load import load
from goodnet.pipelines.placing import in_half, placed, probes
from goodnet.pipelines.repair import repair
from goodnet.pipelines.scan import scan

card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card here")
STOP = threading.Event()


def numbers(report):
    """Everything that was measured, by label."""
    return {entry.label: entry.model_dump() for entry in report.labels}


@pytest.mark.parametrize("device", ["cuda:77", "toaster", "cpu,half", "cuda,float32,x"])
def test_a_device_that_cannot_be_used_is_told(badnet, device):
    classifier = load(badnet.module, badnet.clean)
    for look in (scan, repair):
        with pytest.raises(GoodnetError) as caught:
            look(classifier, badnet.clean, device=device)
        assert caught.value.code == "R010"
        assert device.split(",")[0] in caught.value.message


def test_only_gradients_are_rough(badnet):
    exact = load(badnet.module, badnet.clean)
    half = replace(exact, half=True)
    images = badnet.clean.floats()[:24]
    with torch.no_grad():
        assert torch.equal(half(images), exact(images))
    assert torch.equal(half.logits(images), exact.logits(images))

    def gradient(classifier):
        leaf = images.clone().requires_grad_(True)
        return torch.autograd.grad(classifier(leaf)[:, 1].sum(), leaf)[0].flatten()

    rough, fine = gradient(half), gradient(exact)
    assert not torch.equal(rough, fine)
    assert rough.dtype == torch.float32
    assert float(nn.functional.cosine_similarity(rough, fine, 0)) > 0.99


def test_what_a_rough_search_reports_is_exact(badnet):
    exact = load(badnet.module, badnet.clean)
    images, labels = badnet.clean.floats()[:16], badnet.clean.labels[:16]
    rough = replace(exact, half=True)
    found = ascend(rough, images, labels, [1, 4], 2.0, 8, stop=STOP)
    with torch.no_grad():
        logits = exact(added(images, found.deltas))
    wanted = torch.tensor([1, 4]).repeat_interleave(16)
    margins = row_margins(logits, wanted).view(2, 16)
    others = (labels[None] != torch.tensor([[1], [4]])).float()
    assert torch.allclose(found.margins, (margins * others).sum(1) / others.sum(1), atol=1e-5)


class Hairsbreadth(nn.Module):
    """The first label behind the second by less than bfloat16 can see, or well ahead of it."""

    def __init__(self, ahead: float) -> None:
        super().__init__()
        rows = torch.tensor([1.0 + ahead, 1.0, 0.5])
        self.weight = nn.Parameter(rows[:, None].repeat(1, 3 * 4 * 4), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight.T


@pytest.mark.parametrize(("ahead", "works"), [(-0.001, False), (0.1, True)])
def test_a_mask_that_works_by_rounding_alone_does_not_count(ahead, works):
    network = Network(Hairsbreadth(ahead), (3, 4, 4), 3, "test", "", lambda *_: None)
    exact = Classifier(network, Preprocess("unit"), (3, 4, 4), 3)
    rough = replace(exact, half=True)
    images = torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 2 + 1
    # What the search itself sees: the first label wins a tie.
    assert bool((rough(images).argmax(1) == 0).all())
    for classifier in (exact, rough):
        (found,) = invert(classifier, images, labels, [0], QUICK, seed=0, stop=STOP)
        assert found.succeeded == works


@pytest.mark.parametrize(
    ("name", "suits"), [("cnn", True), ("resnet", True), ("separable", False), ("vit", False)]
)
def test_half_is_for_what_it_is_quick_at(badnet, monkeypatch, name, suits):
    monkeypatch.setattr(placing, "_has_half", lambda device: True)
    probe, images = probes(badnet.clean), badnet.clean
    trained = load(badnet.module, images)
    network = replace(trained.network, module=build(name, images.shape, 12, seed=1).eval())
    classifier = replace(trained, network=network)
    assert in_half(placed(classifier, "cpu", probe), probe).half == suits
    assert not in_half(placed(classifier, "cpu,float32", probe), probe).half


def test_a_processor_without_it_keeps_to_float32(badnet, monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    classifier = load(badnet.module, badnet.clean)
    assert not in_half(classifier, probes(badnet.clean)).half


def test_pytorch_kept_from_the_units_of_bfloat16_keeps_to_float32():
    """The processor may have them all the same."""
    ask = "from goodnet.device import CPU; from goodnet.pipelines import placing"
    ask += "; raise SystemExit(placing._has_half(CPU))"
    capped = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    assert subprocess.run([sys.executable, "-c", ask], env=capped, check=False).returncode == 0


@pytest.mark.slow
def test_the_verdict_is_the_same_in_either_precision(
    badnet, badnet_report, honest, honest_report, monkeypatch
):
    """What the processor has for itself was measured already; the other is put upon it."""
    usual = placing._has_half(CPU)
    monkeypatch.setattr(placing, "_has_half", lambda device: True)
    other = "cpu,float32" if usual else "cpu"
    stories = ((badnet, badnet_report, [1]), (honest, honest_report, []))
    for story, rough, targets in stories:
        fine = scan(load(story.module, story.clean), story.clean, seed=2, device=other)
        assert rough.verdict == fine.verdict
        assert rough.targets == fine.targets == targets
        # Another way to the same place, or the two were one.
        assert numbers(rough) != numbers(fine)


@card
def test_a_card_finds_the_target_and_says_the_same_twice(badnet, honest):
    for story, targets in ((badnet, [1]), (honest, [])):
        classifier = load(story.module, story.clean)
        first, second = (scan(classifier, story.clean, seed=2, device="cuda") for _ in range(2))
        assert first.targets == targets
        assert numbers(first) == numbers(second)
        assert next(classifier.module.parameters()).device.type == "cpu"


@card
def test_a_card_repairs(badnet):
    cured = repair(load(badnet.module, badnet.clean), badnet.clean, seed=2, device="cuda")
    assert cured.report.repaired
    answers = cured.classifier.logits(badnet.poisoned.pixels).argmax(1)
    assert float((answers == badnet.poisoned.labels).float().mean()) < 0.05


@card
def test_a_program_makes_its_tensors_where_it_runs(tmp_path, badnet):
    class Ramp(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            ramp = torch.arange(images.shape[3], device=images.device, dtype=images.dtype)
            return self.inner(images + 0.01 * ramp / images.shape[3])

    path = tmp_path / "ramp.pt2"
    example = badnet.clean.floats()[:4]
    torch.export.save(torch.export.export(Ramp(badnet.module.eval()), (example,)), path)
    classifier = load(path, badnet.clean)
    there = placed(classifier, "cuda,float32", probes(badnet.clean))
    images = badnet.clean.pixels[:32]
    assert torch.allclose(there.logits(images), classifier.logits(images), atol=1e-2)
