"""How good the models are: scores and differences with intervals, benchmarks, embedding health, unscored tasks."""

from collections.abc import Iterator, Sequence

from qzhou.evaluation.changes import ChangedQuery, changes_of
from qzhou.evaluation.comparison import Difference, Row, differences_of, gains, models_of, rows_of
from qzhou.evaluation.judge.model_specs import BACKBONE, STAGE2
from qzhou.evaluation.report import plots
from qzhou.evaluation.report.blocks import Block, Folded, Heading, Panels, Text, missing
from qzhou.evaluation.report.findings import outdated
from qzhou.evaluation.report.tables import Table, Value, numbers, texts
from qzhou.run.files import COMPARISON, Content, RunFiles

YES_NO = {True: "yes", False: "no"}


def blocks(files: RunFiles) -> Iterator[Block]:
    """What the comparison of models shows."""
    yield from outdated(files)
    comparison = files.comparison
    if not comparison:
        yield missing(COMPARISON)
        return
    rows = rows_of(comparison)
    if rows:
        yield from _scores(rows, comparison)
    else:
        yield Text("No task could be judged.")
    if found := comparison["not_judged"]:
        yield Heading("Not judged")
        unscored = list(map(list, found.items()))
        yield Table("Tasks that were not judged", [*texts("task"), *texts("why", style="prose")], unscored)


def _scores(rows: Sequence[Row], comparison: Content) -> Iterator[Block]:
    yield Text(
        "Measured by mteb. Whiskers are 95 % confidence intervals (bootstrap over queries, pairs or texts). A task is "
        "seen where training had data of the same source."
    )
    types = list(dict.fromkeys(row.type for row in rows))
    yield Panels([_score_bars(one, [row for row in rows if row.type == one]) for one in types])
    differences = differences_of(comparison)
    yield _score_table(rows, gains(differences))
    yield from _differences(differences)
    yield from _changes(comparison)
    for benchmark in comparison["benchmarks"]:
        yield from _benchmark(benchmark)
    yield from _published(comparison["published"])
    yield from _seen(comparison["seen"])
    yield from _health(comparison["health"])


def _score_bars(kind: str, rows: Sequence[Row]) -> plots.Plot:
    """Bars by task and model, with their intervals where these are known."""
    found = {(row.task, row.model): row for row in rows}
    tasks = list(dict.fromkeys(row.task for row in rows))
    metrics = dict.fromkeys(row.metric for row in rows)
    shown = []
    for model, colour in plots.colour_of_models(models_of(rows)).items():
        own = [found.get((task, model)) for task in tasks]
        lengths = [row.score if row else None for row in own]
        limits = [(row.low, row.high) if row and row.low < row.high else None for row in own]
        shown.append(plots.Bar(model, colour, lengths, limits))
    return plots.bars(kind, tasks, shown, x=" or ".join(metrics))


def _score_table(rows: Sequence[Row], gained: Sequence[Difference]) -> Table:
    models, gain_of = models_of(rows), {one.task: one for one in gained}
    columns = [*texts("task", "type", "metric"), *numbers("count", "n"), *texts("seen"), *numbers("score", *models)]
    columns += numbers("signed", "stage2 − backbone", "95 % from", "to")
    lines: list[list[Value]] = []
    for task in dict.fromkeys(row.task for row in rows):
        own = {row.model: row for row in rows if row.task == task}
        first, gain = next(iter(own.values())), gain_of.get(task)
        line: list[Value] = [task, first.type, first.metric, first.n, YES_NO[first.seen]]
        line += [own[model].score if model in own else None for model in models]
        has_both = STAGE2 in own and BACKBONE in own
        line.append(own[STAGE2].score - own[BACKBONE].score if has_both else None)
        line += [gain.low, gain.high] if gain else [None, None]
        lines.append(line)
    return Table("Scores by task and model", columns, lines)


