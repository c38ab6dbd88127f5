"""Model folders and runs in, one sentence-transformers folder out (the arithmetic is in :mod:`.merge`)."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qzhou.data.storage import TEMPORARY_PREFIX, Folder
from qzhou.encoder.backbone import (
    Declared,
    declared,
    is_causal,
    load_backbone,
    load_tokenizer,
    without_weights,
)
from qzhou.encoder.export import checked_parity, save_sentence_transformer
from qzhou.errors import ModelError, RecipeError, StorageError
from qzhou.run.models import resolve, weights_fingerprint
from qzhou.run.run import MANIFEST, UPLOADED
from qzhou.telemetry.events import log_event
from qzhou.training.merge import Method, State, merge_states, shares_of

MERGE_FILE = "merge.json"
FINISHED = {
    "model": "model",
    "training/stage2": "training/stage2/model",
    "training/stage1": "training/stage1/model",
}
# Of config.json: what changes no vector, or is compared by what it makes of the model.
NOT_COMPARED = {
    "_name_or_path", "architectures", "attention_dropout", "attention_probs_dropout_prob", "bos_token_id",
    "classifier_dropout", "dtype", "eos_token_id", "gradient_checkpointing", "hidden_dropout_prob", "id2label",
    "initializer_range", "is_causal", "label2id", "matryoshka_dimensions", "max_position_embeddings",
    "max_window_layers", "pad_token_id", "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
PROBES = (
    "The quick brown FOX's tail",
    "naïve cafés, übermäßig",
    "今天天气很好。",
    "x = f(1, 23);\n\treturn",
)


@dataclass(frozen=True, slots=True)
class Source:
    """A model to merge: as it was named, where it was found, and what it is."""

    name: str
    found: str
    place: str
    declared: Declared
    tokenizer: Any
    attends_backwards_only: bool

    @property
    def dtype(self) -> torch.dtype:
        """Type of the saved weights."""
        dtype = getattr(self.declared.config, "dtype", None)
        return getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32


def merge_models(
    names: Sequence[str],
    into: str,
    *,
    method: Method = "average",
    weights: Sequence[float] | None = None,
    prompts_of: str | None = None,
    dry_run: bool = False,
) -> None:
    """Merge models into a folder that SentenceTransformer loads, and check that it does.

    Args:
        names: Folders, hub ids, ``package:`` names, runs; two or more.
        into: New or empty folder, local or a URI.
        weights: One for each model; default: equal.
        prompts_of: One of the models, whose prompts the result carries where they differ.
        dry_run: Say whether it can be done and how, and stop.

    Raises:
        RecipeError: Weights or names that make no sense.
        ModelError: A model that is not there, or models that do not fit together.
        StorageError: ``into`` holds something, or cannot be written.
        TrainingError: SentenceTransformer gives other vectors than our encoder.
    """
    shares = _shares(names, weights, method)
    if prompts_of is not None and prompts_of not in names:
        raise RecipeError(
            f"--prompts-of is '{prompts_of}', which is none of the models: {', '.join(names)}"
        )
    target = _new_folder(into, make=not dry_run)
    with ExitStack() as stack:
        sources = [_source(name, stack) for name in names]
        for other in sources[1:]:
            _refuse_another_kind(sources[0], other)
        prompts = _prompts(sources, prompts_of)
        for source, share in zip(sources, shares, strict=True):
            log_event(f"merge: {share:.4g} of {source.found}", "share", share=share)
        if dry_run:
            line = f"merge: these can be merged into {target.uri} by {method}; nothing was read or written"
            log_event(line, "can_be_merged")
            return
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            max_tokens = _save(
                sources, merge_states(_states(sources), shares, method=method), folder, prompts
            )
            lowest = checked_parity(folder, name="the merged model", max_tokens=max_tokens)
            _write_origin(folder, sources, shares, method)
            _move_in(folder, target)
    line = f"merge: {target.uri}: SentenceTransformer and the encoder agree (lowest cosine {lowest:.6f})"
    log_event(line, "merged", lowest_cosine=lowest)


def _shares(names: Sequence[str], weights: Sequence[float] | None, method: Method) -> list[float]:
    """Each model's share of the result, refused before anything is read."""
    if len(names) < 2:
        raise RecipeError(
            f"command line: {len(names)} model is named, and merging takes two or more"
        )
    if weights is not None and len(weights) != len(names):
        raise RecipeError(
            f"command line: --weights has {len(weights)} numbers for {len(names)} models; give one for each"
        )
    return shares_of(weights or [1.0] * len(names), method=method)


