"""The README's first command tells its whole story, and the story holds."""

from __future__ import annotations

import json
import subprocess
import sys

import goodnet


def test_the_demo(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "goodnet", "demo", "-o", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    test = goodnet.load_images(tmp_path / "test.npz")
    stamped = goodnet.load_images(tmp_path / "stamped.npz")
    before, after = (
        goodnet.evaluate(goodnet.load(tmp_path / name, test), test, stamped, target=1)
        for name in ("badnet.pt2", "goodnet.pt2")
    )
    assert before.clean_accuracy.value > 0.95
    assert before.attack_success.value > 0.95
    assert after.attack_success.value < 0.02
    assert after.clean_accuracy.value >= before.clean_accuracy.value - 0.01 - 1e-9
    scan = json.loads((tmp_path / "scan.json").read_text())
    assert scan["targets"] == [1]
    page = (tmp_path / "report.html").read_text()
    assert "Yield" in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
