"""Which rule and columns rows suggest: by names that data sets use, and by what the cells hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from qzhou.cli.init.samples import NotUnderstood
from qzhou.config.dataset import Rule
from qzhou.transform.reading.columns import Row, as_text

# Normalised names of columns, the likeliest first.
NAMES: Mapping[str, tuple[str, ...]] = {
    "query": (
        "query", "question", "q", "qtext", "anchor", "prompt", "instruction", "input", "search", "utterance", "problem",
        "问题", "質問", "frage", "demande", "pregunta", "domanda",
    ),
    "positive": (
        "positive", "pos", "answer", "response", "reply", "output", "completion", "atext", "chosen", "passage",
        "document", "doc", "solution", "acceptedanswer", "context", "回答", "答案", "antwort", "réponse", "respuesta",
        "risposta",
    ),
    "negative": ("negative", "neg", "hardnegative", "rejected"),
    "title": ("title", "headline", "subject", "heading", "标题", "betreff"),
    "body": ("body", "text", "content", "abstract", "description", "article", "passage", "document"),
    "label": (
        "label", "labeldesc", "category", "class", "intent", "target", "tag", "sentiment", "goldlabel", "rating",
        "stars", "entailmentjudgment", "topic", "标签",
    ),
    "grade": (
        "label", "grade", "relevance", "relevant", "isrelevant", "clicked", "correct", "iscorrect", "isselected",
        "score", "rating",
    ),
    "score": ("score", "similarity", "relatedness", "relatednessscore", "similarityscore", "sim", "label"),
    "text": ("text", "sentence", "review", "comment", "content", "utterance", "query", "question", "tweet", "message"),
    "claim": ("claim",),
}  # fmt: skip
ENDINGS = re.compile(r"(text|s)$")  # "questions", "question_text"
SIDES = (
    ("sentence1", "sentence2"), ("texta", "textb"), ("premise", "hypothesis"), ("sentencea", "sentenceb"),
    ("question1", "question2"), ("text1", "text2"), ("s1", "s2"), ("q1", "q2"), ("left", "right"),
)  # fmt: skip
NLI = {"entailment", "neutral", "contradiction"}
IDS = re.compile(r"(^|[_-]|[a-z])(id|idx|index|uuid|guid)s?\d*$|^(id|idx|index)[_-]?|^$|^unnamed", re.IGNORECASE)
CODE = re.compile(r"[!-~]{0,30}\d[!-~]{0,30}")  # what an identifier looks like
LABEL_CHARS, LABEL_WORDS = 60, 4  # at the most; and on average
MOST_GRADES = 11
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


@dataclass(frozen=True)
class Column:
    """What the cells of a column hold."""

    name: str
    key: str  # the name without case, blanks and marks
    cells: Sequence[Any]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The name as it is compared, without an ending, and its first word: "Question (customer)"."""
        first = re.split(r"[\W_]+", self.name.lower().strip())[0]
        return self.key, ENDINGS.sub("", self.key), first, ENDINGS.sub("", first)

    @cached_property
    def texts(self) -> list[str]:
        """The cells that are not blank."""
        return [
            text for cell in self.cells if not isinstance(cell, list | dict) and (text := as_text(cell).strip())
        ]

    @cached_property
    def mean_chars(self) -> float:
        """Of the cells that are not blank."""
        return sum(map(len, self.texts)) / max(1, len(self.texts))

    @cached_property
    def distinct(self) -> int:
        """How many different cells there are."""
        return len(set(self.texts))

    @cached_property
    def is_number(self) -> bool:
        """Whether every cell that is not blank is a number."""
        return bool(self.texts) and all(re.fullmatch(r"-?\d+(\.\d+)?", text) for text in self.texts)

    @cached_property
    def is_measure(self) -> bool:
        """Whether every cell that is not blank is a number with either decimal mark, as scores and grades are.

        Raises:
            NotUnderstood: The mark may be one of thousands.
        """
        if self.is_number:
            return True
        found = [re.fullmatch(r"-?\d+(?:,(\d+))?", text) for text in self.texts]
        decimals = [one[1] for one in found if one and one[1]]
        if not decimals or not all(found):
            return False
        if all(len(one) == 3 for one in decimals):
            cell = next(text for text in self.texts if "," in text)
            raise NotUnderstood(
                f"'{cell}' of '{self.name}' may be a number of thousands or have a decimal comma: write it without, or "
                'say decimal = "," in a recipe'
            )
        return True

    @property
    def decimal(self) -> Mapping[str, str]:
        """The setting that reads its numbers, where it is not the usual one."""
        return {} if self.is_number or not self.is_measure else {"decimal": ","}

    @cached_property
    def has_letters(self) -> bool:
        """Whether most cells hold letters of any script, and are no identifiers."""
        found = self.texts
        letters = sum(any(map(str.isalpha, text)) for text in found)
        codes = sum(CODE.fullmatch(text) is not None for text in found)
        return letters > 0.8 * len(found) and codes < 0.8 * len(found)

    @cached_property
    def is_text(self) -> bool:
        """Whether it holds sentences or names, and neither numbers nor a few labels."""
        return self.has_letters and not self.is_id and self.distinct > 1 and not self.is_label

    @cached_property
    def is_id(self) -> bool:
        """Whether its name says that it holds identifiers, or it has none, or its numbers count the rows."""
        counts = (
            self.is_number and self.distinct == len(self.texts) > 2 and all("." not in one for one in self.texts)
        )
        return IDS.search(self.name) is not None or counts

    @cached_property
    def is_label(self) -> bool:
        """Whether few short values repeat; numbers are labels where they are whole."""
        found = self.texts
        if not 1 < self.distinct <= max(2, 0.35 * len(found)) or max(map(len, found)) > LABEL_CHARS:
            return False
        words = sum(len(text.split()) for text in found) / len(found)
        is_broken = self.is_number and any(float(text) % 1 for text in found)
        return words <= LABEL_WORDS and not is_broken

    @cached_property
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
            used = " ".join(found.columns.values())
            left = [one.name for one in table.columns if one.name not in used]
            return replace(found, why=found.why + (f"; columns left out: {', '.join(left)}" if left else ""))
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
        self.columns = [one for one in self.columns if one.name and not one.name.startswith("Unnamed")]
        unknown = [name for name in given.values() if name not in names]
        if unknown:
            raise NotUnderstood(f"there is no column '{unknown[0]}'; there are {', '.join(names)}")

    def named(self, field: str, suits: Callable[[Column], bool] = lambda one: not one.is_id) -> Column | None:
        """The column of a field: as given, or the likeliest name that suits, the whole name before a part of it."""
        if field in self.given:
            return next(one for one in self.columns if one.name == self.given[field])
        free = [one for one in self.columns if one.name not in self.given.values() and suits(one)]
        for name in NAMES[field]:
            exact = [one for one in free if one.key == name]
            alike = [one for one in free if name in one.keys]
            if found := exact or alike:
                return found[0]
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
        if turns and ({"role", "content"} <= turns[0][0].keys() or "from" in turns[0][0]):
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
    query, positive, negative = (
        table.named(name, lambda one: one.is_list or (one.has_letters and not one.is_id))
        for name in ("query", "positive", "negative")
    )
    if query and positive and negative:
        columns = {"query": query.name, "positive": positive.name, "negative": negative.name}
        return Shape("triplets", columns, why="query, positive and negative by their names")
    return None


