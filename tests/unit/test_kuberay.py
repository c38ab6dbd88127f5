"""The manifests of deploy/kuberay: against schemas, against the recipe that they run, and against each other."""

import copy
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from qzhou.cluster.resources import PIPELINE, NodeType, refuse_impossible, resources_for
from qzhou.config.recipe import load_recipe
from qzhou.config.serving import ServingSection
from qzhou.errors import SetupError
from tests.manifests import built, by_kind, check, check_with_crds

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
IN_IMAGE = "/home/ray/qzhou"
FOLDERS = {"RayCluster": KUBERAY, "RayJob": KUBERAY / "pipeline", "RayService": KUBERAY / "endpoint"}
CLUSTER_OF = {"RayCluster": "spec", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}


@pytest.fixture(params=FOLDERS)
def kind(request):
    return request.param


def cluster_of(kind):
    one = by_kind(built(FOLDERS[kind]), kind)
    return one["spec"] if kind == "RayCluster" else one["spec"][CLUSTER_OF[kind]]


def pods_of(kind):
    """Name, pod and Ray container of every group, and of the pod that submits."""
    cluster, spec = cluster_of(kind), by_kind(built(FOLDERS[kind]), kind)["spec"]
    groups = [("head", cluster["headGroupSpec"]), *((one["groupName"], one) for one in cluster["workerGroupSpecs"])]
    pods = [(name, group["template"]["spec"]) for name, group in groups]
    if "submitterPodTemplate" in spec:
        pods.append(("submitter", spec["submitterPodTemplate"]["spec"]))
    return [(name, pod, *pod["containers"]) for name, pod in pods]


def job():
    return by_kind(built(FOLDERS["RayJob"]), "RayJob")["spec"]


def serve_config():
    return yaml.safe_load(by_kind(built(FOLDERS["RayService"]), "RayService")["spec"]["serveConfigV2"])


def recipe_of_job():
    _, script, path, *words = shlex.split(job()["entrypoint"])
    assert (ROOT / Path(script).relative_to(IN_IMAGE)).is_file()
    return load_recipe(ROOT / Path(path).relative_to(IN_IMAGE), words)


def secrets():
    return list(yaml.safe_load_all((KUBERAY / "secrets.example.yaml").read_text("utf-8")))


def test_kubernetes_takes_every_object(kind):
    objects = built(FOLDERS[kind])

    assert [one["kind"] for one in objects] == ["Namespace", *["NetworkPolicy"] * 3, kind]
    for one in [*objects, *secrets()]:
        check(one)
        assert one["metadata"].get("namespace", "qzhou") == "qzhou"


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder with KubeRay's CRDs")
def test_kuberays_own_crds_take_every_object(kind):
    check_with_crds(by_kind(built(FOLDERS[kind]), kind), Path(os.environ["KUBERAY_CRDS"]))


def test_crds_refuse_unknown_fields_and_wrong_types(tmp_path):
    number = {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
    spec = {"type": "object", "required": ["size"], "properties": {"size": number, "free": {"type": "object",
            "x-kubernetes-preserve-unknown-fields": True}}}  # fmt: skip
    top = {"type": "object", "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
           "metadata": {"type": "object"}, "spec": spec}}  # fmt: skip
    versions = [{"name": "v1", "schema": {"openAPIV3Schema": top}}, {"name": "v1alpha1", "schema": {}}]
    (tmp_path / "ray.io_rayjobs.yaml").write_text(yaml.safe_dump({"spec": {"versions": versions}}))
    good = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "n"}}
    good["spec"] = {"size": "1Gi", "free": {"a": 1}}

    check_with_crds(good, tmp_path)
    for slip in ({"size": 1, "sise": 2}, {"size": []}, {}):
        with pytest.raises(jsonschema.ValidationError):
            check_with_crds(good | {"spec": slip}, tmp_path)


