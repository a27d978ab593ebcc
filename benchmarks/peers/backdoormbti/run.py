"""Neural Cleanse of BackdoorMBTI, by its own code, on a PyTorch model.

    .peers/backdoormbti/bin/python benchmarks/peers/backdoormbti/run.py \
        --model M.pt2 --data D.npz -o OUT.json

The code is that of VinAI's input-aware-backdoor release by way of BackdoorBench, whose defaults it
has too. ``NeuralCleanse.repair`` asks for a GPU and its package for audio and text libraries with
two hundred pins, so only the file ``defenses/image/nc.py`` is loaded, unchanged, with stand-ins for
the modules that detection never calls; ``train_mask`` and ``outlier_detection`` are run in the loop
of ``repair``. The settings are those of the package's own ``nc.yaml``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

import bench
import bench_torch

UNUSED = {
    "lightning": (),
    "backdoormbti.utils": (),
    "backdoormbti.utils.model": ("load_model",),
    "backdoormbti.utils.optim": ("get_lr_scheduler", "get_optimizer"),
    "backdoormbti.utils.train": ("retraining", "testing"),
}
"""What ``nc.py`` imports for its repair: module -> names."""


def main() -> int:
    """Reads the command line and scans."""
    options = bench.parser(__doc__.splitlines()[0])
    bench_torch.add_options(options)
    options.add_argument("--epochs", type=int, help="instead of BackdoorMBTI's 80")
    options.add_argument("--batch", type=int, default=256, help="BackdoorMBTI's own is 256")
    return bench.execute("backdoormbti", options.parse_args(), scan)


def scan(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs BackdoorMBTI's search and its outlier test; see :func:`bench.execute`."""
    import torch

    shims = bench_torch.importable()
    import yaml

    torch.set_num_threads(arguments.threads)
    package = _package()
    nc = _detection(package)
    images, labels = bench.clean_images(arguments)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    truth = torch.from_numpy(labels)
    network = bench_torch.network(arguments, pixels)
    channels, height, width = pixels.shape[1:]
    settings = yaml.safe_load((package / "configs" / "defenses" / "nc.yaml").read_text())
    if arguments.epochs is not None:
        settings["nc_epoch"] = arguments.epochs
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(pixels, truth),
        batch_size=arguments.batch,
        shuffle=True,
        generator=torch.Generator().manual_seed(arguments.seed),
    )
    wanted = bench.chosen_labels(arguments, network.num_classes)
    rows: dict[int, dict[str, Any]] = {}
    here, masks = Path.cwd(), []
    torch.manual_seed(arguments.seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # Its pictures go to the working directory.
        os.chdir(folder)
        options = SimpleNamespace(
            # Among its data sets, the one whose pixels are not normalised.
            dataset="gtsrb",
            device="cpu",
            log="triggers",
            output_path=str(Path(folder) / "output.txt"),
            **settings,
        )
        try:
            for label in wanted:
                options.target_label = label
                with bench.stopwatch() as times:
                    recorder, _ = nc.train_mask(
                        options,
                        network,
                        loader,
                        np.ones((1, height, width), np.float32),
                        np.ones((channels, height, width), np.float32),
                    )
                mask, pattern = recorder.mask_best, recorder.pattern_best
                masks.append(mask)
                outputs = network.predict((1 - mask) * pixels + mask * pattern)
                rows[label] = {
                    "l1": float(torch.norm(mask, p=settings["use_norm"])),
                    "attack_success": float((outputs.argmax(1) == label).float().mean()),
                    "cost_at_end": float(recorder.cost),
                    "ever_succeeded": float(recorder.reg_best) < float("inf"),
                    **times,
                }
            norms = torch.stack([torch.norm(mask, p=settings["use_norm"]) for mask in masks])
            places = {label: place for place, label in enumerate(wanted)}
            flagged = {label for label, _ in nc.outlier_detection(norms, places, options)}
        finally:
            os.chdir(here)
    seconds = time.perf_counter() - began
    median = norms.median()
    index = (norms - median).abs() / (1.4826 * (norms - median).abs().median())
    for (label, row), value in zip(rows.items(), index, strict=True):
        row["anomaly_index"], row["flagged"] = float(value), label in flagged
    return {
        "version": f"backdoormbti {importlib.metadata.version('backdoormbti')}",
        "num_classes": network.num_classes,
        "clean_accuracy": float((network.predict(pixels).argmax(1) == truth).float().mean()),
        "seconds": seconds,
        "labels": rows,
        "settings": {
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "images": len(images),
            "scale": arguments.scale,
            "logits": network.logits,
            "batch_size": arguments.batch,
            "shims": shims,
            **settings,
        },
    }


def _package() -> Path:
    """The folder of the installed package, without importing it."""
    found = importlib.util.find_spec("backdoormbti")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("backdoormbti is not installed")
    return Path(found.origin).parent


def _detection(package: Path) -> Any:
    """``defenses/image/nc.py`` as a module."""
    for name, parts in UNUSED.items():
        stand_in = ModuleType(name)
        for part in parts:
            setattr(stand_in, part, None)
        sys.modules[name] = stand_in
    spec = importlib.util.spec_from_file_location(
        "backdoormbti_nc", package / "defenses" / "image" / "nc.py"
    )
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
