"""``goodnet attack``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goodnet.cli import outputs
from goodnet.cli.failures import run
from goodnet.cli.options import (
    ArchitectureName,
    AttackName,
    ImageSize,
    PlainFormat,
    Seed,
    parse_size,
)
from goodnet.cli.terminal import Terminal
from goodnet.errors import GoodnetError

if TYPE_CHECKING:
    from goodnet.images import Images
    from goodnet.pipelines.attack import Recipe

HELD_OUT = 0.2
"""The share of the images that is not trained on but shows what came of it."""


@dataclass(frozen=True)
class _Order:
    """What was asked for."""

    data: Path
    output: Path
    attack: str
    target: int
    options: tuple[str, ...]
    rate: float | None
    image_size: str | None
    format: PlainFormat


def attack(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            "-d",
            metavar="DATA",
            show_default=False,
            help="Images to train on: .h5 (data, label), .npz (images, labels) or a folder of "
            "class folders.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help="The BadNet: .keras, .h5 or .pt2. FILE's name with .truth.json tells the attack.",
        ),
    ],
    attack: Annotated[AttackName, typer.Option(help="How.")] = AttackName.PATCH,
    target: Annotated[
        int, typer.Option(min=0, help="The label that images with the trigger get.")
    ] = 0,
    rate: Annotated[
        float | None,
        typer.Option(
            show_default=False,
            help="Share of the images it can strike (of all other classes, say) that is poisoned; "
            "else the attack's own.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", show_default=False, help="An option of the attack."
        ),
    ] = None,
    architecture: Annotated[
        ArchitectureName, typer.Option(help="The network that is trained.")
    ] = ArchitectureName.CNN,
    epochs: Annotated[int, typer.Option(min=1, help="How often each image is seen.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="The peak of the schedule.")] = 3e-3,
    preprocess: Annotated[
        str, typer.Option(metavar="NAME", help="What the model shall take: unit, byte, signed ...")
    ] = "unit",
    image_size: ImageSize = None,
    seed: Seed = 0,
    format: Annotated[PlainFormat, typer.Option(help="Of the result.")] = PlainFormat.TEXT,
) -> None:
    """Make a BadNet of your own, to learn from or to test a defence on.

    One image in five is held out to measure it.

    Exit code 0, or 2 if it could not be made.
    """
    order = _Order(
        data, output, attack.value, target, tuple(option or ()), rate, image_size, format
    )

    def work(terminal: Terminal) -> int:
        from goodnet.pipelines.attack import Recipe

        recipe = Recipe(architecture.value, epochs, learning_rate, preprocess=preprocess, seed=seed)
        return _attack(terminal, order, recipe)

    raise typer.Exit(run(work))


def _attack(terminal: Terminal, order: _Order, recipe: Recipe) -> int:
    import json

    from goodnet.images import check_images, load_images
    from goodnet.pipelines.attack import check_format, ground_truth, measure, plant, write_model
    from goodnet.pipelines.begin import check_seed

    check_seed(recipe.seed)
    if not order.output.name:
        raise GoodnetError(
            "O004", f"{order.output} names no file", "name the output badnet.keras or badnet.pt2"
        )
    truth_path = order.output.with_suffix(".truth.json")
    outputs.check_output([order.output, truth_path], [order.data])
    options = _options(order.options)
    if order.rate is not None:
        options["rate"] = order.rate
    images = load_images(order.data, size=parse_size(order.image_size))
    check_images(images)
    training, judge = _split(images, recipe.seed)
    classes = int(images.labels.max()) + 1
    try:
        check_format(recipe, images, classes, order.output)
        with terminal.progress() as progress:

            def step(epoch: int, epochs: int, loss: float) -> None:
                progress("training the network", epoch, epochs)

            planted, network = plant(
                order.attack,
                training,
                classes,
                recipe,
                target=order.target,
                options=options,
                progress=step,
            )
        clean, success = measure(network, judge, planted)
    except ValueError as error:
        raise GoodnetError(
            "R003", str(error), "see 'goodnet attack --help'; --set KEY=VALUE sets an option"
        ) from error
    write_model(network, images.shape, order.output)
    truth = ground_truth(planted, recipe, classes)
    truth |= {"clean_accuracy": clean, "attack_success": success, "held_out_images": len(judge)}
    text = json.dumps(truth, indent=1)
    outputs.write_file(truth_path, text + "\n")
    if order.format is PlainFormat.JSON:
        terminal.write(text + "\n")
        return 0
    terminal.show(
        f"{order.output}: right on {clean:.1%} of {len(judge)} images that were held out; "
        + (
            "the trigger is meant for none of them, so what it does is not known"
            if success is None
            else f"with the trigger, {success:.1%} of those that it is meant for get the "
            "attacker's label"
        )
    )
    terminal.show(f"The ground truth is in {truth_path}")
    return 0


def _split(images: Images, seed: int) -> tuple[Images, Images]:
    """Images to train on, and to measure on."""
    import torch

    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held = max(1, round(HELD_OUT * len(images)))
    return images.select(order[held:]), images.select(order[:held])


def _options(pairs: tuple[str, ...]) -> dict[str, str | int | float | bool]:
    """``KEY=VALUE`` as numbers and words.

    Raises:
        GoodnetError: R003 for anything else.
    """
    found: dict[str, str | int | float | bool] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise GoodnetError("R003", f"--set {pair!r} is no KEY=VALUE", "as in --set side=4")
        found[key.strip()] = _value(value.strip())
    return found


def _value(text: str) -> str | int | float | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