def _differences(found: Sequence[Difference]) -> Iterator[Block]:
    if not found:
        return
    yield Heading("Differences")
    yield Text("Paired bootstrap over the same items. A difference is sure where its interval leaves out zero.")
    columns = [*texts("task", "model", "against"), *numbers("signed", "difference", "95 % from", "to")]
    rows: list[list[Value]] = [
        [one.task, one.model, one.against, one.difference, one.low, one.high, YES_NO[one.is_significant]]
        for one in found
    ]
    yield Table("Differences between models", [*columns, *texts("sure")], rows)


def _changes(comparison: Content) -> Iterator[Block]:
    found = changes_of(comparison)
    if not found:
        return
    yield Heading("Queries that changed")
    yield Text(
        "Score of each query before and after training, and the text that is found first. Long texts are cut."
    )
    for one in found:
        yield Text(f"{one.task}: {one.line}.")
        sides = {"gained most": one.gained, "lost most": one.lost}
        yield from (
            _queries(f"{one.task}: queries that {how}", queries) for how, queries in sides.items() if queries
        )


def _queries(title: str, queries: Sequence[ChangedQuery]) -> Folded:
    columns = [*texts("query", style="prose"), *numbers("score", "before", "after")]
    columns += texts("found first, before", "found first, after", "an answer", style="prose")
    rows: list[list[Value]] = [
        [one.query, one.before, one.after, one.found_before, one.found_after, one.positive] for one in queries
    ]
    return Folded(title, [Table(title, columns, rows)])


def _benchmark(found: Content) -> Iterator[Block]:
    if found["judged"] == found["tasks"]:
        yield Heading(found["benchmark"])
    else:
        yield Heading(f"{found['benchmark']}: {found['judged']} of {found['tasks']} tasks")
        yield Text("Means over some of its tasks cannot be compared with published ones, so these are left out.")
    columns = [*texts("model", "from"), *numbers("percent", *found["types"], "mean (task)", "mean (type)")]
    rows: list[list[Value]] = []
    for one in sorted(found["models"], key=lambda one: -(one["mean_task"] or 0)):
        source = "this run" if one["ours"] else "published"
        means = map(one["types"].get, found["types"])
        rows.append([one["model"], source, *means, one["mean_task"], one["mean_type"]])
    yield Table(f"Means on {found['benchmark']}", columns, rows)


def _published(found: Sequence[Content]) -> Iterator[Block]:
    if not found:
        return
    yield Heading("Beside published scores")
    models = list(dict.fromkeys(model for one in found for model in one["published"]))
    columns = [*texts("task", "type"), *numbers("percent", STAGE2, *models)]
    rows: list[list[Value]] = [
        [one["task"], one["type"], one[STAGE2], *map(one["published"].get, models)] for one in found
    ]
    yield Table("Scores on tasks of mteb, in percent", columns, rows)


def _seen(found: Sequence[Content]) -> Iterator[Block]:
    if not found:
        return
    yield Heading("Seen and unseen tasks")
    columns = [*texts("model", "seen"), *numbers("count", "tasks"), *numbers("percent", "mean score, %")]
    rows = [[one["model"], YES_NO[one["seen"]], one["tasks"], one["mean"]] for one in found]
    yield Table("Mean scores of seen and unseen tasks", columns, rows)


def _health(found: Content) -> Iterator[Block]:
    if not found:
        return
    yield Heading("How embeddings fill their space")
    yield Text(
        "Mean cosine of different texts: 0 is spread out, 1 is all the same. Effective rank: over how many dimensions "
        "they spread."
    )
    columns = [*texts("model"), *numbers("score", "mean cosine"), *numbers("tenths", "effective rank")]
    columns += numbers("count", "dimensions", "texts")
    names = ("mean_cosine", "effective_rank", "dimensions", "texts")
    rows: list[list[Value]] = [[model, *(one[name] for name in names)] for model, one in found.items()]
    yield Table("Spread of embeddings", columns, rows)
