"""The files that Ray's own commands take, checked with Ray's own schemas."""

import copy
import tomllib
from pathlib import Path

import pytest
import ray
import yaml

from qzhou.cluster.spot import PROVIDERS

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["cluster.yaml", "deploy/gcp.yaml"])
def cluster(request):
    return yaml.safe_load((ROOT / request.param).read_text("utf-8"))


def test_ray_up_accepts_the_cluster_file(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)

    assert prepared["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}, (
        "no stage runs on the head"
    )
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"], "in every container"
    assert f":{ray.__version__}-py3" in cluster["docker"]["image"], "the Ray of constraints.txt"


def test_the_clusters_limits_hold_together(cluster):
    workers = [node["max_workers"] for name, node in cluster["available_node_types"].items() if name != "head"]

    assert sum(workers) == cluster["max_workers"]


def test_nodes_have_what_recipes_may_ask_for_and_images_of_their_own_choice(cluster):
    for commands in (cluster["head_setup_commands"], cluster["worker_setup_commands"]):
        assert ",quickstart,lora,trackers]" in commands[0], "as the image of deploy/Dockerfile"
    for name, node in cluster["available_node_types"].items():
        config = node["node_config"]
        image = config.get("ImageId") or config["disks"][0]["initializeParams"]["sourceImage"]
        assert "ubuntu" in image, f"{name}: Ray's own choice is years old"


def test_notices_of_spot_nodes_are_watched_for_with_the_words_that_the_watcher_knows(cluster):
    (command,) = [one for one in cluster["worker_start_ray_commands"] if "qzhou.cluster.spot" in one]

    assert cluster["provider"]["type"] in PROVIDERS
    assert f"-m qzhou.cluster.spot --provider {cluster['provider']['type']} " in command


def test_the_jobs_environment_puts_the_package_on_the_path():
    environment = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text("utf-8"))

    assert (ROOT / environment["env_vars"]["PYTHONPATH"] / "qzhou" / "__init__.py").exists()


def test_serve_takes_the_file_of_a_language_model_of_ones_own():
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
    from ray.serve.schema import ServeDeploySchema

    content = yaml.safe_load((ROOT / "serve" / "llm.yaml").read_text("utf-8"))
    (application,) = ServeDeploySchema.model_validate(content).applications

    assert application.import_path == "ray.serve.llm:build_openai_app"
    for config in application.args["llm_configs"]:
        LLMConfig.model_validate(config)  # refuses unknown keys and GPU types


def test_constraints_pin_every_requirement_that_the_project_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [
        one
        for name in ("cpu", "gpu", "flash", "quickstart", "lora", "gguf", "onnx", "trackers", "docs", "dev")
        for one in extras[name]
    ]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    }

    names = {
        requirement.split("[")[0].split(">")[0].split("=")[0].lower().replace("_", "-") for requirement in wanted
    }

    assert names - {project["name"]} <= pinned  # [dev] names extras of the project itself
