"""Plans worked out by hand: sizes, work, unit costs, sums, and what happens to them when something grows."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from bench.plan import scaled
from qzhou.cli.main import cli
from qzhou.config.recipe import load_recipe
from qzhou.data.records import PairExample, RetrievalExample
from qzhou.errors import RecipeError
from qzhou.estimate.assumptions import Assumptions, parse_assumptions
from qzhou.estimate.cluster_spec import cluster_spec
from qzhou.estimate.command import WIDTH
from qzhou.estimate.hardware import gpu_named, gpus, machine_of, machines
from qzhou.estimate.model_shape import published_shapes
from qzhou.estimate.options import PlanOptions
from qzhou.estimate.plan import plan_of
from qzhou.estimate.rows import DatasetRows, TransformedRows, requests_of, rows_of
from qzhou.estimate.stages import StageEstimator
from qzhou.estimate.tables import as_json, as_text, duration, short, size
from qzhou.estimate.training import DatasetTexts, EncodedTexts, gpu_hours
from qzhou.synthesis.generation import example_requests
from tests.slim import without_torch_and_ray

ROOT = Path(__file__).parents[3]
BACKBONE = "BAAI/bge-small-en-v1.5"
SETTINGS_OF_OTHERS = {"--training", "--synthesis", "--small"}
DATASET = {"name": "docs", "reader": "jsonl", "rule": "title_body", "paths": ["unused"]}
SMALL = {"model": {"backbone": BACKBONE, "dtype": "float32"}}


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(**SMALL)


def planned(recipe, **options):
    return plan_of(recipe, PlanOptions(**options))


def paper(**asked):
    asked = {"rows": 100_000_000, "examples": 11_000_000, "synthetic": 5_000_000, "gpus": 32, "gpu": "H100"} | asked
    return planned(load_recipe(ROOT / "recipes" / "qzhou-7b.toml"), **asked)


def test_rows_follow_a_measured_run_up_to_max_rows(make_recipe):
    found = {"docs": TransformedRows(raw=1000, available=600.0, held_out=50.0)}
    limited = make_recipe(datasets=[{**DATASET, "max_rows": 400}])

    (as_it_was,) = rows_of(limited, PlanOptions(), Assumptions(), found)
    (ten_times,) = rows_of(make_recipe(datasets=[DATASET]), PlanOptions(rows=10_000), Assumptions(), found)

    assert (as_it_was.raw, as_it_was.kept, as_it_was.held_out) == (1000, 400, 50)
    assert (ten_times.raw, ten_times.kept, ten_times.held_out) == (10_000, 6000, 500)


def test_rows_without_a_measured_run_are_shared_and_some_of_them_kept(make_recipe):
    names = ("a", "b")
    datasets = [{"name": name, "reader": "jsonl", "rule": "title_body", "paths": ["x"]} for name in names]

    rows = rows_of(make_recipe(datasets=datasets), PlanOptions(rows=1000), Assumptions({"kept_share": 0.8}))

    assert [(one.name, one.raw, one.kept) for one in rows] == [("a", 500, 400), ("b", 500, 400)]


def test_examples_are_those_that_are_trained_on_and_synthetic_ones_count(make_recipe):
    recipe = make_recipe(synthesis={"endpoint": "http://host/v1", "model": "m", "paraphrase_rows": 10})
    target = PlanOptions(rows=1000, examples=700, synthetic=200)

    (one,) = rows_of(recipe, target, Assumptions({"synthesis_yield": 0.5}))

    assert (one.requests, one.new, one.kept, one.trained) == (200, 100, 600, 700)


def test_sizes_that_cannot_be_are_refused_with_both_values_and_the_way_out(recipe):
    with pytest.raises(RecipeError, match=r"how many raw rows 'docs' has.*--rows.*--measured"):
        rows_of(recipe, PlanOptions(), Assumptions())
    with pytest.raises(RecipeError, match=r"--examples is 2,000, but 1,000 raw rows.*--synthetic"):
        rows_of(recipe, PlanOptions(rows=1000, examples=2000), Assumptions())
    with pytest.raises(RecipeError, match=r"--rows is 0; it is a number from 1 to 1,000,000,000,000"):
        PlanOptions(rows=0)
    with pytest.raises(RecipeError, match=r"--gpu-price is nan"):
        PlanOptions(gpu_price=float("nan"))


@pytest.mark.parametrize("task", ["retrieval", "pair"])
def test_requests_are_as_many_as_synthesis_makes(make_recipe, task):
    settings = {"paraphrase_rows": 7, "augment_rows": 30, "hard_negative_rows": 5, "hard_negatives_per_row": 2}
    section = make_recipe(synthesis={"endpoint": "builtin", **settings}).synthesis
    examples = {
        "retrieval": [
            RetrievalExample(id=str(n), dataset="d", query=f"q {n}", positives=("p",)) for n in range(20)
        ],
        "pair": [PairExample(id=str(n), dataset="d", text_a=f"a {n}", text_b="b", score=1) for n in range(20)],
    }[task]

    made = example_requests(examples, task, section, seed=0)

    assert (
        sum(requests_of(section, "d", task, 20).values())
        == len(made)
        == (7 + 20 + 10 if task == "retrieval" else 7)
    )
    assert requests_of(section, "d", task, section.max_dataset_rows + 1) == {}


def test_the_work_of_every_stage_by_hand(recipe):
    shape = published_shapes()[BACKBONE]
    rows = [DatasetRows(name="docs", task="retrieval", raw=1000, kept=400, held_out=30)]
    docs = DatasetTexts(
        name="docs",
        task="retrieval",
        rows=None,
        query=EncodedTexts.one(10),
        document=EncodedTexts.one(20),
        negatives=1.0,
    )
    assumed, cluster = Assumptions({"texts_per_example": 1.5}), cluster_spec(recipe, PlanOptions())
    estimator = StageEstimator(recipe, rows, {"docs": docs}, assumed, cluster)

    stages = {one.name: one for one in estimator.stages()}

    def forward(queries, documents):
        tokens, squares = 10 * queries + 20 * documents, 100 * queries + 400 * documents
        attention = 4 * shape.layers * shape.attention_width * squares
        return 2 * shape.matrix_parameters * tokens + attention

    cpus = cluster.cpu.cpus
    assert stages["transform"].rows_in == 1000
    assert stages["transform"].read_bytes == 1000 * 30 * 4
    assert stages["transform"].work_s == pytest.approx(1000 * 30 * 4 / (3_858_500 * cpus))
    assert stages["mining"].flops == pytest.approx(forward(400, 200))
    search_s = 400 * 2.32e-4 + 400 * 200 * 3.4e-9
    encode_s = forward(400, 200) / (348e9 * 0.42)
    assert stages["mining"].work_s == pytest.approx((encode_s + search_s) / cpus)
    # 4 steps of 4 queries with a positive and a negative each, forward once and backward twice
    assert stages["training/stage1"].flops == pytest.approx(3 * 4 * forward(4, 8))
    assert stages["evaluation"].flops == pytest.approx(3 * forward(30, 30))
    assert stages["mining"].written_bytes == pytest.approx(600 * 384 * 4 + 400 * 2 * 30 * 4 * 0.5)
    # one checkpoint: weights, and two moments of the optimizer, all in float32; and the model
    assert stages["training/stage1"].written_bytes == (12 + 4) * shape.parameters


def test_training_takes_the_hours_of_trainings_own_estimate():
    plan = paper()
    stage = next(one for one in plan.stages if one.name == "training/stage1")

    hours = gpu_hours(stage.flops, gpu=gpu_named("H100"), utilisation=0.4) / 32
    # ZeRO 1 on 32 GPUs: gradients are reduced and weights gathered in each step, at 200 GB/s
    sent_s = 32_000 * 2 * 2 * 7_070_619_136 * 31 / 32 / 200e9

    assert stage.wall_s - stage.start_s == pytest.approx(3600 * hours + sent_s)
    assert stage.tokens == 32_000 * (256 * 40 + 1280 * 200)


def test_the_sums_are_the_sums():
    plan = paper()
    content = as_json(plan)

    assert plan.wall_s == pytest.approx(sum(one["wall_s"] for one in content["stages"]))
    assert plan.usd == pytest.approx(sum(one["usd"] for one in content["stages"])) == content["total"]["usd"]
    assert sum(one.trained for one in plan.rows) == pytest.approx(11_000_000)
    assert sum(one.raw for one in plan.rows) == pytest.approx(100_000_000)
    assert sum(one.requests for one in plan.rows) == pytest.approx(5_000_000)
    train = next(one for one in plan.stages if one.name == "training/stage1")
    assert train.usd == pytest.approx(4 * 55.04 * train.wall_s / 3600)
    assert max(plan.stages, key=lambda one: one.usd) is train
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

    before, after = (next(one for one in made.stages if one.name == stage) for made in (plan, larger))
    assert after.wall_s > before.wall_s
    assert after.usd > before.usd
    assert larger.wall_s > plan.wall_s


def test_more_gpus_or_better_use_of_them_take_less_time_and_starts_stay():
    walls = {count: {one.name: one for one in paper(gpus=count).stages} for count in (8, 32, 128)}

    for name in ("mining", "training/stage1", "training/stage2"):
        work = [found[name].wall_s - found[name].start_s for found in walls.values()]
        assert work == sorted(work, reverse=True)
        assert walls[8][name].start_s == walls[128][name].start_s
    worse, better = (
        next(
            one
            for one in paper(utilisation=share, assume="all_reduce_bytes_per_s=1e18").stages
            if one.name == "training/stage2"
        )
        for share in (0.4, 0.5)
    )
    assert better.wall_s - better.start_s == pytest.approx((worse.wall_s - worse.start_s) * 0.4 / 0.5)


def test_prices_of_ones_own_replace_the_list():
    plan = paper(gpu_price=2.0)
    stage = next(one for one in plan.stages if one.name == "training/stage2")

    assert stage.usd == pytest.approx(32 * 2.0 * stage.wall_s / 3600)


def test_an_llm_is_paid_at_the_recipes_prices_and_by_the_table_where_it_has_none(make_recipe):
    def bought(**prices):
        asked = {"endpoint": "http://host/v1", "model": "m", "paraphrase_rows": 100, **prices}
        recipe = make_recipe(synthesis={**asked, "filters": {"scores": False}, "parse_retries": 0}, **SMALL)
        plan = planned(recipe, rows=1000, mean_query_tokens=10, mean_document_tokens=20)
        return next(one for one in plan.stages if one.name == "synthesis").llm_usd

    # 100 requests: 400 tokens of instructions and 30 of an example each, and 30 answered
    assert bought(input_price=2.0, output_price=8.0) == pytest.approx(100 * (430 * 2 + 30 * 8) / 1e6)
    assert bought() == pytest.approx(100 * (430 * 0.15 + 30 * 0.6) / 1e6)


def test_unknown_gpus_and_clouds_are_answered_with_the_nearest(recipe):
    with pytest.raises(RecipeError, match=r"--gpu is 'H1000'; did you mean H100.*known: A100, H100, H200"):
        gpu_named("H1000")
    with pytest.raises(RecipeError, match=r"--cloud is 'awss'; did you mean aws\?"):
        machine_of("awss", gpu="H100")
    with pytest.raises(
        RecipeError, match=r"no price of a machine with a L4 there; clouds with one: gcp.*--gpu-price"
    ):
        machine_of("aws", gpu="L4")
    with pytest.raises(RecipeError, match=r"--gpus without --gpu.*--gpu H100"):
        cluster_spec(recipe, PlanOptions(gpus=8))


def test_every_gpu_can_be_rented_somewhere():

    rented = {one.gpu for one in machines()}

    assert rented == {"", *gpus()}
    assert all(one.price > 0 and one.cpus > 0 and one.read for one in machines())


def test_machines_are_whole_and_idle_gpus_are_noted(recipe):
    group = cluster_spec(recipe, PlanOptions(gpu="H100", gpus=9)).gpu

    assert (group.count, group.gpus, group.price) == (2, 9, 2 * 55.04)
    assert str(group) == "2 x p5.48xlarge"
    plan = planned(recipe, rows=1000, gpu="H100", gpus=9)
    assert any(note.startswith("7 GPUs of the last p5.48xlarge") for note in plan.notes)


def test_weights_that_do_not_fit_are_noted(make_recipe):
    recipe = make_recipe(model={"backbone": "Qwen/Qwen3-8B", "dtype": "bfloat16"}, training={"zero_stage": 0})

    plan = planned(recipe, rows=1000, gpu="H100", gpus=8)

    needed = 16 * published_shapes()["Qwen/Qwen3-8B"].parameters / 2**30
    said = next(one for one in plan.notes if one.startswith("DOES NOT FIT: weights, gradients, optimizer and act"))
    assert said.endswith("of 74.5 GiB a GPU (ZeRO 0)")
    assert needed < float(said.split(" take ")[1].split()[0]) < needed + 1  # of some tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "trainin"}, "--stage is 'trainin'; it is training or synthesis"),
        ({"stage": "training", "rows": 5}, "--rows changes nothing in the details of training"),
        ({"stage": "synthesis", "gpu": "H100"}, "--gpu changes nothing in the details of synth"),
        ({"stage": "training", "json": True}, "--json changes nothing in the details of training"),
    ],
)
def test_options_that_do_not_belong_to_a_stage_are_named(options, message):
    with pytest.raises(RecipeError, match=message):
        PlanOptions(**options)


def test_assumptions_are_listed_where_they_were_used_and_replaced_by_name(recipe):
    plan = planned(recipe, rows=1000, assume="kept_share=0.5,cpu_flops=1e11")
    listed = {one.name: one for one in plan.assumptions}

    assert (listed["kept_share"].value, listed["kept_share"].kind) == (0.5, "given")
    assert "llm_latency_s" not in listed, "nothing is asked of an LLM"
    assert sum(one.kept for one in plan.rows) == 500
    assert all(one.source and one.unit for one in plan.assumptions)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("kept_shore=0.5", r"'kept_shore'.*did you mean kept_share"),
        ("kept_share=1.5", r"kept_share is 1\.5; it is a number above 0 and at most 1"),
        ("cpu_flops=0", r"cpu_flops is 0; it is a number above 0"),
        ("load_bytes_per_s=0", r"load_bytes_per_s is 0; it is a number above 0"),
        ("node_start_s=-1", r"node_start_s is -1; it is a number 0 or more"),
        ("kept_share", r"'kept_share' is not NAME=NUMBER"),
    ],
)
def test_assumptions_out_of_range_are_named(told, said):
    with pytest.raises(RecipeError, match=said):
        Assumptions(parse_assumptions(told))


def test_serving_costs_by_the_token():
    tokens, requests = paper().serving
    shape = published_shapes()["Qwen/Qwen2.5-7B-Instruct"]
    flops = 2 * shape.matrix_parameters + 4 * shape.layers * shape.attention_width * 200

    assert tokens.wall_s == pytest.approx(1e6 * flops / (0.63 * 989e12 * 0.4))
    assert tokens.usd == pytest.approx(55.04 / 8 / 3600 * tokens.wall_s)
    assert requests.wall_s == pytest.approx(200 * tokens.wall_s)
    assert str(requests.machines) == "1 H100"


def test_stages_without_work_take_no_time(recipe):
    plan = planned(recipe, rows=1000)

    assert {one.name: one.wall_s for one in plan.stages}["evaluation"] == 0, "nothing is held out"


def test_figures_are_short():
    assert [short(one) for one in (0, 0.5, 512, 8000, 11_000_000, 4.47e20)] == [
        "0", "0.5", "512", "8,000", "11M", "4.47e+20",
    ]  # fmt: skip
    assert [size(one) for one in (12, 2_300_000, 6.35e12)] == ["12 B", "2.3 MB", "6.35 TB"]
    assert [duration(one) for one in (0.2, 90, 7200, 400_000)] == ["0.2 s", "1.5 min", "2.0 h", "4.6 days"]


def test_the_plan_is_printed_without_torch_and_ray():
    asked = ["recipes/qzhou-7b.toml", "--rows", "100_000_000", "--examples", "11_000_000", "--gpus", "32", "--json"]

    content = json.loads(without_torch_and_ray("jobs/plan.py", *asked))

    assert content["machines"] == {"cpu": "8 x m7i.4xlarge", "gpu": "4 x p5.48xlarge"}
    assert any("nothing is asked of the LLM" in note for note in content["notes"])


def test_a_stage_knows_whether_it_waits_for_storage():
    slow = {one.name: one for one in paper(assume="storage_bytes_per_s=1e6").stages}
    fast = {one.name: one for one in paper().stages}

    assert (slow["transform"].waits_for_storage, fast["transform"].waits_for_storage) == (True, False)
    moved = slow["transform"].read_bytes + slow["transform"].written_bytes
    assert slow["transform"].wall_s - slow["transform"].start_s == pytest.approx(moved / 8e6)


def test_the_page_names_every_option_and_prints_what_its_command_prints():
    page = (ROOT / "docs" / "planning.md").read_text("utf-8")
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    console.print(as_text(paper()))
    printed = [line.rstrip() for line in console.export_text().splitlines()]

    assert {name for one in cli.commands["plan"].params for name in one.opts if name.startswith("--")} - {
        "--dry-run"
    } == set(re.findall(r"--[a-z]+(?:-[a-z]+)*", page)) - SETTINGS_OF_OTHERS
    (block,) = re.findall(r"\n\n```\n(.*?)```", page, re.DOTALL)
    shown = [line.rstrip() for line in block.splitlines()]
    assert shown == printed[: len(shown)]
    assert set(gpus()) <= set(re.findall(r"\w+", page))


def test_the_larger_quickstart_of_the_bench_differs_in_its_sizes_alone(tmp_path):
    small = (ROOT / "recipes" / "quickstart.toml").read_text("utf-8")
    (tmp_path / "larger.toml").write_text(scaled(small, 4), "utf-8")

    one, four = (load_recipe(ROOT / "recipes" / "quickstart.toml"), load_recipe(tmp_path / "larger.toml"))

    assert [one.max_rows for one in four.datasets] == [16_000, 8000, 8000]
    assert (four.training.stage1.steps, four.training.stage2.steps) == (96, 96)
    assert (four.synthesis.paraphrase_rows, four.synthesis.hard_negative_rows) == (400, 800)
    assert four.evaluation == one.evaluation
    assert four.mining == one.mining
    assert four.training.stage1.warmup_steps == one.training.stage1.warmup_steps
