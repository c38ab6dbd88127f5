"""The table ``[transform]``: how raw rows become examples."""

from typing import Annotated, Literal

from pydantic import Field

from qzhou.config.section import AtLeastOne, Experimental, Section
from qzhou.data.ngrams import NgramSizes


class ContaminationSection(Section):
    """Training texts compared with the texts of the evaluation tasks: the held-out data, and mteb's by name."""

    action: Literal["report", "drop", "off"] = Field("report", description="What becomes of rows that overlap.")
    tasks: tuple[str, ...] = Field(
        (), description="mteb tasks or benchmarks besides the recipe's own held-out data."
    )
    ngram_words: AtLeastOne = Field(13, description="Words in a row that count as overlap.")
    ngram_chars: AtLeastOne = Field(20, description="The same for texts in Chinese characters or kana.")
    max_index_ngrams: AtLeastOne = Field(
        50_000_000, description="Above this, a hash picks the n-grams that are kept: memory stays at 10 bytes each."
    )

    @property
    def sizes(self) -> NgramSizes:
        """What counts as an n-gram."""
        return NgramSizes(self.ngram_words, self.ngram_chars)


class TransformSection(Section):
    """Raw rows to examples."""

    max_chars: AtLeastOne = Field(20_000, description="Longer texts are cut here, at a word.")
    deduplicate: bool = Field(
        True,
        description="Drop exact repeats, compared as normalised (query, positive); a dataset may say otherwise.",
    )
    near_duplicates: Experimental[Annotated[float, Field(ge=0.5, lt=1.0)] | None] = Field(
        None,
        description="Drop rows whose texts, side by side, have at least about this Jaccard similarity; default: off.",
    )
    contamination: ContaminationSection = ContaminationSection()
