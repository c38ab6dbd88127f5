"""The options of ``qzhou plan``."""

import dataclasses
import math

from qzhou.errors import RecipeError

MOST = 10**12  # a larger count is a slip of the keyboard
SMALLEST = math.nextafter(0, 1)
COUNT = (1, MOST, f"a number from 1 to {MOST:,}")
PRICE = (0, MOST, f"a number from 0 to {MOST:,}")
TOKENS = (SMALLEST, MOST, "a number of tokens above 0")
RANGES = {
    **dict.fromkeys(("rows", "examples", "gpus", "cpus"), COUNT),
    **dict.fromkeys(("synthetic", "gpu_price", "cpu_price"), PRICE),
    **dict.fromkeys(("mean_query_tokens", "mean_document_tokens"), TOKENS),
    "utilisation": (SMALLEST, 1, "a share above 0 and at most 1, like 0.4"),
}
# The options that change the details of one stage; the others belong to the plan of all stages.
OF_TRAINING = {"gpu", "gpus", "utilisation", "mean_query_tokens", "mean_document_tokens", "assume"}
OF_STAGES: dict[str, set[str]] = {"training": OF_TRAINING, "synthesis": set()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What the command line asks for; None or empty is not given.

    Attributes:
        stage: ``training`` or ``synthesis`` for its details; empty for the plan of all.
        json: Whether to print JSON in base units.
        measured: Folder of a finished run, or of one that has finished some stages.
        rows: Raw rows of all datasets together.
        examples: Examples that are trained on, after synthesis.
        synthetic: Requests to an LLM, instead of those that the recipe asks for.
        gpu: Name of a GPU; empty: the GPU of the recipe, or none.
        cpus: CPUs for transform and synthesis; without GPUs, of the one machine for all.
        cloud: The cloud whose machines are rented.
        gpu_price: US dollars per hour and GPU, instead of the list price.
        cpu_price: US dollars per hour and CPU, instead of the list price.
        utilisation: Share of the GPU's peak that training reaches; short for ``--assume train_utilisation=``.
        mean_query_tokens: Mean length of queries, instead of what examples say or what is assumed.
        assume: ``NAME=VALUE,NAME=VALUE``: assumptions that replace those of the table.

    Raises:
        RecipeError: An option is out of range, or does not belong to the stage.
    """

    stage: str = ""
    json: bool = False
    measured: str = ""
    rows: int | None = None
    examples: int | None = None
    synthetic: int | None = None
    gpu: str = ""
    gpus: int | None = None
    cpus: int | None = None
    cloud: str = ""
    gpu_price: float | None = None
    cpu_price: float | None = None
    utilisation: float | None = None
    mean_query_tokens: float | None = None
    mean_document_tokens: float | None = None
    assume: str = ""

    def __post_init__(self) -> None:
        for name, (lowest, highest, range_) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                raise RecipeError(f"command line: {flag(name)} is {value:,}; it is {range_}")
        if self.stage and self.stage not in OF_STAGES:
            raise RecipeError(f"command line: --stage is '{self.stage}'; it is {' or '.join(OF_STAGES)}")
        if others := [name for name in self.given if name not in OF_STAGES.get(self.stage, self.given)]:
            raise RecipeError(
                f"command line: {flag(others[0])} changes nothing in the details of {self.stage}; "
                "leave it out, or leave out --stage"
            )

    @property
    def given(self) -> list[str]:
        """Names of the options that are given, except the stage."""
        names = [one.name for one in dataclasses.fields(self) if one.name != "stage"]
        return [name for name in names if getattr(self, name) not in (None, "", False)]


def flag(name: str) -> str:
    """The option of the command line for a field."""
    return "--" + name.replace("_", "-")
