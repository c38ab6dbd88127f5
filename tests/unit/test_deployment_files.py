"""The files that Ray's own commands take, checked with Ray's own schemas."""

import copy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import ray
import yaml
from ray.serve.schema import ServeApplicationSchema

from qzhou.cluster.spot import PROVIDERS
from qzhou.config.recipe import load_recipe

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


def test_nodes_that_train_together_have_all_their_network_cards_and_lie_in_one_place():
    """Facts of Amazon's: 32 cards; the first is device 0, the others device 1; EFA wants memory that stays locked."""
    from ray.autoscaler._private.aws.config import _configure_node_type_from_network_interface
    from ray.autoscaler._private.util import prepare_config, validate_config

    command = [sys.executable, "deploy/efa.py", "--subnet", "subnet-1", "--group", "sg-1"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    plain, made = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8")), yaml.safe_load(printed)
    validate_config(prepare_config(copy.deepcopy(made)))
    train = made["available_node_types"].pop("train")

    cards = train["node_config"]["NetworkInterfaces"]
    assert [(one["NetworkCardIndex"], one["DeviceIndex"]) for one in cards] == [
        (0, 0),
        *((n, 1) for n in range(1, 32)),
    ]
    assert {(one["InterfaceType"], one["SubnetId"], *one["Groups"]) for one in cards} == {
        ("efa", "subnet-1", "sg-1")
    }
    assert not any("AssociatePublicIpAddress" in one for one in cards), "EC2 refuses it with several interfaces"
    assert train["node_config"]["Placement"] == {"GroupName": "qzhou-train"}
    assert _configure_node_type_from_network_interface(train)["node_config"]["SubnetIds"] == ["subnet-1"] * 32
    options = train["docker"]["worker_run_options"]
    assert {"--device=/dev/infiniband", "--ulimit memlock=-1:-1"} <= set(options)
    assert train["worker_setup_commands"][1:] == made["worker_setup_commands"]
    plain["available_node_types"].pop("train")
    assert made == plain, "nothing else is changed"


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


def test_what_a_forge_reads_is_well_formed_and_names_what_there_is():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    makefile = (ROOT / "Makefile").read_text("utf-8")

    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yaml").read_text("utf-8"))["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands == ["make check", "make test"]
    assert all(f"\n{one.removeprefix('make ')}: " in makefile for one in commands)
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yaml"):
        content = yaml.safe_load(form.read_text("utf-8"))
        assert {"name", "description", "body"} <= content.keys(), form.name
        assert all(field["attributes"]["label"] for field in content["body"])
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == version


def test_constraints_pin_every_requirement_that_the_project_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [
        one
        for name in ("cpu", "gpu", "quickstart", "lora", "gguf", "onnx", "trackers", "docs", "dev")
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


ANYSCALE = ROOT / "deploy" / "anyscale"


def test_anyscale_s_job_starts_the_run_that_its_recipe_describes():
    job = yaml.safe_load((ANYSCALE / "job.yaml").read_text("utf-8"))

    python, script, recipe, *settings = job["entrypoint"].split()
    assert python == "python"
    assert (ROOT / script).exists()
    assert load_recipe(ROOT / recipe, settings).run.storage == "s3://your-bucket/runs"
    wanted = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text("utf-8"))["env_vars"]
    assert job["env_vars"].items() <= wanted.items()


def test_anyscale_s_service_serves_the_model_that_its_job_leaves():
    service = yaml.safe_load((ANYSCALE / "service.yaml").read_text("utf-8"))

    (application,) = (ServeApplicationSchema.model_validate(one) for one in service["applications"])
    assert application.import_path == "serve.app:build"
    recipe = load_recipe(ROOT / application.args["recipe"])
    assert application.args["model"] == f"{recipe.run.storage}/{recipe.run.name}/model"


@pytest.mark.parametrize("name", ["job.yaml", "service.yaml"])
def test_anyscale_s_files_take_one_image_with_the_ray_of_constraints_txt(name):
    found = yaml.safe_load((ANYSCALE / name).read_text("utf-8"))

    image = (ROOT / found["containerfile"]).read_text("utf-8")
    assert f"FROM anyscale/ray:{ray.__version__}-py311" in image
    assert "[gpu,quickstart,lora,trackers]" in image
