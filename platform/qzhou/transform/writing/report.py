"""The transform report: counts, drops, languages, lengths, overlaps, as JSON and lines."""

from collections.abc import Mapping
from typing import Any

from qzhou.config.dataset import Dataset
from qzhou.config.recipe import Recipe
from qzhou.data.overlap import Overlap, overlap_rows
from qzhou.data.storage import Folder, read_table
from qzhou.errors import DataError
from qzhou.telemetry.events import as_json, log_event
from qzhou.transform.rules.fields import columns_of
from qzhou.transform.writing.row_counts import RowCounts

REPORT = "report.json"
REASONS = 5  # that are named, the commonest first
LOSS_SHARE = 0.1  # of a dataset's rows; what takes more of them for one reason is said in words
ADVICE = {
    "duplicate": "An earlier row, perhaps of another dataset, has the same texts: take one of the two out, or set "
    "deduplicate = false. If only negatives differ, one dataset with both files in 'paths' merges them (merge_rows)",
    "near_duplicate": "An earlier row is nearly the same (transform.near_duplicates)",
    "in_held_out": "A text of theirs is held out for evaluation: set allow_overlap if these are official splits that "
    "share texts, hold out less (eval_fraction), or take the dataset out",
    "contaminated": "They share words with an evaluation task (transform.contamination)",
    "other_language": "They are in none of its languages ({dataset.languages})",
    "too_many_tokens": "They are longer than max_tokens ({dataset.max_tokens})",
    "short_query": "They are shorter than min_query_chars ({dataset.min_query_chars})",
    "short_text": "They are shorter than min_query_chars ({dataset.min_query_chars})",
    "short_positive": "They are shorter than min_positive_chars ({dataset.min_positive_chars})",
    "unknown_label": "'labels' translates raw labels",
    "not_single_turn": "With first_turn = true the first question and its answer are taken",
    "unanswerable": "Their answers are empty, so their passages are no answers (SQuAD 2)",
    "path_ends": "Look at 'records'",
    "several_labels": "Name one of them: columns.label = 'labels[0]'",
    "between_grades": "They lie between negative_grade ({dataset.negative_grade:g}) and positive_grade "
    "({dataset.positive_grade:g})",
    "no_positive": "None of their texts reaches positive_grade ({dataset.positive_grade:g})",
    "unknown_query": "Ids of qrels and queries must be the same ('columns')",
    "unknown_document": "Ids of qrels and corpus must be the same ('columns')",
    "undecodable": "They are not in its encoding ('{dataset.encoding}')",
    "not_csv": "Look at quote, delimiter and escape",
    "wrong_cell_count": "Look at delimiter, quote and max_columns",
    "not_json": "Look at the reader ('{dataset.reader}')",
}
UNKNOWN_REASON = "Look at columns and rule of the dataset, and at the rows in transform/dropped"
TARGET_COLUMNS = {"pair": "score", "classification": "label"}  # what training compares rows by


def summary_line(dataset: Dataset, counts: RowCounts, encodings: Mapping[str, int]) -> str:
    """One line for one dataset: where its rows went, and its files' detected encodings."""
    reasons = [f"{rows:,} {reason}" for reason, rows in counts.dropped.most_common(REASONS)]
    if len(counts.dropped) > REASONS:
        reasons.append("...")
    limit = "max_rows" if dataset.max_rows_per_label is None else "max_rows_per_label"
    end = f", {counts.sampled_out:,} beyond {limit}" if counts.sampled_out else ""
    end += f"; dropped {', '.join(reasons)}" if reasons else ""
    if dataset.rule == "documents":
        kept = f"{counts.kept:,} documents"
        kept += f", {counts.held_out:,} held out" if counts.held_out else ""
        return f"transform: {dataset.name}: {kept}{end}"
    examples = counts.written["examples"]
    kept = f"{examples:,} kept"
    if dataset.task == "retrieval" and counts.kept != examples:
        kept += f" from {counts.kept:,} rows"
    end += f"; read as {', '.join(encodings)}" if encodings else ""
    return f"transform: {dataset.name}: {kept}, {counts.written['held_out']:,} held out{end}"


def warn_of_losses(dataset: Dataset, counts: RowCounts, max_chars: int) -> None:
    """Say which reason takes a tenth of a dataset's rows or more, with the setting to change; and what was cut."""
    for reason, rows in counts.dropped.most_common():
        share = rows / counts.read
        if share >= LOSS_SHARE:
            line = (
                f"transform: {dataset.name}: WARNING: {share:.0%} of its rows are dropped as {reason}. "
                f"{_sentence(ADVICE.get(reason, UNKNOWN_REASON), dataset)}"
            )
            log_event(line, "rows_lost", level="warning", dataset=dataset.name, reason=reason, rows=rows)
    if counts.cut:
        line = f"transform: {dataset.name}: {counts.cut:,} texts were cut at transform.max_chars ({max_chars:,})"
        log_event(line, "texts_cut", level="warning", dataset=dataset.name, texts=counts.cut)


