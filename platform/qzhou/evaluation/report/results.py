"""How good it is: scores with their intervals, differences, benchmarks, embeddings' health, what was not judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qzhou.evaluation.candidates import BACKBONE, STAGE2
from qzhou.evaluation.comparison import Difference, Row, models_of
from qzhou.evaluation.report.blocks import Block, Heading, Panels, Section, Text, missing
from qzhou.evaluation.report.files import Content, Found
from qzhou.evaluation.report.findings import outdated
from qzhou.evaluation.report.plots import Bar, Plot, bars, colour_of_models
from qzhou.evaluation.report.tables import (
    Column,
    Table,
    Value,
    count,
    percent,
    score,
    signed,
    tenths,
)

SURE = {True: "yes", False: "no"}


def section(found: Found) -> Section:
    """From ``evaluation/comparison.json``."""
    return Section("results", "How good it is", [*outdated(found), *_blocks(found.comparison)])


def gains(comparison: Content) -> list[Difference]:
    """By how much stage 2 is ahead of the untouched backbone on each task."""
    return [
        one for one in _differences(comparison) if (one.model, one.against) == (STAGE2, BACKBONE)
    ]


def _differences(comparison: Content) -> list[Difference]:
    return [Difference(**one) for one in comparison.get("differences", [])]


def _blocks(comparison: Content) -> Iterator[Block]:
    rows = [Row(**row) for row in comparison.get("rows", [])]
    if not rows:
        yield (
            missing("evaluation/comparison.json")
            if not comparison
            else Text("No task could be judged.")
        )
        yield from _not_judged(comparison.get("not_judged", {}))
        return
    yield Text(
        "Measured by mteb. Whiskers are 95 % confidence intervals (bootstrap over queries, pairs or texts). A task is "
        "seen where training had data of the same source."
    )
    types = list(dict.fromkeys(row.type for row in rows))
    yield Panels([_scores(one, [row for row in rows if row.type == one]) for one in types])
    yield _comparison(rows, gains(comparison))
    yield from _all_differences(_differences(comparison))
    for benchmark in comparison.get("benchmarks", []):
        yield from _benchmark(benchmark)
    yield from _published(comparison.get("published", []))
    yield from _seen(comparison.get("seen", []))
    yield from _health(comparison.get("health", {}))
    yield from _not_judged(comparison.get("not_judged", {}))


def _scores(kind: str, rows: Sequence[Row]) -> Plot:
    """Bars by task and model, with what is known of their intervals."""
    found = {(row.task, row.model): row for row in rows}
    tasks, metrics = (
        dict.fromkeys(row.task for row in rows),
        dict.fromkeys(row.metric for row in rows),
    )
    shown = []
    for model, colour in colour_of_models(models_of(rows)).items():
        own = [found.get((task, model)) for task in tasks]
        lengths = [row.score if row else None for row in own]
        limits = [(row.low, row.high) if row and row.low < row.high else None for row in own]
        shown.append(Bar(model, colour, lengths, limits))
    return bars(kind, list(tasks), shown, x=" or ".join(metrics))


def _comparison(rows: Sequence[Row], gained: Sequence[Difference]) -> Table:
    models, gain = models_of(rows), {one.task: one for one in gained}
    columns = [Column("task"), Column("type"), Column("metric"), Column("n", count), Column("seen")]
    columns += [Column(model, score) for model in models]
    columns += [
        Column("stage2 − backbone", signed),
        Column("95 % from", signed),
        Column("to", signed),
    ]
    lines: list[list[Value]] = []
    for task in dict.fromkeys(row.task for row in rows):
        own = {row.model: row for row in rows if row.task == task}
        first, sure = next(iter(own.values())), gain.get(task)
        both = {STAGE2, BACKBONE} <= set(own)
        lines.append(
            [
                task, first.type, first.metric, first.n, SURE[first.seen],
                *(own[model].score if model in own else None for model in models),
                own[STAGE2].score - own[BACKBONE].score if both else None,
                sure.low if sure else None, sure.high if sure else None,
            ]
        )  # fmt: skip
    return Table("Scores by task and model", columns, lines)


def _all_differences(found: Sequence[Difference]) -> Iterator[Block]:
    if not found:
        return
    yield Heading("Differences")
    yield Text(
        "Paired bootstrap over the same items. A difference is sure where its interval leaves out zero."
    )
    columns = [Column("task"), Column("model"), Column("against"), Column("difference", signed)]
    columns += [Column("95 % from", signed), Column("to", signed), Column("sure")]
    rows: list[list[Value]] = [
        [one.task, one.model, one.against, one.difference, one.low, one.high, SURE[one.sure]]
        for one in found
    ]
    yield Table("Differences between models", columns, rows)


def _benchmark(found: Content) -> Iterator[Block]:
    whole = found["judged"] == found["tasks"]
    yield Heading(
        found["benchmark"]
        if whole
        else f"{found['benchmark']}: {found['judged']} of {found['tasks']} tasks"
    )
    if not whole:
        yield Text(
            "Means over some of its tasks cannot be compared with published ones, so these are left out."
        )
    columns = [Column("model"), Column("from"), *(Column(kind, percent) for kind in found["types"])]
    columns += [Column("mean (task)", percent), Column("mean (type)", percent)]
    rows: list[list[Value]] = [
        [
            one["model"], "this run" if one["ours"] else "published",
            *(one["types"].get(kind) for kind in found["types"]), one["mean_task"], one["mean_type"],
        ]
        for one in sorted(found["models"], key=lambda one: -(one["mean_task"] or 0))
    ]  # fmt: skip
    yield Table(f"Means on {found['benchmark']}", columns, rows)


def _published(found: Sequence[Content]) -> Iterator[Block]:
    if not found:
        return
    yield Heading("Beside published scores")
    models = list(dict.fromkeys(model for one in found for model in one["published"]))
    columns = [
        Column("task"),
        Column("type"),
        *(Column(model, percent) for model in (STAGE2, *models)),
    ]
    rows: list[list[Value]] = [
        [one["task"], one["type"], one[STAGE2], *(one["published"].get(model) for model in models)]
        for one in found
    ]
    yield Table("Scores on tasks of mteb, in percent", columns, rows)


def _seen(found: Sequence[Content]) -> Iterator[Block]:
    if not found:
        return
    yield Heading("Seen and unseen tasks")
    columns = [
        Column("model"),
        Column("seen"),
        Column("tasks", count),
        Column("mean score, %", percent),
    ]
    rows = [[one["model"], SURE[bool(one["seen"])], one["tasks"], one["mean"]] for one in found]
    yield Table("Mean scores of seen and unseen tasks", columns, rows)


def _health(found: Content) -> Iterator[Block]:
    if not found:
        return
    yield Heading("How embeddings fill their space")
    yield Text(
        "Mean cosine of different texts: 0 is spread out, 1 is all the same. Effective rank: over how many dimensions "
        "they spread."
    )
    columns = [Column("model"), Column("mean cosine", score), Column("effective rank", tenths)]
    names = ("mean_cosine", "effective_rank", "dimensions", "texts")
    rows: list[list[Value]] = [
        [model, *(one.get(name) for name in names)] for model, one in found.items()
    ]
    yield Table(
        "Spread of embeddings",
        [*columns, Column("dimensions", count), Column("texts", count)],
        rows,
    )


def _not_judged(found: Content) -> Iterator[Block]:
    if found:
        yield Heading("Not judged")
        rows = [[task, why] for task, why in found.items()]
        yield Table(
            "Tasks that were not judged", [Column("task"), Column("why", style="prose")], rows
        )
