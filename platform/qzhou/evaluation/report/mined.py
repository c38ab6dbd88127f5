"""What was mined: negatives by origin, scores beside those of the positives, why candidates were refused."""

from __future__ import annotations

from collections.abc import Iterator

from qzhou.evaluation.report.blocks import (
    Block,
    Figures,
    Folded,
    Heading,
    Panels,
    Section,
    Text,
    missing,
)
from qzhou.evaluation.report.files import Content, Found
from qzhou.evaluation.report.plots import COLOURS, Bar, Plot, bars, histograms
from qzhou.evaluation.report.tables import Column, Table, Value, count, percent, score, share

KINDS = {"positive": "#1f9d6b", "mined": "#c44e52", "given": "#4c86d8", "synthetic": "#e08e0b"}
ORIGINS = ("given", "synthetic", "mined")
SIZES = "queries by number of negatives"


def section(found: Found) -> Section:
    """From ``mining/report.json``."""
    return Section("mined", "What was mined", list(_blocks(found.mining)))


def _blocks(report: Content) -> Iterator[Block]:
    if not report:
        yield missing("mining/report.json")
        return
    totals = {
        origin: sum(one["negatives"].get(origin, 0) for one in report.values())
        for origin in ORIGINS
    }
    queries = sum(one["queries"] for one in report.values())
    yield Figures(
        [
            ("queries", count(queries)),
            *((f"negatives, {name}", count(n)) for name, n in totals.items()),
        ]
    )
    yield _datasets(report)
    yield Text(
        "Hidden positives: each known positive is hidden in turn where a query has several, and the share that would "
        "then pass as a negative is what the criteria let in. Recall is that of an approximate index against exact "
        "search."
    )
    scored = {
        name: one for name, one in report.items() if one.get("scores") and "score_edges" in one
    }
    if scored:
        yield Heading("Scores of positives and negatives")
        yield Text(
            "Of the teacher, to the query. Negatives that lie among the positives are too close to them."
        )
        yield Panels([_scores(name, one) for name, one in scored.items()])
    yield Heading("Negatives a query")
    yield Panels([_sizes(report)])
    yield Heading("Why candidates were refused")
    yield _refused(report)
    yield Heading("Some to read")
    for name, one in report.items():
        yield from _examples(name, one.get("examples", []))


def _datasets(report: Content) -> Table:
    columns = [
        Column("dataset"),
        Column("queries", count),
        *(Column(origin, count) for origin in ORIGINS),
    ]
    columns += [Column("mean positive score", score), Column("mean mined score", score)]
    columns += [Column("% hidden positives admitted", percent), Column("hidden positives", count)]
    columns += [Column("pairs dropped as inconsistent", count), Column("recall", score)]
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
    return Table("Queries and their negatives by dataset", columns, rows)


def _scores(name: str, found: Content) -> Plot:
    shown = {kind: (colour, found["scores"].get(kind, [])) for kind, colour in KINDS.items()}
    return histograms(name, found["score_edges"], shown, x="score to the query", y="% of texts")


def _sizes(report: Content) -> Plot:
    """How many queries have no negative, one, two, ..."""
    sizes = sorted({int(size) for one in report.values() for size in one[SIZES]})
    shown = [
        Bar(
            str(size),
            colour,
            [share(one[SIZES].get(str(size), 0), one["queries"]) for one in report.values()],
        )
        for size, colour in zip(sizes, COLOURS * (len(sizes) // len(COLOURS) + 1), strict=False)
    ]
    return bars(
        "queries by number of negatives", list(report), shown, x="% of queries", stacked=True
    )


def _refused(report: Content) -> Table:
    reasons = list(dict.fromkeys(reason for one in report.values() for reason in one["rejected"]))
    columns = [Column("dataset"), *(Column(reason, count) for reason in reasons)]
    rows: list[list[Value]] = [
        [name, *(one["rejected"].get(reason) for reason in reasons)] for name, one in report.items()
    ]
    return Table("Refused candidates by reason", columns, rows)


def _examples(name: str, examples: list[Content]) -> Iterator[Block]:
    if not examples:
        return
    columns = [
        Column("query", style="prose"),
        Column("positive", style="prose"),
        Column("negatives", style="prose"),
    ]
    rows: list[list[Value]] = [
        [one["query"], one["positive"], "\n".join(map(_negative, one["negatives"]))]
        for one in examples
    ]
    yield Folded(
        f"{name}: {len(examples)} queries",
        [Table(f"Queries of {name} with their negatives", columns, rows)],
    )


def _negative(found: Content) -> str:
    at = "" if found["score"] is None else f" {found['score']:.3f}"
    return f"[{found['origin']}{at}] {found['text']}"