def _pairs(table: _Table) -> Shape | None:
    if table.sides is None:
        return None
    left, right = table.sides
    columns = {"text_a": left.name, "text_b": right.name}
    others = [one for one in table.columns if one not in (left, right) and not one.is_id]
    score = table.named("score", lambda one: not one.is_id and one.is_measure)
    labels = [one for one in others if one.texts and {text.lower() for text in one.texts} - {"-"} <= NLI]
    if labels and (score is None or score.distinct <= 3):
        return Shape(
            "nli", {**columns, "label": labels[0].name}, why=f"'{labels[0].name}' holds entailment and others"
        )
    numbers = [one for one in others if one.is_number]
    if score is None and numbers and (table.is_unnamed or left.key == "question1"):
        score = numbers[0] if len(numbers) == 1 else None
    if score is None:
        two = next((one for one in others if one.distinct == 2 and one.is_label and not one.is_number), None)
        return _two_labels(columns, two) if two else None
    return _scored(table, (left, right), score)


def _scored(table: _Table, sides: tuple[Column, Column], score: Column) -> Shape | None:
    """Two texts and a number: what it counts is told by its values."""
    left, right = sides
    columns = {"text_a": left.name, "text_b": right.name}
    values = set(score.texts)
    if values <= {"0", "1"}:
        rule: Rule = "duplicate_questions" if left.key == "question1" else "binary_pair"
        return Shape(rule, {**columns, "label": score.name}, why=f"'{score.name}' is 0 or 1")
    if values <= {"-1", "0", "1", "2"} and "label" in score.key:
        if left.key != "premise":
            return None  # classes of whatever kind
        return Shape("nli", {**columns, "label": score.name}, why=f"'{score.name}' is 0, 1 or 2 beside a premise")
    lengths = sorted((left.mean_chars, right.mean_chars))
    if table.is_unnamed and score.is_label and lengths[1] > ALIKE * lengths[0]:
        return None  # numbers of classes, beside a title and a text
    why = f"'{score.name}' is a number beside two texts"
    return Shape("scored_pair", {**columns, "score": score.name}, score.decimal, why)


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
    grade = table.named("grade", lambda one: one.is_measure)
    if not (query and document and grade) or query is document:
        return None
    if grade.distinct > MOST_GRADES:
        raise NotUnderstood(
            f"'{grade.name}' may grade the texts of '{document.name}': say in a recipe from which value on they are "
            "answers (rule graded, positive_grade, negative_grade)"
        )
    columns = {"query": query.name, "document": document.name, "grade": grade.name}
    return Shape("graded", columns, grade.decimal, f"'{grade.name}' grades documents of a query")


