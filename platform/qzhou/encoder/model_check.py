"""Every model that a recipe names is opened as far as its config, before a stage starts. Loads no torch."""

import sys
from collections.abc import Iterator

from qzhou.config.loading import nearest
from qzhou.config.recipe import Recipe
from qzhou.data.prompts import declared_prompt
from qzhou.encoder.model_files import ModelMetadata, declared_attention, read_config, read_metadata
from qzhou.errors import HubError, ModelError, RecipeError
from qzhou.telemetry.events import log_event


def check_models(recipe: Recipe, *, quiet: bool = False) -> Recipe:
    """The recipe, with the prompts that its backbone declares where ``model.prompts`` asks for them, and its length.

    Prints one line for each setting that contradicts what the backbone declares, and for
    each model of which the hub cannot be asked, unless ``quiet``.

    Raises:
        ModelError: A model is not there, or would be computed otherwise than it declares.
        RecipeError: A setting does not fit the backbone.
    """
    others = list(_other_models(recipe))
    _refuse_unknown_models(recipe, [spec for _, spec in others])
    for setting, spec in others:
        _opened(recipe, setting, spec, quiet=quiet)
    backbone = _opened(recipe, "model.backbone", recipe.model.backbone, quiet=quiet)
    if backbone is None:
        if recipe.model.prompts == "model":
            raise ModelError("model.prompts is 'model', and the files of model.backbone cannot be read here")
        return recipe
    for line in () if quiet else _contradictions(recipe, backbone):
        log_event(f"model: {line}", "setting_beats_model_files", stream=sys.stderr)
    _refuse_width(recipe, backbone)
    recipe = _with_declared_length(recipe, backbone, quiet=quiet)
    return with_declared_prompts(recipe, backbone)


def check_served_models(recipe: Recipe) -> None:
    """Open the further models that an endpoint serves.

    Raises:
        ModelError: One is not there, or would be computed otherwise than it declares.
    """
    for spec in recipe.serving.models.values():
        _opened(recipe, "serving.models", spec, quiet=False)


def _with_declared_length(recipe: Recipe, backbone: ModelMetadata, *, quiet: bool) -> Recipe:
    """The recipe whose texts are no longer than the backbone's own, unless the recipe sets a length."""
    declared, model = backbone.max_tokens, recipe.model
    longer = [
        name
        for name in ("max_query_tokens", "max_document_tokens")
        if declared is not None and getattr(model, name) > declared
    ]
    if not longer:
        return recipe
    for name in longer:
        if name in model.model_fields_set and not quiet:
            line = (
                f"model: model.{name} ({getattr(model, name):,}) of the recipe stands, above what {model.backbone} "
            )
            log_event(f"{line}declares ({declared:,})", "setting_beats_model_files", stream=sys.stderr)
    unset = {name: declared for name in longer if name not in model.model_fields_set}
    return recipe.model_copy(update={"model": model.model_copy(update=unset)})


def with_declared_prompts(recipe: Recipe, backbone: ModelMetadata) -> Recipe:
    """The recipe whose datasets have the backbone's own prefixes, where ``model.prompts`` asks for them.

    A dataset with an instruction or prefixes of its own keeps them.

    Raises:
        RecipeError: The backbone declares no prompts.
    """
    if recipe.model.prompts != "model":
        return recipe
    own = declared_prompt(backbone.prompts or {})
    if own is None or own.prefixes is None:
        raise RecipeError(
            f"model.prompts is 'model', and '{recipe.model.backbone}' declares no prompts for queries or documents "
            "(config_sentence_transformers.json). Set query_prefix and document_prefix of the datasets."
        )
    query, document = own.prefixes
    datasets = [
        one if one.has_prompt else one.model_copy(update={"query_prefix": query, "document_prefix": document})
        for one in recipe.datasets
    ]
    return recipe.model_copy(update={"datasets": tuple(datasets)})


