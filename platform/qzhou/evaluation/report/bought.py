"""What was bought: tokens and money, records kept and refused, their scores, and some beside what they were made of."""

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
from qzhou.evaluation.report.plots import Plot, histograms
from qzhou.evaluation.report.tables import (
    Column,
    Table,
    Value,
    count,
    counts,
    percent,
    score,
    share,
)

SCORES = {
    "rewrite": ("rewrite and original", "#4c86d8"),
    "positive": ("query and positive", "#1f9d6b"),
    "negative": ("query and negative", "#c44e52"),
    "margin": ("positive minus negative", "#e08e0b"),
}
LIMITS = {
    "rewrite": ("min_rewrite_cosine", "max_rewrite_cosine"),
    "positive": ("min_positive_score",),
}
SPENT = ("requests", "answered", "refused", "reused", "prompt_tokens", "completion_tokens")


def section(found: Found) -> Section:
    """From ``synthesis/ledger.json`` and ``synthesis/report.json``."""
    return Section("bought", "What was bought", list(_blocks(found)))


def _blocks(found: Found) -> Iterator[Block]:
    techniques = found.synthesis.get("techniques", {})
    total = found.ledger.get("total") or found.synthesis.get("cost")
    if not total:
        nothing = "synthesis" in found.manifests
        yield (
            Text("Nothing: the recipe has no synthesis.")
            if nothing
            else missing("synthesis/ledger.json")
        )
        return
    if not total["requests"]:
        yield Text("Nothing was asked for.")
        return
    yield _figures(found, total, techniques)
    if found.ledger.get("rows"):
        yield _ledger(found.ledger)
        yield Text(
            "Reused answers had been paid for before, by this run's journal or an identical request. Cost is at the "
            "recipe's prices."
        )
    if techniques:
        yield Heading("What became of the answers")
        yield _kept(techniques)
    scored = {name: one["scores"] for name, one in techniques.items() if one.get("scores")}
    if scored and "score_edges" in found.synthesis:
        yield Heading("How the teacher scores them")
        yield Text(
            "Refused ones included. Dotted lines are the recipe's thresholds: set [synthesis.gates] where the tails "
            "begin."
        )
        yield Panels([_scores(name, one, found.synthesis) for name, one in scored.items()])
    if techniques:
        yield Heading("Before and after")
        for name, one in techniques.items():
            yield from _samples(name, one)


def _figures(found: Found, total: Content, techniques: Content) -> Figures:
    before = [
        number
        for name, number in found.manifests.get("transform", {}).get("outputs", {}).items()
        if name.endswith(" examples") and name != "held-out examples"
    ]
    figures = [("examples before", count(sum(before)))] if before else []
    after = found.made("synthesis", "examples")
    figures += [("examples after", count(after))] if after is not None else []
    if techniques:
        figures += [
            ("records kept", count(sum(one["made"] for one in techniques.values()))),
            (
                "answers refused",
                count(sum(sum(one["dropped"].values()) for one in techniques.values())),
            ),
        ]
    tokens = total["prompt_tokens"] + total["completion_tokens"] + total.get("reused_tokens", 0)
    cost = total["cost"] + total.get("reused_cost", 0.0)
    return Figures([*figures, ("tokens", count(tokens)), ("cost", f"{cost:,.2f}" if cost else "0")])


def _ledger(ledger: Content) -> Table:
    columns = [Column(title) for title in ("model", "answered as", "dataset", "technique")]
    columns += [Column(name.replace("_", " "), count) for name in SPENT] + [Column("cost", score)]
    rows: list[list[Value]] = [
        [one["model"], ", ".join(one["answered_as"]), one["dataset"], one["technique"]]
        + [one[name] for name in SPENT]
        + [one["cost"]]
        for one in ledger["rows"]
    ]
    total = ledger["total"]
    last: list[Value] = ["all", "", "", "", *(total[name] for name in SPENT), total["cost"]]
    return Table("Requests, tokens and cost by model, dataset and technique", columns, rows, last)


def _kept(techniques: Content) -> Table:
    columns = [
        Column("technique"),
        Column("kept", count),
        Column("refused", count),
        Column("% kept", percent),
    ]
    rows: list[list[Value]] = []
    for name, one in techniques.items():
        refused = sum(one["dropped"].values())
        rows.append(
            [
                name,
                one["made"],
                refused,
                share(one["made"], one["made"] + refused),
                counts(one["dropped"]),
            ]
        )
    return Table("Answers kept and refused", [*columns, Column("why refused", style="prose")], rows)


def _scores(name: str, scores: Content, report: Content) -> Plot:
    gates = report.get("gates", {})
    limits = {
        gates[limit]: SCORES[key][1]
        for key in scores
        for limit in LIMITS.get(key, ())
        if gates.get(limit) is not None
    }
    found = {
        label: (colour, scores[key]) for key, (label, colour) in SCORES.items() if key in scores
    }
    return histograms(
        name, report["score_edges"], found, x="cosine", y="% of records", limits=limits
    )


def _samples(name: str, technique: Content) -> Iterator[Block]:
    samples, refused = technique.get("samples", []), technique.get("examples", {})
    if samples:
        columns = [
            Column("dataset"),
            Column("original", style="prose"),
            Column("written", style="prose"),
        ]
        rows = [
            [
                one["dataset"],
                _fields(one["original"]),
                _fields(one["written"]),
                _fields(one["scores"]),
                one["model"],
            ]
            for one in samples
        ]
        table = Table(f"Samples of {name}", [*columns, Column("scores"), Column("model")], rows)
        yield Folded(f"{name}: {len(samples)} to read", [table])
    shown = [
        [reason, one["detail"], one["record"]] for reason, some in refused.items() for one in some
    ]
    if shown:
        columns = [
            Column("reason"),
            Column("detail", style="prose"),
            Column("request and answer", style="prose"),
        ]
        yield Folded(
            f"{name}: {len(shown)} refused ones",
            [Table(f"Refused answers of {name}", columns, shown)],
        )


def _fields(texts: Content) -> str:
    """A line for each field."""
    return "\n".join(f"{name}: {value}" for name, value in texts.items())