@pytest.mark.parametrize(
    ("kind", "place", "wrong"),
    [
        ("RayCluster", (), {"headGroupSpecs": {}}),
        ("RayCluster", (), {"rayVersion": 2.6}),
        ("RayCluster", ("autoscalerOptions",), {"upscalingMode": "Fast"}),
        ("RayCluster", ("headGroupSpec",), {"rayStartParams": {"num-cpus": 0}}),
        ("RayCluster", ("headGroupSpec", "template", "spec"), {"terminationGracePeriodSecond": 9}),
        ("RayCluster", ("workerGroupSpecs", 0), {"maxReplica": 3}),
        ("RayCluster", ("workerGroupSpecs", 2, "template", "spec", "containers", 0), {"imagePullPolcy": "Always"}),
        ("RayCluster", ("workerGroupSpecs", 1, "template", "spec", "volumes", 1, "emptyDir"), {"size": "1Gi"}),
        ("RayJob", (), {"backofLimit": 3}),
        ("RayJob", (), {"shutdownAfterJobFinishes": "yes"}),
        ("RayJob", ("rayClusterSpec", "headGroupSpec"), {"templates": {}}),
        ("RayService", (), {"serveConfig": ""}),
        ("RayService", ("upgradeStrategy",), {"type": "Rolling"}),
    ],
)
def test_a_slip_is_refused(kind, place, wrong):
    one = copy.deepcopy(by_kind(built(FOLDERS[kind]), kind))
    at = one["spec"]
    for step in place:
        at = at[step]
    at |= wrong

    with pytest.raises(
        jsonschema.ValidationError, match="|".join(str(part) for pair in wrong.items() for part in pair)
    ):
        check(one)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_kubectl_puts_the_same_together(kind):
    command = ["kubectl", "kustomize", str(FOLDERS[kind])]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert sorted(yaml.safe_load_all(said), key=str) == sorted(built(FOLDERS[kind]), key=str)


def test_the_job_and_the_endpoint_run_on_pods_of_the_cluster():
    cluster, service = cluster_of("RayCluster"), cluster_of("RayService")

    assert cluster_of("RayJob") == cluster
    (gpu,) = service.pop("workerGroupSpecs")
    assert gpu in cluster["workerGroupSpecs"]
    assert service == {name: value for name, value in cluster.items() if name != "workerGroupSpecs"}


def test_ray_is_the_pinned_one_everywhere(kind):
    assert cluster_of(kind)["rayVersion"] == ray.__version__
    for name, _, container in pods_of(kind):
        assert re.fullmatch(rf"your-registry/qzhou-[cg]pu:[\d.]+-ray{ray.__version__}", container["image"]), name


def test_no_pod_may_do_more_than_it_needs(kind):
    for name, pod, container in pods_of(kind):
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 1000), name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert (name == "head") != (pod.get("automountServiceAccountToken") is False), (
            "the autoscaler is on the head"
        )
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys() & container["resources"][
            "limits"
        ].keys()
        assert pod["restartPolicy"] == "Never"
    autoscaler = cluster_of(kind)["autoscalerOptions"]
    assert autoscaler["securityContext"] == container["securityContext"]


def test_ray_gets_what_it_counts_on_and_shared_memory_for_its_objects(kind):
    for _, pod, container in pods_of(kind):
        if container["name"] == "ray-job-submitter":
            continue
        assert container["resources"]["requests"] == container["resources"]["limits"]
        (shm,) = [one["emptyDir"] for one in pod["volumes"] if one["name"] == "shm"]
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert shm["medium"] == "Memory"
        size, memory = (
            int(text.removesuffix("Gi")) for text in (shm["sizeLimit"], container["resources"]["limits"]["memory"])
        )
        assert 0.3 * memory <= size < 0.5 * memory


def test_a_pod_that_goes_has_time_to_drain(kind):
    for name, pod, container in pods_of(kind):
        if name == "submitter":
            continue
        environment = {one["name"]: one["value"] for one in container["env"]}
        drain = int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert drain + 20 <= pod["terminationGracePeriodSeconds"]


