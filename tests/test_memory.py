"""Freed memory is kept on glibc; a user's own word on it stands; numbers do not change."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_search_does_not_fetch_its_memory_anew_in_every_step():
    kept, margins = faults()
    # A user's own word, which is to fetch everything of more than 128 KiB anew.
    asked, same = faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert kept * 10 < asked
    assert margins == same
