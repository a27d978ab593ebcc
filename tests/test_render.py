"""What a reader of goodnet's reports sees."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import time
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console, RenderableType

from goodnet.errors import CODES, GoodnetError
from goodnet.images import Images
from goodnet.render import charts, words
from goodnet.render.explain import FINDINGS, explain
from goodnet.render.html import scan_fragment, scan_page
from goodnet.render.pictures import stamped, trigger_pictures, write_pngs
from goodnet.render.text import (
    error_text,
    evaluation_text,
    prediction_text,
    repair_text,
    scan_text,
)
from goodnet.reports import (
    Certificate,
    ClassChange,
    DataRef,
    Evaluation,
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


def test_a_scan_begins_with_its_verdict_and_the_target() -> None:
    names = [f"sign {label}" for label in range(43)]
    text = printed(scan_text(scan_report(names=names)))
    first = text.splitlines()[0]
    assert first == "BACKDOORED: images with a trigger become label 14 (sign 14)."


def test_the_table_marks_targets_and_shows_the_next_three() -> None:
    lines = printed(scan_text(scan_report(targets=(14, 3)))).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("target ")] == ["14", "3"]
    assert sum(line.startswith("next ") for line in lines) == 3


def test_a_scan_names_all_that_it_rests_on() -> None:
    text = " ".join(printed(scan_text(scan_report())).split())
    for figure in ("95.4 % (92.4–97.4, n=409)", "unit", "409 images", "seed 7", "1 min 23 s"):  # noqa: RUF001
        assert figure in text
    assert "uncalibrated" in text
    assert "margin index of 9.5" in text


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_figures_survive_a_narrow_terminal(width: int) -> None:
    text = printed(scan_text(scan_report(names=["a rather long class name" * 3] * 43)), width)
    assert max(len(line) for line in text.splitlines()) <= width
    if width == 80:
        assert "98.0 % (95.0–100.0)" in text  # noqa: RUF001


@pytest.mark.parametrize("verdict", ["clean", "suspicious", "inconclusive", "backdoored"])
def test_no_verdict_promises_safety(verdict: str) -> None:
    report = scan_report(targets=(), verdict=verdict)
    for shown in (printed(scan_text(report)), scan_page(report), scan_fragment(report)):
        assert not re.search(r"\bsafe\b", shown, re.IGNORECASE)
        assert (
            words.verdict_sentence(report)[1].lower() in unescape(" ".join(shown.split())).lower()
        )


def test_a_clean_verdict_is_worded_with_care() -> None:
    text = printed(scan_text(scan_report(targets=(), verdict="clean")))
    assert text.startswith("CLEAN: no evidence of a backdoor of the kinds tested.")
    assert "goodnet explain F003" in text


def test_names_cannot_steer_the_terminal() -> None:
    report = scan_report(names=[HOSTILE] * 43, path=f"a{HOSTILE}.h5")
    text = printed(scan_text(report))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]" in text


def test_many_targets_are_counted_rather_than_listed() -> None:
    report = scan_report(targets=tuple(range(40)))
    text = printed(scan_text(report))
    assert "one of 40 labels: 0, 1, 2, 3, 4 and 35 more" in " ".join(text.split())
    assert "20 of them not shown" in text


def test_a_repair_shows_before_and_after_and_why() -> None:
    text = printed(repair_text(repair_report(scan_report())))
    flat = " ".join(text.split())
    assert text.startswith("REPAIRED: attack success fell from 99.0 % to 1.0 %")
    for part in ("clean accuracy 95.4 %", "rejected", "accepted", "out/stop.h5", "holds"):
        assert part in flat
    failed = printed(repair_text(repair_report(scan_report(), repaired=False)))
    assert failed.startswith("NOT REPAIRED")
    assert "is refused" in failed


def test_an_evaluation_shows_every_figure_with_its_interval() -> None:
    evaluation = Evaluation(
        clean_accuracy=proportion(0.95),
        attack_success=proportion(0.02),
        recovered_accuracy=proportion(0.76),
        target=0,
        preprocess="unit",
        model=model_ref(43),
        data=data_ref(),
        poisoned=data_ref("data/poisoned.h5"),
        version="0.1.0",
    )
    text = " ".join(printed(evaluation_text(evaluation)).split())
    assert "Attack success 2.0 % (0.0–4.0, n=200), target 0" in text  # noqa: RUF001
    assert "Recovered accuracy 76.0 %" in text


def test_predictions_are_one_line_each_and_name_what_the_filter_caught() -> None:
    text = printed(
        prediction_text(["a.png", "b.png"], [1, 2], num_classes=2, class_names=["cat", "dog"])
    )
    first, second = text.splitlines()
    assert first.split() == ["a.png", "1", "dog"]
    assert second.split() == ["b.png", "2", "backdoored", "input"]


def test_an_error_says_what_is_wrong_and_what_to_do() -> None:
    error = GoodnetError("M001", f"there is no file {HOSTILE}", "check the path")
    lines = printed(error_text(error), 120).splitlines()
    assert lines[0].startswith("error[M001]: there is no file <script>")
    assert lines[1] == "  help: check the path"
    assert lines[2] == "  more: goodnet explain M001"
    assert "\x1b" not in lines[0]


def test_shares_are_not_rounded_to_a_boundary_that_was_not_reached() -> None:
    assert words.share(0.9999) == "99.9 %"
    assert words.share(1.0) == "100.0 %"
    assert words.share(0.0001) == "<0.1 %"
    assert words.share(0.0) == "0.0 %"


# Explanations


@pytest.mark.parametrize("code", [*CODES, *FINDINGS])
def test_every_code_has_a_page(code: str) -> None:
    page = explain(code)
    assert page.startswith(code)
    for heading in ("What it means", "Why it matters", "What to do", "Known limits"):
        body = page.split(f"{heading}\n")[1].split("\n\n")[0]
        assert len(body) > 20, heading
    assert max(len(line) for line in page.splitlines()) <= 80


def test_explain_forgives_case_and_refuses_what_it_does_not_know() -> None:
    assert explain(" m004 ") == explain("M004")
    with pytest.raises(GoodnetError) as caught:
        explain("X999")
    assert caught.value.code == "R003"


# Pictures


def test_fused_is_mask_times_pattern_in_the_written_files(tmp_path: Path) -> None:
    report = scan_report()
    paths = write_pngs(report, tmp_path / "new")
    assert [path.name for path in paths] == [
        "label_014_mask.png",
        "label_014_pattern.png",
        "label_014_fused.png",
    ]
    mask, pattern, fused = (
        np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in paths
    )
    assert min(mask.shape[:2]) >= 160
    assert np.abs(fused - mask * pattern / 255).max() <= 1.0
    factor = mask.shape[0] // 28
    assert mask[22 * factor, 18 * factor, 0] == round(0.75 * 255)
    assert mask[0, 0, 0] == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {path.name for path in paths}


def test_without_a_finding_the_first_three_are_written(tmp_path: Path) -> None:
    paths = write_pngs(scan_report(targets=(), verdict="clean"), tmp_path)
    assert len({path.name.split("_")[1] for path in paths}) == 3


def test_an_unwritable_place_is_an_error_with_a_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GoodnetError) as caught:
        write_pngs(scan_report(), tmp_path / "file" / "folder")
    assert caught.value.code == "O001"


def test_grey_images_work() -> None:
    trigger = corner_trigger(1, channels=1)
    pictures = trigger_pictures(trigger)
    assert {picture.mode for picture in pictures.values()} == {"L"}
    assert stamped(trigger, torch.zeros(3, 1, 28, 24)).mode == "LA"
    assert "data:image/png" in scan_page(scan_report(channels=1))


def test_an_additive_trigger_is_drawn_around_grey() -> None:
    pattern = torch.zeros(3, 8, 8)
    pattern[0, 0, 0], pattern[0, 7, 7] = 0.2, -0.2
    trigger = Trigger((pattern.abs().amax(0, keepdim=True) > 0).float(), pattern, 0, "additive")
    drawn = np.asarray(trigger_pictures(trigger, smallest=1)["pattern"])
    assert drawn[0, 0, 0] == 255
    assert drawn[7, 7, 0] == 0
    assert drawn[4, 4, 0] == 128


def test_stamped_images_show_the_pattern_where_the_mask_is() -> None:
    trigger = Trigger(torch.zeros(1, 4, 4), torch.ones(3, 4, 4), 0)
    trigger.mask[:, 1, 2] = 1.0
    drawn = np.asarray(stamped(trigger, torch.zeros(2, 3, 4, 4), smallest=1))[..., :3]
    assert drawn[1, 2].tolist() == [255, 255, 255]
    assert drawn[0, 0].tolist() == [0, 0, 0]
    assert drawn[1, 2 + 4 + 2].tolist() == [255, 255, 255]


# The page


def test_the_page_tells_the_verdict_marks_the_target_and_shows_its_trigger() -> None:
    names = [f"sign {label}" for label in range(43)]
    page = Page(scan_page(scan_report(names=names)))
    assert "Images with a trigger become label 14 (sign 14)." in page.text
    hits = [attrs for tag, attrs in page.tags if tag == "circle" and "hit" in str(attrs["class"])]
    assert len(hits) == 2, "once among the margins, once among the masks"
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 6, "mask, pattern, fused, perturbation, clean and stamped images"
    assert all(attrs["alt"] for attrs in pictures)
    for fact in ("models/stop.h5", "ab" * 32, "--seed 7", "95.4 %", "409 images"):
        assert fact in page.text


def test_the_page_needs_nothing_from_elsewhere() -> None:
    report = scan_report(targets=(14, 3, 5))
    html = scan_page(report, repair_report(report))
    assert "http://" not in html
    assert "https://" not in html
    page = Page(html)
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed"}
        assert not any(name.startswith("on") for name in attrs)
        assert (attrs.get("src") or "data:").startswith("data:")
        assert (attrs.get("href") or "#").startswith("#")
    assert "url(" not in html
    assert "@import" not in html


@pytest.mark.parametrize("render", [scan_page, scan_fragment])
def test_hostile_names_stay_text(render) -> None:
    report = scan_report(names=[HOSTILE + '" onload="x'] * 43, path=f"models/{HOSTILE}.h5")
    hostile = report.model_copy(
        update={
            "reasons": [HOSTILE],
            "method": HOSTILE,
            "preprocess": HOSTILE,
            "settings": {HOSTILE: HOSTILE},
        }
    )
    hostile._triggers.update(report.triggers)
    html = render(hostile)
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "<script>alert" in page.text
    assert "\u202e" not in html


def test_the_repair_stands_on_the_page() -> None:
    report = scan_report()
    page = Page(scan_page(report, repair_report(report)))
    for part in ("before", "after", "fell by 6.1 points", "rejected", "accepted", "holds"):
        assert part in page.text
    bars = [attrs for tag, attrs in page.tags if tag == "rect" and "fill" in str(attrs["class"])]
    assert [attrs["width"] for attrs in bars] == ["95.40%", "95.00%", "99.00%", "1.00%"]
    assert "The repair" not in Page(scan_page(report)).text


def test_a_saved_report_loads_equal_and_still_makes_a_page() -> None:
    report = scan_report()
    loaded = ScanReport.model_validate_json(report.model_dump_json())
    assert loaded.model_dump() == report.model_dump()
    page = Page(scan_page(loaded))
    assert "label 14" in page.text
    assert "made from a saved report" in page.text
    repair = repair_report(report)
    again = RepairReport.model_validate_json(repair.model_dump_json())
    assert again.model_dump() == repair.model_dump()
    assert printed(repair_text(again)) == printed(repair_text(repair))


def test_a_report_without_any_label_is_a_page_too() -> None:
    report = scan_report().model_copy(
        update={"labels": [], "targets": [], "verdict": "inconclusive"}
    )
    assert "INCONCLUSIVE" in scan_page(report)
    assert "INCONCLUSIVE" in scan_fragment(report)
    assert "INCONCLUSIVE" in printed(scan_text(report))


def test_1283_labels_are_quick_and_small() -> None:
    names = [f"person number {label}" for label in range(1283)]
    report = scan_report(classes=1283, targets=(0,), names=names, inverted=1283)
    scan_page(scan_report())  # the template is compiled once, whatever the size
    begin = time.perf_counter()
    html = scan_page(report)
    assert time.perf_counter() - begin < 5.0
    assert len(html) < 3_000_000
    assert html.count("<circle") == 2 * 1283


def test_photographs_do_not_make_a_page_of_megabytes() -> None:
    report = scan_report(targets=tuple(range(12)))
    generator = torch.Generator().manual_seed(0)
    report._samples = Images(
        torch.randint(0, 256, (8, 3, 224, 224), generator=generator).to(torch.uint8),
        torch.arange(8),
    )
    for label in range(12):
        pattern = torch.rand(3, 224, 224, generator=generator)
        report._triggers[label] = Trigger(torch.full((1, 224, 224), 0.5), pattern, label)
    html = scan_page(report)
    assert len(html) < 5_000_000, "noise, the worst case for every format"
    assert "4 more flagged labels are not pictured" in html


def test_a_notebook_gets_a_short_fragment_with_styles_of_its_own() -> None:
    html = scan_report()._repr_html_()
    assert len(html) < 100_000
    assert "<html" not in html
    style = html.split("<style>")[1].split("</style>")[0]
    rules = [line for line in style.splitlines() if line.strip()]
    assert all(line.startswith(".goodnet-scan") for line in rules)


def test_the_mad_line_is_where_the_index_is_two() -> None:
    sizes = [100.0, 110.0, 120.0, 130.0, 140.0, 20.0, 90.0]
    line = charts.mad_line(sizes)
    middle = float(np.median(sizes))
    spread = 1.4826 * float(np.median(np.abs(np.array(sizes) - middle)))
    assert line is not None
    assert (middle - line) / spread == pytest.approx(2.0)
    assert charts.mad_line([1.0, 50.0, 100.0]) is None, "no mask can be below a negative size"


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-9, 1e9], [-3.0, -1.0], [5.0], [1e300, 1.0]])
def test_plots_keep_odd_values_inside_the_frame(values: list[float]) -> None:
    report = scan_report(classes=10, targets=())
    labels = [
        LabelEvidence(label=place, rank=place + 1, margin_index=value, mask_l1=abs(value))
        for place, value in enumerate(values)
    ]
    odd = report.model_copy(update={"labels": labels})
    for chart in (charts.margin_chart(odd), charts.mask_chart(odd)):
        assert chart is not None
        assert all(-0.01 <= mark.y <= 100.01 and 0 <= mark.x <= 100 for mark in chart.marks)
        assert 1 <= len(chart.y_ticks) < 40


@pytest.mark.slow
def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    report = scan_report(targets=(14, 3))
    (tmp_path / "page.html").write_text(scan_page(report, repair_report(report)), encoding="utf-8")
    quiet = ["quic", "background-networking", "component-update", "sync", "gpu"]
    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--no-first-run",
            *(f"--disable-{name}" for name in quiet),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={tmp_path / 'shot.png'}",
            "--window-size=1000,1600",
            (tmp_path / "page.html").as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)
    assert red.sum() > 200, "the verdict's colour is missing"
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500, "the pictures are missing"
