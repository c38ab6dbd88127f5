"""Plans worked out by hand: sizes, work, unit costs, sums, and what happens to them when something grows."""

import io
import json
import os
import re
import runpy
from pathlib import Path

import pytest
from rich.console import Console

from bench.plan import scaled
from qzhou.config.recipe import load_recipe
from qzhou.costs.hardware import gpu_named, gpus, machine_of
from qzhou.costs.shapes import PUBLISHED
from qzhou.costs.training import DatasetTexts, Length, gpu_hours
from qzhou.data.records import PairExample, RetrievalExample
from qzhou.errors import DataError, RecipeError
from qzhou.planning.amounts import Counted
from qzhou.planning.assumptions import Assumptions, told_on_the_command_line
from qzhou.planning.command import planned
from qzhou.planning.measured import split_of
from qzhou.planning.plan import plan_of
from qzhou.planning.sizes import DatasetRows, Found, requests_of, rows_of
from qzhou.planning.tables import WIDTH, as_json, as_text, duration, short, size
from qzhou.planning.target import Target, fleet_of
from qzhou.planning.workload import workload_of
from qzhou.synthesis.plan import planned as planned_requests
from tests.slim import without_torch_and_ray
from tests.unit.planning.run_folder import HELD_OUT, KEPT, RAW, STEP_S, WALLS, finished

ROOT = Path(__file__).parents[3]
BACKBONE = "BAAI/bge-small-en-v1.5"
SETTINGS_OF_OTHERS = {"--training", "--synthesis", "--estimate", "--small"}
SMALL = {"model": {"backbone": BACKBONE, "dtype": "float32"}}


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(**SMALL)


def paper(**asked):
    asked = {
        "rows": 100_000_000,
        "examples": 11_000_000,
        "synthetic": 5_000_000,
        "gpus": 32,
        "gpu": "H100",
    } | asked
    return planned(load_recipe(ROOT / "recipes" / "qzhou-7b.toml"), **asked)


def test_a_phase_tells_its_start_from_its_work():
    phase = {
        "label": "x",
        "done": 8,
        "first_done": 1,
        "first_s": 3.0,
        "seconds": 17.0,
        "advances": 8,
    }

    assert split_of(phase, 1) == (1.0, 16.0)
    two = {
        "label": "x",
        "done": 200,
        "first_done": 20,
        "first_s": 12.0,
        "seconds": 28.0,
        "advances": 10,
    }
    assert split_of(two, 2) == (8.0, 20.0)  # 0.1 s a text for both together


def test_a_phase_of_one_wave_tells_nothing_and_takes_the_tables_figure():
    phase = {
        "label": "x",
        "done": 8,
        "first_done": 8,
        "first_s": 5.0,
        "seconds": 5.0,
        "advances": 1,
    }

    assert split_of(phase, 2, expected_s=1.5) == (3.5, 1.5)
    assert split_of(phase, 2, expected_s=9.0) == (0.0, 5.0), "never more than there was"
    assert split_of(phase, 2) == (0.0, 5.0), "where nothing is known, all of it grows"


def test_workers_that_say_what_they_spent_are_believed():
    """Ray Data may hand over the results of a pool of actors all at once, at its end."""
    phase = {
        "label": "x",
        "done": 4000,
        "first_done": 1024,
        "first_s": 150.71,
        "seconds": 150.72,
        "advances": 4,
    }

    assert split_of(phase, 2, expected_s=6.0) == (pytest.approx(144.72), 6.0)
    assert split_of({**phase, "worker_s": 20.0}, 2, expected_s=6.0) == (pytest.approx(140.72), 10.0)


