"""One rule per source shape: raw rows become an example, or drops with their reasons.

A rule is a pure function of the rows that make one example (one row, or all rows with the same query, claim or
question) and of :class:`Fields`. It answers with the example, if there is one, and a drop for every row, or part of a
row, that the example does not hold: rows that went in = rows in the example + rows dropped.

Source: QZhou-Embedding (arXiv:2508.21632), section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from qzhou.dataset import Rule
from qzhou.records import Drop, Example, LabeledExample, Negative, PairExample, RetrievalExample, stable_id, text_key
from qzhou.transform.cleaning import cut
from qzhou.transform.columns import Row
from qzhou.transform.fields import Fields, number

Outcome = Example | Drop
RuleFunction = Callable[[Sequence[Row], Fields], list[Outcome]]

# GLUE's label order; the scores are the paper's.
NLI_SCORES = {"entailment": 2.0, "neutral": 1.0, "contradiction": 0.0, "0": 2.0, "1": 1.0, "2": 0.0}
YES_NO = {"yes": True, "true": True, "1": True, "duplicate": True, "no": False, "false": False, "0": False}
YES_NO |= {"not_duplicate": False}
SUPPORTS = {"supports", "support", "supported", "entailment", "true"}
REFUTES = {"refutes", "refute", "refuted", "contradict", "contradiction", "contradicts", "false"}
USER, ASSISTANT = {"user", "human", "prompter"}, {"assistant", "gpt", "bot", "model"}

# The older form of the report asks with the whole passage (its figure, in the official repository's history).
CONTEXT_IN_QUERY = "{context}\n<please read the text above and answer the question below:>\n{question}"


class Scored(NamedTuple):
    """A text with the score that the data gives it, if it gives one."""

    text: str
    score: float | None = None


class Judged(NamedTuple):
    """A raw row with its grade, if it has a valid one, and its text."""

    row: Row
    grade: float | None
    text: str


def title_body(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """A title, headline or abstract's title asks for the text below it."""
    return _query_positive(rows, fields)


