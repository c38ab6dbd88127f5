"""Which rule and columns rows suggest: by names that data sets use, and by what the cells hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qzhou.cli.init.samples import NotUnderstood
from qzhou.config.dataset import Rule
from qzhou.transform.reading.columns import Row, as_text

# Normalised names of columns, the likeliest first.
NAMES: Mapping[str, tuple[str, ...]] = {
    "query": (
        "query", "question", "qtext", "questiontext", "querytext", "anchor", "prompt", "instruction", "input", "search",
        "utterance", "problem", "问题", "frage",
    ),
    "positive": (
        "positive", "pos", "positives", "answer", "answers", "response", "reply", "output", "completion", "atext",
        "passage", "document", "doc", "solution", "acceptedanswer", "回答", "答案", "antwort",
    ),
    "negative": ("negative", "neg", "negatives", "hardnegative", "hardnegatives"),
    "title": ("title", "headline", "subject", "heading", "topic", "标题"),
    "body": ("body", "text", "content", "abstract", "description", "article", "passage", "document", "summary"),
    "label": (
        "label", "labeldesc", "labeltext", "category", "class", "intent", "target", "tag", "sentiment", "goldlabel",
        "entailmentjudgment", "relevance", "grade", "标签",
    ),
    "score": ("score", "similarity", "relatedness", "relatednessscore", "similarityscore", "sim"),
    "text": ("text", "sentence", "review", "comment", "content", "utterance", "query", "question", "tweet", "message"),
    "claim": ("claim",),
}  # fmt: skip
SIDES = (
    ("sentence1", "sentence2"), ("texta", "textb"), ("premise", "hypothesis"), ("sentencea", "sentenceb"),
    ("question1", "question2"), ("text1", "text2"), ("s1", "s2"), ("q1", "q2"), ("left", "right"),
)  # fmt: skip
NLI = {"entailment", "neutral", "contradiction"}
IDS = re.compile(r"(^|_|-)(id|idx|index|uuid|guid)$|^(id|idx|index)", re.IGNORECASE)
LABEL_CHARS, LABEL_WORDS = 60, 4  # at the most; and on average
ALIKE = 2.5  # two texts of a pair are of similar length: the mean of one is at most so many times the other's
DOCUMENT_CHARS = 200  # on average; a column of such texts is one of documents


@dataclass(frozen=True, slots=True)
class Shape:
    """What rows become.

    Attributes:
        rule: Of the dataset.
        columns: Field of the rule -> column.
        more: Further keys of the dataset.
        why: What speaks for it.
    """

    rule: Rule
    columns: Mapping[str, str]
    more: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """What the cells of a column hold."""

    name: str
    key: str  # the name without case, blanks and marks
    cells: Sequence[Any]

    @property
    def texts(self) -> list[str]:
        """The cells that are not blank."""
        return [
            text for cell in self.cells if not isinstance(cell, list | dict) and (text := as_text(cell).strip())
        ]

    @property
    def mean_chars(self) -> float:
        """Of the cells that are not blank."""
        return sum(map(len, self.texts)) / max(1, len(self.texts))

    @property
    def distinct(self) -> int:
        """How many different cells there are."""
        return len(set(self.texts))

    @property
    def is_number(self) -> bool:
        """Whether every cell that is not blank is a number."""
        return bool(self.texts) and all(re.fullmatch(r"-?\d+(\.\d+)?", text) for text in self.texts)

    @property
    def has_letters(self) -> bool:
        """Whether most cells hold letters of any script."""
        found = self.texts
        return sum(any(map(str.isalpha, text)) for text in found) > 0.8 * len(found)

    @property
    def is_text(self) -> bool:
        """Whether it holds sentences or names, and neither numbers nor a few labels."""
        return self.has_letters and not IDS.search(self.name) and self.distinct > 1 and not self.is_label

    @property
    def is_label(self) -> bool:
        """Whether few short values repeat; numbers are labels where they are whole."""
        found = self.texts
        if not 1 < self.distinct <= max(2, 0.35 * len(found)) or max(map(len, found)) > LABEL_CHARS:
            return False
        words = sum(len(text.split()) for text in found) / len(found)
        return words <= LABEL_WORDS and not (self.is_number and any("." in text for text in found))

    @property
    def is_list(self) -> bool:
        """Whether the cells are lists of texts."""
        return any(isinstance(cell, list) and cell and isinstance(cell[0], str) for cell in self.cells)


def shape_of(rows: Sequence[Row], given: Mapping[str, str]) -> Shape:
    """The rule and the columns of some rows.

    Args:
        rows: The first ones.
        given: Field -> column, as a person has named them; they come before any guess.

    Raises:
        NotUnderstood: Nothing fits; the message names the columns.
    """
    table = _Table(rows, given)
    for guess in GUESSES:
        found = guess(table)
        if found is not None:
            return found
    shown = ", ".join(f"{one.name} ({_kind(one)})" for one in table.columns)
    raise NotUnderstood(
        f"its columns ({shown}) are those of no rule that can be told from names and cells; name them: --query COLUMN "
        "--positive COLUMN, or --text COLUMN --label COLUMN"
    )


class _Table:
    """Some rows by columns."""

    def __init__(self, rows: Sequence[Row], given: Mapping[str, str]) -> None:
        names = list(dict.fromkeys(name for row in rows for name in row))
        self.columns = [
            Column(name, re.sub(r"[\W_]", "", name.lower()), [row.get(name) for row in rows]) for name in names
        ]
        self.given = given
        unknown = [name for name in given.values() if name not in names]
        if unknown:
            raise NotUnderstood(f"there is no column '{unknown[0]}'; there are {', '.join(names)}")

    def named(self, field: str, suits: Callable[[Column], bool] = lambda _: True) -> Column | None:
        """The column of a field: as given, or the likeliest name that suits."""
        if field in self.given:
            return next(one for one in self.columns if one.name == self.given[field])
        for name in NAMES[field]:
            for one in self.columns:
                if one.key == name and one.name not in self.given.values() and suits(one):
                    return one
        return None

    @property
    def sides(self) -> tuple[Column, Column] | None:
        """The two texts of a pair by their names; where columns have only numbers, the only two texts."""
        by_key = {one.key: one for one in self.columns}
        for left, right in SIDES:
            if left in by_key and right in by_key:
                return by_key[left], by_key[right]
        texts = self.texts
        if self.is_unnamed and len(texts) == 2:
            return texts[0], texts[1]
        return None

    @property
    def texts(self) -> list[Column]:
        """The columns of texts."""
        return [one for one in self.columns if one.is_text]

    @property
    def is_unnamed(self) -> bool:
        """Whether columns are numbered only."""
        return all(one.name.isdigit() for one in self.columns)


def _chat(table: _Table) -> Shape | None:
    for one in table.columns:
        turns = [cell for cell in one.cells if isinstance(cell, list) and cell and isinstance(cell[0], dict)]
        if turns and {"role", "content"} <= set(turns[0][0]) | (
            {"role", "content"} if "from" in turns[0][0] else set()
        ):
            return Shape("chat", {"messages": one.name}, why=f"'{one.name}' holds turns of conversations")
    return None


def _comprehension(table: _Table) -> Shape | None:
    by_key = {one.key: one for one in table.columns}
    if {"question", "context", "answers"} <= by_key.keys() and any(
        isinstance(cell, list | dict) for cell in by_key["answers"].cells
    ):
        columns = {"question": by_key["question"].name, "context": by_key["context"].name}
        return Shape("reading_comprehension", columns, {"split_by": columns["context"]}, "SQuAD's columns")
    return None


def _claims(table: _Table) -> Shape | None:
    claim = table.named("claim")
    if claim is None:
        return None
    for one in table.columns:
        lists = [cell for cell in one.cells if isinstance(cell, list) and cell and isinstance(cell[0], dict)]
        if lists:
            keys = list(lists[0][0])
            text = next((key for key in keys if key in {"evidence", "text", "sentence"}), None)
            label = next((key for key in keys if "label" in key), None)
            if text and label:
                columns = {
                    "claim": claim.name,
                    "evidence": f"{one.name}[].{text}",
                    "label": f"{one.name}[].{label}",
                }
                return Shape("claim_evidence", columns, why=f"'{one.name}' holds labelled evidence")
    return None


def _negatives(table: _Table) -> Shape | None:
    query, positive, negative = (table.named(name) for name in ("query", "positive", "negative"))
    if query and positive and negative:
        columns = {"query": query.name, "positive": positive.name, "negative": negative.name}
        return Shape("triplets", columns, why="query, positive and negative by their names")
    return None


def _pairs(table: _Table) -> Shape | None:
    if table.sides is None:
        return None
    left, right = table.sides
    columns = {"text_a": left.name, "text_b": right.name}
    others = [one for one in table.columns if one not in (left, right)]
    score = table.named("score", lambda one: one.is_number)
    labels = [one for one in others if one.texts and {text.lower() for text in one.texts} - {"-"} <= NLI]
    numbers = [one for one in others if one.is_number and not IDS.search(one.name)]
    if score is None and labels:
        return Shape(
            "nli", {**columns, "label": labels[0].name}, why=f"'{labels[0].name}' holds entailment and others"
        )
    number = score or table.named("label", lambda one: one.is_number) or (numbers[0] if len(numbers) == 1 else None)
    if number is None:
        two = next((one for one in others if one.distinct == 2 and one.is_label), None)
        return _two_labels(columns, two) if two else None
    lengths = sorted((left.mean_chars, right.mean_chars))
    if (
        score is None
        and table.is_unnamed
        and number.distinct > 2
        and number.is_label
        and lengths[1] > ALIKE * lengths[0]
    ):
        return None  # numbers of classes, beside a title and a text
    if set(number.texts) <= {"0", "1"}:
        rule: Rule = "duplicate_questions" if left.key == "question1" else "binary_pair"
        return Shape(rule, {**columns, "label": number.name}, why=f"'{number.name}' is 0 or 1")
    return Shape(
        "scored_pair", {**columns, "score": number.name}, why=f"'{number.name}' is a number beside two texts"
    )


def _two_labels(columns: Mapping[str, str], label: Column) -> Shape | None:
    """Two texts that belong together or do not, where one label is the other's negation."""
    values = sorted(set(label.texts), key=len)
    if values[0] not in values[1]:
        return None
    labels = {values[0]: "1", values[1]: "0"}
    return Shape(
        "binary_pair", {**columns, "label": label.name}, {"labels": labels}, f"'{values[1]}' negates '{values[0]}'"
    )


