"""The fields of a rule, read from raw rows: cleaned texts, numbers, labels."""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qzhou.config.dataset import Dataset, Rule
from qzhou.data.cleaning import clean_text, cut
from qzhou.data.records import Drop
from qzhou.errors import RecipeError
from qzhou.transform.reading.columns import Getter, Row, as_text, getter
from qzhou.transform.rules.repairs import repaired

_PAIR = {"text_a": "text_a", "text_b": "text_b"}

DEFAULT_COLUMNS: Mapping[Rule, Mapping[str, str]] = {
    "title_body": {"query": "title", "positive": "body"},
    "question_answer": {"query": "question", "positive": "answer"},
    "chat": {"messages": "messages"},
    "reading_comprehension": {"question": "question", "context": "context", "answer": "answers[].text"},
    "claim_evidence": {"claim": "claim", "evidence": "evidence", "label": "label"},
    "qrels": {"query_id": "query-id", "document_id": "corpus-id", "grade": "score"},
    "triplets": {"query": "query", "positive": "pos", "negative": "neg"},
    "graded": {"query": "query", "document": "document", "grade": "grade"},
    "duplicate_questions": {**_PAIR, "label": "label"},
    "documents": {"text": "text"},
    "scored_pair": {**_PAIR, "score": "score"},
    "binary_pair": {**_PAIR, "label": "label"},
    "nli": {**_PAIR, "label": "label"},
    "labeled": {"text": "text", "label": "label"},
    "clustering": {"text": "text", "label": "label"},
}
OPTIONAL_FIELDS: Mapping[Rule, tuple[str, ...]] = {
    "title_body": ("negative", "instruction"),
    "question_answer": ("negative", "instruction"),
    "chat": ("instruction",),
    "reading_comprehension": ("instruction",),
    "qrels": ("negative_id",),
    "triplets": ("positive_score", "negative_score", "instruction"),
}
INPUT_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "corpus": {"id": "_id", "text": "{title}\n{text}"},
    "queries": {"id": "_id", "text": "text"},
}
WITH_NEGATIVES: tuple[Rule, ...] = ("title_body", "question_answer", "triplets")
# The field whose text brings rows together into one example.
GROUPED_BY: Mapping[Rule, str] = {"claim_evidence": "claim", "graded": "query", "duplicate_questions": "text_a"}

# A raw row is kept whole; this is for a line that is no row at all.
DROPPED_RECORD_CHARS = 1_000_000
DROPPED_DETAIL_CHARS = 500


def columns_of(dataset: Dataset) -> dict[str, str]:
    """Field of the dataset's rule -> column of its rows, defaults filled in.

    Raises:
        RecipeError: ``columns`` names a field that the rule does not have.
    """
    defaults = DEFAULT_COLUMNS[dataset.rule]
    known = (*defaults, *OPTIONAL_FIELDS.get(dataset.rule, ()))
    return _columns(dataset.name, dataset.columns, defaults, known, f"the rule '{dataset.rule}'")


def has_negatives(dataset: Dataset) -> bool:
    """Whether its rows are a query with positives and negatives."""
    return dataset.rule in WITH_NEGATIVES and "negative" in columns_of(dataset)


def input_columns_of(dataset: Dataset, part: str) -> dict[str, str]:
    """The same for ``corpus`` and ``queries`` of a qrels dataset."""
    defaults = INPUT_COLUMNS[part]
    given = getattr(dataset, part).columns
    return _columns(f"{dataset.name}.{part}", given, defaults, tuple(defaults), f"'{part}'")


def _columns(
    place: str, given: Mapping[str, str], defaults: Mapping[str, str], known: tuple[str, ...], owner: str
) -> dict[str, str]:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise RecipeError(
            f"dataset '{place}': columns.{unknown[0]}: {owner} has no such field. Known: {', '.join(known)}"
        )
    columns = {**defaults, **given}
    for name, column in columns.items():
        try:
            getter(column)
        except RecipeError as error:
            raise RecipeError(f"dataset '{place}': columns.{name}: {error}") from None
    return columns


