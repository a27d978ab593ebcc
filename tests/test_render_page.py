"""The HTML page: it stands alone, tells what was found, and lets nothing hostile in."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from render_case import (
    HOSTILE,
    Page,
    printed,
    repair_report,
    scan_report,
)

from goodnet.images import Images
from goodnet.render import charts
from goodnet.render.html import scan_fragment, scan_page
from goodnet.render.text import (
    repair_text,
    scan_text,
)
from goodnet.reports import (
    LabelEvidence,
    RepairReport,
    ScanReport,
)
from goodnet.trigger import Trigger


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
