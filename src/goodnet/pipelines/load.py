"""From a model, on disk or in memory, to a classifier that is ready to be looked at; and back."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goodnet.classifier import Classifier, Preprocess
from goodnet.errors import GoodnetError
from goodnet.formats import files
from goodnet.formats.network import Network
from goodnet.images import Images, load_images, wrong_size
from goodnet.patience import awaited
from goodnet.preprocess import check_labels, detect, forward, parse


def load(
    model: Any,
    images: Images | None = None,
    *,
    architecture: str | None = None,
    preprocess: str = "auto",
) -> Classifier:
    """A classifier from a model file or a live model.

    Args:
        model: the path of a model file, an ``nn.Module`` or a ``keras.Model``.
        images: clean images. They say what size the model takes where it does not say so itself,
            and find the preprocessing.
        architecture: ``FILE.py:FUNCTION`` that makes the network, for files of weights only.
        preprocess: ``"auto"``, or what :func:`goodnet.preprocess.parse` takes. Without images,
            ``"auto"`` is ``"unit"``: the model is taken to expect pixels in [0, 1].

    Returns:
        The classifier. ``sha256`` is that of the file, or of the weights of a live model.

    Raises:
        GoodnetError: M001 to M014 for models that cannot be read; M009 no classifier, M010 another
            image size, M012 NaN or infinity, M016 no end of reading it, or no answer; D007 labels
            outside the classes, D010 no better than chance, D011 unknown preprocessing.
    """
    network, path, digest = _read(model, architecture)
    shape = network.input_shape or (images.shape if images is not None else None)
    if shape is None:
        raise GoodnetError(
            "M010",
            "the model does not say what size of images it takes",
            "give images along with it",
        )
    if images is not None and images.shape != shape:
        raise wrong_size(images.shape, shape)
    # What is stated is looked at first: a misspelt name should not cost a run of the network.
    stated = None if preprocess.strip().lower() == "auto" else parse(preprocess, shape[0])
    probe = (
        images.select(torch.arange(min(2, len(images)))).floats()
        if images is not None and len(images)
        else torch.full((2, *shape), 0.5)
    )
    # A filter's answer is no class: labels must not name it.
    classes = awaited(lambda: forward(network, probe), "the model").shape[1] - network.filtered
    if classes < 2:
        raise GoodnetError(
            "M009", "the model has fewer than two classes", "pass a model of two or more classes"
        )
    if images is not None:
        check_labels(images.labels, classes)
    if stated is None:
        stated = detect(network, images)[0] if images is not None else Preprocess("unit")
    _check_finite(network, stated, probe)
    layout = _fastest_layout(network, stated.apply(probe))
    return Classifier(network, stated, shape, classes, path, digest, layout)


def images_for(
    model: Path,
    data: Path,
    architecture: str | None = None,
    size: tuple[int, int] | None = None,
) -> Images:
    """Labelled images; pictures of a folder are brought to the size that the model states.

    Args:
        model: the model file.
        data: images of any kind.
        architecture: of a model of weights only.
        size: ``(H, W)``, where the model does not state its own.

    Raises:
        GoodnetError: as :func:`goodnet.images.load_images`, and for a model that cannot be read.
    """
    channels = None
    if data.is_dir():
        shape = _read_file(model, architecture).input_shape
        if shape is not None:
            size = size or shape[1:]
            channels = shape[0] if shape[0] in (1, 3) else None
    return load_images(data, size=size, channels=channels)


def _fastest_layout(network: Network, probe: Tensor) -> torch.memory_format:
    """Channels last where the network takes it and answers alike."""
    try:
        with torch.no_grad():
            plain = network.module(probe.contiguous())
            other = network.module(probe.contiguous(memory_format=torch.channels_last))
    # What a foreign network raises is up to its author; a refusal is an answer here.
    except Exception:
        return torch.contiguous_format
    return torch.channels_last if _alike(plain, other) else torch.contiguous_format


def _alike(plain: Tensor, other: Tensor) -> bool:
    """Whether two ways of computing logits differ by rounding only."""
    return torch.allclose(plain, other, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


def quicker(classifier: Classifier, probe: Tensor) -> Classifier:
    """The same answers in less time, for looking at only; not to be repaired or saved.

    Args:
        classifier: the network as it was read.
        probe: float32 ``(n, C, H, W)`` in [0, 1]: a few images, on which the answers are compared.

    Returns:
        A classifier with its batch norms folded into the convolutions before them; ``classifier``
        itself where there are none, or where it would answer differently.
    """
    from goodnet.formats.folding import folded

    module = folded(classifier.module)
    if module is classifier.module:
        return classifier
    quick = replace(classifier, network=replace(classifier.network, module=module))
    return quick if _alike(classifier.logits(probe), quick.logits(probe)) else classifier


def save(classifier: Classifier, path: str | Path) -> None:
    """Write a classifier in the format that it came in, all or nothing.

    Args:
        classifier: with the weights to be written.
        path: of the new file, with the suffix of the model's own format; a live model is written
            whatever the suffix.

    Raises:
        GoodnetError: O001 and O002 when it cannot be written, O003 when it would overwrite the
            model that was read, O004 when the suffix says another format.
    """
    path = Path(path).expanduser()
    suffix = classifier.network.suffix
    if classifier.path is not None and _same(path, Path(classifier.path)):
        raise GoodnetError(
            "O003", f"{path} is the model that was read", "name another file for the output"
        )
    if suffix and path.suffix.lower() != suffix.lower():
        raise GoodnetError(
            "O004",
            f"the model came as {suffix} and {path.name} does not end in it",
            f"name the output {path.with_suffix(suffix).name}" if path.name else f"use {suffix}",
        )
    with files.atomic(path) as temporary:
        classifier.network.write(classifier.module, temporary)


def weights_sha256(module: nn.Module) -> str:
    """SHA-256, hex, over names, types, shapes and values of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}\0".encode())
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{plain.dtype}{tuple(plain.shape)}\0".encode())
            # As bytes, because NumPy does not know every type that a tensor can have.
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(model: Any, architecture: str | None) -> tuple[Network, str | None, str]:
    if isinstance(model, str | Path):
        path = Path(model).expanduser()
        return _read_file(path, architecture), str(path), files.sha256(path)
    if architecture is not None:
        raise GoodnetError(
            "R003", "a live model needs no architecture", "leave the architecture away"
        )
    from goodnet import formats

    network = formats.adopt(model)
    return network, None, weights_sha256(network.module)


def _read_file(path: Path, architecture: str | None) -> Network:
    # Late: the readers of some formats take seconds to import.
    from goodnet import formats

    # Some readers try the network on an image, which is the file's arithmetic already.
    return awaited(lambda: formats.read_model(path, architecture), "reading the model")


def _check_finite(network: Network, preprocess: Preprocess, probe: Tensor) -> None:
    if not bool(torch.isfinite(forward(network, preprocess.apply(probe))).all()):
        raise GoodnetError(
            "M012",
            f"the model answers with NaN or infinity on ordinary images ({preprocess.name})",
            "check the weights and the preprocessing",
        )


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()
