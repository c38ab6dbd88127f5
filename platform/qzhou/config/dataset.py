"""One raw dataset of a recipe: how it is read, and which examples it becomes.

Part of :mod:`qzhou.config.recipe`, in a file of its own because a dataset has many ways to
lie on a disk.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from qzhou.config.section import AtLeastOne, Count, Fraction, Name, Section
from qzhou.data.prompts import TEMPLATE, Prompt
from qzhou.data.records import Task

Rule = Literal[
    "title_body", "question_answer", "chat", "reading_comprehension", "claim_evidence", "qrels", "triplets", "graded",
    "duplicate_questions", "scored_pair", "binary_pair", "nli", "labeled", "clustering", "documents",
]  # fmt: skip
TaskKind = Literal["retrieval", "reranking", "sts", "pair_classification", "classification", "clustering"]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]
Repair = Literal["bare_entities", "html_tags", "backslash_breaks", "ptb_brackets"]
Constant = str | int | float | bool

BEIR = "beir"
READERS = ("jsonl", "json", "csv", "parquet", "text", "aligned_text", "hf", "documents")
RULE_TASKS: Mapping[Rule, Task] = {
    **dict.fromkeys(get_args(Rule), "retrieval"),
    "scored_pair": "pair",
    "binary_pair": "pair",
    "nli": "pair",
    "labeled": "classification",
    "clustering": "classification",
}
TASK_KINDS: Mapping[Task, tuple[TaskKind, ...]] = {
    "retrieval": ("retrieval", "reranking"),
    "pair": ("sts", "pair_classification"),
    "classification": ("classification", "clustering"),
}
RULE_KINDS: Mapping[Rule, TaskKind] = {"binary_pair": "pair_classification", "clustering": "clustering"}


class Format(Section):
    """How raw files become rows."""

    # a delimiter may be a blank, which stripping would take away
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=False)

    reader: str = Field(
        description="jsonl, json, csv, parquet, text, aligned_text, hf, beir (a folder), documents (files or folders "
        "of .md, .rst, .txt, .html, .pdf, .docx: a file is a document), or 'module:function' of your own."
    )
    paths: tuple[str, ...] = Field(
        (),
        description="Files or globs, local or s3://, gs://; $NAME is a variable of the environment; .gz, .bz2 and .zip "
        "are unpacked ('zip://member.csv::archive.zip' takes one member); hf: 'hf://name/config:split'. "
        "A reader of your own may find its files itself.",
    )
    encoding: str = Field(
        "utf-8", description="Of text files: a codec's name, or 'detect'. Bytes are never replaced."
    )
    delimiter: str | None = Field(
        None, description="csv, text: between columns; default: tab for .tsv, else comma."
    )
    quote: str | None = Field(
        None,
        description="csv: the quoting character; '' where quotes mean nothing. Default: '\"'; between tabs only around "
        "a whole cell, as a line of search logs may hold one quote.",
    )
    escape: str = Field(
        "",
        max_length=1,
        description="csv: the character before a quote inside a quoted cell, '\\\\' in files of Spark and MySQL. "
        "Default: quotes are doubled.",
    )
    header: bool | None = Field(
        None, description="csv: names in the first line; default: unless columns are numbers."
    )
    max_columns: AtLeastOne | None = Field(None, description="text: the last column takes the rest of the line.")
    records: str = Field(
        "",
        description="json: path to the rows: 'data[].paragraphs[].qas[]', '{}' for the values of an object (whose "
        "names are the column 'key'), '.' for the whole document; default: '[]'.",
    )
    explode: tuple[str, ...] = Field((), description="Columns with lists of equal length: one row per element.")
    reader_options: dict[str, Any] = Field(default_factory=dict, description="Arguments for a reader of your own.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Field of the rule -> column, path 'answers[].text' or 'value[0]', pattern 'negative_*', or "
        "template '{title}\\n{text}'.",
    )
    constants: dict[str, Constant] = Field(default_factory=dict, description="Columns that every row gets.")
    chunk_tokens: AtLeastOne | None = Field(
        None,
        description="Texts of 'chunk_column' are cut by their structure into pieces of at most so many of the "
        "backbone's tokens, a row each; documents: default four fifths of model.max_document_tokens.",
    )
    chunk_overlap: Count = Field(0, description="Tokens that a piece may repeat of the one before it.")
    chunk_column: str = Field("text", description="The column that is cut; 'title' stands above its pieces.")
    on_corrupt_file: Literal["fatal", "skip"] = Field("fatal", description="A truncated or damaged file.")

    @field_validator("reader")
    @classmethod
    def _known_reader(cls, reader: str) -> str:
        module, colon, function = reader.partition(":")
        if reader in READERS or (colon and function.isidentifier() and module.replace(".", "").isidentifier()):
            return reader
        raise ValueError(
            f"no such reader '{reader}'; known: {', '.join(READERS)}, {BEIR} for a folder, or 'module:function' of "
            "your own"
        )

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        if encoding != "detect":
            try:
                codecs.lookup(encoding)
                "".encode(encoding)  # base64 and its kind are codecs, but not of text
            except (LookupError, UnicodeError):
                raise ValueError(
                    f"no such encoding '{encoding}'; try 'utf-8', 'latin-1', 'gb18030' or 'detect'"
                ) from None
        return encoding

    @model_validator(mode="after")
    def _overlap_is_smaller(self) -> Self:
        if self.chunk_overlap and self.chunk_overlap >= (self.chunk_tokens or 2**31):
            raise ValueError(
                f"chunk_overlap is {self.chunk_overlap}, and chunk_tokens {self.chunk_tokens}; a piece that repeats "
                "the whole of another would be the same piece"
            )
        return self

    @model_validator(mode="after")
    def _csv_splits_at_one_character(self) -> Self:
        if self.reader == "csv" and self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError(
                f"delimiter is {self.delimiter!r}; csv splits at one character, and reader 'text' at any string"
            )
        return self

    @field_validator("quote")
    @classmethod
    def _one_character(cls, quote: str | None) -> str | None:
        if quote is not None and len(quote) > 1:
            raise ValueError(f"quote is {quote!r}; it is one character, or '' for none")
        return quote


class Dataset(Format):
    """One raw dataset: how it is read and which examples it becomes."""

    name: Name = Field(description="Of its folders, its prompt and its evaluation task.")
    rule: Rule = Field(description="The shape of a raw row.")
    license: str = Field("", description="Of the data, for the card of the model: 'cc-by-4.0'.")
    corpus: Format | None = Field(None, description="qrels: the documents; columns id, title, text.")
    queries: Format | None = Field(None, description="qrels: the queries; columns id, text.")
    merge_rows: bool | None = Field(
        None,
        description="Rows with the same query and positives are one example with the negatives of all; default: where "
        "a row has one negative.",
    )
    deduplicate: bool | None = Field(None, description="Drop exact repeats; default: transform.deduplicate.")
    decimal: Literal[".", ","] = Field(".", description="Mark in scores and grades that are texts: 3.5 or 3,5.")
    positive_grade: float = Field(1.0, description="graded, qrels: from this grade on a document is a positive.")
    negative_grade: float = Field(0.0, description="graded, qrels: up to this grade it is a negative.")
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="claim_evidence, nli, binary_pair, duplicate_questions: raw label -> known one.",
    )
    context_in_query: bool = Field(
        False, description="reading_comprehension: the older form, context and question ask for the short answer."
    )
    first_turn: bool = Field(False, description="chat: of longer ones the first question and its answer.")
    instruction: str = Field("", description="The task in one sentence, put before queries by qzhou.data.prompts.")
    instruction_template: str = Field(
        TEMPLATE, description="How an instruction stands before a query; Qwen3-Embedding has no blank at its end."
    )
    query_prefix: str | None = Field(
        None, description="Stands before queries byte for byte, in place of an instruction: 'query: '."
    )
    document_prefix: str | None = Field(None, description="Stands before documents byte for byte: 'passage: '.")
    symmetric: bool | None = Field(
        None, description="Instruction on both sides; default: all tasks but retrieval, and duplicate questions."
    )
    repairs: tuple[Repair, ...] = Field((), description="Known damage that is mended before cleaning.")
    languages: tuple[Language, ...] = Field(
        (), description="ISO 639-1 codes; rows in others are dropped; default: keep all."
    )
    max_tokens: AtLeastOne | None = Field(
        None, description="Rows with a longer text (backbone's tokens) are dropped."
    )
    max_rows: AtLeastOne | None = Field(None, description="Seeded sample of the training examples; default: all.")
    max_rows_per_label: AtLeastOne | None = Field(
        None, description="labeled, clustering: seeded sample of at most so many training texts of each label."
    )
    min_query_chars: Count = Field(1, description="Shorter queries, and shorter texts of other tasks, are dropped.")
    min_positive_chars: Count = Field(1, description="Retrieval: shorter answers are dropped.")
    max_dropped_fraction: Fraction = Field(1.0, description="More dropped rows than this share fail the job.")
    allow_overlap: bool = Field(
        False,
        description="Training rows may share one text with held-out data, as official splits do: a document, or one "
        "side of a pair. Held-out queries, classified texts and whole pairs are never trained on.",
    )
    eval_fraction: Fraction = Field(0.0, description="Share of the groups kept for evaluation, never trained on.")
    split_by: str | None = Field(
        None,
        description="Column whose hash decides what is held out; default: the query, and 'path' of the reader "
        "documents.",
    )
    eval_tasks: tuple[TaskKind, ...] = Field(
        (), description="Evaluation tasks made of what is held out; default: what suits the rule."
    )
    index: bool | None = Field(
        None,
        description="Whether `qzhou index` makes its documents searchable; default: datasets with the rule documents "
        "where there are any, otherwise all.",
    )
    train_split_of: tuple[str, ...] = Field(
        (),
        description="Evaluation tasks, of this recipe or mteb's, whose training split this is: reported as seen.",
    )

    @property
    def task(self) -> Task:
        """The kind of examples that its rule makes."""
        return RULE_TASKS[self.rule]

    @property
    def has_written_queries(self) -> bool:
        """Whether its queries are no people's: an LLM writes them, or they are headings and first sentences."""
        return self.rule == "documents" or self.reader == "documents" or self.chunk_tokens is not None

    @property
    def trains(self) -> bool:
        """Whether any of it is trained on."""
        return self.eval_fraction < 1.0

    @property
    def kinds(self) -> tuple[TaskKind, ...]:
        """The evaluation tasks of its held-out examples; the first has its name."""
        return self.eval_tasks or (RULE_KINDS.get(self.rule, TASK_KINDS[self.task][0]),)

    @property
    def prompt(self) -> Prompt:
        """The prompt of its texts."""
        both_sides = self.task != "retrieval" or self.rule == "duplicate_questions"
        prefixes = None
        if self.query_prefix is not None or self.document_prefix is not None:
            prefixes = self.query_prefix or "", self.document_prefix or ""
        symmetric = both_sides if self.symmetric is None else self.symmetric
        return Prompt(self.instruction.strip(), symmetric, prefixes, self.instruction_template)

    @property
    def has_prompt(self) -> bool:
        """Whether the recipe says what stands before its texts."""
        return bool(self.instruction.strip()) or self.prompt.prefixes is not None

    @model_validator(mode="before")
    @classmethod
    def _folder_of_beir(cls, content: Any) -> Any:
        """``reader = "beir"`` is short for the three files of a folder: corpus, queries and qrels of a split."""
        if not isinstance(content, dict) or content.get("reader") != BEIR:
            return content
        paths, options = list(content.get("paths") or []), dict(content.get("reader_options") or {})
        split = options.pop("split", "train")
        if len(paths) != 1 or options or content.get("rule", "qrels") != "qrels":
            raise ValueError(
                f"reader '{BEIR}' takes one folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, the rule "
                "'qrels', and reader_options = { split = 'train' }"
            )
        folder = str(paths[0]).rstrip("/")
        ends = ".jsonl{,.gz,.zst,.xz,.bz2}"
        texts = {name: {"reader": "jsonl", "paths": [f"{folder}/{name}{ends}"]} for name in ("corpus", "queries")}
        rows = {"rule": "qrels", "reader": "csv", "paths": [f"{folder}/qrels/{split}.tsv"], "reader_options": {}}
        return {**content, **rows, **{name: content.get(name) or form for name, form in texts.items()}}

    @model_validator(mode="before")
    @classmethod
    def _a_document_is_on_one_side(cls, content: Any) -> Any:
        """Whole documents are held out, and not some of their chunks."""
        if isinstance(content, dict) and content.get("reader") == "documents" and content.get("split_by") is None:
            return {**content, "split_by": "path"}
        return content

    @model_validator(mode="after")
    def _one_kind_of_prompt(self) -> Self:
        if self.instruction.strip() and (self.query_prefix is not None or self.document_prefix is not None):
            raise ValueError(
                f"instruction is '{self.instruction}', and query_prefix or document_prefix is set, too; the "
                "instruction is a prefix already ('Instruct: ...'): keep one of them"
            )
        return self

    @field_validator("instruction_template")
    @classmethod
    def _has_a_place(cls, template: str) -> str:
        if "{instruction}" not in template:
            raise ValueError(f"'{template}' has no {{instruction}} in it, so no instruction would stand anywhere")
        return template

    @model_validator(mode="after")
    def _rows_own_instructions_have_a_default(self) -> Self:
        if "instruction" not in self.columns:
            return self
        if not self.instruction.strip():
            raise ValueError(
                "columns.instruction gives queries instructions of their own: set 'instruction', too. It stands where "
                "a row has none, and it is what the exported model and the endpoint put before queries"
            )
        if self.prompt.symmetric:
            raise ValueError(
                "columns.instruction is set, and symmetric = true puts the instruction before documents, which belong "
                "to no row when negatives are mined among them: take one of them out"
            )
        return self

    @field_validator("eval_tasks")
    @classmethod
    def _named_once(cls, kinds: tuple[TaskKind, ...]) -> tuple[TaskKind, ...]:
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"{', '.join(kinds)} names a kind twice; name each once")
        return kinds

    @model_validator(mode="after")
    def _kinds_suit_the_task(self) -> Self:
        for kind in self.eval_tasks:
            if kind not in TASK_KINDS[self.task]:
                raise ValueError(
                    f"eval_tasks is '{kind}', and rule '{self.rule}' makes {self.task} examples, which can be judged "
                    f"as {' or '.join(TASK_KINDS[self.task])}"
                )
        return self

    @model_validator(mode="after")
    def _one_sample(self) -> Self:
        if self.max_rows_per_label is not None and self.task != "classification":
            raise ValueError(
                f"max_rows_per_label is {self.max_rows_per_label}, and rule '{self.rule}' has no labels to count; set "
                "max_rows"
            )
        if self.max_rows_per_label is not None and self.max_rows is not None:
            raise ValueError(
                f"max_rows is {self.max_rows} and max_rows_per_label {self.max_rows_per_label}; keep one of them"
            )
        return self

    @model_validator(mode="after")
    def _reader_has_its_input(self) -> Dataset:
        if not self.paths and ":" not in self.reader:
            raise ValueError(f"reader '{self.reader}' needs 'paths'")
        for part in ("corpus", "queries"):
            found = getattr(self, part)
            if self.rule == "qrels" and (found is None or not (found.paths or ":" in found.reader)):
                raise ValueError(f"rule 'qrels' joins three inputs: give '{part}' with a reader and its paths")
            if self.rule != "qrels" and found is not None:
                raise ValueError(f"'{part}' belongs to the rule 'qrels', and the rule is '{self.rule}'")
        if self.negative_grade >= self.positive_grade:
            raise ValueError(
                f"negative_grade ({self.negative_grade:g}) must be below positive_grade ({self.positive_grade:g})"
            )
        return self
