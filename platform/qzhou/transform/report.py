"""What the transform says of itself: counts, drops, languages, lengths and overlaps, as JSON, lines and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.data.storage import Folder, read_table
from qzhou.errors import DataError
from qzhou.telemetry.events import as_json, log_event
from qzhou.telemetry.pictures import svg
from qzhou.transform.contamination import Overlap
from qzhou.transform.fields import columns_of
from qzhou.transform.tally import Tally

REPORT, PICTURE = "report.json", "lengths.svg"
COMMONEST = 5
PANELS_A_ROW = 4
ANSWER = {"pair": "score", "classification": "label"}  # what training compares rows by
COLOURS = {
    "query": "#5b7db1", "positives": "#2f9e6e", "negatives": "#c44e52",
    "text_a": "#5b7db1", "text_b": "#e8a33d", "text": "#e8a33d",
}  # fmt: skip


def summary_line(dataset: Dataset, tally: Tally, encodings: Mapping[str, int]) -> str:
    """One line for one dataset: where its rows went, and which encodings were found in its files."""
    reasons = [f"{rows:,} {reason}" for reason, rows in tally.dropped.most_common(COMMONEST)]
    more = ", ..." if len(tally.dropped) > COMMONEST else ""
    dropped = f"; dropped {', '.join(reasons)}{more}" if reasons else ""
    left = f", {tally.sampled_out:,} beyond max_rows" if tally.sampled_out else ""
    if dataset.rule == "documents":
        return f"transform: {dataset.name}: {tally.kept:,} documents{left}{dropped}"
    kept = tally.written["examples"]
    merged = (
        f" from {tally.kept:,} rows" if dataset.task == "retrieval" and tally.kept != kept else ""
    )
    found = f"; read as {', '.join(encodings)}" if encodings else ""
    held = f"{tally.written['held_out']:,} held out"
    return f"transform: {dataset.name}: {kept:,} kept{merged}, {held}{left}{dropped}{found}"


def warn_of_uniform(recipe: Recipe, folder: Folder) -> None:
    """Say which datasets are trained on and cannot teach anything, because all of their rows have the same answer."""
    for dataset in recipe.trained_datasets:
        if column := ANSWER.get(dataset.task):
            values = _some_values(folder / "examples" / dataset.task / dataset.name, column)
            if len(values) == 1:
                [value] = values
                # a log that is collected holds nothing of the data
                same = "same" if as_json() else repr(value)
                log_event(
                    f"transform: {dataset.name}: WARNING: all rows have the {column} {same}, so nothing can be "
                    "learned from them. Check 'columns' and 'labels', or take the dataset out",
                    "uniform_dataset",
                    level="warning",
                    dataset=dataset.name,
                )


def _some_values(folder: Folder, column: str) -> set[Any]:
    """Different values of a column of a folder's files; two of them suffice."""
    found: set[Any] = set()
    for name in folder.files(".parquet"):
        found |= set(read_table(folder, name, [column])[column].unique().to_pylist())
        if len(found) > 1:
            break
    return found


def refuse_bad_datasets(recipe: Recipe, tallies: Mapping[str, Tally]) -> None:
    """Stop where a dataset is empty, leaves nothing to train on, or loses more rows than it may.

    Raises:
        DataError: With the five commonest reasons and an example of each, for each such dataset.
    """
    problems = [found for one in recipe.datasets if (found := _problem(one, tallies[one.name]))]
    if problems:
        raise DataError("\n".join(problems))


def _problem(dataset: Dataset, tally: Tally) -> str:
    """What is wrong with a dataset, for a person; an empty string if nothing is."""
    if not tally.read:
        return f"dataset '{dataset.name}' is empty: its files hold no rows. Check 'paths' or 'packages'."
    nothing = not tally.kept and not (tally.held_out and dataset.eval_fraction == 1.0)
    fraction = tally.dropped_rows / tally.read
    if not nothing and fraction <= dataset.max_dropped_fraction:
        return ""
    problem = (
        f"none of its {tally.read:,} rows can be trained on ({tally.held_out:,} are held out)"
        if nothing
        else f"{tally.dropped_rows:,} of its {tally.read:,} rows ({fraction:.1%}) are dropped, and "
        f"max_dropped_fraction is {dataset.max_dropped_fraction:g}"
    )
    lines = [
        f"dataset '{dataset.name}': {problem}. The commonest reasons, with an example each:",
        *_reason_lines(tally),
        f"{_advice(dataset, tally)} Refused rows are in transform/dropped.",
    ]
    return "\n".join(lines)


