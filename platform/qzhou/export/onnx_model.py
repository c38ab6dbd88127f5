"""The transformer of a model folder as ``onnx/model.onnx``, for programs that run without torch.

The file takes ``input_ids`` and ``attention_mask`` of any number and length of texts (and
``token_type_ids`` where the model has several types) and gives ``last_hidden_state`` in
float32. Pooling and what follows stay with the folder, where sentence-transformers,
Transformers.js and text-embeddings-inference read them. The direction of attention is part
of the graph, so that nobody can ignore it.

Written by torch's own exporter: optimum-onnx 0.1 ends at transformers 4.57, and the
exporter inside transformers 5 is declared experimental and has changed its interface
between minor versions.
"""

import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import onnx_ir
import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from qzhou.encoder.attention import Padded
from qzhou.encoder.backbone import EmbeddingModel, load_backbone
from qzhou.encoder.encoder import token_ids
from qzhou.encoder.export import PARITY_COSINE, PARITY_TEXTS
from qzhou.errors import ModelError, first_line
from qzhou.run.files import ONNX_FILE

# large weights lie beside the graph, under the name that optimum gave them and others look for
WEIGHTS_FILE = f"{ONNX_FILE}_data"
INLINE_BYTES = 3 * 2**29  # a protobuf holds less than 2 GiB, graph included
OPSET = 18  # the oldest that torch writes, which most runtimes read
TRACED = (3, 11)  # texts and tokens of the example that is traced; no other size depends on them
WAY_OUT = (
    "The rest of the folder is whole: leave --onnx out, and serve the model with `qzhou serve`, sentence-transformers "
    "or vLLM."
)


def write_onnx(
    folder: Path,
    target: Path,
    *,
    name: str,
    max_tokens: int,
    inline_bytes: int = INLINE_BYTES,
    exporter: Callable[[Any, str], onnx_ir.Model] | None = None,
) -> float:
    """The lowest cosine between the encoder's vectors and those of the file that is written.

    Args:
        folder: Of the exported model. Whatever its weights are saved in, the file computes in float32.
        target: An empty folder.
        name: Of the model, for errors.
        max_tokens: Where texts are truncated.
        inline_bytes: More weights than this lie in a file of their own beside ``model.onnx``.
        exporter: From a backbone, and the words for it in errors, to a graph; default: torch's.

    Raises:
        ModelError: The architecture cannot be exported, or the file gives other vectors, and is not to be used.
    """
    found = load_backbone(str(folder), dtype=torch.float32)
    model = found.model.eval()
    shown = f"the model '{name}' ({model.backbone.config.model_type})"
    _refuse_rotation_by_length(model.backbone.config, shown, max_tokens)
    batches = list(_batches(found.tokenizer, max_tokens))
    expected_ND = torch.cat([_vectors(model, one) for one in batches])
    _save((exporter or _exported)(model.backbone, shown), target, inline_bytes)
    try:
        model.backbone = _OnnxBackbone(target / ONNX_FILE, model.backbone.config)  # torch's weights make room
        vectors_ND = torch.cat([_vectors(model, one) for one in batches])
    except Exception as error:  # noqa: BLE001 - the errors of onnxruntime have no class in common
        reason = first_line(error)
        raise ModelError(f"{shown}: ONNX Runtime cannot run its file: {reason}\n       {WAY_OUT}") from None
    lowest = float((vectors_ND * expected_ND).sum(1).min())
    if not lowest >= PARITY_COSINE:  # NaN is refused too
        raise ModelError(
            f"{shown}: ONNX Runtime gives other vectors than the encoder (lowest cosine {lowest:.6f}, {PARITY_COSINE} "
            f"needed).\n       {WAY_OUT}"
        )
    return lowest


class _HiddenStates(nn.Module):
    """A backbone from the inputs of the ONNX file to its one output."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """The last hidden state [N, T, D]."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden: Tensor = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, **types
        ).last_hidden_state
        return hidden


