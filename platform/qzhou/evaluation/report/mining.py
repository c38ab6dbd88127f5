"""What was mined: negatives by origin, scores beside those of the positives, why candidates were refused."""

from collections.abc import Iterator
from itertools import cycle

from qzhou.evaluation.report import plots
from qzhou.evaluation.report.blocks import Block, Folded, Heading, KeyNumbers, Panels, Text, missing
from qzhou.evaluation.report.tables import Table, Value, numbers, share, texts
from qzhou.run.files import MINING_REPORT, Content, RunFiles

KINDS = {"positive": plots.GREEN, "mined": plots.RED, "given": plots.BLUE, "synthetic": plots.ORANGE}
ORIGINS = ("given", "synthetic", "mined")
SIZES = "queries by number of negatives"


def blocks(files: RunFiles) -> Iterator[Block]:
    """What the mining report shows."""
    report = files.mining
    if not report:
        yield missing(MINING_REPORT)
        return
    totals = {"queries": sum(one["queries"] for one in report.values())}
    for origin in ORIGINS:
        totals[f"negatives, {origin}"] = sum(one["negatives"].get(origin, 0) for one in report.values())
    yield KeyNumbers(totals)
    yield _datasets(report)
    yield Text(
        "Hidden positives: each known positive is hidden in turn where a query has several, and the share that would "
        "then pass as a negative is what the criteria let in. Recall is that of an approximate index against exact "
        "search."
    )
    if scored := [_scores(name, one) for name, one in report.items() if one.get("scores")]:
        yield Heading("Scores of positives and negatives")
        yield Text("Of the teacher, to the query. Negatives that lie among the positives are too close to them.")
        yield Panels(scored)
    yield Heading("Negatives a query")
    yield Panels([_sizes(report)])
    yield Heading("Why candidates were refused")
    yield _refused(report)
    yield Heading("Some to read")
    for name, one in report.items():
        yield from _examples(name, one.get("examples", []))


def _datasets(report: Content) -> Table:
    columns = [*texts("dataset"), *numbers("count", "queries", *ORIGINS)]
    columns += numbers("score", "mean positive score", "mean mined score")
    columns += numbers("percent", "% hidden positives admitted")
    columns += numbers("count", "hidden positives", "pairs dropped as inconsistent")
    rows: list[list[Value]] = []
    for name, one in report.items():
        hidden = one.get("hidden positives", {"admitted": 0, "hidden": 0})
        rows.append(
            [
                name, one["queries"], *(one["negatives"].get(origin, 0) for origin in ORIGINS),
                one.get("mean positive score"), one.get("mean mined score"),
                share(hidden["admitted"], hidden["hidden"]), hidden["hidden"],
                one.get("inconsistent"), one.get("recall"),
            ]
        )  # fmt: skip
    return Table("Queries and their negatives by dataset", [*columns, *numbers("score", "recall")], rows)


def _scores(name: str, found: Content) -> plots.Plot:
    shown = {kind: (colour, found["scores"].get(kind, [])) for kind, colour in KINDS.items()}
    return plots.histograms(name, found["score_edges"], shown, x="score to the query", y="% of texts")


def _sizes(report: Content) -> plots.Plot:
    """How many queries have no negative, one, two, ..."""
    sizes = sorted({int(size) for one in report.values() for size in one[SIZES]})
    shown = []
    for size, colour in zip(sizes, cycle(plots.COLOURS), strict=False):
        shares = [share(one[SIZES].get(str(size), 0), one["queries"]) for one in report.values()]
        shown.append(plots.Bar(str(size), colour, shares))
    return plots.bars(SIZES, list(report), shown, x="% of queries", stacked=True)


def _refused(report: Content) -> Table:
    reasons = list(dict.fromkeys(reason for one in report.values() for reason in one["rejected"]))
    rows: list[list[Value]] = [
        [name, *(one["rejected"].get(reason) for reason in reasons)] for name, one in report.items()
    ]
    return Table("Refused candidates by reason", [*texts("dataset"), *numbers("count", *reasons)], rows)


def _examples(name: str, examples: list[Content]) -> Iterator[Block]:
    if not examples:
        return
    rows: list[list[Value]] = [
        [one["query"], one["positive"], "\n".join(map(_negative, one["negatives"]))] for one in examples
    ]
    columns = texts("query", "positive", "negatives", style="prose")
    table = Table(f"Queries of {name} with their negatives", columns, rows)
    yield Folded(f"{name}: {len(examples)} queries", [table])


def _negative(found: Content) -> str:
    score = "" if found["score"] is None else f" {found['score']:.3f}"
    return f"[{found['origin']}{score}] {found['text']}"
