"""One web page per report: self-contained, without a script, a font or a picture from elsewhere."""

from __future__ import annotations

import base64
import io
import shlex
from typing import TYPE_CHECKING

import torch
from PIL import Image

from goodnet.render import charts, words
from goodnet.render.pictures import row, stamped, trigger_pictures
from goodnet.render.words import DASH, duration, interval, label_name, number, plain, share
from goodnet.reports import (
    FileRef,
    LabelEvidence,
    Proportion,
    RepairReport,
    ScanReport,
    TestResult,
)
from goodnet.trigger import Trigger

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_SHOWN = 8
"""Labels with pictures: enough to see a pattern among the triggers, few enough for a mail."""

SAMPLES = 6
"""Images on which a trigger is shown."""

LARGEST_TILE = 112
"""Pixels: larger images are reduced, or a page of photographs would weigh megabytes."""

OPEN_ROWS = 12
"""Rows of the evidence table that are seen without unfolding it."""

PARTS = {
    "mask": "Mask: where the trigger covers the image",
    "pattern": "Pattern: what it shows there",
    "fused": "Mask \N{MULTIPLICATION SIGN} pattern: what is seen",
}


def scan_page(report: ScanReport, repair: RepairReport | None = None) -> str:
    """The whole page.

    Args:
        report: the scan; with its triggers and samples if it was made in this process.
        repair: what was done about it, or None.

    Returns:
        An HTML document that needs no network and no script.
    """
    word, sentence = words.verdict_sentence(report)
    shown = words.shown_triggers(report, MOST_SHOWN)
    flagged = sum(label.flagged for label in report.labels)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            word=word,
            sentence=sentence[0].upper() + sentence[1:],
            finding=words.VERDICT_CODES[report.verdict],
            facts=_facts(report),
            reasons=[plain(reason) for reason in report.reasons],
            plots=_plots(report),
            triggers=[_trigger_view(report, label, trigger) for label, trigger in shown],
            hidden=max(0, flagged - len(shown)) if shown else 0,
            no_pictures=_no_pictures(report),
            rows=[_row(report, label) for label in report.labels],
            third=words.third_channel(report),
            open_rows=max(OPEN_ROWS, min(flagged + 3, 40)),
            tests=[_test_row(test) for test in report.tests],
            calibration=_calibration(report),
            repair=None if repair is None else _repair_view(repair),
            limits=words.LIMITS,
            command=_command(report),
            settings=sorted((plain(key), plain(str(v))) for key, v in report.settings.items()),
            version=plain(report.version),
        )
    )


