"""Rows to train on that share a text with rows to judge by, as official splits of sentence pairs do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from qzhou.cli.init.samples import ROWS_READ
from qzhou.cli.init.sources import Source
from qzhou.config.dataset import Dataset
from qzhou.data.records import LabeledExample, RetrievalExample, normalized_text
from qzhou.transform.preview import candidates_of
from qzhou.transform.reading.files import input_files
from qzhou.transform.reading.parts import FilePart
from qzhou.transform.reading.readers import read_part
from qzhou.transform.rules.candidates import Candidate
from qzhou.transform.rules.examples import texts_of

SHARED = 0.1  # of the rows; the transform warns where it drops more


def allowing_overlap(sources: Sequence[Source]) -> tuple[list[Source], list[str]]:
    """Sources that would lose many rows because one text of theirs is held out keep them; a line about each.

    Looks at the first rows of each file. Held-out queries, classified texts and whole pairs
    are never trained on, whatever is allowed.
    """
    compared = [list(_examples(source)) for source in sources]
    held_out: set[tuple[bool, str]] = set()
    whole: set[frozenset[str]] = set()
    for candidate in (one for candidates in compared for one in candidates if one.held_out):
        texts = _normalized(candidate)
        held_out |= {(_is_retrieval(candidate), text) for text in texts}
        whole.add(frozenset(texts))
    found, lines = [], []
    for source, candidates in zip(sources, compared, strict=True):
        trained = [one for one in candidates if not one.held_out and not isinstance(one.example, LabeledExample)]
        kept = [one for one in trained if not _is_asked(one, held_out, whole)]
        shared = [one for one in kept if any((_is_retrieval(one), text) in held_out for text in _normalized(one))]
        if not trained or len(shared) <= SHARED * len(trained):
            found.append(source)
            continue
        found.append(replace(source, dataset={**source.dataset, "allow_overlap": True}))
        line = (
            f"{source.dataset['name']}: {len(shared):,} of {len(trained):,} rows share one text with rows to judge by; "
            "they are trained on all the same (allow_overlap = true), "
        )
        own = source.dataset.get("eval_fraction")
        lines.append(
            line + "so a part of what is judged was read in training; split_by = COLUMN keeps groups of rows apart"
            if own
            else line + "as official splits of pairs have it"
        )
    return found, lines


def _examples(source: Source) -> Iterator[Candidate]:
    """What the first rows of a source's files become."""
    own = source.dataset
    if own["rule"] == "qrels" or own["reader"] == "documents" or not source.examples:
        return  # whose documents are shared by all queries, or held out as a whole
    dataset = Dataset.model_validate(own)
    for file in input_files(dataset):
        rows = [row for row in islice(read_part(dataset, FilePart((file,))), ROWS_READ) if isinstance(row, dict)]
        yield from candidates_of(dataset, rows)[0]


def _is_asked(one: Candidate, held_out: set[tuple[bool, str]], whole: set[frozenset[str]]) -> bool:
    """Whether it is never trained on: its query, or all of it, is held out."""
    texts = _normalized(one)
    if _is_retrieval(one):
        return (True, texts[0]) in held_out
    return frozenset(texts) in whole


def _is_retrieval(one: Candidate) -> bool:
    return isinstance(one.example, RetrievalExample)


def _normalized(one: Candidate) -> list[str]:
    return [normalized_text(text) for text in texts_of(one.example)]
