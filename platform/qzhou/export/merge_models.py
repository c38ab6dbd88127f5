"""Several model folders or runs merged into one sentence-transformers folder (arithmetic: :mod:`.merge_weights`)."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from qzhou.data.storage import Folder
from qzhou.encoder.backbone import is_causal, load_backbone, load_config, load_tokenizer, meta_model
from qzhou.encoder.export import checked_parity, save_sentence_transformer
from qzhou.encoder.model_files import ModelMetadata, read_metadata
from qzhou.errors import ModelError, RecipeError
from qzhou.export.merge_weights import Method, State, merge_states, shares_of
from qzhou.run.models import find_model, local_model, weights_fingerprint
from qzhou.run.publishing import new_folder, publish
from qzhou.telemetry.events import log_event

MERGE_FILE = "merge.json"
# keys of config.json that change no vector, or whose effect is compared by itself
NOT_COMPARED = {
    "_name_or_path", "architectures", "attention_dropout", "attention_probs_dropout_prob", "bos_token_id",
    "classifier_dropout", "dtype", "eos_token_id", "gradient_checkpointing", "hidden_dropout_prob", "id2label",
    "initializer_range", "is_causal", "label2id", "matryoshka_dimensions", "max_position_embeddings",
    "max_window_layers", "pad_token_id", "tie_word_embeddings", "torch_dtype", "transformers_version",
    "use_bidirectional_attention", "use_cache",
}  # fmt: skip
# texts that two tokenizers must cut in the same way
PROBES = ("The quick brown FOX's tail", "naïve cafés, übermäßig", "今天天气很好。", "x = f(1, 23);\n\treturn")


@dataclass(frozen=True, slots=True)
class Source:
    """A model to merge.

    Attributes:
        name: As the user named it.
        address: Where it was found.
        local: Its folder on this machine, or its hub id.
        metadata: What its files say of it.
        config: Of its backbone.
        tokenizer: Its tokenizer.
        is_causal: Whether its tokens see earlier tokens only.
    """

    name: str
    address: str
    local: str
    metadata: ModelMetadata
    config: Any
    tokenizer: Any
    is_causal: bool

    @property
    def dtype(self) -> torch.dtype:
        """Type of the saved weights."""
        dtype = getattr(self.config, "dtype", None)
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
        method: How weights are merged.
        weights: One for each model; default: equal.
        prompts_of: The model whose prompts the result has where they differ.
        dry_run: Only check and say whether the models can be merged.

    Raises:
        RecipeError: Weights or names that make no sense.
        ModelError: A model that is not there, or models that do not fit together.
        StorageError: ``into`` holds something, or cannot be written.
        TrainingError: SentenceTransformer gives other vectors than our encoder.
    """
    shares = _shares(names, weights, method)
    if prompts_of is not None and prompts_of not in names:
        raise RecipeError(f"--prompts-of is '{prompts_of}', which is none of the models: {', '.join(names)}")
    target = new_folder(into, flag="--into", create=not dry_run)
    with ExitStack() as stack:
        sources = [_source(name, stack) for name in names]
        for other in sources[1:]:
            _refuse_another_kind(sources[0], other)
        prompts = _prompts(sources, prompts_of)
        for source, share in zip(sources, shares, strict=True):
            log_event(f"merge: {share:.4g} of {source.address}", "share", share=share)
        if dry_run:
            line = f"merge: these can be merged into {target.uri} by {method}; nothing was read or written"
            log_event(line, "can_be_merged")
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # merged weights are gone before the folder is checked, which loads them again
        max_tokens = _save(sources, merge_states(_states(sources), shares, method=method), folder, prompts)
        lowest = checked_parity(folder, name="the merged model", max_tokens=max_tokens)
        _write_origin(folder, sources, shares, method)
        publish(folder, target)
    line = f"merge: {target.uri}: SentenceTransformer and the encoder agree (lowest cosine {lowest:.6f})"
    log_event(line, "merged", lowest_cosine=lowest)


def _shares(names: Sequence[str], weights: Sequence[float] | None, method: Method) -> list[float]:
    """Each model's share of the result; numbers that make no sense are refused before anything is read."""
    if len(names) < 2:
        raise RecipeError(f"command line: {len(names)} model is named, and merging takes two or more")
    if weights is not None and len(weights) != len(names):
        raise RecipeError(
            f"command line: --weights has {len(weights)} numbers for {len(names)} models; give one for each"
        )
    return shares_of(weights or [1.0] * len(names), method=method)


