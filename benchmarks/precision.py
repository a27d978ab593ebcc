"""Images with gradient per second, by device, chunk and precision.

    .venv/bin/python benchmarks/precision.py MODEL --data DATA [--device cuda] [--compile]

On the processor in one thread, as a worker has it. Read the ratios within a run.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch

import goodnet
from goodnet.device import repeatable
from goodnet.parallel import single_threaded
from goodnet.pipelines.load import quicker
from goodnet.pipelines.placing import in_half, placed, probes

SECONDS = 2.0
CHUNKS = {"cpu": (16, 48, 128), "cuda": (48, 256, 1024, 4096)}


def rate(step, images: int, device: torch.device, seconds: float) -> float:
    """Images per second of repeated steps, the first three left out."""
    for _ in range(3):
        step()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        done += images
    return done / (time.perf_counter() - started)


def rates(classifier, clean, chunk: int, compiled: bool, seconds: float) -> dict[str, float]:
    """Images per second of a forward and a backward pass, by precision."""
    device = classifier.device.place
    batch = clean.floats()[:8].repeat(-(-chunk // 8), 1, 1, 1)[:chunk].to(device)
    ways = {"float32": replace(classifier, half=False), "bfloat16": replace(classifier, half=True)}
    found = {}
    for name, one in ways.items():
        module = torch.compile(one.network.module) if compiled else one.network.module
        one = replace(one, network=replace(one.network, module=module))

        def step(one=one) -> None:
            images = batch.detach().requires_grad_(True)
            torch.autograd.grad(one(images)[:, 0].sum(), images)

        found[name] = round(rate(step, chunk, device, seconds), 1)
    return found


def table(classifier, clean, device: str, *, compiled: bool, seconds: float) -> list[dict]:
    """Rows of rates, by chunk; once more with a compiled network where ``compiled`` says so."""
    probe = probes(clean)
    classifier = quicker(placed(classifier, device, probe), probe)
    rows = []
    with repeatable(classifier.device), single_threaded():
        for how in (False, True)[: 1 + compiled]:
            for chunk in CHUNKS[classifier.device.place.type]:
                found = rates(classifier, clean, chunk, how, seconds)
                rows.append({"compiled": how, "chunk": chunk, **found})
    return rows


def main() -> None:
    """Prints one line a chunk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also by torch.compile")
    given = parser.parse_args()
    clean = goodnet.load_images(given.data)
    classifier = goodnet.load(given.model, clean)
    there = placed(classifier, given.device, probes(clean))
    chosen = "bfloat16" if in_half(there, probes(clean)).half else "float32"
    print(f"{given.device}: chunks of {there.device.chunk}, gradients in {chosen}")
    for row in table(classifier, clean, given.device, compiled=given.compile, seconds=SECONDS):
        print(
            f"{'compiled' if row['compiled'] else 'as it is':9s} chunk {row['chunk']:5d}  "
            f"float32 {row['float32']:9.0f}/s  bfloat16 {row['bfloat16']:9.0f}/s  "
            f"{row['bfloat16'] / row['float32']:.2f}",
        )


if __name__ == "__main__":
    main()
