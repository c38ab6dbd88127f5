"""One rule per source shape: raw rows become an example, or drops with their reasons.

A rule is a pure function of the rows that make one example (one row, or all rows with the
same query, claim or question) and of :class:`Fields`. It returns the example, if there is
one, and a drop for every row, or part of a row, that the example does not hold: rows in =
rows of the example + rows dropped.

Source: QZhou-Embedding (arXiv:2508.21632), section 3.2.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qzhou.config.dataset import Rule
from qzhou.data.records import Drop, LabeledExample, RetrievalExample, stable_id
from qzhou.transform.reading.columns import Row, column_names
from qzhou.transform.rules.examples import YES_NO, GradedText, Outcome, Scored, by_grade, pair, retrieval
from qzhou.transform.rules.fields import Fields, number

RuleFunction = Callable[[Sequence[Row], Fields], list[Outcome]]

# GLUE's label order; the scores are the paper's.
NLI_SCORES = {"entailment": 2.0, "neutral": 1.0, "contradiction": 0.0, "0": 2.0, "1": 1.0, "2": 0.0}
SUPPORTS = {"supports", "support", "supported", "entailment", "true"}
REFUTES = {"refutes", "refute", "refuted", "contradict", "contradiction", "contradicts", "false"}
SPEAKERS = dict.fromkeys(("user", "human", "prompter"), "user")
SPEAKERS |= dict.fromkeys(("assistant", "gpt", "bot", "model"), "assistant")

# The older form of the report asks with the whole passage (its figure, in the official repository's history).
CONTEXT_IN_QUERY = "{context}\n<please read the text above and answer the question below:>\n{question}"


def query_positive(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """A query asks for its positives: a title for its body, a question for its answers, as given in triplets.

    ``negative``, where it has a column, holds texts that do not answer; those of several
    rows, which have query and positives in common, come together. Triplets may have a
    teacher's scores.
    """
    row = rows[0]
    query, positives = fields.text(row, "query"), _scored(row, fields, "positive")
    negatives = (
        [one for each in rows for one in _scored(each, fields, "negative")] if fields.has("negative") else []
    )
    found = retrieval(rows, fields, query, positives, negatives, ("query", "positive"))
    scores = [one.score for one in positives]
    for each in rows[1:]:
        others = _scored(each, fields, "positive")
        if sorted(others, key=str) != sorted(positives, key=str):
            detail = f"another row has the same query and positives; it came first, and its {scores} are kept"
            found.append(fields.drop("scores_differ", detail, [one.score for one in others], part=True))
    return found + [drop for each in rows for drop in _unread(each, fields)]


def chat(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """One user turn asks for one assistant turn; longer chats have no single question, but perhaps a first one."""
    (row,) = rows
    turns = [_turn(message) for message in _messages(fields.raw(row, "messages"))]
    spoken = [(role, content) for role, content in turns if role != "system"]
    if not spoken:
        return [fields.blank("messages", row)]
    if fields.dataset.first_turn:
        spoken = spoken[:2]
    if [SPEAKERS.get(role, role) for role, _ in spoken] != ["user", "assistant"]:
        shape = ", ".join(role for role, _ in spoken[:6])
        return [fields.drop("not_single_turn", f"{len(spoken)} turns: {shape}", row)]
    question, answer = (fields.clean(content) for _, content in spoken)
    answers = [Scored(answer)] if answer else []
    return retrieval(rows, fields, question, answers, [], ("messages", "messages"))


def reading_comprehension(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """A question asks for the passage that answers it; with ``context_in_query``, both ask for the short answer.

    A question whose answers are there and empty, as in SQuAD 2, has none in its passage.
    """
    (row,) = rows
    columns = column_names(fields.columns["answer"])
    if all(_is_empty(row.get(column)) for column in columns):
        return [fields.drop("unanswerable", f"column '{', '.join(columns)}' holds no answer", row)]
    question, context = fields.text(row, "question"), fields.text(row, "context")
    if not fields.dataset.context_in_query:
        passages = [Scored(context)] if context else []
        return retrieval(rows, fields, question, passages, [], ("question", "context"))
    if not question or not context:
        return [fields.blank("question" if context else "context", row)]
    asked = CONTEXT_IN_QUERY.format(context=context, question=question)
    answers = [Scored(text) for text in fields.texts(row, "answer")]
    return retrieval(rows, fields, asked, answers, [], ("question", "answer"))


def claim_evidence(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """Evidence that supports a claim is its positive, evidence that refutes it a negative; the rest is dropped.

    A row holds one piece of evidence and its label, or a list of each.
    """
    drops: list[Outcome] = []
    sides: dict[str, list[Scored]] = {"supports": [], "refutes": []}
    kept = []
    for row in rows:
        refused = []
        pieces = _evidence(row, fields)
        for text, label in pieces:
            if drop := _evidence_refusal(text, label, fields, row):
                refused.append(drop)
            else:
                sides["supports" if label in SUPPORTS else "refutes"].append(Scored(text))
        if len(refused) < len(pieces):
            kept.append(row)
            drops += [replace(one, part=True) for one in refused]
        else:
            drops += refused[:1] or [fields.blank("evidence", row)]
    if not kept:
        return drops
    if not sides["supports"]:
        return drops + [fields.drop("no_support", f"{len(sides['refutes'])} refute it", row) for row in kept]
    claim, names = fields.text(rows[0], "claim"), ("claim", "evidence")
    return drops + retrieval(kept, fields, claim, sides["supports"], sides["refutes"], names)


def graded(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """Grades of search results and answers: high ones are positives, low ones negatives."""
    texts = [GradedText(row, fields.number(fields.raw(row, "grade")), fields.text(row, "document")) for row in rows]
    return by_grade(texts, fields, fields.text(rows[0], "query"), ("query", "document", "grade"))


def qrels(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """The qrels of one query, joined with its text and its documents, both clean; ``raw`` is the row of the file."""
    if rows[0]["query"] is None:
        detail = f"query '{rows[0]['query_id']}' is not among the queries"
        return [fields.drop("unknown_query", detail, row["raw"]) for row in rows]
    drops: list[Outcome] = []
    texts = []
    for row in rows:
        if row["document"] is None:
            detail = f"document '{row['document_id']}' is not in the corpus"
            drops.append(fields.drop("unknown_document", detail, row["raw"]))
        else:
            texts.append(GradedText(row["raw"], fields.number(row["grade"]), row["document"]))
    return drops + by_grade(texts, fields, rows[0]["query"], ("query", "document", "grade"))


def duplicate_questions(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """A question asks for its duplicates; questions judged different are its negatives."""
    grades = {True: fields.dataset.positive_grade, False: fields.dataset.negative_grade, None: None}
    texts = [GradedText(row, grades[YES_NO.get(fields.label(row))], fields.text(row, "text_b")) for row in rows]
    return by_grade(texts, fields, fields.text(rows[0], "text_a"), ("text_a", "text_b", "label"))


def documents(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """A text without a query yet: a corpus document, for which synthesis writes queries."""
    (row,) = rows
    text, least = fields.text(row, "text"), fields.dataset.min_positive_chars
    if not text:
        return [fields.blank("text", row)]
    if len(text) < least:
        return [fields.drop("short_text", f"{len(text)} characters; min_positive_chars is {least}", row)]
    name = fields.dataset.name
    return [RetrievalExample(id=stable_id(name, text), dataset=name, query="", positives=(text,))]


def scored_pair(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """Two texts and a number, higher for closer; yes/true is 1 and no/false is 0. Only the order counts."""
    (row,) = rows
    value = fields.raw(row, "score")
    score = fields.number(value)
    if score is None:
        score = number(YES_NO.get(str(value).strip().casefold()))
    if score is None:
        advice = """; decimal = "," reads it""" if number(value, ",") is not None else ""
        return [fields.drop("score_not_a_number", f"score is {value!r}{advice}", row)]
    return [pair(row, fields, score)]


def binary_pair(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """Two texts that mean the same (1, yes, true) or do not (0, no, false)."""
    (row,) = rows
    same = YES_NO.get(fields.label(row))
    return [fields.unknown_label(row, YES_NO) if same is None else pair(row, fields, float(same))]


def nli(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """Premise and hypothesis: entailment scores 2, neutral 1, contradiction 0.

    Numeric labels are in GLUE's order: 0 entailment, 1 neutral, 2 contradiction.
    """
    (row,) = rows
    score = NLI_SCORES.get(fields.label(row))
    return [fields.unknown_label(row, NLI_SCORES) if score is None else pair(row, fields, score)]


def labeled(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """A text and its class or cluster, trained alike. The label may be a number."""
    (row,) = rows
    labels = fields.raw(row, "label")
    if isinstance(labels, list | tuple):
        labels = [one for one in labels if one is not None]
    if isinstance(labels, list) and len(labels) > 1:
        column = fields.columns["label"]
        detail = (
            f"column '{column}' holds {len(labels)}; '{column}[0]' takes the first, explode = ['{column}'] with "
        )
        return [fields.drop("several_labels", f"{detail}deduplicate = false each", row)]
    text = fields.text(row, "text")
    label = fields.clean(labels[0] if isinstance(labels, list) and labels else labels)
    label = fields.dataset.labels.get(label, label)
    if not text or not label:
        return [fields.blank("label" if text else "text", row)]
    if len(text) < fields.dataset.min_query_chars:
        return [fields.short_text(text, row)]
    name = fields.dataset.name
    return [LabeledExample(id=stable_id(name, text, label), dataset=name, text=text, label=f"{name}/{label}")]


RULES: Mapping[Rule, RuleFunction] = {
    "title_body": query_positive,
    "question_answer": query_positive,
    "chat": chat,
    "reading_comprehension": reading_comprehension,
    "claim_evidence": claim_evidence,
    "qrels": qrels,
    "triplets": query_positive,
    "graded": graded,
    "duplicate_questions": duplicate_questions,
    "documents": documents,
    "scored_pair": scored_pair,
    "binary_pair": binary_pair,
    "nli": nli,
    "labeled": labeled,
    "clustering": labeled,
}


def _scored(row: Row, fields: Fields, side: str) -> list[Scored]:
    """The texts of one side, scored; a score belongs to the raw text at its place."""
    if not fields.has(f"{side}_score"):
        return [Scored(text) for text in fields.texts(row, side)]
    texts, scores = _as_list(fields.raw(row, side)), _as_list(fields.raw(row, f"{side}_score"))
    if len(scores) != len(texts):
        scores = [None] * len(texts)
    found = zip(map(fields.clean, texts), map(number, scores), strict=True)
    return [Scored(text, score) for text, score in found if text]


def _unread(row: Row, fields: Fields) -> list[Outcome]:
    """The parts of a row in which there is no text where texts belong, and scores that belong to none."""
    drops: list[Outcome] = []
    for side in ("positive", "negative"):
        if not fields.has(side):
            continue
        column, cells = fields.columns[side], _as_list(fields.raw(row, side))
        for cell in cells:
            if isinstance(cell, list | tuple | dict) and cell:
                names = f"; name the text in it: '{column}[].{next(iter(cell))}'" if isinstance(cell, dict) else ""
                drops.append(fields.drop("not_text", f"column '{column}' holds no text{names}", cell, part=True))
        if fields.has(f"{side}_score"):
            scores = _as_list(fields.raw(row, f"{side}_score"))
            if len(scores) != len(cells) and any(one is not None for one in scores):
                detail = f"{len(scores)} scores for {len(cells)} texts in column '{column}'"
                drops.append(fields.drop("scores_unmatched", detail, scores, part=True))
    return drops


def _is_empty(value: Any) -> bool:
    """Whether a cell says that there is no answer: an empty text, list, or object of empty lists."""
    return value in ("", [], ()) or (
        isinstance(value, Mapping) and bool(value) and all(map(_is_empty, value.values()))
    )


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _evidence(row: Row, fields: Fields) -> list[tuple[str, str]]:
    """(text, label) of each piece of evidence in a row."""
    texts, labels = fields.raw(row, "evidence"), fields.raw(row, "label")
    if not isinstance(texts, list | tuple):
        return [(fields.clean(texts), fields.label(row))]
    named = list(labels) if isinstance(labels, list | tuple) else [labels] * len(texts)
    named += [None] * (len(texts) - len(named))  # evidence without a label is refused by that label
    pairs = []
    for text, label in zip(texts, named, strict=False):
        known = fields.dataset.labels.get(str(label).strip(), str(label))
        pairs.append((fields.clean(text), known.strip().casefold()))
    return pairs


def _evidence_refusal(text: str, label: str, fields: Fields, row: Row) -> Drop | None:
    """Why a piece of evidence neither supports nor refutes the claim, if so."""
    if not text:
        return fields.blank("evidence", row)
    if label in SUPPORTS or label in REFUTES:
        return None
    if label in {"not_enough_info", "not enough info", "nei", "neutral", "disputed", "none", ""}:
        return fields.drop("not_enough_info", f"label is '{label}'", row)
    return fields.unknown_label(row, [*sorted(SUPPORTS), *sorted(REFUTES), "not_enough_info"])


def _messages(value: Any) -> Sequence[Any]:
    """The messages of a conversation, which CSV and some Parquet files hold as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return ()
    return value if isinstance(value, list | tuple) else ()


def _turn(message: Any) -> tuple[str, Any]:
    """(role, content) of a chat message, in OpenAI's or ShareGPT's layout."""
    if not isinstance(message, Mapping):
        return "unknown", None
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list | tuple):  # OpenAI's content parts; a picture has no text
        parts = (part.get("text") for part in content if isinstance(part, Mapping))
        content = "\n".join(part for part in parts if isinstance(part, str))
    return str(role).casefold(), content