def _advice(dataset: Dataset, tally: Tally) -> str:
    commonest = next((reason for reason, _ in tally.dropped.most_common(1)), "")
    if commonest in {"duplicate", "near_duplicate"}:
        return (
            "Its rows stand in the recipe already, in this dataset or in one that is named before it: take one of the "
            "two out, or name this one first."
        )
    if commonest in {"in_held_out", "contaminated"}:
        return (
            "Its texts are held out for evaluation: set allow_overlap if these are official splits that share "
            "texts, hold out less (eval_fraction), or take the dataset out."
        )
    return (
        f"Look at rule ('{dataset.rule}'), columns ({columns_of(dataset)}), min_positive_chars "
        f"({dataset.min_positive_chars}), max_dropped_fraction ({dataset.max_dropped_fraction:g}) and "
        f"eval_fraction ({dataset.eval_fraction}) of this dataset."
    )


def write_report(
    folder: Folder,
    recipe: Recipe,
    tallies: Mapping[str, Tally],
    encodings: Mapping[str, Mapping[str, int]],
    overlaps: Mapping[str, Overlap],
    kept_of: int,
) -> None:
    """Write ``report.json`` and ``lengths.svg`` into the stage's folder.

    Args:
        folder: Of the stage.
        recipe: Of the run.
        tallies: Dataset -> counts.
        encodings: Dataset -> encoding that was detected -> files.
        overlaps: Dataset -> what it shares with evaluation tasks.
        kept_of: One in how many n-grams of the evaluation was kept.
    """
    datasets = {
        dataset.name: {
            "task": dataset.task,
            "rule": dataset.rule,
            "encodings": encodings[dataset.name],
            **tallies[dataset.name].plain(),
        }
        for dataset in recipe.datasets
    }
    settings = recipe.transform.contamination
    folder.write_json(
        REPORT,
        {
            "datasets": datasets,
            "contamination": {
                "action": settings.action,
                "ngram_words": settings.ngram_words,
                "ngram_chars": settings.ngram_chars,
                "one_ngram_kept_of": kept_of,
                "overlaps": overlap_rows(overlaps),
            },
        },
    )
    folder.write_bytes(PICTURE, lengths_picture(tallies).encode())


def overlap_rows(overlaps: Mapping[str, Overlap]) -> list[dict[str, Any]]:
    """One row per training set and evaluation task that share something, the largest share first."""
    rows = [
        {
            "dataset": name,
            "task": task,
            "examples": count,
            "copied": overlap.copied.get(task, 0),
            "asked": overlap.asked.get(task, 0),
            "compared": overlap.compared,
            "percent": round(100 * count / overlap.compared, 3),
            "shown": overlap.examples.get(task, []),
        }
        for name, overlap in overlaps.items()
        for task, count in overlap.tasks.items()
        if count
    ]
    return sorted(rows, key=lambda row: (-row["percent"], row["dataset"], row["task"]))


def lengths_picture(tallies: Mapping[str, Tally]) -> str:
    """Histograms of text lengths, one panel a dataset, as SVG."""
    from matplotlib.figure import Figure

    names = [name for name, tally in tallies.items() if tally.lengths]
    rows = max(1, -(-len(names) // PANELS_A_ROW))
    columns = min(PANELS_A_ROW, max(1, len(names)))
    figure = Figure(figsize=(2.6 * columns + 0.4, 1.9 * rows + 0.4))
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, columns, number)
        for field, counts in tallies[name].lengths.items():
            powers = sorted(map(int, counts))
            xs = [2**power for power in range(powers[0].bit_length() - 1, powers[-1].bit_length())]
            total = counts.total()
            shares = [100 * counts[str(x)] / total for x in xs]
            axes.plot(xs, shares, marker=".", color=COLOURS[field], label=field, linewidth=1.2)
        axes.set_xscale("log", base=2)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=6)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=6, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        if number > len(names) - columns:
            axes.set_xlabel("characters, up to", fontsize=7)
        if number % columns == 1 or columns == 1:
            axes.set_ylabel("% of texts", fontsize=7)
    return svg(figure, "lengths")


def _reason_lines(tally: Tally) -> Sequence[str]:
    lines = []
    for reason, rows in tally.dropped.most_common(COMMONEST):
        detail, record = next(iter(tally.examples.get(reason, [])), ("", ""))
        # a log that is collected holds none
        example = "" if as_json() else f": {detail} | {record[:160]}"
        lines.append(f"    {rows:,} {reason}{example}")
    return lines
