"""What a model's files say of it besides its weights.

Loads no torch, so that a command opens every model of its recipe in its first second. What
this encoder would compute otherwise than sentence-transformers does is refused here, before
anything is paid.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qzhou.errors import ModelError, first_line
from qzhou.run.models import MODEL_NAME_HELP, is_gguf, model_file, resolve

Attention = Literal["bidirectional", "causal"]
Pooling = Literal["mean", "last", "cls", "weightedmean", "max"]

# Read by transformers of Gemma alone, by text-embeddings-inference of every decoder; transformers 5.2 and newer, vLLM
# and llama.cpp's converter read ``is_causal``.
BOTH_WAYS = "use_bidirectional_attention"
EVERY_TOKEN = (True, "all")  # its values for every token; Gemma 4 has the second, and "vision" for images

POOLING_BY_NAME: dict[str, Pooling] = {
    "mean": "mean", "lasttoken": "last", "cls": "cls", "weightedmean": "weightedmean", "max": "max",
}  # fmt: skip
POOLING_BY_OLD_KEY: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_max_tokens": "max",
}
POOLING_OF_GGUF: dict[int, Pooling] = {1: "mean", 2: "cls", 3: "last"}
# where sentence-transformers looks for the length at which it truncates, in this order
TEXT_SETTINGS = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
# in sentence_bert_config.json: how it is loaded, which may change what is computed
LOADING_SETTINGS = (
    "config_args", "config_kwargs", "model_args", "model_kwargs", "tokenizer_args", "tokenizer_kwargs",
    "processing_kwargs", "processor_kwargs", "query_length", "document_length", "query_expansion",
)  # fmt: skip
HARMLESS = {"torch_dtype", "dtype", "attn_implementation", "device_map", "trust_remote_code", "revision", "token"}
WIDTHS = ("hidden_size", "dim", "d_model", "n_embd")
POSITIONS = ("max_position_embeddings", "n_positions")
SAY_ATTENTION = (
    'Say how it attends: attention = "bidirectional" or "causal" in [model] for the backbone, for another model in '
    "[model.attention_of]."
)
COMPUTED = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A linear layer and an activation after pooling, as sentence-transformers' ``Dense``.

    Attributes:
        folder: With its weights, below the model's.
        activation: A class of ``torch.nn``.
    """

    folder: str
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model's files say besides its weights; None where they say nothing.

    Attributes:
        config: Its config.json; empty for a GGUF file.
        attention: What a GGUF file says of it; None leaves it to the config.
        is_embedding_model: Whether it is saved as sentence-transformers saves one, with a list of its modules.
        pooling: How token vectors become one.
        dense: Layers between pooling and normalisation, in order.
        is_normalised: Whether its vectors have unit length in sentence-transformers.
        similarity: How it compares vectors: "cosine", "dot", "euclidean", "manhattan".
        prompts: Name -> prefix.
        max_tokens: Where sentence-transformers truncates, if not left to the tokenizer.
    """

    config: dict[str, Any]
    attention: Attention | None
    is_embedding_model: bool
    pooling: Pooling | None
    dense: tuple[DenseLayer, ...]
    is_normalised: bool | None
    similarity: str | None
    prompts: dict[str, str] | None
    max_tokens: int | None

    @property
    def dimensions(self) -> int | None:
        """D, the width of its vectors; None where config.json does not tell."""
        if self.dense:
            return self.dense[-1].out_features
        return next((int(self.config[key]) for key in WIDTHS if self.config.get(key)), None)

    @property
    def ranks_by_length(self) -> bool:
        """Whether its own ranking depends on the lengths of its vectors, which are 1 here."""
        return self.similarity in {"dot", "euclidean", "manhattan"} and self.is_normalised is False


def read_metadata(spec: str, *, pooling: Pooling | None = None, attention: str | None = None) -> ModelMetadata:
    """What a model's files say of it.

    Args:
        spec: A local folder, a hub id, or ``package:<import name>/<folder>``.
        pooling: What a recipe says in place of the files.
        attention: Likewise.

    Raises:
        ModelError: There is no such model, or it computes something that this encoder does not.
    """
    place = resolve(spec)
    if is_gguf(place):
        return _of_gguf(spec, place, pooling)
    config = read_config(spec)
    _refuse_code_of_its_own(spec, config, attention)
    _refuse_two_directions(spec, config, attention)
    modules = _modules(spec, place)
    folders = dict(modules)
    declared = pooling
    if not pooling and "Pooling" in folders:
        declared = _pooling(spec, place, folders["Pooling"])
    longest = _text_settings(spec, place).get("max_seq_length") if modules else None
    if modules and longest is None:
        longest = next((config[key] for key in POSITIONS if isinstance(config.get(key), int)), None)
    whole = _declared(spec, place, "config_sentence_transformers.json")
    _refuse_settings(spec, whole)
    dense = tuple(_dense(spec, place, folder) for kind, folder in modules if kind == "Dense")
    _refuse_gaps(spec, config, dense)
    return ModelMetadata(
        config=config,
        attention=None,
        is_embedding_model=bool(modules),
        pooling=declared,
        dense=dense,
        is_normalised="Normalize" in folders if modules else None,
        similarity=whole.get("similarity_fn_name"),
        prompts=whole.get("prompts"),
        max_tokens=None if longest is None else int(longest),
    )


def _text_settings(spec: str, place: str) -> dict[str, Any]:
    """How a sentence-transformers model reads texts; refused where it says more than its longest text."""
    for file in TEXT_SETTINGS:
        if found := _declared(spec, place, file):
            if found.get("do_lower_case"):
                _refuse(spec, f"lower-cases its texts (do_lower_case in {file})")
            for name in LOADING_SETTINGS:
                value = found.get(name)
                others = set(value) - HARMLESS if isinstance(value, dict) else {name} if value else set()
                if others:
                    _refuse(spec, f"sets {name} in {file} ({', '.join(sorted(others))})")
            return found
    return {}


def _refuse_settings(spec: str, whole: dict[str, Any]) -> None:
    """Refuse what ``config_sentence_transformers.json`` says and this encoder does not do."""
    if whole.get("truncate_dim"):
        _refuse(spec, f"cuts its vectors to {whole['truncate_dim']} components (truncate_dim)")
    prompts = whole.get("prompts") or {}
    if not isinstance(prompts, dict):
        _refuse(spec, f"declares prompts that are a {type(prompts).__name__}")
    default = whole.get("default_prompt_name")
    if default and prompts.get(default):
        _refuse(spec, f"puts its prompt '{default}' before every text (default_prompt_name)")


def _refuse_gaps(spec: str, config: dict[str, Any], dense: Sequence[DenseLayer]) -> None:
    """Refuse layers that do not fit behind each other."""
    width = next((config[key] for key in WIDTHS if config.get(key)), None)
    for layer in dense:
        if width is not None and layer.in_features != width:
            raise ModelError(
                f"the model '{spec}': {layer.folder} takes {layer.in_features} components, and {width} come before it: "
                "the folder is put together of two models."
            )
        width = layer.out_features


def read_config(spec: str) -> dict[str, Any]:
    """A model's config.json.

    Raises:
        ModelError: There is none.
    """
    found = _declared(spec, resolve(spec), "config.json")
    if not found:
        raise ModelError(f"the model '{spec}' has no config.json. {MODEL_NAME_HELP}")
    return found


def _of_gguf(spec: str, place: str, pooling: Pooling | None) -> ModelMetadata:
    """What one file of llama.cpp's format says; an embedding model's names its pooling."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelError(
            f"the model '{spec}' is a GGUF file, which the package gguf reads: pip install 'qzhou[gguf]'"
        ) from None
    try:
        reader = GGUFReader(place)
        kind = reader.fields["general.architecture"].contents()
        pooled = reader.fields.get(f"{kind}.pooling_type")
        causal = reader.fields.get(f"{kind}.attention.causal")
        width = reader.fields.get(f"{kind}.embedding_length")
    # it reads whatever bytes are there
    except (OSError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise ModelError(
            f"the model '{spec}' cannot be read as GGUF: {first_line(error)}. {MODEL_NAME_HELP}"
        ) from None
    number = int(pooled.contents()) if pooled else 0
    if number and not pooling and number not in POOLING_OF_GGUF:
        _refuse(spec, f"pools by llama.cpp's type {number}")
    return ModelMetadata(
        config={"hidden_size": int(width.contents())} if width else {},
        attention=("causal" if causal.contents() else "bidirectional") if causal else None,
        is_embedding_model=bool(number),
        pooling=pooling or POOLING_OF_GGUF.get(number),
        dense=(),
        is_normalised=None,
        similarity=None,
        prompts=None,
        max_tokens=None,
    )


def _refuse(spec: str, what: str) -> None:
    raise ModelError(
        f"the model '{spec}' {what}, which this encoder does not compute; its vectors would be others. Serve it and "
        "name its URL, https://host/v1#model, or take another model."
    )


def declared_attention(config: Mapping[str, Any]) -> Attention | None:
    """What a config.json says in either spelling; None where it says nothing."""
    if "is_causal" in config:
        return "causal" if config["is_causal"] else "bidirectional"  # null is no to transformers
    both_ways = config.get(BOTH_WAYS)
    return None if both_ways is None else "bidirectional" if both_ways in EVERY_TOKEN else "causal"


def _refuse_two_directions(spec: str, config: dict[str, Any], attention: str | None) -> None:
    """A config that says one thing to one program and another to the next."""
    both_ways = config.get(BOTH_WAYS)
    if attention is not None or "is_causal" not in config or both_ways is None:
        return
    is_gemma = str(config.get("model_type")).startswith("gemma")  # its config always has the second
    if bool(config["is_causal"]) == (both_ways in EVERY_TOKEN) and (both_ways or not is_gemma):
        raise ModelError(
            f"the model '{spec}' declares is_causal = {json.dumps(config['is_causal'])} and {BOTH_WAYS} = "
            f"{json.dumps(both_ways)}, and one is the other's contrary.\n       {SAY_ATTENTION}"
        )


def _refuse_code_of_its_own(spec: str, config: dict[str, Any], attention: str | None) -> None:
    """Code that a model brings is not run, and the class of its kind in transformers may attend otherwise."""
    own = (config.get("auto_map") or {}).get("AutoModel")
    if own and attention is None:
        raise ModelError(
            f"the model '{spec}' brings code of its own ({str(own).rsplit('.', 1)[-1]}), which is not run; as the "
            f"{config.get('model_type')} of transformers it might attend in another direction, and give other "
            f"vectors.\n       {SAY_ATTENTION} Or serve it and name its URL, https://host/v1#model."
        )
    if config.get("is_encoder_decoder"):
        _refuse(spec, f"is an encoder with a decoder ({config.get('model_type')})")


def _modules(spec: str, place: str) -> list[tuple[str, str]]:
    """Kind and folder of each part of a sentence-transformers model; none where it declares none."""
    file = model_file(place, "modules.json", download=True)
    if file is None:
        return []
    try:
        declared = [(str(one["type"]), str(one["path"])) for one in json.loads(file.read_text("utf-8"))]
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the model '{spec}': modules.json is no list of modules: {error!r}. {MODEL_NAME_HELP}"
        ) from None
    for kind, _ in declared:
        if not kind.startswith("sentence_transformers."):
            _refuse(spec, f"has a module of its own ({kind})")
    found = [(kind.rsplit(".", 1)[-1], path) for kind, path in declared]
    kinds = [kind for kind, _ in found]
    for kind in kinds:
        if kind not in COMPUTED:
            _refuse(spec, f"has a module {kind}")
    # cosines do not change by a normalisation at the end; before another module it does
    order = [kind for kind in kinds if kind != "Dropout"]
    ends = ["Normalize"] if order[-1:] == ["Normalize"] else []
    between = order[2 : len(order) - len(ends)]
    if order[:2] != ["Transformer", "Pooling"] or set(between) - {"Dense"}:
        _refuse(spec, f"has its modules in the order {', '.join(kinds)}")
    if found[0][1]:
        _refuse(spec, f"has its weights in a folder of their own ({found[0][1]})")
    return found


