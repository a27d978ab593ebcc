"""Whether a repair keeps its limits: shown, shown not to, or more than the images can tell.

Fixed beforehand: the remedies of a repair share an error of 5 %, most of it those that are tried
first, so that trying several does not certify one by luck. Each must keep *both* limits, so that no
further correction is due (an intersection-union test, Berger 1982).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from goodnet.reports import AccuracyLoss, FreshScan, Proportion, Standing
from goodnet.statistics import one_sided
from goodnet.trigger import NOBODY

ERROR = 0.05
FIRST_SHARE = 0.8
"""Of the error, for the remedies that are tried first; they are mostly enough."""

ROUNDING = 1e-9
"""Shares are quotients of counts: exactly the limit must not fail by a rounding."""


NOTHING: Mapping[int, Sequence[tuple[Proportion, float]]] = MappingProxyType({})


def confidences(first: int, others: int) -> list[float]:
    """The confidence at which each remedy is judged, those that are tried first leading."""
    share = FIRST_SHARE if others else 1.0
    rest = [1 - ERROR * (1 - share) / others] * others if others else []
    return [1 - ERROR * share / first] * first + rest


def judge(
    loss: AccuracyLoss,
    attacks: Mapping[int, Proportion],
    led: Mapping[int, Proportion],
    max_accuracy_loss: float,
    max_attack_success: float,
    usual: Mapping[int, Sequence[tuple[Proportion, float]]] = NOTHING,
) -> tuple[Standing, str]:
    """What the held-out images show of a remedy, and why.

    Args:
        loss: of clean accuracy; its confidence is that of the judgement.
        attacks: target (:data:`goodnet.trigger.NOBODY` for a map of all classes) -> success of the
            worst reversed trigger after the repair; ``n`` is 0 where none of them worked on the
            unrepaired model, so that nothing can be shown.
        led: the same of images that do not get the target without the trigger: it is refused by
            what the trigger does, and holds by what an attacker would see.
        max_accuracy_loss: limit, in [0, 1].
        max_attack_success: limit, in [0, 1].
        usual: target -> of each of its triggers the share that it leads, and what changes of that
            kind and size lead to labels without a backdoor: for a refusal more than that has to be
            shown as well. What is not there is held against nothing.
    """
    bounds = {
        target: one_sided(round(shown.value * shown.n), shown.n, loss.confidence)
        for target, shown in attacks.items()
    }
    # Stricter than the exact bound of the loss, which 40 images hardly ever lift above nought: to
    # refuse is no claim, and a net loss that is too large by itself is reason enough.
    net = one_sided(max(loss.lost - loss.gained, 0), loss.n, loss.confidence)[0]
    if net > max_accuracy_loss + ROUNDING:
        return (
            "refused",
            f"clean accuracy falls by {loss.value:.3f}, more than {max_accuracy_loss:g}",
        )
    natural, planted = "", dict[str, float]()
    for target, share in led.items():
        goal = "what their class is sent to" if target == NOBODY else f"label {target}"
        for seen, like in usual.get(target) or [(share, 0.0)]:
            least = one_sided(round(seen.value * seen.n), seen.n, loss.confidence)[0]
            if least <= max_attack_success + ROUNDING:
                continue
            told = f"{seen.value:.1%} of images still become {goal} when they are stamped"
            if least > like + ROUNDING:
                planted[told] = seen.value
                continue
            natural = f"{told}, as many as such changes lead to labels without a backdoor"
    if planted:
        worst = max(planted, key=lambda told: planted[told])
        return "refused", f"{worst}, more than {max_attack_success:.1%}"
    if not all(shown.n for shown in attacks.values()):
        return "refused", "no reversed trigger works on the held-out images: nothing can be shown"
    if natural:
        return "not certifiable", natural
    short = []
    if loss.high > max_accuracy_loss + ROUNDING:
        short.append(f"a loss of up to {loss.high:.3f} of clean accuracy")
    widest = max(bounds, key=lambda target: bounds[target][1])
    if bounds[widest][1] > max_attack_success + ROUNDING:
        short.append(f"up to {bounds[widest][1]:.1%} of attack success")
    if short:
        return (
            "not certifiable",
            f"{loss.n:,} held-out images cannot rule out {' and '.join(short)}",
        )
    return "holds", "both limits are kept on held-out clean and held-out stamped images"


def still_there(fresh: FreshScan, repaired: Collection[int]) -> bool:
    """Whether a fresh scan of a result still finds the backdoor, of a treated label or of none in
    particular.
    """
    return fresh.verdict == "backdoored" and (
        not fresh.targets or bool({*fresh.targets} & {*repaired})
    )


def judge_fresh(
    standing: Standing, reason: str, fresh: FreshScan, repaired: list[int]
) -> tuple[Standing, str]:
    """The same in the light of a fresh scan of the result.

    Args:
        standing: by the held-out images.
        reason: for it.
        fresh: the scan.
        repaired: the labels that the remedy treated.
    """
    again = sorted(set(fresh.targets) & set(repaired))
    if still_there(fresh, repaired):
        named = f" and names label {again[0]} again" if again else ""
        return "refused", f"a fresh scan of the result still says backdoored{named}"
    if fresh.verdict == "backdoored":
        told = f"a fresh scan of the result names label {fresh.targets[0]}"
        return (
            ("refused", f"{reason}; {told}") if standing == "refused" else ("not certifiable", told)
        )
    return standing, reason
