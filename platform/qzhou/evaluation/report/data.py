"""What went in: datasets, their rows' fate, text lengths, overlap with evaluation data."""

from collections.abc import Iterator, Sequence

from qzhou.evaluation.report import plots
from qzhou.evaluation.report.blocks import Block, Heading, KeyNumbers, Panels, Text, missing
from qzhou.evaluation.report.tables import Table, Value, numbers, share, texts
from qzhou.run.files import TRANSFORM_REPORT, Content, RunFiles

COLOURS = {"query": plots.BLUE, "positives": plots.GREEN, "negatives": plots.RED}
COLOURS |= {"text_a": plots.BLUE, "text_b": plots.ORANGE, "text": plots.ORANGE}
LANGUAGES = 3  # shown of each dataset
OVERLAPS = 100


def blocks(files: RunFiles) -> Iterator[Block]:
    """What the transform's report shows."""
    report = files.transform
    datasets = report.get("datasets", {})
    if not datasets:
        yield missing(TRANSFORM_REPORT)
        return
    read, kept, held_out = (sum(one[name] for one in datasets.values()) for name in ("read", "kept", "held_out"))
    dropped = sum(sum(one["dropped"].values()) for one in datasets.values())
    totals = {"datasets": len(datasets), "rows read": read, "trained on": kept, "held out": held_out}
    yield KeyNumbers({**totals, "dropped": dropped})
    yield _datasets(datasets)
    yield Text("Rows read = trained on + held out + beyond max_rows + dropped. Languages are those of a sample.")
    yield Heading("Lengths of the texts that are trained on")
    yield Panels([_lengths(name, one["lengths"]) for name, one in datasets.items() if one.get("lengths")])
    yield Heading("Dropped rows")
    yield from _dropped(datasets)
    yield Heading("Overlap of training data with evaluation data")
    yield from _contamination(report.get("contamination", {}), files.synthesis.get("overlaps", []))


def _datasets(datasets: Content) -> Table:
    titles = ("read", "trained on", "held out", "beyond max_rows", "dropped", "examples")
    columns = [*texts("dataset", "task", "rule"), *numbers("count", *titles), *texts("languages")]
    rows: list[list[Value]] = [
        [
            name, one["task"], one["rule"], one["read"], one["kept"], one["held_out"], one["sampled_out"],
            sum(one["dropped"].values()), one["written"].get("examples"), _languages(one["languages"]),
        ]
        for name, one in datasets.items()
    ]  # fmt: skip
    return Table("Datasets and what became of their rows", columns, rows)


def _languages(counts: Content) -> str:
    commonest = sorted(counts.items(), key=lambda one: -one[1])[:LANGUAGES]
    total = sum(counts.values())
    return ", ".join(f"{code} {100 * number / total:.0f} %" for code, number in commonest)


def _lengths(name: str, lengths: Content) -> plots.Plot:
    """Shares of texts by their characters, rounded up to a power of two, with an empty bin at the left."""
    sizes = [int(size) for found in lengths.values() for size in found]
    powers = [2**exponent for exponent in range(min(sizes).bit_length() - 2, max(sizes).bit_length() + 1)]
    shown = []
    for field, found in lengths.items():
        points = [(power, share(found.get(str(power), 0), sum(found.values()))) for power in powers]
        shown.append(plots.Line(field, points, COLOURS.get(field, plots.GREY), steps=True))
    return plots.lines(name, shown, x="characters, up to", y="% of texts", xaxis=plots.LOG_AXIS)


def _dropped(datasets: Content) -> Iterator[Block]:
    """The dropped rows and parts of rows, the commonest first."""
    found: list[tuple[int, list[Value]]] = []
    for name, one in datasets.items():
        for what, reasons in (("row", one["dropped"]), ("part of a row", one.get("parts", {}))):
            for reason, rows in reasons.items():
                example: list[str] = next(iter(one.get("examples", {}).get(reason, [])), [])
                text = " | ".join(filter(None, example))
                found.append((rows, [name, reason, what, rows, share(rows, one["read"]), text]))
    if not found:
        yield Text("None.")
        return
    columns = [*texts("dataset", "reason", "what"), *numbers("count", "rows")]
    columns += [*numbers("percent", "% of read"), *texts("for example", style="prose")]
    found.sort(key=lambda one: -one[0])
    yield Table("Dropped rows by dataset and reason", columns, [row for _, row in found])
    yield Text("A part of a row is one negative, one answer or one piece of evidence; the rest of the row is kept.")


def _contamination(found: Content, synthetic: Sequence[Content]) -> Iterator[Block]:
    """``synthetic`` are the overlaps of what an LLM wrote."""
    action = found.get("action", "off")
    written = [{**one, "dataset": f"{one['dataset']} (synthetic)"} for one in synthetic]
    overlaps = sorted([*found.get("overlaps", []), *written], key=lambda one: -one["percent"])
    if not overlaps:
        yield Text("It was not looked for." if action == "off" else "None was found.")
        return
    sample = found["one_ngram_kept_of"]
    compared = f" One n-gram in {sample} was compared." if sample > 1 else ""
    yield Text(
        f"A training example overlaps with a task when it shares {found['ngram_words']} words "
        f"({found['ngram_chars']} characters of Chinese) in a row with one of its texts, or a shorter text as a "
        f"whole.{compared} A copy repeats most of a text. Action: {action}."
    )
    columns = [*texts("training data", "evaluation task"), *numbers("count", "examples")]
    columns += [*numbers("percent", "%"), *numbers("count", "copies", "copied queries")]
    columns += texts("for example", style="prose")
    rows = [
        [
            one["dataset"], one["task"], one["examples"], one["percent"], one["copied"], one["asked"],
            next(iter(one["shown"]), ""),
        ]
        for one in overlaps[:OVERLAPS]
    ]  # fmt: skip
    yield Table("Overlaps", columns, rows)
    if len(overlaps) > OVERLAPS:
        yield Text(f"{len(overlaps) - OVERLAPS:,} smaller ones are in {TRANSFORM_REPORT}.")