def question_answer(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """A question asks for its answers; ``negative``, where it is mapped, holds answers that are wrong."""
    return _query_positive(rows, fields)


def triplets(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """A query with one text or a list on either side, and a teacher's scores where the data has them."""
    return _query_positive(rows, fields)


def chat(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """One user turn asks for one assistant turn; a longer conversation has no single question."""
    (row,) = rows
    messages = fields.raw(row, "messages")
    turns = [_turn(message) for message in messages] if isinstance(messages, list | tuple) else []
    spoken = [(role, content) for role, content in turns if role != "system"]
    if not spoken:
        return [fields.blank("messages", row)]
    if [_speaker(role) for role, _ in spoken] != ["user", "assistant"]:
        shape = ", ".join(role for role, _ in spoken[:6])
        return [fields.drop("not_single_turn", f"{len(spoken)} turns: {shape}", row)]
    question, answer = (fields.clean(content) for _, content in spoken)
    return retrieval(rows, fields, question, [Scored(answer)] if answer else [], [], ("messages", "messages"))


def reading_comprehension(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """A question asks for the passage that answers it; with ``context_in_query``, both ask for the short answer."""
    (row,) = rows
    question, context = fields.text(row, "question"), fields.text(row, "context")
    if not fields.dataset.context_in_query:
        return retrieval(rows, fields, question, [Scored(context)] if context else [], [], ("question", "context"))
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
        before = sum(map(len, sides.values()))
        refused = [found for item in _evidence(row, fields) if (found := _weigh(item, sides, fields, row)) is not None]
        used = sum(map(len, sides.values())) > before
        if used:
            kept.append(row)
            drops += [replace(one, part=True) for one in refused]
        else:
            drops += refused[:1] or [fields.blank("evidence", row)]
    if kept and not sides["supports"]:
        return drops + [fields.drop("no_support", f"{len(sides['refutes'])} refute it", row) for row in kept]
    if not kept:
        return drops
    claim = fields.text(rows[0], "claim")
    return drops + retrieval(kept, fields, claim, sides["supports"], sides["refutes"], ("claim", "evidence"))


def graded(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """Grades of search relevance, and judged answers: high ones are positives, low ones negatives."""
    judged = [Judged(row, number(fields.raw(row, "grade")), fields.text(row, "document")) for row in rows]
    return _by_grade(judged, fields, fields.text(rows[0], "query"), ("query", "document", "grade"))


def qrels(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """The judgements of one query, joined with its text and its documents (columns ``query`` and ``document``)."""
    if rows[0]["query"] is None:
        detail = f"query '{rows[0]['query_id']}' is not among the queries"
        return [fields.drop("unknown_query", detail, row) for row in rows]
    known = [row for row in rows if row["document"] is not None]
    drops: list[Outcome] = [
        fields.drop("unknown_document", f"document '{row['document_id']}' is not in the corpus", row)
        for row in rows
        if row["document"] is None
    ]
    judged = [Judged(row, number(row["grade"]), fields.clean(row["document"])) for row in known]
    query = fields.clean(rows[0]["query"])
    return drops + _by_grade(judged, fields, query, ("query_id", "document_id", "grade"))


def duplicate_questions(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """A question asks for its duplicates; questions that people judged different are its negatives."""
    grades = {True: fields.dataset.positive_grade, False: fields.dataset.negative_grade, None: None}
    judged = [Judged(row, grades[YES_NO.get(fields.label(row))], fields.text(row, "text_b")) for row in rows]
    return _by_grade(judged, fields, fields.text(rows[0], "text_a"), ("text_a", "text_b", "label"))


def scored_pair(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """Two texts and a number, higher for closer; yes/true is 1 and no/false is 0. Only the order counts."""
    (row,) = rows
    value = fields.raw(row, "score")
    score = number(value)
    if score is None and (same := YES_NO.get(str(value).strip().casefold())) is not None:
        score = float(same)
    if score is None:
        return [fields.drop("score_not_a_number", f"score is {value!r}", row)]
    return [_pair(row, fields, score)]


def binary_pair(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """Two texts that mean the same (1, yes, true) or do not (0, no, false)."""
    (row,) = rows
    same = YES_NO.get(fields.label(row))
    if same is None:
        return [_unknown_label(row, fields, YES_NO)]
    return [_pair(row, fields, float(same))]


def nli(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """Premise and hypothesis: entailment scores 2, neutral 1, contradiction 0.

    Numeric labels are in GLUE's order: 0 entailment, 1 neutral, 2 contradiction.
    """
    (row,) = rows
    score = NLI_SCORES.get(fields.label(row))
    return [_unknown_label(row, fields, NLI_SCORES) if score is None else _pair(row, fields, score)]


def labeled(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """A text and its class; the label may be a number."""
    (row,) = rows
    text, label = fields.text(row, "text"), fields.text(row, "label")
    if not text or not label:
        return [fields.blank("label" if text else "text", row)]
    if len(text) < fields.dataset.min_query_chars:
        return [_short("text", text, row, fields)]
    name = fields.dataset.name
    return [LabeledExample(id=stable_id(name, text, label), dataset=name, text=text, label=f"{name}/{label}")]


def clustering(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    """A text and its cluster: trained like a class (QZhou-Embedding names no other way)."""
    return labeled(rows, fields)


RULES: Mapping[Rule, RuleFunction] = {
    "title_body": title_body,
    "question_answer": question_answer,
    "chat": chat,
    "reading_comprehension": reading_comprehension,
    "claim_evidence": claim_evidence,
    "qrels": qrels,
    "triplets": triplets,
    "graded": graded,
    "duplicate_questions": duplicate_questions,
    "scored_pair": scored_pair,
    "binary_pair": binary_pair,
    "nli": nli,
    "labeled": labeled,
    "clustering": clustering,
}


def swapped(example: PairExample) -> PairExample:
    """The same pair with its sides exchanged; training sees both, evaluation one."""
    text_a, text_b = example.text_b, example.text_a
    return replace(example, id=stable_id(example.dataset, text_a, text_b, example.score), text_a=text_a, text_b=text_b)


def retrieval(
    rows: Sequence[Row],
    fields: Fields,
    query: str,
    positives: Sequence[Scored],
    negatives: Sequence[Scored],
    names: tuple[str, str],
) -> list[Outcome]:
    """An example of cleaned texts, or a drop for each of its rows.

    A positive that only repeats the query, a negative that is a positive or the query, and a text that stands twice
    on one side are left out.

    Args:
        rows: The raw rows behind the example, for the drops.
        fields: Of the dataset.
        query: May be blank.
        positives: Never blank.
        negatives: Never blank.
        names: What the query's and the positives' fields are called, for the reasons.
    """
    reason = _refusal(fields, query, positives)
    if reason:
        return [fields.drop(*_named(reason, names, fields), row) for row in rows]
    query_key = text_key(query)
    least = fields.dataset.min_positive_chars
    kept = [one for one in _distinct(positives) if len(one.text) >= least and text_key(one.text) != query_key]
    taken = {text_key(one.text) for one in kept} | {query_key}
    wrong = [one for one in _distinct(negatives) if text_key(one.text) not in taken]
    drops: list[Outcome] = [
        fields.drop("negative_is_positive", "a negative repeats a positive or the query", one.text, part=True)
        for one in _distinct(negatives)
        if text_key(one.text) in taken
    ]
    scores = tuple(one.score for one in kept if one.score is not None)
    example = RetrievalExample(
        id=stable_id(fields.dataset.name, query, *(one.text for one in kept)),
        dataset=fields.dataset.name,
        query=query,
        positives=tuple(one.text for one in kept),
        negatives=tuple(Negative(text=one.text, origin="given", score=one.score) for one in wrong),
        positive_scores=scores if len(scores) == len(kept) else (),
    )
    return [example, *drops]


def _refusal(fields: Fields, query: str, positives: Sequence[Scored]) -> tuple[str, str] | None:
    """(reason, detail) why a query and its positives make no example; 'query' and 'positive' stand for their fields."""
    dataset = fields.dataset
    if not query:
        return "blank_query", ""
    if len(query) < dataset.min_query_chars:
        return "short_query", f"{len(query)} characters; min_query_chars is {dataset.min_query_chars}"
    if not positives:
        return "blank_positive", ""
    longest = max(len(one.text) for one in positives)
    if longest < dataset.min_positive_chars:
        return "short_positive", f"{longest} characters; min_positive_chars is {dataset.min_positive_chars}"
    if all(text_key(one.text) == text_key(query) for one in positives if len(one.text) >= dataset.min_positive_chars):
        return "query_equals_positive", cut(query, 80)
    return None


def _named(reason: tuple[str, str], names: tuple[str, str], fields: Fields) -> tuple[str, str]:
    """The refusal with the name of the empty column."""
    if reason[1]:
        return reason
    name = names[0] if reason[0] == "blank_query" else names[1]
    return reason[0], f"column '{fields.columns.get(name, name)}' is empty"


def _query_positive(rows: Sequence[Row], fields: Fields) -> list[Outcome]:
    (row,) = rows
    negatives = _scored(row, fields, "negative") if fields.has("negative") else []
    positives = _scored(row, fields, "positive")
    return retrieval(rows, fields, fields.text(row, "query"), positives, negatives, ("query", "positive"))


def _scored(row: Row, fields: Fields, side: str) -> list[Scored]:
    """The texts of one side with their scores; a score belongs to the raw text at its place."""
    if not fields.has(f"{side}_score"):
        return [Scored(text) for text in fields.texts(row, side)]
    texts, scores = (
        found if isinstance(found, list | tuple) else [found]
        for found in (fields.raw(row, side), fields.raw(row, f"{side}_score"))
    )
    values = [number(score) for score in scores] if len(scores) == len(texts) else [None] * len(texts)
    cleaned = [Scored(fields.clean(text), score) for text, score in zip(texts, values, strict=True)]
    return [one for one in cleaned if one.text]


def _by_grade(judged: Sequence[Judged], fields: Fields, query: str, names: tuple[str, str, str]) -> list[Outcome]:
    """The example of a query and its judged texts; ``names`` are the fields of query, text and judgement."""
    sides: tuple[list[Scored], list[Scored]] = ([], [])
    drops: list[Outcome] = []
    kept = []
    for row, grade, text in judged:
        if grade is None and names[2] == "label":
            drops.append(_unknown_label(row, fields, YES_NO))
        elif grade is None:
            drops.append(fields.drop("grade_not_a_number", f"column '{fields.columns[names[2]]}'", row))
        elif not text:
            drops.append(fields.blank(names[1], row))
        elif fields.dataset.negative_grade < grade < fields.dataset.positive_grade:
            drops.append(fields.drop("between_grades", f"grade is {grade:g}", row))
        else:
            sides[grade < fields.dataset.positive_grade].append(Scored(text))
            kept.append(row)
    if kept and not sides[0]:
        return drops + [fields.drop("no_positive", f"none of {len(kept)} texts is relevant", row) for row in kept]
    return drops + (retrieval(kept, fields, query, *sides, names[:2]) if kept else [])


def _evidence(row: Row, fields: Fields) -> list[tuple[str, str]]:
    """(text, label) of each piece of evidence in a row."""
    texts, labels = fields.raw(row, "evidence"), fields.raw(row, "label")
    if not isinstance(texts, list | tuple):
        return [(fields.clean(texts), fields.label(row))]
    named = list(labels) if isinstance(labels, list | tuple) else [labels] * len(texts)
    known = fields.dataset.labels
    translated = (known.get(str(label).strip(), str(label)).strip().casefold() for label in named)
    return [(fields.clean(text), label) for text, label in zip(texts, translated, strict=False)]


def _weigh(item: tuple[str, str], sides: Mapping[str, list[Scored]], fields: Fields, row: Row) -> Drop | None:
    """Put a piece of evidence on its side, or say why it has none."""
    text, label = item
    if not text:
        return fields.blank("evidence", row)
    if label in SUPPORTS or label in REFUTES:
        sides["supports" if label in SUPPORTS else "refutes"].append(Scored(text))
        return None
    if label in {"not_enough_info", "not enough info", "nei", "neutral", "disputed", "none", ""}:
        return fields.drop("not_enough_info", f"label is '{label}'", row)
    return _unknown_label(row, fields, [*sorted(SUPPORTS), *sorted(REFUTES), "not_enough_info"])


def _pair(row: Row, fields: Fields, score: float) -> PairExample | Drop:
    text_a, text_b = fields.text(row, "text_a"), fields.text(row, "text_b")
    if not text_a or not text_b:
        return fields.blank("text_b" if text_a else "text_a", row)
    least = fields.dataset.min_query_chars
    if len(text_a) < least or len(text_b) < least:
        return _short("text", min(text_a, text_b, key=len), row, fields)
    if text_key(text_a) == text_key(text_b):
        # Their cosine is 1 whatever the encoder learns, so the pair could only teach that a score is wrong.
        return fields.drop("texts_equal", cut(text_a, 80), row)
    name = fields.dataset.name
    identity = stable_id(name, text_a, text_b, score)
    return PairExample(id=identity, dataset=name, text_a=text_a, text_b=text_b, score=score)


def _turn(message: Any) -> tuple[str, Any]:
    """(role, content) of a chat message, in OpenAI's or ShareGPT's layout."""
    if not isinstance(message, Mapping):
        return "unknown", None
    role = message.get("role", message.get("from"))
    return str(role).casefold(), message.get("content", message.get("value"))


def _speaker(role: str) -> str:
    return "user" if role in USER else "assistant" if role in ASSISTANT else role


def _distinct(texts: Sequence[Scored]) -> list[Scored]:
    """Each text once, in order."""
    if len(texts) == 1:
        return list(texts)
    return list({one.text: one for one in reversed(texts)}.values())[::-1]


def _short(name: str, text: str, row: Row, fields: Fields) -> Drop:
    least = fields.dataset.min_query_chars
    return fields.drop(f"short_{name}", f"{len(text)} characters; min_query_chars is {least}", row)


def _unknown_label(row: Row, fields: Fields, known: Any) -> Drop:
    detail = f"label is {fields.raw(row, 'label')!r}; known: {', '.join(known)}; 'labels' translates others"
    return fields.drop("unknown_label", detail, row)
