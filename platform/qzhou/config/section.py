"""What all tables of a recipe share: the base class and the types of numbers and names."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Cosine = Annotated[float, Field(ge=-1.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Verbatim = Annotated[str, StringConstraints(strip_whitespace=False)]  # a blank at its end counts
Value = TypeVar("Value")
# of a setting that no measurement of this project shows to help yet
Experimental = Annotated[Value, Field(json_schema_extra={"experimental": True})]


class Section(BaseModel):
    """A table of the recipe: read-only, and every key must be known."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)
