"""Which label clean images lean to: no change of the image at all.

Whoever stamps a trigger on images of all classes teaches the network to answer the target for much
that is no such thing, and some of it stays: images of the other classes come a little nearer to the
target than to any label that they have nothing to do with. Attacks with cover images, and those
whose trigger is faint or everywhere, show it most; a small patch hardly does, and clean labels do
not. A class with far more training images than the others leads as well, which is why this counts
only with other evidence for the same label.
"""

from __future__ import annotations

import torch
from torch import Tensor

from goodnet.evidence.evidence import Evidence


def lean(answers: Tensor, labels: Tensor) -> Evidence:
    """How high a label stands in the answers to images of the other classes.

    Of each image the logits are standardised (less their mean, by their deviation)::

        b_t = mean_{k != t} mean_{i: y_i = k} [ f_t(x_i) - mean_j f_j(x_i) ] / std_j f_j(x_i)

    Args:
        answers: logits of clean images that the model gets right, float32 ``(n, K)``.
        labels: int64 ``(n,)``.

    Returns:
        ``values[label]``: b_t of every label, in deviations; nothing where images of only one class
        are there.
    """
    present = sorted(set(labels.tolist()))
    if len(present) < 2:
        return Evidence()
    away = answers - answers.mean(1, keepdim=True)
    standard = away / away.std(1, correction=0, keepdim=True).clamp_min(1e-12)
    rows = torch.stack([standard[labels == k].mean(0) for k in present])
    counts = torch.ones_like(rows)
    counts[torch.arange(len(present)), torch.tensor(present)] = 0.0
    means = (rows * counts).sum(0) / counts.sum(0)
    return Evidence({label: (value,) for label, value in enumerate(means.tolist())})
