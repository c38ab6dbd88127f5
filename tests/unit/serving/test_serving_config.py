"""serve/config.yaml says what serve/app.py does."""

import importlib
import os
from pathlib import Path

import pytest
import yaml

from qzhou.errors import DataError
from qzhou.recipe import load_recipe

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "recipes" / "quickstart.toml"


@pytest.fixture(scope="module")
def app():
    return importlib.import_module("serve.app")


@pytest.fixture(scope="module")
def config():
    from ray.serve.schema import ServeDeploySchema

    return ServeDeploySchema(**yaml.safe_load((ROOT / "serve" / "config.yaml").read_text("utf-8")))


def test_the_application_named_is_built_from_the_arguments_named(app, config):
    [application] = config.applications
    module, _, builder = application.import_path.partition(":")

    assert getattr(importlib.import_module(module), builder) is app.build
    assert (ROOT / app.Arguments(**application.args).recipe).exists()
    assert application.name == load_recipe(RECIPE).run.name


def test_the_deployments_named_exist_and_have_the_same_limits(app, config):
    for override in config.applications[0].deployments:
        deployment = getattr(app, override.name)
        given = override.model_dump(exclude_unset=True)
        assert given["max_ongoing_requests"] == deployment.max_ongoing_requests
        if "max_queued_requests" in given:
            assert given["max_queued_requests"] == deployment.max_queued_requests


def test_the_proxy_waits_longer_than_the_endpoint(app, config):
    assert config.http_options.request_timeout_s > app.REQUEST_TIMEOUT_S


def test_serve_sees_the_type_of_the_builder_s_arguments(app):
    # With string annotations Ray Serve would pass a plain dict.
    assert app.build.__annotations__["arguments"] is app.Arguments


def test_a_run_without_a_model_is_refused_before_anything_starts(app, tmp_path):
    recipe = load_recipe(RECIPE, ["--run.storage", os.fspath(tmp_path)])

    with pytest.raises(DataError, match=r"the stage 'model' has not finished.*jobs/pipeline.py"):
        app.trained_model(recipe)
    assert list(tmp_path.iterdir()) == []
