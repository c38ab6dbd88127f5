"""Datasets of the Hugging Face hub, read as a stream."""

import re
from collections.abc import Iterator
from contextlib import suppress
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

    It is read at the commit that :func:`commit_of` found before the work began.

    Raises:
        DataError: The address is malformed, or the hub or the dataset cannot be reached.
    """
    import datasets

    address = _address(file.uri)
    reason = ""
    for name, config in _possible_names(address["name"]):
        try:
            revision = file.changed or address["revision"]
            return datasets.load_dataset(name, config, split=address["split"], streaming=True, revision=revision)
        # The library raises these two for everything that can be wrong with an address.
        except (OSError, ValueError) as error:
            reason = reason or first_line(error)
    raise DataError(
        f"'{file.uri}' cannot be loaded: {reason}. Check name, config and split, and that the hub can be reached "
        "(HF_ENDPOINT, HF_TOKEN); or download the files and read them with reader = 'parquet' or 'jsonl'."
    )


def stated_rows(file: InputFile) -> int:
    """How many rows the hub says that there are; 0 where it does not say."""
    stated = (hf_dataset(file).info.splits or {}).get(_address(file.uri)["split"])
    return int(stated.num_examples or 0) if stated is not None else 0


def commit_of(uri: str) -> str:
    """The commit of a dataset of the hub; empty for a folder, and where the hub cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    address = _address(uri)
    if Path(address["name"]).is_dir():
        return ""
    for name, _ in _possible_names(address["name"]):
        with suppress(HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError):
            return str(HfApi().dataset_info(name, revision=address["revision"]).sha or "")
    return ""


def _address(uri: str) -> re.Match[str]:
    address = re.fullmatch(r"hf://(?P<name>[^:]+):(?P<split>[\w.-]+)(?:@(?P<revision>[\w./-]+))?", uri)
    if address is None:
        raise DataError(
            f"'{uri}': an address on the hub is written hf://name/config:split, or ...:split@revision, e.g. "
            "hf://squad:train"
        )
    return address


def _possible_names(address: str) -> list[tuple[str, str | None]]:
    """The (name, config) that an address may mean: ``a/b`` is an owner's dataset, or a dataset and its config."""
    parts = address.split("/")
    if address.startswith("/") or Path(address).is_dir() or len(parts) == 1:
        return [(address, None)]
    if len(parts) == 2:
        return [(address, None), (parts[0], parts[1])]
    return [("/".join(parts[:-1]), parts[-1])]