def node_kinds(kind):
    """What the autoscaler will make of the groups, by its own reading."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = {"metadata": {"name": "qzhou", "namespace": "qzhou"}, "spec": cluster_of(kind)}
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert types.pop("headgroup")["resources"]["CPU"] == 0, "no stage runs on the head"
    return [NodeType(name, one["resources"], one["labels"], one["max_workers"]) for name, one in types.items()]


def test_the_groups_can_give_every_stage_of_the_recipe_what_it_asks():
    recipe, kinds = recipe_of_job(), node_kinds("RayJob")

    refuse_impossible([resources_for(recipe, stage) for stage in PIPELINE], kinds, "the manifests")
    refuse_impossible([resources_for(recipe, "serving")], node_kinds("RayService"), "the manifests")
    nodes_of = {
        one.name: {stage: one.capacity_for(resources_for(recipe, stage)) for stage in (*PIPELINE, "serving")}
        for one in kinds
    }
    assert nodes_of["cpu"] == {
        "transform": 15,
        "synthesis": 60,
        "mining": 0,
        "training": 0,
        "evaluation": 0,
        "serving": 0,
    }
    assert [nodes_of["gpu"][stage] for stage in ("mining", "training", "evaluation", "serving")] == [1, 0, 1, 1]
    assert nodes_of["train"]["training"] == 8, "one worker a GPU, and no GPU idle for want of CPUs"
    with pytest.raises(SetupError, match=r"cluster\.training"):
        refuse_impossible(
            [resources_for(recipe, "training")], [one for one in kinds if one.name != "train"], "the manifests"
        )


def test_the_job_goes_on_where_it_stopped_and_is_found_by_its_run():
    spec, recipe = job(), recipe_of_job()
    environment = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text("utf-8"))["env_vars"]
    del environment["PYTHONPATH"]  # the image has it

    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (3, True)
    assert recipe.run.storage.startswith("s3://")
    assert spec["metadata"] == {"qzhou_run": f"{recipe.run.storage}/{recipe.run.name}"}
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": environment}


def test_serve_gets_the_configuration_of_serve_config_yaml_for_the_jobs_model():
    from ray.serve.schema import ServeDeploySchema
    from serve.app import Arguments

    ours, theirs = (serve_config(), yaml.safe_load((ROOT / "serve" / "config.yaml").read_text("utf-8")))
    (application,) = ServeDeploySchema.model_validate(ours).applications
    recipe, arguments = recipe_of_job(), Arguments.model_validate(application.args)

    assert application.name == recipe.run.name
    assert arguments.model == f"{recipe.run.storage}/{recipe.run.name}/model"
    assert (ROOT / Path(arguments.recipe).relative_to(IN_IMAGE)).is_file()
    for config in (ours, theirs):
        del config["applications"][0]["name"], config["applications"][0]["args"]
    assert ours == theirs
    assert {"name": "serve", "containerPort": ours["http_options"]["port"]} in pods_of("RayService")[1][2]["ports"]


def test_only_the_endpoint_is_open_to_other_namespaces(kind):
    policies = {
        one["metadata"]["name"]: one["spec"] for one in built(FOLDERS[kind]) if one["kind"] == "NetworkPolicy"
    }

    assert policies.pop("inside-only") == {
        "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {}}]}],
    }  # fmt: skip
    (operator,) = policies.pop("from-operator")["ingress"]
    (source,) = operator["from"]  # both at once: the operator's pods, in the operator's namespace
    assert source.keys() == {"namespaceSelector", "podSelector"}
    assert [one["port"] for one in operator["ports"]] == [8265, 8000]
    assert policies.pop("to-endpoint")["ingress"] == [{"ports": [{"port": 8000}]}]
    assert not policies


def test_keys_come_from_secrets_that_hold_no_values_here():
    named = {one["metadata"]["name"]: one["stringData"] for one in secrets()}
    asked = {}
    for name, _, container in pods_of("RayCluster"):
        asked[name] = {
            one["secretRef"]["name"]: one["secretRef"].get("optional", False) for one in container["envFrom"]
        }

    assert not any(value for data in named.values() for value in data.values())
    assert set(named) == {name for one in asked.values() for name in one}
    assert asked["gpu"]["qzhou-endpoint"] is False, "an endpoint without keys is open to everyone"
    assert named["qzhou-endpoint"].keys() == {ServingSection().api_keys_env}


def test_what_the_page_adds_is_taken_too():
    page = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")
    claim, redis = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))

    check(claim)
    service = by_kind(built(FOLDERS["RayService"]), "RayService")
    service["spec"]["rayClusterConfig"] |= redis
    check(service)


def test_the_commands_of_the_page_name_what_there_is():
    page = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")

    for path in re.findall(r"(?:-k|-f|python) ((?:deploy|jobs)/\S+)", page):
        assert (ROOT / path.rstrip("`,")).exists(), path
    created = set(re.findall(r"create secret generic (\S+)", page))
    assert created == {one["metadata"]["name"] for one in secrets()}
    assert set(re.findall(r"your-registry/\S+:([\d.]+-ray[\d.]+)", page)) == {f"0.1.0-ray{ray.__version__}"}
