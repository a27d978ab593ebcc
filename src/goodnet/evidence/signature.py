"""What the last layer's rows draw on: no change of the image, and no gradient.

What a trigger switches on is little used by clean images, and it drives the target alone. So the
target's weights lie, more than other labels', on features that clean images leave dormant, and on
such that its own images do not use. The idea that a target shows in its row of the last layer is
that of Fields et al. 2021 (Trojan signatures), who look at the mean weight. That one goes with how
easily a label is reached in clean networks, too; these two do not, so they say something that no
other channel does, though by themselves too little: of ten labels one always leads.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.errors import GoodnetError
from goodnet.evidence.evidence import Evidence
from goodnet.head import Head, find_head
from goodnet.images import Images

ASLEEP = 0.1
"""What a feature's activity is added to, in units of the median one's: below a tenth of that it
makes no difference how dormant a feature is."""

SIGNED = 0.6
"""Features are signed where they go below nought by more than this share of how far they go above
it (in the median), as behind a layer norm: then a label is driven from both sides. Leaky and
exponential units come to .4 (on random features)."""

PROBES = 8
"""Images by which the last layer is found."""

TINY = 1e-9


def signature(classifier: Classifier, images: Images) -> Evidence:
    """How far each label's row draws on features that clean images do not use.

    With V the weights of the last layer less the mean of all rows, F the features that enter it::

        dormant_t = mean_d max(0, V_td) / (.1 + a_d / median a)     a_d = mean over images of |F_d|
        unused_t  = mean_d max(0, V_td) (1 - u_td / max F_d)        u_t = mean F of t's own images

    Signed features have no nought to be unused at. There it is the room that is left, how much
    further the label's logit would go with every feature at the end of its range that suits it::

        unused_t = mean_d [ max(0, V_td) (max F_d - u_td) + max(0, -V_td) (u_td - min F_d) ]

    Where a label has no images, nothing is known of what they use.

    Args:
        classifier: of any format.
        images: clean ones with their labels.

    Returns:
        ``values[label]``: (dormant, unused) of every label, in units of a weight (the room is one
        of a logit), or (dormant,) of one without images; nothing where the network does not end in
        a linear layer with one output for each class.
    """
    place = classifier.device.place
    few = images.select(torch.arange(min(PROBES, len(images)))).floats().to(place)
    try:
        head = find_head(classifier, few)
        activity, own, least, most = _use(classifier, head, images)
    except GoodnetError as error:
        if error.code != "M013":
            raise
        return Evidence()
    weight = (head.weight.T if head.transposed else head.weight).detach().cpu()
    mean = weight.double().mean(0)
    middle = float(np.median(activity.numpy()))
    awake = ASLEEP + activity / (middle + TINY)
    signed = bool((-least / most.clamp_min(TINY)).median() > SIGNED)
    shown = torch.bincount(images.labels, minlength=len(weight)) > 0
    values: dict[int, tuple[float, ...]] = {}
    for label, row in enumerate(weight):
        lead = row.double() - mean
        drives = lead.clamp_min(0.0)
        dormant = float((drives / awake).mean())
        if signed:
            room = drives * (most - own[label]) - lead.clamp_max(0.0) * (own[label] - least)
        else:
            room = drives * (1.0 - own[label] / (most + TINY))
        unused = float(room.mean())
        values[label] = (dormant, unused) if shown[label] else (dormant,)
    return Evidence(values)


def _use(classifier: Classifier, head: Head, images: Images) -> tuple[Tensor, ...]:
    """Of the features: mean size ``(D,)``, mean over each label's images ``(K, D)``, the least and
    the largest ``(D,)``; a few images at a time, as features can be as many as pixels.
    """
    width = head.weight.shape[0] if head.transposed else head.weight.shape[1]
    sizes = torch.zeros(width, dtype=torch.float64)
    most = torch.full((width,), -torch.inf, dtype=torch.float64)
    least = -most
    sums = torch.zeros(classifier.num_classes, width, dtype=torch.float64)
    for places in torch.split(torch.arange(len(images)), classifier.device.forward_chunk):
        part = images.select(places)
        features = head.features(part.floats().to(classifier.device.place)).cpu().double()
        sizes += features.abs().sum(0)
        most = torch.maximum(most, features.amax(0))
        least = torch.minimum(least, features.amin(0))
        sums.index_add_(0, part.labels, features)
    counts = torch.bincount(images.labels, minlength=classifier.num_classes)
    return sizes / len(images), sums / counts.clamp_min(1)[:, None], least, most
