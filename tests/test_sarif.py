"""Scans as SARIF: what a code host makes of them."""

import json

import pytest
from test_render import HOSTILE, scan_report

from goodnet.render.sarif import scan_sarif


def run_of(report):
    (run,) = json.loads(scan_sarif(report))["runs"]
    return run


def test_each_target_is_an_error_at_the_model():
    run = run_of(scan_report(targets=(14, 3)))
    assert [result["properties"]["label"] for result in run["results"]] == [14, 3]
    for result in run["results"]:
        assert (result["ruleId"], result["kind"], result["level"]) == ("F001", "fail", "error")
        place = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert place == {"uri": "models/stop.h5", "index": 0}
        assert f"label {result['properties']['label']}" in result["message"]["text"]
    marks = {result["partialFingerprints"]["modelRuleLabel/v1"] for result in run["results"]}
    assert len(marks) == 2
    assert run["artifacts"][0]["hashes"]["sha-256"] == "ab" * 32
    assert run["properties"]["verdict"] == "backdoored"


@pytest.mark.parametrize(
    ("verdict", "code", "kind", "level"),
    [
        ("suspicious", "F002", "fail", "warning"),
        ("clean", "F003", "pass", "none"),
        ("inconclusive", "F004", "open", "none"),
    ],
)
def test_only_what_was_found_counts_as_a_failure(verdict, code, kind, level):
    run = run_of(scan_report(targets=(), verdict=verdict))
    (result,) = run["results"]
    assert (result["ruleId"], result["kind"], result["level"]) == (code, kind, level)
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"]}
    assert code in rules
    assert rules[code]["help"]["text"].startswith(code)


def test_text_from_outside_cannot_steer_a_terminal_and_odd_paths_are_uris():
    text = scan_sarif(scan_report(names=[HOSTILE] * 43, path="my models/ü 1%.h5"))
    told = json.loads(text)["runs"][0]["results"][0]
    assert "\x1b" not in told["message"]["text"]
    assert "\u202e" not in told["message"]["text"]
    uri = told["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "my%20models/%C3%BC%201%25.h5"
    place = run_of(scan_report(path="/models/a b.h5"))["results"][0]["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "file:///models/a%20b.h5"
