"""How training went: losses by dataset, validation, learning rate, throughput."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from qzhou.evaluation.report.blocks import Block, Heading, Panels, Section, Text, missing
from qzhou.evaluation.report.files import TRAINED, Content, Found
from qzhou.evaluation.report.plots import (
    FEWEST,
    MODELS,
    POINTS,
    Line,
    Plot,
    coloured,
    lines,
    thinned,
)
from qzhou.evaluation.report.tables import (
    Column,
    Table,
    Value,
    count,
    percent,
    scientific,
    score,
    tenths,
)

PACE = {
    "learning_rate": "learning rate",
    "tokens_per_s": "tokens per second",
    "gradient_norm": "gradient norm",
}
VALIDATION = "validation_"
TENTH = 10  # the first and the last tenth of a dataset's steps are compared

Steps = Sequence[Content]


def section(found: Found) -> Section:
    """From ``metrics.jsonl`` of both stages."""
    return Section("training", "How training went", list(_blocks(found.metrics)))


def _blocks(metrics: Mapping[str, Steps]) -> Iterator[Block]:
    if not metrics:
        yield missing("training/stage1/metrics.jsonl")
        return
    yield from (
        missing(f"training/{stage}/metrics.jsonl") for stage in TRAINED if stage not in metrics
    )
    yield _stages(metrics)
    yield Heading("Losses")
    yield Text(
        "Each task has a loss of its own kind and scale: compare a panel with itself, not with its neighbours. In long "
        "runs a point is the mean of neighbouring steps."
    )
    tasks = [
        (stage, task)
        for stage, steps in metrics.items()
        for task in dict.fromkeys(one["task"] for one in steps)
    ]
    yield Panels([_losses(stage, task, metrics[stage]) for stage, task in tasks])
    watched = sorted(
        {name for steps in metrics.values() for one in steps for name in one if VALIDATION in name}
    )
    if watched:
        yield Heading("Validation")
        yield Text("Held-out queries among held-out documents, looked at while training.")
        titles = {name: name.removeprefix(VALIDATION) for name in watched}
        yield Panels([_curve(name, title, metrics) for name, title in titles.items()])
    yield Heading("Learning rate and throughput")
    known = {
        name: title for name, title in PACE.items() if any(name in one for one in _all(metrics))
    }
    yield Panels([_curve(name, title, metrics) for name, title in known.items()])
    yield Heading("By dataset")
    yield Text(
        "First and last are means over a tenth of the steps: losses of both; hardness and order of the first; "
        "cosines and % right of the last. Right: the positive is above all other documents. Masked: the share of "
        "other documents or labels that is left out as answers, in all steps. Hardness: the share of other queries' "
        "documents below a query's own negatives. Order: the share of comparisons of two pairs in which cosines "
        "agree with scores. By chance both are 0.5."
    )
    yield _datasets(metrics)


def _all(metrics: Mapping[str, Steps]) -> Iterator[Content]:
    for steps in metrics.values():
        yield from steps


def _stages(metrics: Mapping[str, Steps]) -> Table:
    columns = [
        Column("stage"),
        Column("steps", count),
        Column("rows", count),
        Column("tokens", count),
    ]
    columns += [Column("seconds", tenths), Column("tokens/s", count), Column("% padding", percent)]
    columns += [Column("% waiting for data", percent), Column("highest learning rate", scientific)]
    columns += [Column("memory, GB", tenths)]
    rows: list[list[Value]] = []
    for stage, steps in metrics.items():
        seconds, tokens = _sum(steps, "seconds"), _sum(steps, "tokens")
        rows.append(
            [
                stage, len(steps), _sum(steps, "rows"), tokens, seconds,
                tokens / seconds if seconds and tokens else None,
                _mean(steps, "padding_share", 100), _mean(steps, "loader_wait_share", 100),
                _most(steps, "learning_rate"), _most(steps, "memory_gb"),
            ]
        )  # fmt: skip
    return Table("The two stages of training", columns, rows)


def _losses(stage: str, task: str, steps: Steps) -> Plot:
    """A line for each dataset of a task."""
    own = [one for one in steps if one["task"] == task]
    names = dict.fromkeys(one.get("dataset", task) for one in own)
    # of many lines fewer points, so that each can be followed
    most = max(FEWEST, POINTS // len(names))
    shown = []
    for name, style in coloured(names):
        points = [(one["step"], one["loss"]) for one in own if one.get("dataset", task) == name]
        shown.append(Line(name, thinned(points, most), *style))
    return lines(f"{stage}: {task}", shown, x="step", y="loss (nats)")


def _curve(name: str, title: str, metrics: Mapping[str, Steps]) -> Plot:
    """A line for each stage."""
    points = {
        stage: thinned([(one["step"], one[name]) for one in steps if name in one])
        for stage, steps in metrics.items()
    }
    shown = [Line(stage, found, MODELS[stage]) for stage, found in points.items() if found]
    return lines(title, shown, x="step", y=title, y_format="~e" if name == "learning_rate" else "")


def _datasets(metrics: Mapping[str, Steps]) -> Table:
    columns = [
        Column("stage"),
        Column("task"),
        Column("dataset"),
        Column("steps", count),
        Column("rows", count),
    ]
    columns += [
        Column("first loss", score),
        Column("last loss", score),
        Column("positive cosine", score),
    ]
    columns += [
        Column("negative cosine", score),
        Column("% right", percent),
        Column("% masked", percent),
    ]
    columns += [Column("hardness", score), Column("order", score)]
    rows: list[list[Value]] = []
    for stage, steps in metrics.items():
        for task, dataset in dict.fromkeys(
            (one["task"], one.get("dataset", one["task"])) for one in steps
        ):
            own = [
                one
                for one in steps
                if (one["task"], one.get("dataset", one["task"])) == (task, dataset)
            ]
            tenth = -(-len(own) // TENTH)
            first, last = own[:tenth], own[-tenth:]
            rows.append(
                [
                    stage, task, dataset, len(own), _sum(own, "rows"), _mean(first, "loss"), _mean(last, "loss"),
                    _mean(last, "positive_cosine"), _mean(last, "negative_cosine"), _mean(last, "accuracy", 100),
                    _mean(own, "masked_share", 100), _mean(first, "negative_hardness"), _mean(first, "order_agreement"),
                ]
            )  # fmt: skip
    return Table("Losses by dataset", columns, rows)


def _values(steps: Steps, name: str) -> list[float]:
    return [one[name] for one in steps if name in one]


def _sum(steps: Steps, name: str) -> float | None:
    found = _values(steps, name)
    return sum(found) if found else None


def _mean(steps: Steps, name: str, times: float = 1) -> float | None:
    found = _values(steps, name)
    return times * fmean(found) if found else None


def _most(steps: Steps, name: str) -> float | None:
    return max(_values(steps, name), default=None)
