"""serve/config.yaml says what the application of serve/app.py does."""

import importlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from qzhou.config.recipe import load_recipe
from qzhou.errors import DataError, RecipeError
from qzhou.run.run import Run
from qzhou.serving.snapshots import snapshot_of

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "recipes" / "quickstart.toml"


@pytest.fixture(scope="module")
def app():
    return importlib.import_module("qzhou.serving.app")


@pytest.fixture(scope="module")
def config():
    from ray.serve.schema import ServeDeploySchema

    return ServeDeploySchema(**yaml.safe_load((ROOT / "serve" / "config.yaml").read_text("utf-8")))


def test_the_application_named_is_built_from_the_arguments_named(app, config):
    [application] = config.applications
    module, _, builder = application.import_path.partition(":")

    assert getattr(importlib.import_module(module), builder) is app.build
    assert module == "serve.app"
    assert (ROOT / app.Arguments(**application.args).recipe).exists()
    assert application.name == load_recipe(RECIPE).run.name


def test_the_deployments_named_exist_and_have_the_limits_of_the_recipe(app, config):
    built = app.application(load_recipe(RECIPE), "a model")._bound_deployment
    [override] = config.applications[0].deployments
    given = override.model_dump(exclude_unset=True)

    assert override.name == built.name
    assert given["max_ongoing_requests"] == built.max_ongoing_requests
    assert given["graceful_shutdown_timeout_s"] == built._deployment_config.graceful_shutdown_timeout_s


def test_the_proxy_waits_longer_than_the_endpoint(config):
    assert config.http_options.request_timeout_s > load_recipe(RECIPE).serving.request_timeout_s


def test_autoscaling_is_what_the_recipe_says():
    from qzhou.serving.pipeline import options

    words = ["--serving.max_replicas", "4", "--serving.min_replicas", "0", "--serving.target_requests", "20"]
    by_requests = options(load_recipe(RECIPE, words))["autoscaling_config"]
    by_tokens = options(load_recipe(RECIPE, [*words, "--serving.target_waiting_tokens", "9"]))["autoscaling_config"]

    assert (by_requests.min_replicas, by_requests.max_replicas, by_requests.target_ongoing_requests) == (0, 4, 20)
    assert by_tokens.policy.policy_function == "qzhou.serving.scaling:ByWaitingTokens"
    assert by_tokens.policy.policy_kwargs == {"target": 9}
    with pytest.raises(RecipeError, match="min_replicas needs max_replicas"):
        load_recipe(RECIPE, ["--serving.min_replicas", "1"])
    with pytest.raises(RecipeError, match="must not fall in this order"):
        load_recipe(RECIPE, ["--serving.max_replicas", "1", "--serving.min_replicas", "2"])


@pytest.mark.parametrize(("waiting", "requests", "wanted"), [({}, 0, 0), ({}, 1, 1), ({"a": 250, "b": 51}, 9, 4)])
def test_waiting_tokens_say_how_many_replicas(waiting, requests, wanted):
    from qzhou.serving.scaling import ByWaitingTokens

    context = SimpleNamespace(
        aggregated_metrics={"waiting_tokens": waiting}, total_num_requests=requests, policy_state={}
    )

    assert ByWaitingTokens(target=100)(context) == (wanted, {})


def test_serve_sees_the_type_of_the_builder_s_arguments(app):
    # With string annotations Ray Serve would pass a plain dict.
    assert app.build.__annotations__["arguments"] is app.Arguments


def test_a_run_without_a_model_is_refused_before_anything_starts(tmp_path):
    recipe = load_recipe(RECIPE, ["--run.storage", os.fspath(tmp_path)])

    with pytest.raises(DataError, match=r"the stage 'model' has not finished.*qzhou run"):
        snapshot_of(Run.at(recipe))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "keys", "is_open"),
    [("127.0.0.1", "", False), ("localhost", "", False), ("0.0.0.0", "a-key", False), ("0.0.0.0", "", True)],
)
def test_an_endpoint_that_everyone_may_use_says_so(app, monkeypatch, host, keys, is_open):
    monkeypatch.delenv("QZHOU_API_KEYS", raising=False)
    if keys:
        monkeypatch.setenv("QZHOU_API_KEYS", keys)

    said = app.welcome(f"http://{host}:8000", load_recipe(RECIPE, ["--serving.host", host]))

    assert ("open to everyone who reaches port 8000" in said) == is_open
    assert ("Bearer" in said) == bool(keys)
    assert "a-key" not in said
