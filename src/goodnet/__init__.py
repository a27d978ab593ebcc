"""goodnet: finds the backdoor in an image classifier and hands back the model without it.

::

    import goodnet

    images = goodnet.load_images("clean_validation.h5")
    badnet = goodnet.load("badnet.h5", images)
    report = goodnet.scan(badnet, images)
    goodnet.save(goodnet.repair(badnet, images, report).classifier, "goodnet.h5")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from goodnet.errors import GoodnetError
from goodnet.version import __version__

if TYPE_CHECKING:
    from goodnet.images import load_images
    from goodnet.pipelines.evaluate import evaluate, predict
    from goodnet.pipelines.fleet import fleet
    from goodnet.pipelines.load import load, save
    from goodnet.pipelines.repair import repair
    from goodnet.pipelines.scan import scan

_HOMES = {
    "evaluate": "goodnet.pipelines.evaluate",
    "fleet": "goodnet.pipelines.fleet",
    "load": "goodnet.pipelines.load",
    "load_images": "goodnet.images",
    "predict": "goodnet.pipelines.evaluate",
    "repair": "goodnet.pipelines.repair",
    "save": "goodnet.pipelines.load",
    "scan": "goodnet.pipelines.scan",
}

__all__ = [
    "GoodnetError",
    "__version__",
    "evaluate",
    "fleet",
    "load",
    "load_images",
    "predict",
    "repair",
    "save",
    "scan",
]


def __getattr__(name: str) -> object:
    # torch takes seconds to import; `goodnet --help` should not wait for it.
    if name not in _HOMES:
        raise AttributeError(f"module 'goodnet' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
