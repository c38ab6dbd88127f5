"""What the stages of a run leave for others."""

from pathlib import Path

import pyarrow.parquet as pq


def examples(run: Path, *stages: str) -> dict[str, list[dict]]:
    """File -> rows, of the examples of some stages."""
    files = [path for stage in stages for path in sorted((run / stage).rglob("examples/**/*.parquet"))]
    return {str(path.relative_to(run)): pq.read_table(path).to_pylist() for path in files}
