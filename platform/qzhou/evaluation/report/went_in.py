"""What went in: datasets, what became of their rows, lengths of texts, overlap with evaluation data."""

from __future__ import annotations

from collections.abc import Iterator

from qzhou.evaluation.report.blocks import Block, Figures, Heading, Panels, Section, Text, missing
from qzhou.evaluation.report.files import Content, Found
from qzhou.evaluation.report.plots import Line, Plot, lines
from qzhou.evaluation.report.tables import Column, Table, Value, count, percent, share

COLOURS = {
    "query": "#4c86d8", "positives": "#1f9d6b", "negatives": "#c44e52",
    "text_a": "#4c86d8", "text_b": "#e08e0b", "text": "#e08e0b",
}  # fmt: skip
LANGUAGES = 3  # of each dataset
OVERLAPS = 100


def section(found: Found) -> Section:
    """From ``transform/report.json``."""
    return Section("went-in", "What went in", list(_blocks(found.transform)))


def _blocks(report: Content) -> Iterator[Block]:
    datasets = report.get("datasets", {})
    if not datasets:
        yield missing("transform/report.json")
        return
    totals = {
        name: sum(one[name] for one in datasets.values()) for name in ("read", "kept", "held_out")
    }
    dropped = sum(sum(one["dropped"].values()) for one in datasets.values())
    yield Figures(
        [
            ("datasets", count(len(datasets))),
            ("rows read", count(totals["read"])),
            ("trained on", count(totals["kept"])),
            ("held out", count(totals["held_out"])),
            ("dropped", count(dropped)),
        ]
    )
    yield _datasets(datasets)
    yield Text(
        "Rows read = trained on + held out + beyond max_rows + dropped. Languages are those of a sample."
    )
    yield Heading("Lengths of the texts that are trained on")
    yield Panels(
        [_lengths(name, one["lengths"]) for name, one in datasets.items() if one.get("lengths")]
    )
    yield Heading("Dropped rows")
    rows = list(_dropped(datasets))
    if rows:
        yield Table("Dropped rows by dataset and reason", DROPPED, rows)
        yield Text(
            "A part of a row is one negative, one answer or one piece of evidence; the rest of the row is kept."
        )
    else:
        yield Text("None.")
    yield Heading("Overlap of training data with evaluation data")
    yield from _contamination(report.get("contamination", {}))


def _datasets(datasets: Content) -> Table:
    columns = [Column(title) for title in ("dataset", "task", "rule")]
    titles = ("read", "trained on", "held out", "beyond max_rows", "dropped", "examples")
    columns += [*(Column(title, count) for title in titles), Column("languages")]
    rows: list[list[Value]] = [
        [
            name, one["task"], one["rule"], one["read"], one["kept"], one["held_out"], one["sampled_out"],
            sum(one["dropped"].values()), one.get("written", {}).get("examples"), _languages(one["languages"]),
        ]
        for name, one in datasets.items()
    ]  # fmt: skip
    return Table("Datasets and what became of their rows", columns, rows)


def _languages(counts: Content) -> str:
    commonest = sorted(counts.items(), key=lambda one: -one[1])[:LANGUAGES]
    return ", ".join(
        f"{code} {100 * number / sum(counts.values()):.0f} %" for code, number in commonest
    )


def _lengths(name: str, lengths: Content) -> Plot:
    """Shares of texts by their characters, rounded up to a power of two."""
    sizes = [int(size) for found in lengths.values() for size in found]
    powers = [
        2**power for power in range(min(sizes).bit_length() - 2, max(sizes).bit_length() + 1)
    ]  # an empty bin aside
    shown = []
    for field, found in lengths.items():
        points = [(power, share(found.get(str(power), 0), sum(found.values()))) for power in powers]
        shown.append(Line(field, points, COLOURS.get(field, "#8a94a0"), steps=True))
    return lines(name, shown, x="characters, up to", y="% of texts", log_x=True)


DROPPED = [
    Column("dataset"), Column("reason"), Column("what"), Column("rows", count), Column("% of read", percent),
    Column("for example", style="prose"),
]  # fmt: skip


def _dropped(datasets: Content) -> Iterator[list[Value]]:
    """The commonest first."""
    found: list[tuple[int, list[Value]]] = []
    for name, one in datasets.items():
        for what, reasons in (("row", one["dropped"]), ("part of a row", one.get("parts", {}))):
            for reason, rows in reasons.items():
                example: list[str] = next(iter(one.get("examples", {}).get(reason, [])), [])
                said = " | ".join(filter(None, example))
                found.append((rows, [name, reason, what, rows, share(rows, one["read"]), said]))
    yield from (row for _, row in sorted(found, key=lambda one: -one[0]))


def _contamination(found: Content) -> Iterator[Block]:
    action, overlaps = found.get("action", "off"), found.get("overlaps", [])
    if not overlaps:
        yield Text("It was not looked for." if action == "off" else "None was found.")
        return
    sample = found.get("one_ngram_kept_of", 1)
    compared = f" One n-gram in {sample} was compared." if sample > 1 else ""
    yield Text(
        f"A training example overlaps with a task when it shares {found['ngram_words']} words "
        f"({found['ngram_chars']} characters of Chinese) in a row with one of its texts, or a shorter text as a "
        f"whole.{compared} A copy repeats most of a text. Action: {action}."
    )
    columns = [
        Column("training data"),
        Column("evaluation task"),
        Column("examples", count),
        Column("%", percent),
    ]
    columns += [Column("copies", count), Column("copied queries", count)]
    rows = [
        [
            one["dataset"], one["task"], one["examples"], one["percent"], one.get("copied"), one.get("asked"),
            next(iter(one["shown"]), ""),
        ]
        for one in overlaps[:OVERLAPS]
    ]  # fmt: skip
    yield Table("Overlaps", [*columns, Column("for example", style="prose")], rows)
    if len(overlaps) > OVERLAPS:
        yield Text(f"{len(overlaps) - OVERLAPS:,} smaller ones are in transform/report.json.")