def _new_folder(into: str, *, make: bool) -> Folder:
    """Where the result goes, found empty, and made so that hours of reading are not in vain.

    Raises:
        StorageError: It holds something, cannot be written, or would be lost with the job.
    """
    if UPLOADED in Path.cwd().parts and not Path(into).is_absolute() and "://" not in into:
        raise StorageError(
            f"--into is '{into}', a path below the copy of the project that `ray job submit --working-dir` made for "
            "this job, and goes with it. Name an absolute path or a URI (s3://...)."
        )
    target = Folder.open(into)
    if target.files(recursive=True):
        raise StorageError(
            f"--into is '{target.uri}', and there are files in it. Name a new folder, or empty this one."
        )
    try:
        return target.create() if make else target
    except StorageError as error:
        reason = str(error).split(". Set ")[0]
        raise StorageError(f"--into: {reason}. Name a folder that can be written.") from None


def _source(name: str, stack: ExitStack) -> Source:
    """A model as it was named, its files on this machine, weights unread."""
    found = place = _place(name)
    if "://" in found:
        place = str(stack.enter_context(Folder.open(found).local_copy()))
    said = declared(place)
    return Source(
        name, found, place, said, load_tokenizer(place), is_causal(without_weights(said.config))
    )


def _place(name: str) -> str:
    """The model folder, URI or hub id that a name stands for; of a run, the last model that it has finished.

    Raises:
        ModelError: There is none.
    """
    if "://" not in name and not Path(name).expanduser().is_dir():
        return resolve(name)
    folder = Folder.open(name)
    if folder.exists("config.json"):
        return folder.uri
    for stage, inside in FINISHED.items():
        if folder.exists(f"{stage}/{MANIFEST}") and folder.exists(f"{inside}/config.json"):
            return (folder / inside).uri
    raise ModelError(
        f"'{name}' is neither a model (it has no config.json) nor a run with a finished one ({', '.join(FINISHED)} "
        f"have no {MANIFEST}). Name a model's folder, or train first: python jobs/train.py RECIPE"
    )


def _refuse_another_kind(one: Source, other: Source) -> None:
    """Models whose weights stand for something else, or whose vectors are made of them in another way."""
    for what, mine, theirs in _traits(one, other):
        if mine is not None and theirs is not None and mine != theirs:
            raise ModelError(
                f"'{one.name}' and '{other.name}' cannot be merged: {what} is {mine} in the one and {theirs} in the "
                "other.\n       Merge models of one backbone that were trained for the same use."
            )
    if difference := _tokenizer_difference(one.tokenizer, other.tokenizer):
        raise ModelError(
            f"'{one.name}' and '{other.name}' cannot be merged, because their tokenizers differ: {difference}.\n"
            "       The same row of the embedding would stand for two tokens."
        )


def _traits(one: Source, other: Source) -> Iterator[tuple[str, object, object]]:
    """What must be equal where both say it, the most telling first."""
    mine, theirs = (dict(source.declared.config.to_dict()) for source in (one, other))
    yield "the architecture", mine.get("model_type"), theirs.get("model_type")
    for key in sorted((set(mine) | set(theirs)) - NOT_COMPARED):
        yield key, mine.get(key), theirs.get(key)
    ways = {False: "bidirectional", True: "causal"}
    yield "attention", ways[one.attends_backwards_only], ways[other.attends_backwards_only]
    yield "pooling", one.declared.pooling, other.declared.pooling
    normal = {None: None, False: "off", True: "on"}
    yield "normalisation", normal[one.declared.is_normalised], normal[other.declared.is_normalised]