def _pooling(spec: str, place: str, folder: str) -> Pooling | None:
    """The pooling that a sentence-transformers model declares, in its old or new spelling."""
    declared = _declared(spec, place, f"{folder}/config.json")
    if not declared:
        raise ModelError(
            f"the model '{spec}' has no {folder}/config.json, which its modules.json names: the copy is not whole. "
            f"Copy it again, or set pooling. {MODEL_NAME_HELP}"
        )
    mode = declared.get("pooling_mode")
    old = [key for key, value in declared.items() if key.startswith("pooling_mode_") and value is True]
    asked = list(mode) if isinstance(mode, list) else [mode] if isinstance(mode, str) else old
    if declared.get("include_prompt") is False:
        _refuse(spec, "leaves its prompt out of pooling (include_prompt = false)")
    known = POOLING_BY_NAME | POOLING_BY_OLD_KEY
    if not asked:
        return None
    if len(asked) > 1 or asked[0] not in known:
        raise ModelError(
            f"the model '{spec}' pools by {' and '.join(map(str, asked))}; this encoder pools by "
            f"{', '.join(POOLING_BY_NAME)}. Set model.pooling, or take another model."
        )
    return known[asked[0]]


def _dense(spec: str, place: str, folder: str) -> DenseLayer:
    declared = _declared(spec, place, f"{folder}/config.json")
    activation = str(declared.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if not activation.startswith("torch.nn."):
        _refuse(spec, f"has an activation {activation}")
    takes = declared.get("module_input_name", "sentence_embedding")
    gives = declared.get("module_output_name") or takes
    if {takes, gives} != {"sentence_embedding"} or declared.get("use_residual"):
        _refuse(spec, f"has a module Dense from {takes} to {gives}{' with a residual' if takes == gives else ''}")
    return DenseLayer(
        folder,
        int(declared["in_features"]),
        int(declared["out_features"]),
        bool(declared.get("bias", True)),
        activation.rsplit(".", 1)[-1],
    )


def _declared(spec: str, place: str, name: str) -> dict[str, Any]:
    """A JSON object beside the weights, in a folder or on the hub; empty without one."""
    file = model_file(place, name, download=True)
    if file is None:
        return {}
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except ValueError as error:
        raise ModelError(f"the model '{spec}': {name} is no JSON object: {error}. {MODEL_NAME_HELP}") from None