def _graded(table: _Table) -> Shape | None:
    query = table.named("query", lambda one: one.has_letters)  # a log asks the same many times
    document = table.named("positive", lambda one: one.is_text) or table.named("title", lambda one: one.is_text)
    grade = table.named("label", lambda one: one.is_number and one.distinct <= 11)
    if query and document and grade and "positive" not in table.given:
        columns = {"query": query.name, "document": document.name, "grade": grade.name}
        return Shape("graded", columns, why=f"'{grade.name}' grades documents of a query")
    return None


def _answers(table: _Table) -> Shape | None:
    query, positive = table.named("query", lambda one: one.is_text), table.named("positive")
    if query and positive and query is not positive:
        return Shape(
            "question_answer", {"query": query.name, "positive": positive.name}, why="a query and its answer"
        )
    return None


def _labels(table: _Table) -> Shape | None:
    label = table.named("label", lambda one: one.is_label)
    if label is None and (table.is_unnamed or len(table.columns) == 2):
        label = next((one for one in table.columns if one.is_label), None)
    texts = [one for one in table.texts if one is not label]
    text = table.named("text", lambda one: one in texts) or (
        max(texts, key=lambda one: one.mean_chars) if texts else None
    )
    if label and text:
        return Shape(
            "labeled", {"text": text.name, "label": label.name}, why=f"'{label.name}' has {label.distinct} values"
        )
    return None