class _OnnxBackbone(nn.Module):
    """An ONNX file in the place of the backbone that it was made from."""

    def __init__(self, file: Path, config: Any) -> None:
        super().__init__()
        self.config = config
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        """As of transformers; every token is of the first type."""
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": torch.zeros_like(input_ids),
        }
        feed = {one.name: given[one.name].numpy() for one in self.session.get_inputs()}
        (hidden,) = self.session.run(["last_hidden_state"], feed)
        return BaseModelOutput(last_hidden_state=torch.from_numpy(hidden))


def _vectors(model: EmbeddingModel, batch: Padded) -> Tensor:
    with torch.inference_mode():
        return model(batch)  # type: ignore[no-any-return]


def _batches(tokenizer: Any, max_tokens: int) -> Iterator[Padded]:
    """Texts of different lengths and one of any tokens, alone and together, with padding on either side."""
    ids = token_ids(tokenizer, PARITY_TEXTS, max_tokens=max_tokens)
    generator, length = torch.Generator().manual_seed(0), max(map(len, ids))
    ids.append(torch.randint(len(tokenizer), (length,), generator=generator).tolist())
    cpu, pad_token = torch.device("cpu"), tokenizer.pad_token_id
    for one in ids[:2]:
        yield Padded.of([one], cpu, pad_token=pad_token)
    right = Padded.of(ids, cpu, pad_token=pad_token)
    yield right
    padding_N = (right.attention_mask == 0).sum(1).tolist()
    left = [
        torch.stack([row.roll(count) for row, count in zip(rows, padding_N, strict=True)])
        for rows in (right.input_ids, right.attention_mask)
    ]
    yield Padded(*left)


def _refuse_rotation_by_length(config: Any, shown: str, max_tokens: int) -> None:
    """Refuse angles that depend on the length of the text: the graph would keep those of the example, without a word.

    Raises:
        ModelError: Texts may be as long as where the angles change.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    for one in (rope, *(inner for inner in rope.values() if isinstance(inner, Mapping))):
        change = one.get("original_max_position_embeddings") or 0
        if one.get("rope_type") == "longrope" and max_tokens > change:
            raise ModelError(
                f"{shown} cannot be exported to ONNX: it turns positions by other angles in texts of more than "
                f"{change} tokens (rope_type longrope), and model.max_document_tokens is {max_tokens}. Set it to "
                f"{change}. Or else: {WAY_OUT}"
            )


def _exported(backbone: Any, shown: str) -> onnx_ir.Model:
    """The graph of a backbone, for any number and length of texts.

    Raises:
        ModelError: torch cannot export it.
    """
    sizes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length")}
    inputs = {name: torch.ones(TRACED, dtype=torch.long) for name in _inputs(backbone)}
    try:
        with _quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                _HiddenStates(backbone).eval(),
                kwargs=inputs,
                input_names=list(inputs),
                output_names=["last_hidden_state"],
                dynamic_shapes=dict.fromkeys(inputs, sizes),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            return program.model
    except torch.onnx.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
        raise ModelError(f"{shown} cannot be exported to ONNX: {reason}\n       {WAY_OUT}") from None


def _inputs(backbone: Any) -> list[str]:
    """Names of what the file takes; types of tokens only where there is more than one."""
    has_types = "token_type_ids" in inspect.signature(backbone.forward).parameters
    more = has_types and (getattr(backbone.config, "type_vocab_size", None) or 0) > 1
    return ["input_ids", "attention_mask", *(["token_type_ids"] if more else [])]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the graphs that torch prints where an export fails, and warnings of libraries that no text needs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _save(model: onnx_ir.Model, target: Path, inline_bytes: int) -> None:
    """Write the graph without the paths of this machine that torch noted in it, and its weights."""
    ClearMetadataAndDocStringPass()(model)
    weights = (one.const_value for one in model.graph.initializers.values())
    size = sum(one.nbytes for one in weights if one is not None)
    onnx_ir.save(model, target / ONNX_FILE, external_data=WEIGHTS_FILE if size > inline_bytes else None)
