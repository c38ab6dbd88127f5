"""One stage of a plan: what it has to do, how long that takes, what it costs."""

import dataclasses
from typing import Literal

from qzhou.estimate.cluster_spec import MachineGroup

HOUR_S = 3600

Basis = Literal["measured", "scaled", "assumed"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one stage has to do, how long that takes, and what it costs.

    Attributes:
        machines: The machines that do it, and are paid for.
        rows_out: Rows, examples, steps or scores that it writes; ``unit`` says which.
        tokens: Encoded or trained on by models, or those of an LLM.
        flops: Operations of models; those of an LLM are its provider's.
        read_bytes: From storage.
        written_bytes: To storage; they stay, but for ``deleted_bytes``.
        start_s: Seconds that do not grow with the rows.
        work_s: Seconds that do.
        storage_s: Seconds in which the bytes pass, at the same time as the work.
        llm_usd: Price of the tokens of an LLM.
        scoring_usd: Price of the machines that score what an LLM wrote.
        basis: What the seconds rest on: a run on such machines, on others, or the table.
        factor: Measured seconds of the stage / seconds of the table, for the measured run.
    """

    name: str
    machines: MachineGroup
    rows_in: float = 0.0
    rows_out: float = 0.0
    unit: str = ""
    tokens: float = 0.0
    flops: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    deleted_bytes: float = 0.0
    start_s: float = 0.0
    work_s: float = 0.0
    storage_s: float = 0.0
    llm_usd: float = 0.0
    scoring_usd: float = 0.0
    basis: Basis = "assumed"
    factor: float | None = None

    @property
    def wall_s(self) -> float:
        """Seconds of the whole stage."""
        return self.start_s + max(self.work_s, self.storage_s)

    @property
    def waits_for_storage(self) -> bool:
        """Whether reading and writing take longer than the work."""
        return self.storage_s > self.work_s

    @property
    def usd(self) -> float:
        """US dollars for machines and tokens."""
        machines = self.machines.price * self.wall_s / HOUR_S
        return machines + self.scoring_usd + self.llm_usd
