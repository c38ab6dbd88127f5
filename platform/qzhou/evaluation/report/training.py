"""How training went: losses by dataset, validation, learning rate, throughput."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from qzhou.evaluation.diagnosis.facts import by_dataset
from qzhou.evaluation.report import plots
from qzhou.evaluation.report.blocks import Block, Heading, Panels, Text, missing
from qzhou.evaluation.report.tables import Table, Value, numbers, texts
from qzhou.run.files import METRICS, Content, RunFiles

PACE = {"learning_rate": "learning rate", "tokens_per_s": "tokens per second", "gradient_norm": "gradient norm"}
VALIDATION = "validation_"
TENTH = 10  # the first and the last tenth of a dataset's steps are compared

Steps = Sequence[Content]


def blocks(files: RunFiles) -> Iterator[Block]:
    """What the metrics of both training stages show."""
    metrics = files.metrics
    if not metrics:
        yield missing(METRICS["stage1"])
        return
    yield from (missing(name) for stage, name in METRICS.items() if stage not in metrics)
    yield _stages(metrics)
    yield Heading("Losses")
    yield Text(
        "Each task has a loss of its own kind and scale: compare a panel with itself, not with its neighbours. In long "
        "runs a point is the mean of neighbouring steps."
    )
    tasks = {stage: dict.fromkeys(one["task"] for one in steps) for stage, steps in metrics.items()}
    yield Panels([_losses(stage, task, metrics[stage]) for stage, own in tasks.items() for task in own])
    recorded = {name for steps in metrics.values() for one in steps for name in one}
    watched = sorted(name for name in recorded if VALIDATION in name)
    if watched:
        yield Heading("Validation")
        yield Text("Held-out queries among held-out documents, looked at while training.")
        yield Panels([_curve(name, name.removeprefix(VALIDATION), metrics) for name in watched])
    yield Heading("Learning rate and throughput")
    pace = {name: title for name, title in PACE.items() if name in recorded}
    yield Panels([_curve(name, title, metrics) for name, title in pace.items()])
    yield Heading("By dataset")
    yield Text(
        "First and last are means over a tenth of the steps: losses of both; hardness and order of the first; "
        "cosines and % right of the last. Right: the positive is above all other documents. Masked: the share of "
        "other documents or labels that is left out as answers, in all steps. Hardness: the share of other queries' "
        "documents below a query's own negatives. Order: the share of comparisons of two pairs in which cosines "
        "agree with scores. By chance both are 0.5."
    )
    yield _datasets(metrics)


def _stages(metrics: Mapping[str, Steps]) -> Table:
    columns = [*texts("stage"), *numbers("count", "steps", "rows", "tokens")]
    columns += [*numbers("tenths", "seconds"), *numbers("count", "tokens/s")]
    columns += numbers("percent", "% padding", "% waiting for data")
    columns += [*numbers("scientific", "highest learning rate"), *numbers("tenths", "memory, GB")]
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


def _losses(stage: str, task: str, steps: Steps) -> plots.Plot:
    """A line for each dataset of a task."""
    steps_of = by_dataset(steps, task)
    # Of many lines fewer points, so that each can be followed.
    most = max(plots.FEWEST, plots.POINTS // len(steps_of))
    shown = []
    for name, style in plots.coloured(steps_of):
        points = [(one["step"], one["loss"]) for one in steps_of[name]]
        shown.append(plots.Line(name, plots.thinned(points, most), *style))
    return plots.lines(f"{stage}: {task}", shown, x="step", y="loss (nats)")


def _curve(name: str, title: str, metrics: Mapping[str, Steps]) -> plots.Plot:
    """A line for each stage."""
    shown = []
    for stage, steps in metrics.items():
        points = plots.thinned([(one["step"], one[name]) for one in steps if name in one])
        if points:
            shown.append(plots.Line(stage, points, plots.MODELS[stage]))
    y_axis = {"tickformat": "~e"} if name == "learning_rate" else {}
    return plots.lines(title, shown, x="step", y=title, yaxis=y_axis)


def _datasets(metrics: Mapping[str, Steps]) -> Table:
    columns = [*texts("stage", "task", "dataset"), *numbers("count", "steps", "rows")]
    columns += numbers("score", "first loss", "last loss", "positive cosine", "negative cosine")
    columns += [*numbers("percent", "% right", "% masked"), *numbers("score", "hardness", "order")]
    rows: list[list[Value]] = []
    for stage, steps in metrics.items():
        for task, dataset in dict.fromkeys((one["task"], one["dataset"]) for one in steps):
            own = by_dataset(steps, task)[dataset]
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
