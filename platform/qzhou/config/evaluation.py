"""The table ``[evaluation]``: what mteb judges."""

from pydantic import Field

from qzhou.config.section import AtLeastOne, Section, Verbatim
from qzhou.data.prompts import TEMPLATE


class EvaluationSection(Section):
    """What mteb judges, and how."""

    tasks: tuple[str, ...] = Field(
        (), description="mteb tasks or benchmarks besides the held-out data: 'SciFact', 'MTEB(eng, v2)'."
    )
    models: tuple[str, ...] = Field(
        (),
        description="Further models to judge: path, hub id, package:<import name>/<folder>, or an endpoint's URL, "
        "https://host/v1#model.",
    )
    api_key_env: str = Field("QZHOU_JUDGED_API_KEY", description="Variable with the key of such an endpoint.")
    instruction_template: Verbatim = Field(TEMPLATE, description="How they stand before a query, as in a dataset.")
    instructions: dict[str, str] = Field(
        default_factory=dict, description="mteb task -> instruction; default: what mteb declares for it."
    )
    models_with_recipe_prompts: tuple[str, ...] = Field(
        (),
        description="Models that this recipe did not train, by their names in the table ('backbone'), that are judged "
        "with its prompts; default: with the prompts that their own files declare.",
    )
    max_tokens: AtLeastOne | None = Field(
        None, description="Longer texts are truncated; default: model.max_document_tokens."
    )
    split_documents: AtLeastOne = Field(
        20_000, description="Documents of a corpus that one worker encodes at a time; larger ones go to several."
    )
    max_queries: AtLeastOne = Field(1000, description="Retrieval: held-out queries, a seeded sample.")
    max_documents: AtLeastOne = Field(
        100_000, description="Retrieval: corpus size; relevant documents always stay."
    )
    max_rows: AtLeastOne = Field(2000, description="Other tasks: held-out rows, a seeded sample.")
    bm25: bool = Field(True, description="Add the lexical baseline to retrieval tasks.")
