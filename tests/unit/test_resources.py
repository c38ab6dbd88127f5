from pathlib import Path
from typing import get_args

import pytest
import yaml

from qzhou.cluster.resources import NodeType, StageName, refuse_impossible, resources_for, resources_of_pipeline
from qzhou.config.recipe import load_recipe
from qzhou.errors import RecipeError, SetupError

ROOT = Path(__file__).parents[2]
LAPTOP = NodeType("laptop", {"CPU": 4.0, "memory": 8 * 2**30}, {})
GPU_NODE = NodeType("gpu", {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L40S": 1.0}, {"zone": "a"}, max_count=2)


def test_without_settings_every_worker_takes_a_cpu_and_gpus_go_to_those_who_use_them(make_recipe):
    recipe = make_recipe(cluster={"gpu": True})

    assert {stage: resources_for(recipe, stage).gpus for stage in get_args(StageName)} == {
        "transform": 0, "synthesis": 0, "mining": 1, "search": 0, "training": 1, "evaluation": 1, "serving": 1,
    }  # fmt: skip
    assert resources_for(recipe, "transform").options == {"num_cpus": 1.0, "num_gpus": 0.0}
    assert resources_for(recipe, "synthesis").cpus == 0.25


def test_what_a_stage_asks_for_reaches_ray_in_its_own_words(make_recipe):
    settings = {"cpus": 8, "gpus": 2, "memory_gb": 1.5, "accelerator_type": "H100"}
    settings |= {"custom": {"big_disk": 1}, "labels": {"ray.io/market-type": "on-demand"}}
    asked = resources_for(make_recipe(cluster={"gpu": True, "training": settings}), "training")

    assert asked.options == {
        "num_cpus": 8.0,
        "num_gpus": 2.0,
        "memory": 1.5 * 2**30,
        "accelerator_type": "H100",
        "label_selector": {"ray.io/market-type": "on-demand"},
        "resources": {"big_disk": 1.0},
    }
    assert asked.bundle == {
        "CPU": 8.0, "GPU": 2.0, "memory": 1.5 * 2**30, "big_disk": 1.0, "accelerator_type:H100": 0.001,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"training": {"gpus": 1}}, "cluster.training.gpus is 1 and cluster.gpu is false"),
        ({"gpu": True, "transform": {"gpus": 1}}, "transform has no use for a GPU"),
        ({"gpu": True, "mining": {"gpus": 1.5}}, "1.5 is neither a part of one GPU nor a number of them"),
        ({"mining": {"cpu": 2}}, "cpus"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make_recipe, cluster, said):
    with pytest.raises(RecipeError, match=said):
        make_recipe(cluster=cluster)


def test_what_fits_is_let_through(make_recipe):
    refuse_impossible(resources_of_pipeline(make_recipe()), [LAPTOP], "this machine")
    refuse_impossible([resources_for(make_recipe(cluster={"gpu": True}), "training")], [GPU_NODE], "this cluster")


def test_a_worker_that_fits_nowhere_is_named_with_what_the_nearest_node_lacks(make_recipe):
    recipe = make_recipe(
        cluster={"gpu": True, "training": {"gpus": 8, "memory_gb": 64, "accelerator_type": "H100"}}
    )

    with pytest.raises(SetupError) as caught:
        refuse_impossible([resources_for(recipe, "training")], [LAPTOP, GPU_NODE], "this cluster")

    said = str(caught.value)
    assert "cluster.training: each worker of training asks for 1 CPU, 8 GPU, H100, 64.0 GB memory" in said
    assert "the nearest, laptop, has 0 GPU of 8 GPU, 8.0 GB memory of 64.0 GB memory, 0 H100 of H100" in said
    assert "1 x laptop with 4 CPU, 8.0 GB memory; 2 x gpu with 8 CPU, 1 GPU, L40S" in said


def test_workers_that_must_run_together_need_room_for_all(make_recipe):
    training = {
        "workers": 3,
        "stage1": {"steps": 1, "learning_rate": 1},
        "stage2": {"steps": 1, "learning_rate": 1},
    }
    recipe = make_recipe(cluster={"gpu": True}, training=training)

    with pytest.raises(SetupError, match="3 must run at the same time, and there is room for 2"):
        refuse_impossible([resources_for(recipe, "training")], [LAPTOP, GPU_NODE], "this cluster")

    fewer = make_recipe(cluster={"gpu": True}, training=training | {"min_workers": 2})
    refuse_impossible([resources_for(fewer, "training")], [LAPTOP, GPU_NODE], "this cluster")


def test_labels_choose_nodes(make_recipe):
    here, there = (make_recipe(cluster={"mining": {"labels": {"zone": zone}}}) for zone in "ab")

    refuse_impossible([resources_for(here, "mining")], [GPU_NODE], "this cluster")
    with pytest.raises(SetupError, match="label zone is 'a', not 'b'"):
        refuse_impossible([resources_for(there, "mining")], [GPU_NODE], "this cluster")


def test_finished_stages_ask_for_nothing(make_recipe, tmp_path):
    recipe = make_recipe(run={"name": "run", "storage": str(tmp_path)})
    done = tmp_path / "run" / "training" / "stage2"
    done.mkdir(parents=True)
    (done / "manifest.json").write_text("{}")

    assert [one.stage for one in resources_of_pipeline(recipe)] == [
        "transform",
        "synthesis",
        "mining",
        "evaluation",
    ]


@pytest.mark.parametrize("file", ["cluster.yaml", "deploy/gcp.yaml"])
def test_the_recipe_of_the_paper_fits_the_clusters_that_are_shipped(file):
    types = yaml.safe_load((ROOT / file).read_text("utf-8"))["available_node_types"]
    kinds = [
        NodeType(name, kind["resources"], kind.get("labels", {}), kind.get("max_workers", 1))
        for name, kind in types.items()
    ]

    recipe = load_recipe(ROOT / "recipes" / "qzhou-7b.toml")
    refuse_impossible([resources_for(recipe, stage) for stage in get_args(StageName)], kinds, file)


def test_memory_is_asked_of_googles_machines_by_what_the_file_says(make_recipe):
    types = yaml.safe_load((ROOT / "deploy" / "gcp.yaml").read_text("utf-8"))["available_node_types"]
    kinds = [NodeType(name, kind["resources"], kind.get("labels", {}), kind["max_workers"])
             for name, kind in types.items() if name != "head"]  # fmt: skip

    def asked(memory_gb):
        return [
            resources_for(
                make_recipe(cluster={"gpu": True, "mining": {"memory_gb": memory_gb, "accelerator_type": "L4"}}),
                "mining",
            )
        ]

    refuse_impossible(asked(20), kinds, "gcp.yaml")
    with pytest.raises(SetupError, match=r"30\.0 GB memory, .*the nearest, gpu, has 22\.0 GB memory"):
        refuse_impossible(asked(30), kinds, "gcp.yaml")
