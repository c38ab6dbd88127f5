"""The table ``[mining]``: how hard negatives are found."""

from typing import Literal

from pydantic import Field, field_validator

from qzhou.config.section import AtLeastOne, Cosine, Count, Experimental, Fraction, Positive, Section


class MiningSection(Section):
    """A teacher's embeddings and exact search find hard negatives."""

    teacher: str = Field(
        "",
        description="Encoder that mines: named like a backbone, or 'https://host/v1#model'; '': the backbone itself.",
    )
    teacher_api_key_env: str = Field("OPENAI_API_KEY", description="Environment variable with the key of an URL.")
    extra_teachers: Experimental[tuple[str, ...]] = Field(
        (), description="Encoders that mine beside it, named alike."
    )
    teacher_prompts: Literal["recipe", "model"] = Field(
        "recipe",
        description="What a teacher reads before texts; model: the prompts that its folder declares, if any.",
    )
    combine: Literal["union", "each"] = Field(
        "union", description="Several teachers: union draws from all that they name; each lets them take turns."
    )
    reranker: Experimental[str] = Field(
        "", description="Cross-encoder, named like a backbone, whose scores (0 to 1) replace the teacher's cosines."
    )
    relabel_from: Experimental[Fraction | None] = Field(
        None,
        description="A candidate or given negative that the reranker scores so high, and no lower than the query's "
        "lowest positive, becomes a positive (RLHN: an answer that nobody had labelled).",
    )
    index: Experimental[str] = Field(
        "Flat", description="FAISS factory string; 'Flat' is exact, 'IVF4096,Flat' faster and not."
    )
    index_parameters: Experimental[str] = Field(
        "", description="Of an approximate search, as FAISS reads them: 'nprobe=32'."
    )
    index_from_documents: Experimental[Count] = Field(
        100_000, description="A smaller corpus is searched exactly, whatever the index: it would not pay."
    )
    index_memory_gb: Experimental[Positive] = Field(
        4.0, description="An approximate index over more vectors is sharded over more actors; 'Flat' streams them."
    )
    min_recall: Experimental[Fraction] = Field(
        0.0, description="An approximate index that finds a smaller share of the exact neighbours ends the stage."
    )
    rank_from: AtLeastOne = Field(10, description="First rank of the window, counted from 1 without the positives.")
    rank_to: AtLeastOne = Field(30, description="Last rank of the window (paper: 'top-10 to top-30').")
    later_rank_to: Experimental[Count] = Field(
        0,
        description="A query whose window holds no negative takes some from the ranks behind it, up to this one, by "
        "the same limits; 0: it goes without.",
    )
    positive_ratio: float | None = Field(
        0.95,
        description="A negative scores below this share of its positive's score, 1 at most; 'off': no such limit.",
    )
    margin: Cosine | None = Field(None, description="A negative scores at least this much below its positive.")
    min_score: Cosine | None = Field(None, description="Candidates below it are too easy.")
    max_score: Cosine | None = Field(None, description="Candidates above it are too close, whatever the positive.")
    max_positive_cosine: Cosine = Field(
        0.98, description="Candidates nearer than this to a positive say the same, and are no negatives."
    )
    consistency_top_k: Experimental[AtLeastOne | None] = Field(
        None, description="Pairs are dropped whose positives are not among the teacher's first k (KaLM: 50)."
    )
    sampling: Literal["uniform", "softmax", "top"] = Field(
        "uniform", description="How negatives are drawn from what qualifies; top: the hardest."
    )
    sampling_temperature: Positive = Field(0.05, description="softmax: divides the scores.")
    negatives_per_query: Count = Field(4, description="Negatives kept; fewer where fewer qualify, never filled up.")
    llm_negative_fraction: Fraction = Field(
        0.3, description="Share of them that may be LLM-written, where there are."
    )

    @field_validator("positive_ratio", mode="before")
    @classmethod
    def _none_where_off(cls, ratio: object) -> object:
        return None if ratio == "off" else ratio  # TOML has no null

    @field_validator("positive_ratio")
    @classmethod
    def _share(cls, ratio: float | None) -> float | None:
        if ratio is not None and not 0.0 < ratio <= 1.0:
            raise ValueError(
                f"{ratio:g} is no share of a score; take one above 0 and up to 1, or 'off' for no limit"
            )
        return ratio

    @property
    def teachers(self) -> tuple[str, ...]:
        """All encoders that mine, in order; '' is the backbone."""
        return (self.teacher, *self.extra_teachers)