def scan_fragment(report: ScanReport) -> str:
    """A short piece of HTML for a notebook: verdict, leading labels, triggers.

    It takes the notebook's own colours, light or dark, and its styles touch nothing else.
    """
    word, sentence = words.verdict_sentence(report)
    return (
        _environment()
        .get_template("fragment.html.j2")
        .render(
            report=report,
            word=word,
            sentence=sentence,
            rows=[_row(report, label) for label in words.leaders(report, flagged=5)],
            third=words.third_channel(report),
            triggers=[
                _trigger_view(report, label, trigger, samples=False)
                for label, trigger in words.shown_triggers(report, 3)
            ],
            accuracy=interval(report.clean_accuracy, with_n=True),
            calibration=_calibration(report),
            run=f"seed {report.seed}, {duration(report.seconds)}",
            finding=words.VERDICT_CODES[report.verdict],
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("goodnet.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _plots(report: ScanReport) -> list[tuple[str, charts.Chart, str]]:
    """Heading, plot and explanation of every plot that has something to show."""
    candidates = [
        (
            "How easily each label is forced",
            charts.margin_chart(report),
            "Every dot is a label. High means that one small perturbation sends images of all "
            "classes there with a wide margin, compared with the other labels.",
        ),
        (
            "How small a patch forces each label",
            charts.mask_chart(report),
            "Every dot is a label whose smallest mask was searched for. A target of a patch "
            "backdoor needs far less than the others; Neural Cleanse flags what lies below the "
            "dashed line, where it is drawn.",
        ),
    ]
    return [(title, chart, text) for title, chart, text in candidates if chart is not None]


def _facts(report: ScanReport) -> list[tuple[str, str, str]]:
    """Name, value and small print of everything that the scan rests on."""
    model, data = report.model, report.data
    shape = " \N{MULTIPLICATION SIGN} ".join(str(side) for side in model.input_shape)
    images = words.counted(data.images, "image")
    return [
        (
            "Model",
            _where(model),
            f"{plain(model.kind)}, {words.counted(model.num_classes, 'label')}, input {shape}",
        ),
        ("Clean images", _where(data), f"{images} of {words.counted(data.classes, 'class')}"),
        (
            "Clean accuracy",
            share(report.clean_accuracy.value),
            f"95 % interval {interval(report.clean_accuracy, with_n=True).partition(' (')[2][:-1]}"
            if report.clean_accuracy.n
            else "not measured",
        ),
        ("Preprocessing", plain(report.preprocess), "the scale that the model takes"),
        ("Method", plain(report.method), f"seed {report.seed}, goodnet {plain(report.version)}"),
        ("Time", duration(report.seconds), f"{len(report.labels):,} labels ranked"),
    ]


def _where(ref: FileRef) -> str:
    return plain(ref.path) if ref.path else "in memory"


def _row(report: ScanReport, label: LabelEvidence) -> dict[str, str | bool]:
    role = "target" if label.flagged else "control" if label.control else ""
    success = interval(label.attack_success) if label.attack_success else DASH
    patch = label.patch_margin
    return {
        "flagged": label.flagged,
        "rank": str(label.rank),
        "name": label_name(report, label.label),
        "margin": number(label.margin),
        "score": number(label.score),
        "margin_index": number(label.margin_index),
        "mask_l1": number(label.mask_l1),
        "mask_index": number(label.mask_index),
        "third": number(label.noise_margin if patch is None else patch),
        "third_index": number(label.noise_index if patch is None else label.patch_index),
        "inner_index": number(label.inner_index),
        "anomaly_index": number(label.anomaly_index),
        "success": success,
        "role": role,
    }


def _trigger_view(
    report: ScanReport, label: int, trigger: Trigger, *, samples: bool = True
) -> dict[str, object]:
    """What the template shows of one label: pictures as data URIs, and the figures below them."""
    name = label_name(report, label)
    evidence = next((item for item in report.labels if item.label == label), None)
    pictures = [
        (PARTS[part], f"{PARTS[part]}, label {name}", _uri(picture))
        for part, picture in trigger_pictures(trigger, smallest=1).items()
    ]
    perturbations = sorted(report.perturbations.get(label, []), key=lambda item: item.size)
    if samples and perturbations and perturbations[0] is not trigger:
        caption = "Perturbation: the additive pattern of the smallest budget, around grey"
        drawn = trigger_pictures(perturbations[0], smallest=1)["pattern"]
        pictures.append((caption, f"{caption}, label {name}", _uri(drawn)))
    success = evidence.attack_success if evidence else None
    patch = trigger.family != "additive"
    return {
        "name": name,
        "flagged": bool(evidence and evidence.flagged),
        "success": interval(success, with_n=True) if success else "",
        "size": f"{number(trigger.size)} {'pixels (mask L1)' if patch else '(pattern L2)'}",
        "pictures": pictures,
        "strips": _strips(report, label, trigger) if samples else None,
        "count": SAMPLES,
        "looks": (evidence.looks or "") if evidence else "",
    }


def _strips(report: ScanReport, label: int, trigger: Trigger) -> tuple[str, str] | None:
    """The same images clean and stamped, or None where the report has no samples."""
    samples = report.samples
    if samples is None or len(samples) == 0 or samples.shape[1:] != trigger.mask.shape[-2:]:
        return None
    # A trigger shows nothing on images that are of its own label anyway.
    others = (samples.labels != label).nonzero().flatten()
    chosen = samples.select(others if len(others) else torch.arange(len(samples)))
    images = chosen.select(torch.arange(min(SAMPLES, len(chosen)))).floats()
    return _uri(row(images, smallest=1), tiles=len(images)), _uri(
        stamped(trigger, images, smallest=1), tiles=len(images)
    )


def _uri(picture: Image.Image, tiles: int = 1) -> str:
    """A picture as a data URI, reduced where its ``tiles`` are larger than a page can use."""
    largest = LARGEST_TILE * (1 if tiles > 1 else 2)
    factor = max(picture.height, picture.width / tiles) / largest
    if factor > 1:
        size = (max(1, round(picture.width / factor)), max(1, round(picture.height / factor)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    if factor > 1 and tiles > 1:
        # Photographs: PNG would take ten times the space for what no eye sees.
        ground = Image.new("RGBA", picture.size, (128, 128, 128, 255))
        ground.alpha_composite(picture.convert("RGBA"))
        ground.convert("RGB").save(stream, format="JPEG", quality=88)
        kind = "jpeg"
    else:
        picture.save(stream, format="PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _no_pictures(report: ScanReport) -> str:
    if report.triggers or report.perturbations:
        return ""
    return (
        "This page was made from a saved report, which holds figures only. "
        "Pictures are in the page that the scan itself writes with --format html."
    )


def _test_row(test: TestResult) -> dict[str, str]:
    return {
        "name": test.name,
        "statistic": number(test.statistic),
        "p_value": DASH if test.p_value is None else f"{test.p_value:.2g}",
        "weight": share(test.weight),
        "models": f"{test.models:,}",
    }


def _calibration(report: ScanReport) -> str:
    return words.calibration_words(report)


def _command(report: ScanReport) -> str:
    """The call that makes this report again, safe to paste whatever the file is called."""
    # Without "--" a file called "-o" would be an option; "./-o" cannot be one.
    paths = [
        ("./" if ref.path and ref.path.startswith("-") else "") + (ref.path or name)
        for ref, name in ((report.model, "MODEL"), (report.data, "DATA"))
    ]
    model, data = (shlex.quote(path) for path in paths)
    preprocess = shlex.quote(report.preprocess)
    return plain(
        f"goodnet scan {model} --data {data} --preprocess {preprocess} --seed {report.seed}"
    )


def _worst(success: dict[int, Proportion]) -> str:
    return interval(max(success.values(), key=lambda p: p.value)) if success else DASH


def _repair_view(repair: RepairReport) -> dict[str, object]:
    word, sentence = words.repair_sentence(repair)
    standing, bounds = words.certificate_sentence(repair.certificate)
    certificate = repair.certificate
    return {
        "repaired": repair.repaired,
        "word": word,
        "sentence": sentence,
        "groups": charts.repair_bars(repair)[: 1 + MOST_SHOWN],
        "hidden": max(0, len(certificate.attack_success_before) - MOST_SHOWN),
        "certificate": standing,
        "bounds": plain(bounds),
        "fresh": plain(words.fresh_sentence(certificate.fresh)) if certificate.fresh else "",
        "filter": plain(words.filter_sentence(repair.filter)) if repair.filter else "",
        "classes": plain(words.worst_classes_sentence(repair)),
        "trials": [
            {
                "remedy": plain(words.treatment(trial)),
                "accepted": trial.accepted,
                "outcome": words.outcome(trial),
                "reason": plain(trial.reason),
                "accuracy": interval(trial.clean_accuracy) if trial.made else DASH,
                "success": _worst(trial.attack_success if trial.made else {}),
                "seconds": duration(trial.seconds),
            }
            for trial in repair.trials
        ],
        "split": f"{words.counted(repair.repair_images, 'image')} to repair, "
        f"{repair.held_out_images:,} held out; seed {repair.seed}, {duration(repair.seconds)}",
        "output": None if repair.output is None else _where(repair.output),
        "output_sha256": "" if repair.output is None else plain(repair.output.sha256),
        "limit": words.REPAIR_LIMIT,
    }