def _titles(table: _Table) -> Shape | None:
    title = table.named("title", lambda one: one.is_text)
    body = table.named("body", lambda one: one.is_text and one is not title)
    if title is None and table.is_unnamed and len(table.texts) == 2:
        title, body = sorted(table.texts, key=lambda one: one.mean_chars)
    if title and body:
        return Shape("title_body", {"query": title.name, "positive": body.name}, why="a title and its text")
    return None


def _documents(table: _Table) -> Shape | None:
    texts = sorted(table.texts, key=lambda one: -one.mean_chars)
    text = table.named("body", lambda one: one.is_text) or (texts[0] if texts else None)
    if text and text.mean_chars >= DOCUMENT_CHARS:
        return Shape(
            "documents", {"text": text.name}, why=f"'{text.name}' holds texts of {text.mean_chars:,.0f} characters"
        )
    return None


GUESSES: Sequence[Callable[[_Table], Shape | None]] = (
    _chat, _comprehension, _claims, _negatives, _pairs, _graded, _answers, _labels, _titles, _documents,
)  # fmt: skip


def _kind(column: Column) -> str:
    if column.is_list:
        return "lists"
    if column.is_number:
        return "numbers"
    counted = Counter(type(cell).__name__ for cell in column.cells)
    return "labels" if column.is_label else "texts" if column.texts else counted.most_common(1)[0][0]
