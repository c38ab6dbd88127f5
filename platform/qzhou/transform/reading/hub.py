"""Datasets of the Hugging Face hub, read as a stream."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qzhou.errors import DataError, first_line
from qzhou.transform.reading.columns import Row
from qzhou.transform.reading.files import InputFile


def hf_rows(file: InputFile, shard: int) -> Iterator[Row]:
    """The rows of one shard of a dataset of the hub."""
    rows = hf_dataset(file)
    if rows.num_shards > 1:
        rows = rows.shard(num_shards=rows.num_shards, index=shard)
    yield from rows


def hf_dataset(file: InputFile) -> Any:
    """The streaming ``datasets`` object behind ``hf://name/config:split``; ``name`` may have an owner before it.

    Raises:
        DataError: The address is malformed, or the hub or the dataset cannot be reached.
    """
    import datasets

    address = re.fullmatch(r"hf://(?P<name>[^:]+):(?P<split>[\w.-]+)", file.uri)
    if address is None:
        raise DataError(
            f"'{file.uri}': an address on the hub is written hf://name/config:split, e.g. hf://squad:train"
        )
    reason = ""
    for name, config in _possible_names(address["name"]):
        try:
            return datasets.load_dataset(name, config, split=address["split"], streaming=True)
        # The library raises these two for everything that can be wrong with an address.
        except (OSError, ValueError) as error:
            reason = reason or first_line(error)
    raise DataError(
        f"'{file.uri}' cannot be loaded: {reason}. Check name, config and split, and that the hub can be reached "
        "(HF_ENDPOINT, HF_TOKEN); or download the files and read them with reader = 'parquet' or 'jsonl'."
    )


def _possible_names(address: str) -> list[tuple[str, str | None]]:
    """The (name, config) that an address may mean: ``a/b`` is an owner's dataset, or a dataset and its config."""
    parts = address.split("/")
    if address.startswith("/") or Path(address).is_dir() or len(parts) == 1:
        return [(address, None)]
    if len(parts) == 2:
        return [(address, None), (parts[0], parts[1])]
    return [("/".join(parts[:-1]), parts[-1])]
