"""The line between two networks: what lies on it has something of both."""

from __future__ import annotations

import torch

from goodnet.classifier import Classifier


def between(start: Classifier, end: Classifier, share: float) -> Classifier:
    """A copy whose parameters lie at ``share`` of the line from one network to another.

    Fine-tuned from the same weights, networks on the line are good ones, too (Wortsman et al. 2022,
    "Robust fine-tuning of zero-shot models", there for what a network knew before).

    Args:
        start: where ``share`` is 0; its buffers (statistics of batch norm) stay.
        end: a remedy's result, of the same shapes.
        share: in [0, 1].
    """
    result = start.copy()
    with torch.no_grad():
        for mine, its in zip(result.module.parameters(), end.module.parameters(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(its, share)
    return result
