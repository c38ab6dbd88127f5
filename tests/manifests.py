"""What `kubectl kustomize` makes of a folder of deploy/kuberay, and whether Kubernetes would take it.

Not all of kustomize: what these files use. A test compares it with kubectl where that is installed.
"""

import copy
import importlib.resources
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from referencing import Registry, Resource

HERE = Path(__file__).parent
# objects with this annotation are not part of the result
LOCAL = "config.kubernetes.io/local-config"
Object = dict[str, Any]


def built(folder: Path) -> list[Object]:
    """The objects of a kustomization: resources, names of images, replacements; without those that are local."""
    return [one for one in _accumulated(folder) if LOCAL not in one["metadata"].get("annotations", {})]


def by_kind(objects: list[Object], kind: str) -> Object:
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def _accumulated(folder: Path) -> list[Object]:
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    objects: list[Object] = []
    for name in plan["resources"]:
        place = folder / name
        objects += built(place) if place.is_dir() else list(yaml.safe_load_all(place.read_text("utf-8")))
    for one in objects:
        if one["kind"] != "Namespace":
            one["metadata"]["namespace"] = plan.get("namespace", one["metadata"].get("namespace"))
    for component in plan.get("components", []):
        _name_images(
            objects, yaml.safe_load((folder / component / "kustomization.yaml").read_text("utf-8"))["images"]
        )
    for patch in plan.get("patches", []):
        (step,) = yaml.safe_load(patch["patch"])
        assert (step["op"], step["path"]) == ("add", "/metadata/annotations"), "the only patch that is known here"
        by_kind(objects, patch["target"]["kind"])["metadata"]["annotations"] = step["value"]
    for replacement in plan.get("replacements", []):
        source = replacement["source"]
        value = _at(by_kind(objects, source["kind"]), source["fieldPath"])
        for target in replacement["targets"]:
            for path in target["fieldPaths"]:
                _put(by_kind(objects, target["select"]["kind"]), path, copy.deepcopy(value))
    return objects


def _name_images(tree: Any, images: list[Object]) -> None:
    named = {one["name"]: f"{one['newName']}:{one['newTag']}" for one in images}
    if isinstance(tree, dict):
        tree |= {"image": named.get(tree["image"], tree["image"])} if isinstance(tree.get("image"), str) else {}
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        _name_images(child, images)


def _steps(path: str) -> list[str]:
    return re.findall(r"\[\w+=\w+\]|\w+", path)


def _step(tree: Any, step: str) -> Any:
    """A key of a mapping, or the place in a list of what a condition like ``[groupName=gpu]`` names."""
    if not step.startswith("["):
        return step
    name, value = step.strip("[]").split("=")
    (place,) = [place for place, one in enumerate(tree) if one[name] == value]
    return place


def _at(tree: Any, path: str) -> Any:
    for step in _steps(path):
        tree = tree[_step(tree, step)]
    return tree


def _put(tree: Any, path: str, value: Any) -> None:
    *before, last = _steps(path)
    for step in before:
        tree = tree[_step(tree, step)]
    tree[_step(tree, last)] = value


def check(one: Object) -> None:
    """Refuse what Kubernetes would refuse, unknown fields included.

    Raises:
        jsonschema.ValidationError: Names the place and what is wrong there.
    """
    if not one["apiVersion"].startswith("ray.io/"):
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
        return
    schema, registry = _ray_schema()
    validator = jsonschema.Draft202012Validator({"$ref": f"{schema}#/$defs/{one['kind']}"}, registry=registry)
    validator.validate(one)


def check_with_crds(one: Object, folder: Path) -> None:
    """Refuse what KubeRay's own CRDs refuse, unknown fields included.

    Args:
        folder: Holds ``ray.io_rayclusters.yaml`` and the others, as KubeRay's Helm chart does in ``crds/``.

    Raises:
        jsonschema.ValidationError: Names the place and what is wrong there.
    """
    crd = yaml.safe_load((folder / f"ray.io_{one['kind'].lower()}s.yaml").read_text("utf-8"))
    (version,) = [each for each in crd["spec"]["versions"] if f"ray.io/{each['name']}" == one["apiVersion"]]
    jsonschema.Draft202012Validator(_closed(version["schema"]["openAPIV3Schema"])).validate(one)


def _closed(schema: Any) -> Any:
    """A schema of OpenAPI's that lets no unknown field pass, as the API server does for what people apply."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items()}
    fields = schema.get("properties")
    if isinstance(fields, dict) and schema.get("type") == "object":
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
        for name, value in fields.items():
            if value == {"type": "object"}:  # metadata: the API server knows what belongs there
                found["properties"][name] = {"type": "object"}
    return found


@cache
def _ray_schema() -> tuple[str, Registry]:
    version = kubernetes_validate.latest_version()
    folder = importlib.resources.files("kubernetes_validate") / f"kubernetes-json-schema/v{version}-local-strict"
    kubernetes = Resource.from_contents(json.loads((folder / "_definitions.json").read_text("utf-8")))
    ray = Resource.from_contents(yaml.safe_load((HERE / "schemas" / "kuberay.yaml").read_text("utf-8")))
    return "ray", Registry().with_resources([("ray", ray), (kubernetes.id() or "", kubernetes)])