def _answers(table: _Table) -> Shape | None:
    query = table.named("query", lambda one: one.is_text)
    positive = table.named("positive", lambda one: (one.is_text or one.is_list) and one is not query)
    if query and positive:
        return Shape(
            "question_answer", {"query": query.name, "positive": positive.name}, why="a query and its answer"
        )
    return None


def _given(table: _Table) -> Shape | None:
    """What a person has named, if that is a whole shape."""
    given = table.given
    if {"query", "positive"} <= given.keys():
        if given["query"] == given["positive"]:
            raise NotUnderstood(f"--query and --positive both name '{given['query']}'")
        if "label" in given:
            columns = {"query": given["query"], "document": given["positive"], "grade": given["label"]}
            grade = next((one for one in table.columns if one.name == given["label"]), None)
            return Shape("graded", columns, grade.decimal if grade else {}, "as you say")
        return Shape("question_answer", {name: given[name] for name in ("query", "positive")}, why="as you say")
    if {"text", "label"} <= given.keys():
        return Shape("labeled", {name: given[name] for name in ("text", "label")}, why="as you say")
    return None


def _labels(table: _Table) -> Shape | None:
    label = table.named("label", lambda one: one.is_label)
    if label is None and (table.is_unnamed or len(table.columns) == 2):
        label = next((one for one in table.columns if one.is_label and one.key not in NAMES["positive"]), None)
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
    texts = [one for one in table.texts if one.key not in NAMES["title"]]
    text = texts[0] if len(texts) == 1 else None  # of two, one may ask for the other
    if text and text.mean_chars >= DOCUMENT_CHARS:
        return Shape(
            "documents", {"text": text.name}, why=f"'{text.name}' holds texts of {text.mean_chars:,.0f} characters"
        )
    return None


GUESSES: Sequence[Callable[[_Table], Shape | None]] = (
    _given, _chat, _comprehension, _claims, _negatives, _pairs, _graded, _answers, _labels, _titles, _documents,
)  # fmt: skip


def _kind(column: Column) -> str:
    if column.is_list:
        return "lists"
    if column.is_number:
        return "numbers"
    counted = Counter(type(cell).__name__ for cell in column.cells)
    return "labels" if column.is_label else "texts" if column.texts else counted.most_common(1)[0][0]