def test_rows_follow_a_measured_run_up_to_max_rows(make_recipe):
    found = {"docs": Found(raw=1000, available=600.0, kept=100.0, held_out=50.0)}
    dataset = {"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}
    limited = make_recipe(datasets=[{**dataset, "max_rows": 400}])

    (as_it_was,) = rows_of(limited, Target(), Assumptions.of(), found)
    (ten_times,) = rows_of(
        make_recipe(datasets=[dataset]), Target(rows=10_000), Assumptions.of(), found
    )

    assert (as_it_was.raw, as_it_was.kept, as_it_was.held_out) == (1000, 400, 50)
    assert (ten_times.raw, ten_times.kept, ten_times.held_out) == (10_000, 6000, 500)


def test_rows_without_a_measured_run_are_shared_and_some_of_them_kept(make_recipe):
    names = ("a", "b")
    datasets = [
        {"name": name, "reader": "jsonl", "rule": "title_body", "paths": ["x"]} for name in names
    ]

    rows = rows_of(
        make_recipe(datasets=datasets), Target(rows=1000), Assumptions.of({"kept_share": 0.8})
    )

    assert [(one.name, one.raw, one.kept) for one in rows] == [("a", 500, 400), ("b", 500, 400)]


def test_examples_are_those_that_are_trained_on_and_synthetic_ones_count(make_recipe):
    recipe = make_recipe(
        synthesis={"endpoint": "http://host/v1", "model": "m", "paraphrase_rows": 10}
    )
    target = Target(rows=1000, examples=700, synthetic=200)

    (one,) = rows_of(recipe, target, Assumptions.of({"synthesis_yield": 0.5}))

    assert (one.requests, one.new, one.kept, one.trained) == (200, 100, 600, 700)


def test_sizes_that_cannot_be_are_refused_with_both_values_and_the_way_out(recipe):
    with pytest.raises(RecipeError, match=r"how many raw rows 'docs' has.*--rows.*--measured"):
        rows_of(recipe, Target(), Assumptions.of())
    with pytest.raises(RecipeError, match=r"--examples is 2,000, but 1,000 raw rows.*--synthetic"):
        rows_of(recipe, Target(rows=1000, examples=2000), Assumptions.of())
    with pytest.raises(
        RecipeError, match=r"--rows is 0; it is a number from 1 to 1,000,000,000,000"
    ):
        Target(rows=0)
    with pytest.raises(RecipeError, match=r"--gpu-price is nan"):
        Target(gpu_price=float("nan"))


@pytest.mark.parametrize("task", ["retrieval", "pair"])
def test_requests_are_as_many_as_synthesis_makes(make_recipe, task):
    settings = {
        "paraphrase_rows": 7,
        "augment_rows": 30,
        "hard_negative_rows": 5,
        "hard_negatives_per_row": 2,
    }
    section = make_recipe(synthesis={"endpoint": "builtin", **settings}).synthesis
    examples = {
        "retrieval": [
            RetrievalExample(id=str(n), dataset="d", query=f"q {n}", positives=("p",))
            for n in range(20)
        ],
        "pair": [
            PairExample(id=str(n), dataset="d", text_a=f"a {n}", text_b="b", score=1)
            for n in range(20)
        ],
    }[task]

    made = planned_requests(examples, task, section, seed=0)

    assert (
        sum(requests_of(section, "d", task, 20).values())
        == len(made)
        == (7 + 20 + 10 if task == "retrieval" else 7)
    )
    assert requests_of(section, "d", task, section.max_dataset_rows + 1) == {}


def workload(recipe, rows, **asked):
    lengths = DatasetTexts(
        name="docs",
        task="retrieval",
        rows=None,
        queries=Length.always(10),
        documents=Length.always(20),
        negatives=1.0,
    )
    return workload_of(recipe, rows, {"docs": lengths}, Assumptions.of(), gpus=1, **asked)


def test_the_work_of_every_stage_by_hand(recipe):
    shape = PUBLISHED[BACKBONE]
    rows = [
        DatasetRows(
            name="docs", task="retrieval", raw=1000, kept=400, held_out=30, requests=0, new=0
        )
    ]

    found = workload(recipe, rows, counted=Counted(texts_per_example=1.5))

    def forward(queries, documents):
        tokens, squares = 10 * queries + 20 * documents, 100 * queries + 400 * documents
        return (
            2 * shape.matrix_parameters * tokens
            + 4 * shape.layers * shape.attention_width * squares
        )

    assert found.parts["transform.rows"] == 1000
    assert found.parts["mining.encode"] == pytest.approx(forward(400, 200))
    assert found.parts["mining.search"] == pytest.approx(400 * 2.32e-4 + 400 * 200 * 3.4e-9)
    # 4 steps of 4 queries with a positive and a negative each, forward once and backward twice
    assert found.parts["training/stage1.steps"] == pytest.approx(3 * 4 * forward(4, 8))
    assert found.parts["evaluation.judge"] == pytest.approx(3 * forward(30, 30))
    assert found.row_bytes == 30 * 4
    assert found.stages["mining"].written == pytest.approx(600 * 384 * 4 + 400 * 2 * 30 * 4 * 0.5)
    # one checkpoint: weights, and two moments of the optimizer, all in float32; and the model
    assert found.stages["training/stage1"].written == 12 * shape.parameters + 4 * shape.parameters


def test_training_takes_the_hours_of_trainings_own_estimate():
    plan = paper()
    stage = next(one for one in plan.stages if one.name == "training/stage1")

    hours = gpu_hours(stage.amount.flops, gpu="H100", utilisation=0.4) / 32

    assert stage.wall_s - stage.start_s == pytest.approx(3600 * hours)
    assert stage.amount.tokens == 32_000 * (256 * 40 + 1280 * 200)


def test_the_sums_are_the_sums():
    plan = paper()
    content = as_json(plan)

    assert plan.wall_s == pytest.approx(sum(one["wall_s"] for one in content["stages"]))
    assert (
        plan.money
        == pytest.approx(sum(one["usd"] for one in content["stages"]))
        == content["total"]["usd"]
    )
    assert sum(one.trained for one in plan.rows) == pytest.approx(11_000_000)
    assert sum(one.raw for one in plan.rows) == pytest.approx(100_000_000)
    assert sum(one.requests for one in plan.rows) == pytest.approx(5_000_000)
    train = next(one for one in plan.stages if one.name == "training/stage1")
    assert train.money == pytest.approx(4 * 55.04 * train.wall_s / 3600)
    assert plan.dominant("money")[0] is train
    json.dumps(content)


@pytest.mark.parametrize(
    ("more", "stage"),
    [
        ({"rows": 400_000_000}, "transform"),
        ({"synthetic": 6_000_000}, "synthesis"),
        ({"examples": 22_000_000}, "mining"),
        ({"mean_document_tokens": 400.0}, "training/stage1"),
    ],
)
def test_more_to_do_takes_longer_and_costs_more(more, stage):
    plan, larger = paper(), paper(**more)

    before, after = (
        next(one for one in made.stages if one.name == stage) for made in (plan, larger)
    )
    assert after.wall_s > before.wall_s
    assert after.money > before.money
    assert larger.wall_s > plan.wall_s


def test_more_gpus_or_better_use_of_them_take_less_time_and_starts_stay():
    walls = {count: {one.name: one for one in paper(gpus=count).stages} for count in (8, 32, 128)}

    for name in ("mining", "training/stage1", "training/stage2"):
        work = [found[name].wall_s - found[name].start_s for found in walls.values()]
        assert work == sorted(work, reverse=True)
        assert walls[8][name].start_s == walls[128][name].start_s
    better = next(one for one in paper(utilisation=0.5).stages if one.name == "training/stage2")
    assert better.wall_s - better.start_s == pytest.approx(
        (walls[32]["training/stage2"].wall_s - walls[32]["training/stage2"].start_s) * 0.4 / 0.5
    )


def test_prices_of_ones_own_replace_the_list():
    plan = paper(gpu_price=2.0)
    stage = next(one for one in plan.stages if one.name == "training/stage2")

    assert stage.money == pytest.approx(32 * 2.0 * stage.wall_s / 3600)


def test_an_llm_is_paid_at_the_recipes_prices_and_by_the_table_where_it_has_none(make_recipe):
    def bought(**prices):
        asked = {"endpoint": "http://host/v1", "model": "m", "paraphrase_rows": 100, **prices}
        recipe = make_recipe(
            synthesis={**asked, "gates": {"scores": False}, "parse_retries": 0}, **SMALL
        )
        plan = planned(recipe, rows=1000, mean_query_tokens=10, mean_document_tokens=20)
        return next(one for one in plan.stages if one.name == "synthesis").amount.money

    # 100 requests: 400 tokens of instructions and 30 of an example each, and 30 answered
    assert bought(input_price=2.0, output_price=8.0) == pytest.approx(
        100 * (430 * 2 + 30 * 8) / 1e6
    )
    assert bought() == pytest.approx(100 * (430 * 0.15 + 30 * 0.6) / 1e6)


def test_a_measured_run_predicts_itself_and_one_four_times_as_large(make_recipe):
    dataset = {"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}
    sections = {**SMALL, "cluster": {"encode_workers": 2, "transform": {"max_workers": 1}}}
    recipe = make_recipe(datasets=[{**dataset, "max_rows": KEPT}], **sections)
    folder = finished(recipe)
    larger = make_recipe(
        datasets=[{**dataset, "max_rows": 4 * KEPT}],
        training={
            name: {"steps": 16, "learning_rate": 1e-3, "batch_size": 4, "retrieval_share": 1.0}
            for name in ("stage1", "stage2")
        },
        **sections,
    )

    same = {one.name: one for one in planned(recipe, measured=folder.uri).stages}
    four = {one.name: one for one in planned(larger, measured=folder.uri).stages}

    for stage, wall_s in WALLS.items():
        assert same[stage].wall_s == pytest.approx(wall_s, rel=1e-6), stage
        assert same[stage].basis == "measured"
    assert four["transform"].wall_s == pytest.approx(WALLS["transform"]), (
        "the raw rows are the same"
    )
    # encoding: 20 s of 28 grow with the texts; the rest of the stage is its start, but for some search
    assert four["mining"].wall_s == pytest.approx(20 + 4 * 20, abs=0.1)
    assert four["training/stage1"].wall_s == pytest.approx(WALLS["training/stage1"] + 12 * STEP_S)
    assert four["training/stage1"].start_s == pytest.approx(WALLS["training/stage1"] - 4 * STEP_S)
    assert four["evaluation"].wall_s == pytest.approx(WALLS["evaluation"]), "as much is held out"
    assert four["model"].wall_s == WALLS["model"]


def test_raw_rows_of_a_measured_run_grow_with_rows(make_recipe):
    dataset = {"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}
    recipe = make_recipe(datasets=[dataset], cluster={"transform": {"max_workers": 1}}, **SMALL)
    folder = finished(recipe)

    plan = planned(recipe, measured=folder.uri, rows=10 * RAW, cpus=2 * (os.cpu_count() or 1))

    transform = next(one for one in plan.stages if one.name == "transform")
    (rows,) = plan.rows
    assert (rows.held_out, rows.raw) == (10 * HELD_OUT, 10 * RAW)
    assert transform.basis == "scaled"
    assert transform.wall_s == pytest.approx(30 - 16 + 16 * 10 / 2), "twice the CPUs"


def test_without_phases_all_of_a_stage_grows(make_recipe):
    dataset = {"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}
    recipe = make_recipe(datasets=[dataset], **SMALL)
    folder = finished(recipe)
    for stage in ("transform", "mining"):
        (folder / stage).write_json("manifest.json", {"wall_s": WALLS[stage]})

    plan = planned(recipe, measured=folder.uri, rows=3 * RAW)

    transform = next(one for one in plan.stages if one.name == "transform")
    assert (transform.start_s, transform.wall_s) == (0, pytest.approx(3 * WALLS["transform"]))
    assert any("manifests have no phases" in note for note in plan.notes)


def test_tokens_of_an_llm_are_those_that_the_runs_ledger_has(make_recipe):
    dataset = {"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}
    asked = {
        "endpoint": "http://host/v1",
        "model": "m",
        "paraphrase_rows": 50,
        "input_price": 2.0,
        "output_price": 8.0,
    }
    recipe = make_recipe(
        datasets=[dataset], synthesis={**asked, "gates": {"scores": False}}, **SMALL
    )
    folder = finished(recipe)
    # 50 first requests and 10 follow-ups, of which a fifth was answered before
    total = {"requests": 60, "reused": 12, "prompt_tokens": 24_000, "completion_tokens": 4000}
    (folder / "synthesis").write_json("ledger.json", {"total": total, "rows": []})

    plan = planned(recipe, measured=folder.uri, synthetic=500)

    amount = next(one for one in plan.stages if one.name == "synthesis").amount
    assert amount.tokens == pytest.approx(500 / 50 * (30_000 + 5000))
    assert amount.money == pytest.approx(500 / 50 * (30_000 * 2 + 5000 * 8) / 1e6)


def test_a_run_on_cpus_tells_nothing_of_gpus_and_what_is_unfinished_is_by_the_table(make_recipe):
    dataset = {"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}
    recipe = make_recipe(datasets=[dataset], **SMALL)
    folder = finished(recipe, stages=("transform", "synthesis"))

    plan = planned(recipe, measured=folder.uri, gpu="h100", gpus=8)

    bases = {one.name: one.basis for one in plan.stages}
    assert (bases["transform"], bases["training/stage1"]) == ("scaled", "assumed")
    assert any("it has not finished mine, training/stage1" in note for note in plan.notes)


def test_the_share_of_the_peak_that_a_measured_gpu_reached_goes_to_another(make_recipe):
    cluster = {"gpu": True, "encode_workers": 2, "training": {"accelerator_type": "A100-80G"}}
    dataset = {"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}
    recipe = make_recipe(datasets=[dataset], cluster=cluster, **SMALL)
    folder = finished(recipe)

    same, other = (
        next(
            one
            for one in planned(recipe, measured=folder.uri, gpu=gpu, gpus=2).stages
            if one.name == "training/stage1"
        )
        for gpu in ("A100", "H100")
    )

    assert (same.basis, other.basis) == ("measured", "scaled")
    assert (other.wall_s - other.start_s) * 989 / 312 == pytest.approx(same.wall_s - same.start_s)


def test_a_folder_that_is_no_run_is_named(recipe, tmp_path):
    with pytest.raises(DataError, match=r"--measured: .*nowhere has no recipe\.json"):
        planned(recipe, measured=str(tmp_path / "nowhere"))
    folder = finished(recipe, stages=())
    with pytest.raises(DataError, match="the stage 'transform' has not finished"):
        planned(recipe, measured=folder.uri)


def test_unknown_gpus_and_clouds_are_answered_with_the_nearest(recipe):
    with pytest.raises(
        RecipeError, match=r"--gpu is 'H1000'; did you mean H100.*known: A100, H100, H200"
    ):
        gpu_named("H1000")
    with pytest.raises(RecipeError, match=r"--cloud is 'awss'; did you mean aws\?"):
        machine_of("awss", gpu="H100")
    with pytest.raises(
        RecipeError,
        match=r"no price of a machine with a L4 there; clouds with one: gcp.*--gpu-price",
    ):
        machine_of("aws", gpu="L4")
    with pytest.raises(RecipeError, match=r"--gpus without --gpu.*--gpu H100"):
        fleet_of(recipe, Target(gpus=8))


def test_every_gpu_can_be_rented_somewhere():
    from qzhou.costs.hardware import _tables

    rented = {one.gpu for one in _tables()[1]}

    assert rented == {"", *gpus()}
    assert all(one.price > 0 and one.cpus > 0 and one.read for one in _tables()[1])


def test_machines_are_whole_and_idle_gpus_are_told(recipe):
    crew = fleet_of(recipe, Target(gpu="H100", gpus=9)).gpu

    assert (crew.count, crew.gpus, crew.price) == (2, 9, 2 * 55.04)
    assert str(crew) == "2 x p5.48xlarge"
    plan = planned(recipe, rows=1000, gpu="H100", gpus=9)
    assert any(note.startswith("7 GPUs of the last p5.48xlarge") for note in plan.notes)


def test_weights_that_do_not_fit_are_told(make_recipe):
    recipe = make_recipe(
        model={"backbone": "Qwen/Qwen3-8B", "dtype": "bfloat16"}, training={"zero_stage": 0}
    )

    plan = planned(recipe, rows=1000, gpu="H100", gpus=8)

    needed = 16 * PUBLISHED["Qwen/Qwen3-8B"].parameters / 2**30
    said = f"DOES NOT FIT: weights, gradients and optimizer take {needed:.1f} of 74.5 GiB a GPU (ZeRO 0)"
    assert said in plan.notes


def test_assumptions_are_listed_where_they_were_used_and_replaced_by_name(recipe):
    plan = planned(recipe, rows=1000, assume="kept_share=0.5,cpu_flops=1e11")
    listed = {one.name: one for one in plan.assumptions}

    assert (listed["kept_share"].value, listed["kept_share"].kind) == (0.5, "told")
    assert "llm_latency_s" not in listed, "nothing is asked of an LLM"
    assert sum(one.kept for one in plan.rows) == 500
    assert all(one.source and one.unit for one in plan.assumptions)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("kept_shore=0.5", r"'kept_shore'.*did you mean kept_share"),
        ("kept_share=1.5", r"kept_share is 1\.5; it is a number above 0 and at most 1"),
        ("cpu_flops=0", r"cpu_flops is 0; it is a number above 0"),
        ("node_start_s=-1", r"node_start_s is -1; it is a number 0 or more"),
        ("kept_share", r"'kept_share' is not NAME=NUMBER"),
    ],
)
def test_assumptions_out_of_range_are_named(told, said):
    with pytest.raises(RecipeError, match=said):
        Assumptions.of(told_on_the_command_line(told))


def test_serving_costs_by_the_token():
    serving = paper().serving
    shape = PUBLISHED["Qwen/Qwen2.5-7B-Instruct"]
    flops = 2 * shape.matrix_parameters + 4 * shape.layers * shape.attention_width * 200

    assert serving.tokens_per_s == pytest.approx(0.63 * 989e12 * 0.4 / flops)
    assert serving.money == pytest.approx(55.04 / 8 / 3600 * 1e6 / serving.tokens_per_s)
    assert serving.million_requests_s == pytest.approx(200e6 / serving.tokens_per_s)


def test_stages_without_work_take_no_time(recipe):
    plan = plan_of(recipe, Target(rows=1000), Assumptions.of())

    assert {one.name: one.wall_s for one in plan.stages}["evaluation"] == 0, "nothing is held out"


def test_figures_are_short():
    assert [short(one) for one in (0, 0.5, 512, 8000, 11_000_000, 4.47e20)] == [
        "0", "0.5", "512", "8,000", "11M", "4.47e+20",
    ]  # fmt: skip
    assert [size(one) for one in (12, 2_300_000, 6.35e12)] == ["12 B", "2.3 MB", "6.35 TB"]
    assert [duration(one) for one in (0.2, 90, 7200, 400_000)] == [
        "0.2 s",
        "1.5 min",
        "2.0 h",
        "4.6 days",
    ]


def test_the_plan_is_printed_without_torch_and_ray():
    asked = [
        "recipes/qzhou-7b.toml",
        "--rows",
        "100_000_000",
        "--examples",
        "11_000_000",
        "--gpus",
        "32",
        "--json",
    ]

    content = json.loads(without_torch_and_ray("jobs/plan.py", *asked))

    assert content["machines"] == {"cpu": "8 x m7i.4xlarge", "gpu": "4 x p5.48xlarge"}
    assert any("nothing is asked of the LLM" in note for note in content["notes"])


def test_a_stage_knows_whether_it_waits_for_storage():
    slow = {one.name: one for one in paper(assume="storage_bytes_per_s=1e6").stages}
    fast = {one.name: one for one in paper().stages}

    assert (slow["transform"].bound_by, fast["transform"].bound_by) == ("storage", "work")
    moved = slow["transform"].amount.read + slow["transform"].amount.written
    assert slow["transform"].wall_s - slow["transform"].start_s == pytest.approx(moved / 8e6)


def test_the_page_names_every_option_and_prints_what_its_command_prints():
    page = (ROOT / "docs" / "planning.md").read_text("utf-8")
    job = runpy.run_path(str(ROOT / "jobs" / "plan.py"))
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    console.print(as_text(paper()))
    printed = [line.rstrip() for line in console.export_text().splitlines()]

    assert {*job["OPTIONS"], "--json"} == set(
        re.findall(r"--[a-z]+(?:-[a-z]+)*", page)
    ) - SETTINGS_OF_OTHERS
    (block,) = re.findall(r"\n\n```\n(.*?)```", page, re.DOTALL)
    shown = [line.rstrip() for line in block.splitlines()]
    assert shown == printed[: len(shown)]
    assert set(gpus()) <= set(re.findall(r"\w+", page))


def test_the_larger_quickstart_of_the_bench_differs_in_its_sizes_alone(tmp_path):
    small = (ROOT / "recipes" / "quickstart.toml").read_text("utf-8")
    (tmp_path / "larger.toml").write_text(scaled(small, 4), "utf-8")

    one, four = (
        load_recipe(ROOT / "recipes" / "quickstart.toml"),
        load_recipe(tmp_path / "larger.toml"),
    )

    assert [one.max_rows for one in four.datasets] == [16_000, 8000, 8000]
    assert (four.training.stage1.steps, four.training.stage2.steps) == (96, 96)
    assert (four.synthesis.paraphrase_rows, four.synthesis.hard_negative_rows) == (400, 800)
    assert four.evaluation == one.evaluation
    assert four.mining == one.mining
    assert four.training.stage1.warmup_steps == one.training.stage1.warmup_steps
