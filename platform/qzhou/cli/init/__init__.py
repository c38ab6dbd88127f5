"""``qzhou init``: looks at files, says what it found, and writes a recipe for them.

sources.py      which files belong together, and what they become
samples.py      how a file is read
shapes.py       which rule and columns its rows suggest
machine.py      a model and sizes that this machine can train
recipe_text.py  the file that is written
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qzhou.cli.init.machine import Machine, Sizes, sizes_for, this_machine
from qzhou.cli.init.overlap import allowing_overlap
from qzhou.cli.init.recipe_text import recipe_text
from qzhou.cli.init.samples import NotUnderstood
from qzhou.cli.init.sources import DOCUMENTS_HELD_OUT, HUB, Source, dataset_name, distinct, headings_of, sources_of
from qzhou.config.recipe import parse_recipe
from qzhou.data.records import Example, PairExample, RetrievalExample
from qzhou.errors import DataError

SHOWN = 5  # examples of a dataset
SHOWN_CHARS = 90
CHUNKS_ASKED_FOR = 2_000  # by a language model
TOKENS_PER_REQUEST = 700  # prompt and answer
CHUNK_TOKENS = 100


@dataclass(frozen=True, slots=True)
class InitOptions:
    """What a person says beside the paths.

    Attributes:
        name: Of the run; default: of the first path.
        output: The file; default: ``<name>.toml``.
        columns: Field of a rule -> column.
        backbone: Instead of the one that suits the machine.
        endpoint, model: Of a language model that writes queries for documents.
    """

    name: str = ""
    output: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    backbone: str = ""
    endpoint: str = ""
    model: str = ""


def init(paths: Sequence[str], options: InitOptions, machine: Machine | None = None) -> str:
    """Write a recipe for some paths; returns what is to be said about it.

    Raises:
        DataError: A path gives no dataset, or the file is there already; says why.
    """
    first = paths[0].partition(":")[2].partition(":")[0] if paths[0].startswith(HUB) else paths[0]
    name = options.name or dataset_name(Path(first).resolve().name.split(".")[0])
    output = Path(options.output or f"{name}.toml")
    _refuse_contradictions(options, output)
    found: list[Source] = []
    said: list[str] = []
    for path in paths:
        try:
            sources, refused = sources_of(path, options.columns)
            if options.name and len(paths) == len(sources) == 1:
                sources = [replace(sources[0], dataset={**sources[0].dataset, "name": dataset_name(options.name)})]
            sources = [one for source in sources for one in _with_queries(source, bool(options.endpoint))]
        except NotUnderstood as error:
            raise DataError(str(error)) from None
        if options.columns and any(one.dataset["reader"] == "documents" for one in sources):
            raise DataError(
                f"'{path}' holds documents, which have no columns: leave --{next(iter(options.columns))} out"
            )
        found += sources
        said += [*map(_described, sources), *(f"  left out: {line}" for line in refused)]
    found, shared = allowing_overlap(distinct(found))
    said += shared
    if options.endpoint and not any(one.dataset["rule"] == "documents" for one in found):
        raise DataError(
            "--endpoint is for documents, and there are none: see docs/synthesis.md for what else it writes"
        )
    machine = machine or this_machine()
    sizes = sizes_for(found, machine, options.backbone)
    synthesis = _synthesis(found, options)
    text = recipe_text(name, found, sizes, synthesis)
    parse_recipe(tomllib.loads(text), place=str(output), folder=str(output.absolute().parent))
    output.write_text(text, "utf-8")
    return "\n".join([*said, *_closing(output, found, machine, sizes, synthesis)])


def _refuse_contradictions(options: InitOptions, output: Path) -> None:
    if output.exists():
        raise DataError(f"{output} is there already; name another file with --output, or remove it")
    if not output.absolute().parent.is_dir():
        raise DataError(f"there is no folder {output.absolute().parent} to write {output.name} into")
    if bool(options.endpoint) != bool(options.model):
        given, missing = ("--endpoint", "--model") if options.endpoint else ("--model", "--endpoint")
        raise DataError(f"{given} is given and {missing} is not: a language model is named by both")
    unknown = {"query", "positive"} & options.columns.keys() and {"text"} & options.columns.keys()
    if unknown:
        raise DataError("--text is for texts with labels, and --query and --positive for search: give one of them")


def _with_queries(source: Source, asks: bool) -> list[Source]:
    """Documents with what asks for them: a language model, or their own headings."""
    if source.dataset["rule"] != "documents":
        return [source]
    headings = headings_of(source, CHUNK_TOKENS)
    same = ("min_positive_chars", "chunk_tokens", "chunk_column")
    dataset = {**source.dataset, **{name: headings.dataset[name] for name in same if name in headings.dataset}}
    dataset.pop("eval_fraction", None)
    if not asks:
        return [replace(source, dataset=dataset, rows=headings.rows), headings]
    dataset["eval_fraction"] = DOCUMENTS_HELD_OUT
    return [replace(source, dataset=dataset, rows=headings.rows, examples=headings.examples)]


def _synthesis(found: Sequence[Source], options: InitOptions) -> dict[str, Any]:
    if not options.endpoint:
        return {}
    asked = sum(one.rows for one in found if one.dataset["rule"] == "documents")
    rows = min(CHUNKS_ASKED_FOR, max(1, asked))
    return {"endpoint": options.endpoint, "model": options.model, "query_rows": rows}


def _described(source: Source) -> str:
    """What was found, what speaks for it, and examples."""
    own = source.dataset
    columns = ", ".join(f"{name} = {column}" for name, column in own.get("columns", {}).items())
    lines = [f"{own['name']}: {own['rule']}" + (f" ({columns})" if columns else "")]
    lines.append(f"  because: {'; '.join(filter(None, source.evidence))}")
    if source.rows:
        rows = "rows" if own["reader"] != "documents" else "chunks"
        lines.append(f"  about {source.rows:,} {rows} in {len(source.files)} file{'s' * (len(source.files) != 1)}")
    if source.dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in source.dropped.items())
        lines.append(f"  of {source.read} looked at {source.kept} are kept; dropped: {reasons}")
    spread = source.examples[:: max(1, len(source.examples) // SHOWN)][:SHOWN]
    lines += [f"  {line}" for example in spread for line in _example_lines(example)]
    return "\n".join(lines)


def _example_lines(example: Example) -> list[str]:
    if isinstance(example, RetrievalExample):
        shown = {"query": example.query, "positive": example.positives[0]}
        shown |= {"negative": example.negatives[0].text} if example.negatives else {}
    elif isinstance(example, PairExample):
        shown = {"text a": example.text_a, "text b": example.text_b, "score": f"{example.score:g}"}
    else:
        shown = {"text": example.text, "label": example.label}
    marks = ("-", *[" "] * len(shown))
    return [f"{mark} {name}: {_short(text)}" for mark, (name, text) in zip(marks, shown.items(), strict=False)]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else f"{line[:SHOWN_CHARS]}..."


def _closing(
    output: Path, found: Sequence[Source], machine: Machine, sizes: Sizes, synthesis: Mapping[str, Any]
) -> list[str]:
    steps = f"{sizes.stage1_steps} + {sizes.stage2_steps} steps of {sizes.batch_size} examples"
    takes = f", about {sizes.minutes:.0f} minutes for the whole run" if sizes.minutes is not None else ""
    lines = [f"this machine: {machine}; backbone {sizes.backbone}, {steps}{takes}"]
    if sizes.minutes is None:
        lines.append(f"  `qzhou plan {output}` estimates time and money")
    if synthesis:
        tokens = synthesis["query_rows"] * TOKENS_PER_REQUEST
        lines.append(
            f"the language model is asked {synthesis['query_rows']:,} times, about {tokens:,} tokens in all"
        )
    elif any(one.dataset["rule"] == "documents" for one in found):
        lines.append("these queries are headings and not people's: a gain on them may be none for people")
    if not any(one.dataset.get("eval_fraction") for one in found):
        lines.append("nothing is held out, so nothing is judged: give a dataset an eval_fraction")
    return [*lines, f"wrote {output}; next:  qzhou run {output}"]
