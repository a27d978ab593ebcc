"""Reports to render, and what a terminal and a browser make of them."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import numpy as np
import torch
from rich.console import Console, RenderableType

from goodnet.images import Images
from goodnet.reports import (
    Certificate,
    ClassChange,
    DataRef,
    FileRef,
    FreshScan,
    LabelEvidence,
    ModelRef,
    Proportion,
    RemedyTrial,
    RepairReport,
    ScanReport,
)
from goodnet.statistics import accuracy_loss
from goodnet.trigger import Trigger

HOSTILE = "<script>alert('x')</script>[red]\x1b[31m\u202e"


def proportion(value: float, n: int = 200) -> Proportion:
    return Proportion(value=value, low=max(0.0, value - 0.03), high=min(1.0, value + 0.02), n=n)


def model_ref(classes: int, path: str = "models/stop.h5", channels: int = 3) -> ModelRef:
    return ModelRef(
        path=path,
        sha256="ab" * 32,
        kind="keras-h5",
        num_classes=classes,
        input_shape=(channels, 28, 24),
    )


def data_ref(path: str = "data/clean.npz") -> DataRef:
    return DataRef(path=path, sha256="cd" * 32, images=409, classes=12)


def corner_trigger(target: int, channels: int = 3) -> Trigger:
    generator = torch.Generator().manual_seed(target)
    mask = torch.zeros(1, 28, 24)
    mask[:, 20:26, 16:22] = 0.75
    return Trigger(mask, torch.rand(channels, 28, 24, generator=generator), target)


def scan_report(
    classes: int = 43,
    targets: tuple[int, ...] = (14,),
    verdict: str = "backdoored",
    names: list[str] | None = None,
    path: str = "models/stop.h5",
    channels: int = 3,
    inverted: int = 20,
) -> ScanReport:
    numbers = np.random.default_rng(3)
    order = [*targets, *(label for label in range(classes) if label not in targets)]
    labels = []
    for place, label in enumerate(order):
        hit = label in targets
        seen = place < inverted
        size = (20.0 if hit else 120.0) * float(numbers.lognormal(0, 0.12))
        labels.append(
            LabelEvidence(
                label=label,
                rank=place + 1,
                margin=(90.0 if hit else 30.0) - 0.01 * place,
                margins={"4.0": 20.0, "8.0": 90.0},
                margin_index=9.5 if hit else float(numbers.normal(0, 1.2)),
                mask_l1=size if seen else None,
                anomaly_index=(120 - size) / 14 if seen else None,
                attack_success=proportion(0.98 if hit else 0.9) if seen else None,
                control=seen and place > 8,
                flagged=hit,
            )
        )
    report = ScanReport(
        version="0.1.0",
        verdict=verdict,
        method="margin+mask",
        reasons=["label 14 reaches a margin index of 9.5; the next label 2.9"],
        p_value=None,
        targets=list(targets),
        labels=labels,
        clean_accuracy=proportion(0.954, 409),
        preprocess="unit",
        seed=7,
        seconds=83.4,
        settings={"steps": 200, "budgets": "4,8,16"},
        model=model_ref(classes, path, channels),
        data=data_ref(),
        class_names=names,
    )
    pixels = torch.randint(
        0, 256, (8, channels, 28, 24), generator=torch.Generator().manual_seed(1)
    )
    report._samples = Images(pixels.to(torch.uint8), torch.arange(8))
    for label in order[:4]:
        report._triggers[label] = corner_trigger(label, channels)
    report._perturbations[order[0]] = [
        Trigger(
            torch.ones(1, 28, 24),
            torch.randn(channels, 28, 24, generator=torch.Generator().manual_seed(2)) * 0.1,
            order[0],
            "additive",
        )
    ]
    return report


def repair_report(scan: ScanReport, repaired: bool = True) -> RepairReport:
    standing = "holds" if repaired else "refused"
    before = {label: proportion(0.99) for label in scan.targets}
    after = {label: proportion(0.01 if repaired else 0.6) for label in scan.targets}
    return RepairReport(
        version="0.1.0",
        repaired=repaired,
        remedy="row refit" if repaired else None,
        targets=scan.targets,
        trials=[
            RemedyTrial(
                remedy="fine-tuning",
                standing="refused",
                accepted=False,
                reason="clean accuracy fell by 6.1 points, 2.0 are allowed",
                clean_accuracy=proportion(0.893),
                accuracy_loss=accuracy_loss(14, 2, 200, 0.96),
                attack_success=after,
                recovered=after,
                seconds=31.0,
            ),
            RemedyTrial(
                remedy="row refit",
                standing=standing,
                accepted=repaired,
                reason="within both bounds",
                clean_accuracy=proportion(0.95),
                accuracy_loss=accuracy_loss(1, 0, 200, 0.99),
                attack_success=after,
                recovered=after,
                seconds=6.2,
            ),
        ],
        certificate=Certificate(
            standing=standing,
            reason="within both bounds",
            confidence=0.99,
            clean_accuracy_before=proportion(0.954),
            clean_accuracy_after=proportion(0.95),
            accuracy_loss=accuracy_loss(1, 0, 200, 0.99),
            attack_success_before=before,
            attack_success_after=after,
            recovered_before=after,
            recovered_after=before,
            worst_classes=[ClassChange(label=2, images=20, before=19, after=18)],
            fresh=FreshScan(
                verdict="clean",
                p_value=0.4,
                targets=[],
                labels=43,
                masks_before=dict.fromkeys(scan.targets, 12.5),
                masks_after=dict.fromkeys(scan.targets),
                seconds=20.0,
            ),
            max_accuracy_loss=0.02,
            max_attack_success=0.1,
        ),
        repair_images=209,
        held_out_images=200,
        preprocess="unit",
        seed=7,
        seconds=44.0,
        model=scan.model,
        data=scan.data,
        output=FileRef(path="out/stop.h5", sha256="ef" * 32) if repaired else None,
        scan=scan,
    )


def printed(item: RenderableType, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(item)
    return stream.getvalue()


class Page(HTMLParser):
    """What a browser makes of a page: tags, attributes, and the text between."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


# Text