def _source(name: str, stack: ExitStack) -> Source:
    """A model by its name, with its files on this machine until the stack is closed; weights are not read."""
    address = find_model(name)
    local = stack.enter_context(local_model(address))
    metadata, config = read_metadata(local), load_config(local)
    return Source(name, address, local, metadata, config, load_tokenizer(local), is_causal(meta_model(config)))


def _refuse_another_kind(one: Source, other: Source) -> None:
    """Refuse models whose weights mean something else, or that make vectors otherwise."""
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
    """Name and both values of what must be equal where both models declare it, the clearest difference first."""
    mine, theirs = (dict(source.config.to_dict()) for source in (one, other))
    yield "the architecture", mine.get("model_type"), theirs.get("model_type")
    for key in sorted((set(mine) | set(theirs)) - NOT_COMPARED):
        yield key, mine.get(key), theirs.get(key)
    attention = {False: "bidirectional", True: "causal"}
    yield "attention", attention[one.is_causal], attention[other.is_causal]
    yield "pooling", one.metadata.pooling, other.metadata.pooling
    switch = {None: None, False: "off", True: "on"}
    layers = [
        [(layer.out_features, layer.activation) for layer in one.dense] for one in (one.metadata, other.metadata)
    ]
    yield "the layers after pooling", layers[0], layers[1]
    yield "normalisation", switch[one.metadata.is_normalised], switch[other.metadata.is_normalised]


def _tokenizer_difference(one: Any, other: Any) -> str | None:
    """The first difference between two tokenizers, in the vocabulary or on :data:`PROBES`; None if there is none."""
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
        sources = [next(source for source in sources if source.name == prompts_of)]
    found: dict[str, tuple[str, str]] = {}
    for source in sources:
        for name, prompt in (source.metadata.prompts or {}).items():
            before, owner = found.setdefault(name, (prompt, source.name))
            if before != prompt:
                raise ModelError(
                    f"the prompt '{name}' is {before!r} in '{owner}' and {prompt!r} in '{source.name}', so "
                    "that the models read other texts.\n       Say whose prompts the result carries: --prompts-of MODEL"
                )
    return {name: prompt for name, (prompt, _) in found.items()}


def _states(sources: Sequence[Source]) -> Iterator[tuple[str, State]]:
    """The weights of one model after the other; none is held here."""
    for source in sources:
        log_event(f"merge: reads {source.address}", "read")
        yield source.name, load_backbone(source.local, dtype=source.dtype).model.state_dict()


def _save(sources: Sequence[Source], state: State, folder: Path, prompts: dict[str, str]) -> int:
    """The most tokens that all sources read, after writing a sentence-transformers folder.

    The weights are written in the widest type of the sources.
    """
    dtype = reduce(torch.promote_types, (source.dtype for source in sources))
    pooling = next((one.metadata.pooling for one in sources if one.metadata.pooling), None)
    found = load_backbone(sources[0].local, pooling=pooling, dtype=dtype)
    found.model.load_state_dict(state)
    config = found.model.backbone.config
    widths = [getattr(one.config, "matryoshka_dimensions", None) or () for one in sources]
    if any(widths):
        # vectors may be cut where all sources were trained to be cut
        config.matryoshka_dimensions = sorted(set.intersection(*map(set, widths)), reverse=True)
    limits = [found.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    for source in sources:
        limits += [source.metadata.max_tokens, source.tokenizer.model_max_length]
    max_tokens = min(int(one) for one in limits if one is not None)
    save_sentence_transformer(found.model, found.tokenizer, folder, max_tokens=max_tokens, prompts=prompts)
    return max_tokens


def _write_origin(folder: Path, sources: Sequence[Source], shares: Sequence[float], method: Method) -> None:
    """Write ``merge.json``: what the model was made of."""
    models = [
        {
            "model": source.name,
            "found": source.address,
            "weight": share,
            "weights_fingerprint": weights_fingerprint(source.local),
        }
        for source, share in zip(sources, shares, strict=True)
    ]
    Folder.open(str(folder)).write_json(MERGE_FILE, {"method": method, "models": models})
