"""What hidden channels drive the model to when each is held high: no change of the image at all.

A channel that learnt a trigger drives the target, whatever else the image shows, so that a channel
of the last layers that is held above all that it does on clean images raises the target more than
other labels. That is artificial brain stimulation (Liu et al. 2019, "ABS"), which looks for the one
channel that does it; a trigger that is faint or everywhere is learnt by many, so here the upper
quarter of them counts. Every network has a label that its channels favour: it is mostly another one
than its weak spot, so that this too counts only with other evidence for the same label.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.evidence.augmentation import all_margins
from goodnet.evidence.case import Case
from goodnet.evidence.evidence import Evidence
from goodnet.parallel import Stop, Stopped, run_blocks
from goodnet.stimulus import Activation, activations, stimulated

IMAGES = 32
"""That a channel is held high on."""

LAYERS = 2
"""The last activations, dense layers' as well: what comes earlier is too far from the answer."""

CHANNELS = 128
"""Of a layer at most, spread evenly over it."""

LEVEL = 2.0
"""Held at so many times the most that the channel does on clean images, or that half of its layer's
channels do."""

UPPER = 0.25
"""The share of a layer's channels, of those that drive a label most, that counts for it."""

STAGE = "holding channels high"


@dataclass(frozen=True)
class _Block:
    """Channels of one layer that are tried together."""

    layer: int
    channels: Tensor


def stimulation(case: Case, images: Tensor, labels: Tensor, clean_margin: float = 1.0) -> Evidence:
    """How far the channels of the last layers drive each label.

    With f^(c) the logits while channel c is held at :data:`LEVEL` times its largest activation::

        s_t = mean_layers mean_{c in upper quarter of t} mean_i
                  [ f_t^(c)(x_i) - max_{j != t} f_j^(c)(x_i) ] / clean_margin

    over the images of other classes.

    Args:
        case: the classifier; the images that triggers are fitted to are not used.
        images: float32 ``(n, C, H, W)`` in [0, 1]; the first :data:`IMAGES` count.
        labels: int64 ``(n,)``.
        clean_margin: the margin of clean images, in logits, above 0.

    Returns:
        ``values[label]``: one number for every label that images of other classes are there for;
        nothing for a network without activations whose channels can be told. Where there was no
        time all labels are in ``skipped``.
    """
    # Of the whole model, so in no share of it.
    if case.share is not None or not len(images):
        return Evidence()
    classifier = case.classifier
    images, labels = images[:IMAGES].to(classifier.device.place), labels[:IMAGES]
    layers = activations(classifier, images)[-LAYERS:]
    others = (labels[:, None] != torch.arange(classifier.num_classes)).double()
    rows = max(1, classifier.device.forward_chunk // len(images))
    blocks = [
        _Block(layer, part)
        for layer, found in enumerate(layers)
        for part in torch.split(_spread(len(found.most)), rows)
    ]

    def work(block: _Block, stop: Stop) -> Tensor:
        if stop.is_set():
            raise Stopped
        return _driven(classifier, images, others, layers[block.layer], block.channels)

    found = run_blocks(
        work,
        blocks,
        stage=STAGE,
        size=lambda block: len(block.channels),
        workers=case.workers,
        progress=case.progress,
        deadline=case.deadline,
    )
    if len(found) < len(blocks):
        return Evidence(skipped=list(range(classifier.num_classes)))
    if not blocks:
        return Evidence()
    means = []
    for layer in range(len(layers)):
        margins = torch.cat([found[n] for n, b in enumerate(blocks) if b.layer == layer])
        counting = max(1, round(UPPER * len(margins)))
        means.append(margins.sort(0).values[-counting:].mean(0))
    values = torch.stack(means).mean(0) / max(clean_margin, 1e-6)
    known = (others.sum(0) > 0) & values.isfinite()
    return Evidence({n: (float(values[n]),) for n in known.nonzero()[:, 0].tolist()})


def _spread(channels: int) -> Tensor:
    """Which of so many channels are tried."""
    count = min(channels, CHANNELS)
    return torch.arange(count) * channels // count


def _driven(
    classifier: Classifier, images: Tensor, others: Tensor, layer: Activation, channels: Tensor
) -> Tensor:
    """Mean margin of every label over the images of other classes, ``(channels, K)``."""
    held = channels.repeat_interleave(len(images))
    repeated = images.repeat(len(channels), 1, 1, 1)
    logits = stimulated(classifier, repeated, layer, held, LEVEL)
    margins = all_margins(logits.cpu()).double().view(len(channels), len(images), -1)
    return (margins * others).sum(1) / others.sum(0)
