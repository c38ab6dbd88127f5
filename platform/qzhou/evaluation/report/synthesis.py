"""What was bought: tokens and money, records kept and refused, their scores, and samples beside their originals."""

from collections.abc import Iterator

from qzhou.evaluation.report import plots
from qzhou.evaluation.report.blocks import Block, Folded, Heading, KeyNumbers, Panels, Text, missing
from qzhou.evaluation.report.tables import Table, Value, counts, numbers, share, texts
from qzhou.run.files import LEDGER, SYNTHESIS, TRANSFORM, Content, RunFiles

SCORES = {
    "rewrite": ("rewrite and original", plots.BLUE),
    "positive": ("query and positive", plots.GREEN),
    "negative": ("query and negative", plots.RED),
    "margin": ("positive minus negative", plots.ORANGE),
}
LIMITS = {"rewrite": ("min_rewrite_cosine", "max_rewrite_cosine"), "positive": ("min_positive_score",)}
SPENT = ("requests", "answered", "refused", "reused", "prompt_tokens", "completion_tokens")


def blocks(files: RunFiles) -> Iterator[Block]:
    """What the ledger and the report of the synthesis show."""
    report, ledger = files.synthesis, files.ledger
    techniques = report.get("techniques", {})
    total = ledger.get("total") or report.get("cost")
    if not total:
        has_run = SYNTHESIS in files.manifests
        yield Text("Nothing: the recipe has no synthesis.") if has_run else missing(LEDGER)
        return
    if not total["requests"]:
        yield Text("Nothing was asked for.")
        return
    yield _figures(files, total, techniques)
    if ledger.get("rows"):
        yield _ledger(ledger)
        yield Text(
            "Reused answers had been paid for before: by this run's response cache, or by an identical request. "
            "Cost is at the recipe's prices."
        )
    if not techniques:
        return
    yield Heading("What became of the answers")
    yield _kept(techniques)
    if scored := [_scores(name, one["scores"], report) for name, one in techniques.items() if one.get("scores")]:
        yield Heading("How the teacher scores them")
        yield Text(
            "Refused ones included. Dotted lines are the recipe's thresholds: set [synthesis.filters] where the tails "
            "begin."
        )
        yield Panels(scored)
    yield Heading("Before and after")
    for name, one in techniques.items():
        yield from _samples(name, one)


def _figures(files: RunFiles, total: Content, techniques: Content) -> KeyNumbers:
    found: dict[str, int | str] = {}
    if TRANSFORM in files.manifests:
        outputs = files.manifests[TRANSFORM].outputs
        made = {name: count for name, count in outputs.items() if name.endswith(" examples")}
        if before := [count for name, count in made.items() if name != "held-out examples"]:
            found["examples before"] = sum(before)
    after = files.output(SYNTHESIS, "examples")
    if after is not None:
        found["examples after"] = after
    if techniques:
        found["records kept"] = sum(one["made"] for one in techniques.values())
        found["answers refused"] = sum(sum(one["dropped"].values()) for one in techniques.values())
    found["tokens"] = total["prompt_tokens"] + total["completion_tokens"] + total["reused_tokens"]
    cost = total["cost"] + total["reused_cost"]
    found["cost"] = f"{cost:,.2f}" if cost else "0"
    return KeyNumbers(found)


def _ledger(ledger: Content) -> Table:
    columns = texts("model", "answered as", "dataset", "technique")
    columns += numbers("count", *(name.replace("_", " ") for name in SPENT))
    rows: list[list[Value]] = []
    for one in ledger["rows"]:
        what = [one["model"], ", ".join(one["answered_as"]), one["dataset"], one["technique"]]
        rows.append([*what, *(one[name] for name in SPENT), one["cost"]])
    total = ledger["total"]
    last: list[Value] = ["all", "", "", "", *(total[name] for name in SPENT), total["cost"]]
    title = "Requests, tokens and cost by model, dataset and technique"
    return Table(title, [*columns, *numbers("score", "cost")], rows, last)


def _kept(techniques: Content) -> Table:
    columns = [*texts("technique"), *numbers("count", "kept", "refused"), *numbers("percent", "% kept")]
    columns += texts("why refused", style="prose")
    rows: list[list[Value]] = []
    for name, one in techniques.items():
        made, dropped = one["made"], one["dropped"]
        refused = sum(dropped.values())
        rows.append([name, made, refused, share(made, made + refused), counts(dropped)])
    return Table("Answers kept and refused", columns, rows)


def _scores(name: str, scores: Content, report: Content) -> plots.Plot:
    limits = {}
    for key in scores:
        for limit in LIMITS.get(key, ()):
            if report["filters"].get(limit) is not None:
                limits[report["filters"][limit]] = SCORES[key][1]
    shown = {label: (colour, scores[key]) for key, (label, colour) in SCORES.items() if key in scores}
    return plots.histograms(name, report["score_edges"], shown, x="cosine", y="% of records", limits=limits)


def _samples(name: str, technique: Content) -> Iterator[Block]:
    rows: list[list[Value]] = []
    for one in technique.get("samples", []):
        sample = [_fields(one[part]) for part in ("original", "written", "scores")]
        rows.append([one["dataset"], *sample, one["model"]])
    if rows:
        columns = [*texts("dataset"), *texts("original", "written", style="prose")]
        table = Table(f"Samples of {name}", [*columns, *texts("scores", "model")], rows)
        yield Folded(f"{name}: {len(rows)} to read", [table])
    examples = technique.get("examples", {})
    refused = [[reason, one["detail"], one["record"]] for reason, some in examples.items() for one in some]
    if refused:
        columns = [*texts("reason"), *texts("detail", "request and answer", style="prose")]
        table = Table(f"Refused answers of {name}", columns, refused)
        yield Folded(f"{name}: {len(refused)} refused ones", [table])


def _fields(values: Content) -> str:
    """A line for each field."""
    return "\n".join(f"{name}: {value}" for name, value in values.items())
