"""Neural Cleanse of TrojanZoo, by its own code, on a PyTorch model.

    .peers/trojanzoo/bin/python benchmarks/peers/trojanzoo/run.py \
        --model M.pt2 --data D.npz -o OUT.json

The model is a TorchScript file, a torch.export program (``.pt2``), or a state dict with
``--architecture FILE.py:FUNCTION``. TrojanZoo trains on its own data sets and asks for the attack
that made the backdoor: here its ``ImageSet`` holds the clean images as training and validation
set, and its ``BadNet`` carries a default mark that has nothing to do with the model's trigger; the
mark's place is only used for a Jaccard index, which is left out of the report. TrojanZoo prints
deviations and gives no verdict: "below the median and more than 2" is the paper's rule, added here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import bench
import bench_torch


def main() -> int:
    """Reads the command line and scans."""
    options = bench.parser(__doc__.splitlines()[0])
    bench_torch.add_options(options)
    options.add_argument("--epochs", type=int, help="instead of TrojanZoo's 10")
    options.add_argument("--batch", type=int, default=100, help="TrojanZoo's own default is 100")
    return bench.execute("trojanzoo", options.parse_args(), scan)


def scan(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs TrojanZoo's Neural Cleanse; see :func:`bench.execute`."""
    import torch

    shims = bench_torch.importable()
    import torchvision
    import trojanzoo
    from trojanvision.attacks import BadNet
    from trojanvision.datasets import ImageSet
    from trojanvision.defenses.backdoor.model_inspection import NeuralCleanse
    from trojanvision.environ import env
    from trojanvision.marks import Watermark
    from trojanvision.models import ImageModel
    from trojanzoo.environ import create as create_env
    from trojanzoo.utils.metric import normalize_mad

    torch.set_num_threads(arguments.threads)
    create_env(seed=arguments.seed, data_seed=arguments.seed, device="cpu")
    images, labels = bench.clean_images(arguments)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    truth = torch.from_numpy(labels)
    network = bench_torch.network(arguments, pixels)
    num_classes = network.num_classes

    class CleanImages(ImageSet):
        """The clean images, the same ones for training and validation."""

        name = "goodnet"
        valid_set = True

        def _get_org_dataset(self, mode: str, **_: Any) -> Any:
            """Images and labels as they are; no augmentation."""
            return torch.utils.data.TensorDataset(pixels, truth)

    CleanImages.num_classes, CleanImages.data_shape = num_classes, list(pixels.shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        dataset = CleanImages(batch_size=arguments.batch, num_workers=0)
        model = ImageModel(
            name="goodnet", model=network, dataset=dataset, modify_first_layer_channel=False
        )
        attack = BadNet(
            mark=Watermark(data_shape=dataset.data_shape),
            dataset=dataset,
            model=model,
            folder_path=folder,
        )
        changed = {} if arguments.epochs is None else {"defense_remask_epoch": arguments.epochs}
        defense = NeuralCleanse(
            attack=attack,
            original=True,
            dataset=dataset,
            model=model,
            folder_path=folder,
            **changed,
        )
        wanted = bench.chosen_labels(arguments, num_classes)
        found, timer = _watch(defense, wanted, num_classes)
        # Once more, as making a network from code may draw numbers.
        env.set_seed(arguments.seed)
        began = time.perf_counter()
        defense.detect()
        seconds = time.perf_counter() - began

    marks, _, successes = found[0]
    norms = marks[:, -1].flatten(start_dim=1).norm(p=1, dim=1)
    deviations = normalize_mad(norms)
    median = float(norms.median())
    rows = {
        label: {
            "l1": float(norm),
            "anomaly_index": float(deviation),
            "attack_success": success / 100,
            **second,
            "flagged": bool(norm <= median and deviation > bench.THRESHOLD),
        }
        for label, norm, deviation, success, second in zip(
            wanted, norms, deviations, successes, timer, strict=True
        )
    }
    return {
        "version": f"trojanzoo {trojanzoo.__version__}",
        "num_classes": num_classes,
        "clean_accuracy": float((network.predict(pixels).argmax(1) == truth).float().mean()),
        "seconds": seconds,
        "labels": rows,
        "settings": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": sys.version.split()[0],
            "images": len(images),
            "device": str(env["device"]),
            "scale": arguments.scale,
            "logits": network.logits,
            "batch_size": dataset.batch_size,
            "defense_remask_epoch": defense.defense_remask_epoch,
            "defense_remask_lr": defense.defense_remask_lr,
            "init_cost": defense.init_cost,
            "cost_at_end": defense.cost,
            "nc_patience": defense.nc_patience,
            "nc_asr_threshold": defense.nc_asr_threshold,
            "cost_multiplier_up": defense.cost_multiplier_up,
            "shims": shims,
        },
    }


def _watch(
    defense: Any, wanted: list[int], num_classes: int
) -> tuple[list[Any], list[dict[str, float]]]:
    """Keeps what TrojanZoo finds and the seconds of each label; may leave labels out."""
    found: list[Any] = []
    spent: list[dict[str, float]] = []
    everything, optimise = defense.get_mark_loss_list, defense.optimize_mark

    def timed(label: int, **options: Any) -> Any:
        """TrojanZoo's own search for one label."""
        with bench.stopwatch() as times:
            result = optimise(label, **options)
        spent.append(times)
        return result

    def some(**options: Any) -> Any:
        """The loop of ``get_mark_loss_list`` over the wanted labels."""
        import torch

        marks, losses, successes = [], [], []
        for label in wanted:
            defense.attack.target_class = label
            mark, loss = defense.optimize_mark(label, verbose=True, **options)
            marks.append(mark)
            losses.append(loss)
            successes.append(defense.attack.validate_fn(indent=4)[0])
        defense.attack.target_class = 0
        return torch.stack(marks), losses, successes

    def kept(**options: Any) -> Any:
        """All labels by TrojanZoo's loop, or some."""
        found.append((everything if len(wanted) == num_classes else some)(**options))
        return found[-1]

    defense.optimize_mark, defense.get_mark_loss_list = timed, kept
    return found, spent


if __name__ == "__main__":
    sys.exit(main())
