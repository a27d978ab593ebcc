"""Images with gradient per second, by chunk and by number of workers.

    .venv/bin/python benchmarks/kernel.py MODEL --data DATA

The baseline is a bare forward and backward pass of the same network at the same chunk, in the same
sitting: read the ratio, not the absolute figure.
"""

from __future__ import annotations

import argparse
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch

import goodnet
from goodnet import perturbation
from goodnet.parallel import single_threaded

SECONDS = 3.0
STEPS = 16
"""Of a search, as a scan makes them; one more look at the end has no gradient."""

CHUNKS = (16, 32, 48, 64, 128)


def rate(work, images: int, workers: int, seconds: float = SECONDS) -> float:
    """Images per second of ``workers`` threads that repeat ``work`` on ``images`` images each."""
    work()
    until = time.monotonic() + seconds

    def repeat() -> int:
        torch.set_num_threads(1)
        count = 0
        while time.monotonic() < until:
            work()
            count += 1
        return count

    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        done = sum(f.result() for f in [pool.submit(repeat) for _ in range(workers)])
    return done * images / (time.monotonic() - started)


def rates(classifier, clean, chunks=CHUNKS, seconds: float = SECONDS) -> list[dict[str, float]]:
    """For each chunk: images per second of the bare loop, of ``ascend``, and of two of those."""
    stop, found = threading.Event(), []
    with single_threaded():
        for chunk in chunks:
            images, labels = clean.floats()[:8], clean.labels[:8]
            targets = list(range(chunk // 8))
            batch = images.repeat(chunk // 8, 1, 1, 1)

            def bare(batch=batch) -> None:
                batch = batch.detach().requires_grad_(True)
                torch.autograd.grad(classifier(batch)[:, 0].sum(), batch)

            def ascend(images=images, labels=labels, targets=targets) -> None:
                perturbation.ascend(classifier, images, labels, targets, 4.0, STEPS, stop=stop)

            found.append(
                {
                    "chunk": chunk,
                    "bare": rate(bare, chunk, 1, seconds),
                    "ascend": rate(ascend, chunk * STEPS, 1, seconds),
                    "ascend_2": rate(ascend, chunk * STEPS, 2, seconds),
                }
            )
    return found


def main() -> None:
    """Prints one line a chunk."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    arguments = parser.parse_args()
    clean = goodnet.load_images(arguments.data)
    classifier = goodnet.load(arguments.model, clean)
    print("chunk  bare/s  ascend/s  ratio  ascend/s with 2 workers  ratio to 1")
    for row in rates(classifier, clean):
        base, one, two = row["bare"], row["ascend"], row["ascend_2"]
        print(
            f"{row['chunk']:5d}  {base:6.0f}  {one:8.0f}  {one / base:5.2f}  {two:23.0f}  "
            f"{two / one:10.2f}"
        )


if __name__ == "__main__":
    main()