def named_models(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Setting and name of each model of a recipe, the backbone first."""
    yield "model.backbone", recipe.model.backbone
    yield from _other_models(recipe)


def _other_models(recipe: Recipe) -> Iterator[tuple[str, str]]:
    mining = recipe.mining
    named = [("mining.teacher", mining.teacher), ("mining.reranker", mining.reranker)]
    named += [("mining.extra_teachers", spec) for spec in mining.extra_teachers]
    named += [("training.distillation.teacher", recipe.training.distillation.teacher)]
    named += [("synthesis.filters.teacher", recipe.synthesis.filters.teacher)]
    named += [("evaluation.models", spec) for spec in recipe.evaluation.models]
    named += [("serving.models", spec) for spec in recipe.serving.models.values()]
    yield from ((setting, spec) for setting, spec in named if spec)


def _refuse_unknown_models(recipe: Recipe, named: list[str]) -> None:
    for table in ("attention_of", "prefixes_of"):
        for spec in getattr(recipe.model, table):
            if spec not in named:
                raise RecipeError(
                    f"model.{table}: '{spec}' is no model of this recipe besides the backbone{nearest(spec, named)}"
                )


def _opened(recipe: Recipe, setting: str, spec: str, *, quiet: bool) -> ModelMetadata | None:
    """What a model's files say; None for an endpoint or a reranker, and where the hub cannot be asked."""
    if "://" in spec:
        if spec.startswith("http") and not spec.partition("#")[2]:
            raise ModelError(f"{setting}: '{spec}' names no model; write it as {spec}#model-name")
        return None
    own = setting == "model.backbone"
    attention = recipe.model.attention if own else recipe.model.attention_of.get(spec)
    try:
        if setting == "mining.reranker":
            config = read_config(spec)
            if (config.get("auto_map") or {}).get("AutoModelForSequenceClassification"):
                raise ModelError(
                    f"mining.reranker '{spec}' brings code of its own, which is not run. Take another reranker."
                )
            refuse_no_cross_encoder(spec, config.get("architectures") or [])
            return None
        found = read_metadata(spec, pooling=recipe.model.pooling if own else None, attention=attention)
    except HubError as error:
        if not quiet:
            line = f"model: {setting} is not checked: {str(error).splitlines()[0]}"
            log_event(line, "model_not_checked", level="warning", stream=sys.stderr)
        return None
    if not own and found.ranks_by_length:
        raise ModelError(
            f"{setting}: '{spec}' compares vectors by '{found.similarity}' and leaves them at their lengths; vectors "
            "have unit length here, so its ranking would be another. Take a model that compares by cosine."
        )
    return found


def refuse_no_cross_encoder(spec: str, architectures: list[str]) -> None:
    """Refuse a reranker whose files hold no head that scores.

    Raises:
        ModelError: It is none.
    """
    if not any("ForSequenceClassification" in kind for kind in architectures):
        raise ModelError(
            f"mining.reranker '{spec}' is no cross-encoder: it is saved as {', '.join(architectures) or 'nothing'}, "
            "without a head that scores. Name one that is saved as ...ForSequenceClassification."
        )


def _contradictions(recipe: Recipe, backbone: ModelMetadata) -> Iterator[str]:
    """A line for each setting of ``[model]`` that beats what the backbone's files declare."""
    model = recipe.model
    declared: str | None = None
    if backbone.is_embedding_model and model.pooling is not None:
        try:
            declared = read_metadata(model.backbone, attention=model.attention).pooling
        except ModelError:
            declared = "one that is not computed here"
        if declared != model.pooling:
            yield f"model.pooling '{model.pooling}' of the recipe replaces what {model.backbone} declares ({declared})"
    attention = declared_attention(backbone.config)
    if backbone.is_embedding_model and model.attention is not None and model.attention != attention:
        said = attention or "nothing in its config.json"
        yield f"model.attention '{model.attention}' of the recipe stands, whatever {model.backbone} declares ({said})"
    if backbone.ranks_by_length:
        yield (
            f"{model.backbone} compares vectors by '{backbone.similarity}' and leaves them at their lengths; here they "
            "get unit length, for cosines"
        )
    kept = [one.name for one in recipe.datasets if one.has_prompt]
    if model.prompts == "model" and kept:
        yield f"model.prompts is 'model', and the datasets {', '.join(kept)} keep the instructions that they have"
    if backbone.prompts and any(backbone.prompts.values()) and model.prompts == "recipe":
        names = ", ".join(f"'{name}'" for name, text in backbone.prompts.items() if text)
        yield (
            f'{model.backbone} declares prompts ({names}), and the datasets\' own are used; model.prompts = "model" '
            "takes those that it declares"
        )


def _refuse_width(recipe: Recipe, backbone: ModelMetadata) -> None:
    """Refuse Matryoshka widths that are no part of the vectors, before the first step."""
    width = backbone.dimensions
    for dimensions in recipe.training.loss.matryoshka_dimensions:
        if width is not None and dimensions >= width:
            raise RecipeError(
                f"training.loss.matryoshka_dimensions has {dimensions}, and the vectors of '{recipe.model.backbone}' "
                f"have {width} dimensions; name smaller ones, all of them are trained anyway"
            )
