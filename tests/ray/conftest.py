"""The cluster that stages are tried on, where they need none of their own."""

from collections.abc import Iterator

import pytest

from qzhou.cluster.session import session


@pytest.fixture(scope="module")
def cluster(head: dict[str, str]) -> Iterator[None]:
    """This process as a driver on the session's head, for one file: the actors of a file end with it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in head.items():
            patch.setenv(name, value)
        with session():
            yield
