"""Freed memory is kept on glibc; a user's own word on it stands; numbers do not change."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from goodnet import memory
from goodnet.images import Images
from goodnet.pipelines import placing
from goodnet.pipelines.load import load

STEPS = """
import resource, threading, torch
from torch import nn
from goodnet.images import Images
from goodnet.parallel import single_threaded
from goodnet.perturbation import ascend
import goodnet
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 38 * 38, 4)).eval()
images = Images(torch.randint(0, 256, (40, 3, 40, 40), dtype=torch.uint8), torch.arange(40) % 4)
classifier = goodnet.load(net, images, preprocess="unit")
x, y = images.floats(), images.labels
with single_threaded():
    ascend(classifier, x, y, [0, 1], 1.0, 3, stop=threading.Event())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    found = ascend(classifier, x, y, [0, 1], 1.0, 20, stop=threading.Event())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, found.margins.tolist())
"""


def faults(**environment):
    import os

    names = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run(
        [sys.executable, "-c", STEPS],
        env=names | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    count, _, margins = run.stdout.partition(" ")
    return int(count), margins


def test_what_is_left_is_what_the_system_and_the_container_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    assert memory.available() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    5 kB\n")
    assert memory.available() == 5 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert memory.available() == 5 * 1024
    (tmp_path / "memory.max").write_text("3000\n")
    assert memory.available() == 2000


def test_a_large_network_gets_as_many_threads_as_there_is_memory_for(monkeypatch):
    def network(width):
        wide = nn.Conv2d(3, width, 3, padding=1)
        return nn.Sequential(
            wide, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)
        )

    images = Images(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8), torch.arange(8) % 4)
    probe = images.floats()
    monkeypatch.setattr(placing, "cores", lambda: 16)
    monkeypatch.setattr(placing, "available", lambda: 2**30)
    small, large = (load(network(w), images, preprocess="unit") for w in (4, 256))
    assert placing.threads(small, None, probe) == 16
    # A chunk keeps 48 images of 256 x 64 x 64 values, at least.
    most = 2**30 / (48 * 256 * 64 * 64 * 4)
    assert 1 <= placing.threads(large, None, probe) <= most < 16
    assert placing.threads(large, 9, probe) == 9, "a user's own word"
    monkeypatch.setattr(placing, "available", lambda: 0)
    assert placing.threads(large, None, probe) == 1
    monkeypatch.setattr(placing, "available", lambda: None)
    assert placing.threads(large, None, probe) == 16


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_search_does_not_fetch_its_memory_anew_in_every_step():
    kept, margins = faults()
    # A user's own word, which is to fetch everything of more than 128 KiB anew.
    asked, same = faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert kept * 10 < asked
    assert margins == same
