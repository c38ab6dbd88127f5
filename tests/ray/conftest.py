"""The cluster that stages are tried on, where they need none of their own."""

from collections.abc import Callable, Iterator
from functools import cache

import pytest

from qzhou.cluster.session import session
from qzhou.config.recipe import Recipe
from qzhou.training.pipeline import train
from tests.conftest import recipe_in
from tests.ray.training_run import prepared


@pytest.fixture(scope="module")
def cluster(head: dict[str, str]) -> Iterator[None]:
    """This process as a driver on the session's head, for one file: the actors of a file end with it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in head.items():
            patch.setenv(name, value)
        with session():
            yield


@pytest.fixture(scope="session")
def train_undisturbed(tmp_path_factory, tiny_qwen2) -> Callable[[], Recipe]:
    """Gives a training run to which nothing happened; the first call makes it, on the cluster of its test."""

    @cache
    def made() -> Recipe:
        folder = tmp_path_factory.mktemp("undisturbed")
        recipe = prepared(recipe_in(folder), tiny_qwen2, "calm", validate_every_steps=6)
        train(recipe)
        return recipe

    return made