def _tokenizer_difference(one: Any, other: Any) -> str | None:
    """What tells two tokenizers apart, the vocabulary first; None if nothing does."""
    mine, theirs = one.get_vocab(), other.get_vocab()
    if len(mine) != len(theirs):
        return f"{len(mine):,} tokens and {len(theirs):,}"
    for token, number in mine.items():
        if theirs.get(token) != number:
            return f"the token {token!r} is {number} and {theirs.get(token, 'none')}"
    for text in PROBES:
        here, there = one(text)["input_ids"], other(text)["input_ids"]
        if here != there:
            return f"{text!r} becomes {here} and {there}"
    return None


def _prompts(sources: Sequence[Source], prompts_of: str | None) -> dict[str, str]:
    """The prompts of all models, or those of one.

    Raises:
        ModelError: Two models have another prompt under one name.
    """
    if prompts_of is not None:
        return next(
            source.declared.prompts or {} for source in sources if source.name == prompts_of
        )
    found: dict[str, str] = {}
    owner: dict[str, str] = {}
    for source in sources:
        for name, prompt in (source.declared.prompts or {}).items():
            if found.setdefault(name, prompt) != prompt:
                raise ModelError(
                    f"the prompt '{name}' is {found[name]!r} in '{owner[name]}' and {prompt!r} in '{source.name}', so "
                    "that the models read other texts.\n       Say whose prompts the result carries: --prompts-of MODEL"
                )
            owner.setdefault(name, source.name)
    return found


def _states(sources: Sequence[Source]) -> Iterator[tuple[str, State]]:
    """The weights of one model after the other; none is held here."""
    for source in sources:
        log_event(f"merge: reads {source.found}", "read")
        yield source.name, load_backbone(source.place, dtype=source.dtype).model.state_dict()


def _save(sources: Sequence[Source], state: State, folder: Path, prompts: dict[str, str]) -> int:
    """The merged weights as a sentence-transformers folder, in the widest type of the sources.

    Returns: How many tokens of a text it reads: as many as each of the sources does.
    """
    dtype = sources[0].dtype
    for source in sources[1:]:
        dtype = torch.promote_types(dtype, source.dtype)
    pooling = next((one.declared.pooling for one in sources if one.declared.pooling), None)
    found = load_backbone(sources[0].place, pooling=pooling, dtype=dtype)
    found.model.load_state_dict(state)
    config = found.model.backbone.config
    widths = [
        set(getattr(one.declared.config, "matryoshka_dimensions", None) or ()) for one in sources
    ]
    if any(widths):  # cut where all of them were trained to be cut
        config.matryoshka_dimensions = sorted(set.intersection(*widths), reverse=True)
    limits = [one.declared.max_tokens for one in sources] + [
        one.tokenizer.model_max_length for one in sources
    ]
    limits += [found.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    max_tokens = min(int(one) for one in limits if one is not None)
    save_sentence_transformer(
        found.model, found.tokenizer, folder, max_tokens=max_tokens, prompts=prompts
    )
    return max_tokens


def _write_origin(
    folder: Path, sources: Sequence[Source], shares: Sequence[float], method: Method
) -> None:
    """``merge.json``: what the model was made of."""
    models = [
        {
            "model": source.name,
            "found": source.found,
            "weight": share,
            "weights_fingerprint": weights_fingerprint(source.place),
        }
        for source, share in zip(sources, shares, strict=True)
    ]
    Folder.open(str(folder)).write_json(MERGE_FILE, {"method": method, "models": models})


def _move_in(finished: Path, target: Folder) -> None:
    """Copy a finished folder to its place, where it appears whole or not at all."""
    parent = Folder(target.filesystem, target.path.rpartition("/")[0], target.scheme)
    staging = parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    staging.upload(finished)
    target.delete()
    staging.move_to(target)
