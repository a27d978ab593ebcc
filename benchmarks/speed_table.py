"""SPEED.md from the records: nothing in it is written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from table import figure, table

Record = dict[str, Any]

HEAD = """# Speed

Made by `benchmarks/speed.py table` from the records under `results/speed`, the newest of each row.
Ratios are taken in one sitting on one machine; seconds are of the machine that is told below.

"""


def page(found: dict[str, Record]) -> str:
    """The whole file.

    Args:
        found: row -> its newest record.
    """
    rows, sources = [], []
    for name, (title, told) in ROWS.items():
        record = found.get(name)
        command = f"`speed.py {name}`"
        if record is None:
            rows.append([title, "not measured yet", command])
            continue
        rows.append([title, told(record), command])
        sources.append(
            [
                name,
                record["when"],
                record["commit"],
                str(record["seed"]),
                record["machine"],
                figure(record["load_before"]),
                ", ".join(f"{key} {value}" for key, value in record["versions"].items()),
            ]
        )
    text = HEAD + table(["what", "measured", "by"], rows)
    if "growth" in found:
        text += "\n## By the number of labels\n\n" + _sizes(found["growth"])
    if sources:
        header = ["row", "when", "commit", "seed", "machine", "load before", "versions"]
        text += "\n## Where the figures come from\n\n" + table(header, sources)
    return text


def _scan(record: Record) -> str:
    right = "right" if record["right"] else f"WRONG: {record['verdict']}, {record['targets']}"
    return (
        f"verdict and target {right}; {record['seconds']:.0f} s with {record['workers']} workers, "
        f"{record['peak_memory_mb']:.0f} MB"
    )


def _range(record: Record, name: str) -> str:
    high = figure(record[f"{name}_high"], ",.0f")
    return f"{record[name]:,.0f} (95 %: {record[f'{name}_low']:,.0f} to {high})"


def _published(record: Record) -> str:
    return (
        f"{_range(record, 'ratio')} times a default scan; {_range(record, 'seconds_all')} s, "
        f"from {len(record['sample'])} labels drawn at random"
    )


def _peers(record: Record) -> str:
    told = []
    for name, peer in record["peers"].items():
        if "missing" in peer:
            told.append(f"{name}: not measured ({peer['missing']})")
            continue
        how = f", from {peer['labels_searched']} labels" if peer["extrapolated"] else ""
        given = f" with {peer['images']:,} images" if "images" in peer else ""
        then = f", on {peer['when'][:10]}" if "when" in peer else ""
        told.append(f"{name} ({peer['version']}): {peer['ratio']:.1f} times{given}{how}{then}")
    return "; ".join(told).replace("|", "/")


def _kernel(record: Record) -> str:
    half = record.get("ascend_half")
    more = f"; {half / record['bare_best']:.2f} of it with gradients in bfloat16" if half else ""
    return (
        f"{record['ratio']:.2f} of the bare loop ({record['ascend']:,.0f} images a second with "
        f"chunks of {record['ascend_chunk']}; bare {record['bare_best']:,.0f} with "
        f"{record['bare_chunk']}; both in float32)" + more
    )


def _card(record: Record) -> str:
    best = max(record["rates"], key=lambda row: max(row["float32"], row["bfloat16"]))
    first, again = record["seconds"]
    how = "compiled" if best["compiled"] else "as it is"
    return (
        f"{first:.1f} s in a new process and {again:.1f} s again on an {record['card']}, "
        f"{record['seconds_processor']:.0f} s on the processor beside it; verdict and target "
        f"{'right' if record['right'] else 'WRONG'}; at most {best['float32']:,.0f} images with "
        f"gradient a second in float32, {best['bfloat16']:,.0f} in bfloat16 (chunks of "
        f"{best['chunk']:,}, {how})"
    )


def _memory(record: Record) -> str:
    each = ", ".join(
        f"{run['peak_memory_mb']:.0f} MB with {count}"
        for count, run in record["by_workers"].items()
    )
    return f"{each}; {record['peak_memory_mb_reading']:.0f} MB for reading the file alone"


def _workers(record: Record) -> str:
    same = "same answer" if record["same_answer"] else "ANOTHER ANSWER"
    spread = f"{min(record['ratios']):.2f} to {max(record['ratios']):.2f}"
    return f"{record['ratio']:.2f} times as fast ({spread}), {same}"


def _growth(record: Record) -> str:
    return (
        f"{record['times_labels']:.0f} times the labels take {record['times_seconds']:.1f} times "
        f"the time, the ranking alone {record['times_ranking']:.1f} times"
    )


def _gtsrb(record: Record) -> str:
    said = f"{record['verdict']}, {record['targets'] or 'no target'}"
    return f"{record['seconds']:.0f} s; {said} ({record['model']})"


def _shortlist(record: Record) -> str:
    missed = sorted({row["model"] for row in record["rows"] if not row["kept"]})
    last = max(row["first_round"] for row in record["rows"])
    networks = len({row["model"] for row in record["rows"]})
    told = f"{networks} networks, {record['seeds']} seeds; not there: {', '.join(missed) or 'none'}"
    # Records of before this was asked do not have it.
    scans = record.get("exhaustive", {})
    seconds = ", ".join(f"{said['seconds']:.0f} s" for said in scans.values())
    led = sum(
        not row["kept"] and row["target"] in scans[row["model"]]["leading"]
        for row in record["rows"]
        if row["model"] in scans
    )
    in_full = (
        f"; scans that measure every label in full (--exhaustive, {seconds}) name "
        f"{record['missed']} of those that are not there, and have {led} among their first "
        f"{record['leaders']}"
        if scans
        else ""
    )
    return (
        f"{record['kept']} of {record['targets']} targets are among the {record['leaders']} "
        f"leaders ({told}){in_full}; {record['lost']} more would be if no round left a label out; "
        f"the last one's place after the first round is {last}"
    )


def _fleet(record: Record) -> str:
    killed = record["killed_after_answers"]
    blow = "no worker was killed" if killed is None else f"a worker killed after {killed} answers"
    twice = record["answers_told_twice"]
    return (
        f"{record['results']} of {record['models']} results, {twice} twice, {blow}; "
        f"{record['seconds']:.0f} s with {record['workers']} workers"
    )


def _sizes(record: Record) -> str:
    rows = [
        [
            f"{row['labels']:,}",
            f"{row['seconds_ranking']:.1f}",
            f"{row['seconds']:.1f}",
            f"{row['peak_memory_mb']:.0f}",
            f"{row['verdict']}, {row['targets'][:5]}",
        ]
        for row in record["sizes"]
    ]
    return table(["labels", "s, ranking", "s, all", "MB", "verdict"], rows)


ROWS: dict[str, tuple[str, Callable[[Record], str]]] = {
    "scan": ("default scan, 1,283 labels (the real sunglasses BadNet)", _scan),
    "neural-cleanse": ("Neural Cleanse as published, the same net, label by label", _published),
    "peers": ("Neural Cleanse of other tools against the default scan, 43 classes", _peers),
    "kernel": ("images with gradient per second, of a bare PyTorch loop at its best", _kernel),
    "card": ("the same scan on a graphics card", _card),
    "memory": ("peak memory of a process at 1,283 labels", _memory),
    "workers": ("two workers against one", _workers),
    "growth": ("from 100 to 10,000 labels on the real trunk", _growth),
    "gtsrb": ("default scan, 43 traffic signs", _gtsrb),
    "shortlist": ("true targets that the ranking of many labels keeps", _shortlist),
    "fleet": ("fleet of small networks on Ray, a worker killed midway", _fleet),
}
"""Row -> what it is, and its figures in words."""
