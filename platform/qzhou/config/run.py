"""The table ``[run]``: the name of a run, its storage and its seed."""

from pydantic import Field

from qzhou.config.section import Count, Name, Section


class RunSection(Section):
    """Which run this is and where it is kept."""

    name: Name = Field(description="Folder of the run under the storage path.")
    storage: str = Field("runs", description="Local path or URI (s3://, gs://); shared by all nodes of a cluster.")
    seed: Count = Field(0, description="Every random choice of the run follows from it.")
    share_stages: bool = Field(
        False, description="Take a stage over that another run under the same storage has finished alike."
    )
