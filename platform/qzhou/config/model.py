"""The table ``[model]``: the encoder that is trained."""

from typing import Literal

from pydantic import Field

from qzhou.config.section import AtLeastOne, Section


class ModelSection(Section):
    """The encoder that is trained."""

    backbone: str = Field(description="Local path, hub id, or package:<import name>/<folder>.")
    attention: Literal["bidirectional", "causal"] = Field(
        "bidirectional", description="A decoder is made bidirectional by config.is_causal = false."
    )
    pooling: Literal["mean", "last", "cls"] = Field("mean", description="How token vectors become one vector.")
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

    @property
    def encodes_in(self) -> Literal["auto", "float32", "bfloat16", "float16"]:
        """The type in which texts are encoded, whichever setting names it."""
        return self.encoding_dtype or self.dtype