def _sentence(text: str, dataset: Dataset) -> str:
    return f"{text}.".format(dataset=dataset)


def warn_of_uniform(recipe: Recipe, folder: Folder) -> None:
    """Warn of datasets whose training rows all have the same label or score: nothing can be learned from them."""
    for dataset in recipe.trained_datasets:
        column = TARGET_COLUMNS.get(dataset.task)
        if column is None:
            continue
        values = _some_values(folder / "examples" / dataset.task / dataset.name, column)
        if len(values) == 1:
            # A log that is collected holds nothing of the data.
            same = "same" if as_json() else repr(values.pop())
            line = (
                f"transform: {dataset.name}: WARNING: all rows have the {column} {same}, so nothing can be "
                "learned from them, and training leaves them out. Check 'columns' and 'labels'"
            )
            log_event(line, "uniform_dataset", level="warning", dataset=dataset.name)


def refuse_bad_datasets(recipe: Recipe, counts: Mapping[str, RowCounts]) -> None:
    """Stop where a dataset is empty, leaves nothing to train on, or loses too many rows.

    Raises:
        DataError: For each such dataset, the five commonest reasons, each with an example.
    """
    problems = [_problem(dataset, counts[dataset.name]) for dataset in recipe.datasets]
    if any(problems):
        raise DataError("\n".join(filter(None, problems)))


def write_report(
    folder: Folder,
    recipe: Recipe,
    counts: Mapping[str, RowCounts],
    encodings: Mapping[str, Mapping[str, int]],
    overlaps: Mapping[str, Overlap],
    kept_of: int,
) -> None:
    """Write ``report.json`` into the stage's folder.

    ``counts``, ``encodings`` and ``overlaps`` are by dataset; one in ``kept_of`` n-grams of
    the evaluation was kept.
    """
    datasets = {}
    for dataset in recipe.datasets:
        kind = {"task": dataset.task, "rule": dataset.rule, "encodings": encodings[dataset.name]}
        datasets[dataset.name] = kind | counts[dataset.name].plain()
    settings = recipe.transform.contamination
    contamination = {
        "action": settings.action,
        "ngram_words": settings.ngram_words,
        "ngram_chars": settings.ngram_chars,
        "one_ngram_kept_of": kept_of,
        "overlaps": overlap_rows(overlaps),
    }
    folder.write_json(REPORT, {"datasets": datasets, "contamination": contamination})


def _some_values(folder: Folder, column: str) -> set[Any]:
    """Different values of a column of a folder's files; two of them suffice."""
    found: set[Any] = set()
    for name in folder.files(".parquet"):
        found |= set(read_table(folder, name, [column])[column].unique().to_pylist())
        if len(found) > 1:
            break
    return found


def _problem(dataset: Dataset, counts: RowCounts) -> str:
    """What is wrong with a dataset, for a person; an empty string if nothing is."""
    if not counts.read:
        return f"dataset '{dataset.name}' is empty: its files hold no rows. Check 'paths'."
    fraction = counts.dropped_rows / counts.read
    if not counts.kept and not (counts.held_out and dataset.eval_fraction == 1.0):
        problem = f"none of its {counts.read:,} rows can be trained on ({counts.held_out:,} are held out)"
    elif fraction > dataset.max_dropped_fraction:
        problem = (
            f"{counts.dropped_rows:,} of its {counts.read:,} rows ({fraction:.1%}) are dropped, and "
            f"max_dropped_fraction is {dataset.max_dropped_fraction:g}"
        )
    else:
        return ""
    lines = [
        f"dataset '{dataset.name}': {problem}. The commonest reasons, with an example each:",
        *_reason_lines(counts),
        f"{_advice(dataset, counts)} Refused rows are in transform/dropped.",
    ]
    return "\n".join(lines)


def _reason_lines(counts: RowCounts) -> list[str]:
    lines = []
    for reason, rows in counts.dropped.most_common(REASONS):
        line = f"    {rows:,} {reason}"
        if not as_json():  # a log that is collected holds nothing of the data
            detail, record = next(iter(counts.examples.get(reason, [])), ("", ""))
            line += f": {detail} | {record[:160]}"
        lines.append(line)
    return lines


def _advice(dataset: Dataset, counts: RowCounts) -> str:
    commonest = next((reason for reason, _ in counts.dropped.most_common(1)), "")
    if commonest in ADVICE:
        return _sentence(ADVICE[commonest], dataset)
    return (
        f"Look at rule ('{dataset.rule}'), columns ({columns_of(dataset)}), min_positive_chars "
        f"({dataset.min_positive_chars}), max_dropped_fraction ({dataset.max_dropped_fraction:g}) and "
        f"eval_fraction ({dataset.eval_fraction}) of this dataset."
    )