@dataclass(frozen=True)
class Fields:
    """How one dataset's rows are read; made once a task, used for every row."""

    dataset: Dataset
    max_chars: int
    cut: Counter[str] = field(default_factory=Counter)  # "texts": how many max_chars has cut

    @functools.cached_property
    def columns(self) -> Mapping[str, str]:
        """Field -> column."""
        return columns_of(self.dataset)

    @functools.cached_property
    def _getters(self) -> Mapping[str, Getter]:
        return {name: getter(column) for name, column in self.columns.items()}

    def has(self, name: str) -> bool:
        """Whether a field has a column."""
        return name in self._getters

    def raw(self, row: Row, name: str) -> Any:
        """The value of a field as it is in the row."""
        return self._getters[name](row)

    def text(self, row: Row, name: str) -> str:
        """The cleaned text of a field; an empty string where it holds none."""
        return self.clean(self._getters[name](row))

    def texts(self, row: Row, name: str) -> list[str]:
        """The distinct cleaned texts of a field that holds one text or a list of them."""
        value = self._getters[name](row)
        cells = value if isinstance(value, list | tuple) else [value]
        return [text for text in dict.fromkeys(self.clean(cell) for cell in cells) if text]

    def clean(self, value: Any) -> str:
        """The cleaned text of a cell; an empty string for what is no text."""
        text = clean_text(repaired(as_text(value), self.dataset.repairs))
        if len(text) <= self.max_chars:
            return text
        self.cut["texts"] += 1
        return cut(text, self.max_chars)

    def label(self, row: Row) -> str:
        """The raw label, as ``labels`` of the dataset translates it, in lower case."""
        value = self.raw(row, "label")
        plain = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        return self.dataset.labels.get(plain.strip(), plain).strip().casefold()

    def number(self, value: Any) -> float | None:
        """A finite number as the dataset writes it, or None."""
        return number(value, self.dataset.decimal)

    def blank(self, name: str, row: Row) -> Drop:
        """The drop of a row whose field is empty."""
        return self.drop(f"blank_{name}", self.empty(name), row)

    def empty(self, name: str) -> str:
        """The detail of such a drop."""
        return f"column '{self.columns.get(name, name)}' is empty"

    def short_text(self, text: str, row: Row) -> Drop:
        """The drop of a row with a text below ``min_query_chars``."""
        detail = f"{len(text)} characters; min_query_chars is {self.dataset.min_query_chars}"
        return self.drop("short_text", detail, row)

    def unknown_label(self, row: Row, known: Iterable[str]) -> Drop:
        """The drop of a row whose label is none of the known ones."""
        detail = f"label is {self.raw(row, 'label')!r}; known: {', '.join(known)}; 'labels' translates others"
        return self.drop("unknown_label", detail, row)

    def drop(self, reason: str, detail: str, content: object, *, part: bool = False) -> Drop:
        """The drop of a row, or of a part of one."""
        return drop(self.dataset.name, reason, detail, content, part=part)


def drop(dataset: str, reason: str, detail: str, content: object, *, part: bool = False) -> Drop:
    """A refused row, or any other content, as it is written to ``dropped/``."""
    shown = _printable(detail[:DROPPED_DETAIL_CHARS])
    return Drop(
        stage="transform", dataset=dataset, reason=reason, detail=shown, record=as_record(content), part=part
    )


_as_json = json.JSONEncoder(ensure_ascii=False, default=str).encode  # made once: it takes longer than a short row


def as_record(content: object) -> str:
    """What :class:`~qzhou.data.records.Drop` keeps of a row, as JSON, or of a text."""
    if not isinstance(content, str):
        content = _as_json(content)
    return _printable(content[:DROPPED_RECORD_CHARS])


def number(value: Any, decimal: str = ".") -> float | None:
    """A finite number, or None; ``decimal`` is the mark in a text, which holds no other."""
    if isinstance(value, str):
        if "_" in value or (decimal == "," and "." in value):
            return None  # Python's own spelling; a mark of thousands, perhaps
        value = value.replace(decimal, ".")
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _printable(text: str) -> str:
    """The text without lone surrogates, which UTF-8 cannot hold; drops must stop no run."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
