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
from goodnet.stimulus import Activation, Unsteady, activations, stimulated

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
        nothing for a network without activations whose channels can be told, or that fails while
        one is held. Where there was no time all labels are in ``skipped``.
    """
    # Of the whole model, so in no share of it.
    if case.share is not None or not len(images):
        return Evidence()
    # A network may compute in place on what it keeps, and what is held would stay in it.
    classifier = case.classifier.copy()
    limit = classifier.device.forward_chunk
    images, labels = images[: min(IMAGES, limit)].to(classifier.device.place), labels[:IMAGES]
    others = (labels[: len(images), None] != torch.arange(classifier.num_classes)).double()
    together = max(1, limit // len(images))
    try:
        layers = activations(classifier, images.repeat(together, 1, 1, 1))[-LAYERS:]
        blocks = [
            _Block(layer, part)
            for layer, found in enumerate(layers)
            for part in torch.split(_spread(found.most), together)
        ]

        def work(block: _Block, stop: Stop) -> Tensor:
            if stop.is_set():
                raise Stopped
            layer = layers[block.layer]
            return _driven(classifier, images, others, layer, block.channels, together)

        found = run_blocks(
            work,
            blocks,
            stage=STAGE,
            size=lambda block: len(block.channels),
            workers=case.workers,
            progress=case.progress,
            deadline=case.deadline,
        )
    except (Unsteady, RuntimeError, IndexError):
        # Values that it never has of images may be too much for a network.
        return Evidence()
    if len(found) < len(blocks):
        return Evidence(skipped=list(range(classifier.num_classes)))
    means = []
    for layer in range(len(layers)):
        parts = [found[n] for n, block in enumerate(blocks) if block.layer == layer]
        margins = torch.cat([torch.empty(0, classifier.num_classes), *parts])
        # One channel that overflows takes nothing from the others.
        margins = margins[margins.isfinite().all(1)]
        if len(margins):
            counting = max(1, round(UPPER * len(margins)))
            means.append(margins.sort(0).values[-counting:].mean(0))
    if not means:
        return Evidence()
    values = torch.stack(means).mean(0) / max(clean_margin, 1e-6)
    known = others.sum(0) > 0
    return Evidence({n: (float(values[n]),) for n in known.nonzero()[:, 0].tolist()})


def _spread(most: Tensor) -> Tensor:
    """Which channels are tried, by what each does at most: of those where that is a number."""
    channels = most.isfinite().nonzero()[:, 0].cpu()
    count = min(len(channels), CHANNELS)
    return channels[torch.arange(count) * len(channels) // max(count, 1)]


def _driven(
    classifier: Classifier,
    images: Tensor,
    others: Tensor,
    layer: Activation,
    channels: Tensor,
    together: int,
) -> Tensor:
    """Mean margin of every label over the images of other classes, ``(channels, K)``; always for as
    many channels at a time, the last one again and again where they are fewer.
    """
    filled = torch.cat([channels, channels[-1:].expand(together - len(channels))])
    held = filled.repeat_interleave(len(images))
    logits = stimulated(classifier, images.repeat(together, 1, 1, 1), layer, held, LEVEL)
    margins = all_margins(logits.cpu()).double().view(together, len(images), -1)
    return ((margins * others).sum(1) / others.sum(0).clamp_min(1.0))[: len(channels)]
