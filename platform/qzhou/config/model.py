"""The table ``[model]``: the encoder that is trained."""

from typing import Annotated, Any, Literal

from pydantic import Field

from qzhou.config.section import AtLeastOne, Section, Verbatim

Prefixes = Annotated[tuple[Verbatim, ...], Field(min_length=2, max_length=2)]


class ModelSection(Section):
    """The encoder that is trained."""

    backbone: str = Field(description="Local path, GGUF file, hub id, or package:<import name>/<folder>.")
    attention: Literal["bidirectional", "causal"] | None = Field(
        None,
        description="A decoder is made bidirectional by config.is_causal = false. Default: as an embedding model "
        "declares; a bare language model becomes bidirectional.",
    )
    pooling: Literal["mean", "last", "cls", "weightedmean", "max"] | None = Field(
        None, description="How token vectors become one vector. Default: as an embedding model declares; else mean."
    )
    attention_of: dict[str, Literal["bidirectional", "causal"]] = Field(
        default_factory=dict, description="Other models of the recipe whose own code is not run -> how they attend."
    )
    prefixes_of: dict[str, Prefixes] = Field(
        default_factory=dict,
        description="Other models of the recipe whose files declare no prompts -> what stands before queries and "
        "before documents: ['query: ', 'passage: '].",
    )
    prompts: Literal["recipe", "model"] = Field(
        "recipe",
        description="What stands before the texts of a dataset without instruction and prefixes: nothing, or model: "
        "what the backbone's files declare.",
    )
    max_query_tokens: AtLeastOne = Field(256, description="Longer queries are truncated, prompt included.")
    max_document_tokens: AtLeastOne = Field(1536, description="Longer documents are truncated.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: bfloat16 where the hardware computes in it (GPU, AMX, AVX-512 BF16), else float32.",
    )
    encoding_dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(
        None, description="Type in which texts are encoded for mining, evaluation and serving; default: as dtype."
    )
    arithmetic: Literal["auto", "torch", "onednn"] = Field(
        "auto",
        description="Library that multiplies float32 on CPUs; auto: oneDNN on AMD with AVX-512, else torch's own.",
    )
    compiled: bool = Field(False, description="torch.compile for encoding; pays on a GPU, needs a C++ compiler.")
    saved_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Type of the weights in the model folder."
    )

    def settings_for(self, *others: str) -> dict[str, Any]:
        """The settings that a stage depends on which uses these other models besides the backbone.

        Prompts of the backbone are those of the datasets by then.
        """
        own = self.model_dump(exclude={"prompts", "attention_of", "prefixes_of"})
        return own | {
            "attention_of": {spec: one for spec, one in self.attention_of.items() if spec in others},
            "prefixes_of": {spec: one for spec, one in self.prefixes_of.items() if spec in others},
        }

    @property
    def encodes_in(self) -> Literal["auto", "float32", "bfloat16", "float16"]:
        """The type in which texts are encoded, whichever setting names it."""
        return self.encoding_dtype or self.dtype
