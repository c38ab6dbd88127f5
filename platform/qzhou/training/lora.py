"""Low-rank adapters in place of all weights (arXiv:2106.09685), by peft."""

from qzhou.config.training import LoraSection
from qzhou.encoder import EmbeddingModel
from qzhou.errors import SetupError, TrainingError

EVERY_LINEAR = "all-linear"


def add_adapters(model: EmbeddingModel, lora: LoraSection) -> EmbeddingModel:
    """The same model, frozen with trainable adapters; unchanged where ``lora.rank`` is 0.

    Raises:
        SetupError: peft is not installed.
        TrainingError: The model has no layer of these names.
    """
    if not lora.rank:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise SetupError(
            f"training.lora needs peft, which cannot be imported: {error}. pip install 'qzhou[lora]'"
        ) from None
    targets = list(lora.target_modules) or EVERY_LINEAR
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0)
    try:
        model.backbone = get_peft_model(model.backbone, config)
    except ValueError as error:
        raise TrainingError(
            f"training.lora.target_modules {lora.target_modules}: {str(error).splitlines()[0]}"
        ) from None
    return model


def merge_adapters(model: EmbeddingModel) -> EmbeddingModel:
    """The same model without adapters, after adding what they learned to its weights."""
    if hasattr(model.backbone, "merge_and_unload"):
        model.backbone = model.backbone.merge_and_unload()
    return model
