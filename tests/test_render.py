"""What a reader of goodnet's reports sees."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from render_case import (
    HOSTILE,
    corner_trigger,
    data_ref,
    model_ref,
    printed,
    proportion,
    repair_report,
    scan_report,
)

from goodnet.errors import CODES, GoodnetError
from goodnet.render import words
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
    Evaluation,
)
from goodnet.trigger import Trigger


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


def test_a_remedy_that_gave_no_result_has_no_figures_of_its_own():
    report = repair_report(scan_report())
    first = report.trials[0].model_copy(update={"made": False, "reason": "it bears no rate"})
    told = report.model_copy(update={"trials": [first, *report.trials[1:]]})
    for shown in (printed(repair_text(told)), scan_page(told.scan, told)):
        assert "no result" in shown
        assert "it bears no rate" in shown
        assert "89.3" not in shown, "that is the accuracy of the BadNet"
    assert "89.3" in printed(repair_text(report))


def test_a_result_that_breaks_a_limit_is_no_whole_repair():
    report = repair_report(scan_report())
    for standing, word in (
        ("holds", "REPAIRED"),
        ("not certifiable", "REPAIRED, NOT CERTIFIED"),
        ("refused", "REPAIRED IN PART, NOT CERTIFIED"),
    ):
        certificate = report.certificate.model_copy(update={"standing": standing})
        told = report.model_copy(update={"certificate": certificate})
        assert words.repair_sentence(told)[0] == word
        assert f"{word}: attack" in printed(repair_text(told))


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
