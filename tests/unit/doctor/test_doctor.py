"""``qzhou doctor``: each check at both sides of its limit, and the pages of recipes that lack something or nothing."""

import json

import pytest
from packaging.requirements import Requirement

from qzhou.cli.doctor import machine
from qzhou.cli.doctor.findings import Finding, guarded, summary
from qzhou.cli.doctor.machine import GIB, Gpu
from qzhou.cli.doctor.page import examine
from qzhou.cli.doctor.surroundings import answers, cluster, model, storage, token
from qzhou.cli.main import main
from qzhou.cluster.resources import NodeType, ResourceRequest
from qzhou.config.synthesis import SynthesisSection
from qzhou.errors import SetupError
from qzhou.synthesis.builtin import answer_by_rules
from tests.llm_faults import Behaviour
from tests.llm_server import LLMServer, serving
from tests.small_recipe import RECIPE

H100 = Gpu("H100", 90, 80.0, (75, 80, 90), runs_newer=False)
T4 = Gpu("T4", 75, 15.0, (75, 80, 90), runs_newer=False)
NEWER = Gpu("B200", 100, 180.0, (75, 80, 90), runs_newer=False)
OLDER = Gpu("V100", 70, 16.0, (75, 80, 90), runs_newer=True)
REQUIRED = [Requirement("ray>=2.60,<2.61"), Requirement("torch>=2.13")]
THERE = {"ray": "2.60.0", "torch": "2.13.0+cpu", "transformers": "5.2", "deepspeed": "0.19.8"}


@pytest.mark.parametrize(
    ("finding", "status", "said"),
    [
        (machine.python((3, 11, 7)), "ok", "3.11.7"),
        (machine.python((3, 10, 1)), "fail", "3.10.1, and 3.11 is needed"),
        (machine.packages(THERE, REQUIRED), "ok", "torch 2.13.0+cpu"),
        (machine.packages(THERE | {"ray": "2.61.0"}, REQUIRED), "fail", "ray 2.61.0 (not <2.61,>=2.60)"),
        (machine.packages(THERE | {"torch": None}, REQUIRED), "fail", "missing: torch"),
        (machine.faiss(None, needs_gpu=True), "fail", "pip install 'qzhou[gpu]'"),
        (machine.faiss(None, needs_gpu=False), "fail", "pip install 'qzhou[cpu]'"),
        (machine.faiss(False, needs_gpu=True), "warn", "its build for CPUs, and the recipe has cluster.gpu"),
        (machine.faiss(False, needs_gpu=False), "ok", "its build for CPUs"),
        (machine.faiss(True, needs_gpu=True), "ok", "its build for GPUs"),
        (machine.free_memory(5 * GIB, 16 * GIB), "ok", "5.0 of 16.0 GiB"),
        (machine.free_memory(3 * GIB, 16 * GIB), "warn", "end other programs"),
        (machine.shared_memory(8 * GIB, 16 * GIB), "ok", "8.0 GiB"),
        (machine.shared_memory(GIB // 16, 16 * GIB), "warn", "0.1 GiB. Ray keeps its objects on a disk instead"),
        (machine.open_files(1_024), "warn", "1,024, and 4,096 are good. ulimit -n 65536"),
        (machine.open_files(65_536), "ok", "65,536"),
        (machine.open_files(-1), "ok", "without limit"),
        (machine.disk("disk", 4 * GIB, 100 * GIB, fullest=0.95), "fail", "Ray stops at 95% full"),
        (
            machine.disk("disk", 450 * GIB, 10_000 * GIB),
            "ok",
            "450.0 of 10000.0 GiB are free",
        ),  # where Ray keeps nothing
        (machine.disk("disk", 6 * GIB, 100 * GIB), "warn", "make room"),
        (machine.disk("disk", 20 * GIB, 100 * GIB), "ok", "20.0 of 100.0 GiB are free"),
        (token("disabled"), "warn", "whoever reaches the ports runs code"),
        (token(""), "ok", "not set"),
        (token("token"), "ok", "token"),
    ],
)
def test_a_check_says_what_it_found_and_the_way_out(finding, status, said):
    assert finding.status == status
    assert said in str(finding)
    assert bool(finding.way_out) == (status != "ok") or finding.name in {"Python", "packages"}


@pytest.mark.parametrize(
    ("found", "needs_gpu", "expected"),
    [
        ([], False, [("ok", "none; all runs on CPUs")]),
        ([], True, [("fail", "torch sees none, and the recipe has cluster.gpu = true")]),
        ([H100, H100], True, [("ok", "2 x H100, 80 GiB, compute capability 9.0")]),
        ([T4, H100], True, [("warn", "texts are padded"), ("ok", "1 x H100")]),
        ([NEWER], True, [("fail", "compute capability 10.0; torch was built for 7.5, 8.0, 9.0")]),
        ([OLDER], True, [("fail", "compute capability 7.0; torch was built for")]),
        ([Gpu("RTX 4090", 89, 24.0, (80, 90), runs_newer=False)], True, [("ok", "8.9")]),
        ([Gpu("B200", 100, 180.0, (80, 90), runs_newer=True)], True, [("ok", "10.0")]),
    ],
    ids=[
        "none",
        "none and one is asked for",
        "H100",
        "T4",
        "newer",
        "older",
        "8.9 on code for 8.0",
        "newer by PTX",
    ],
)
def test_a_gpu_is_held_against_what_torch_was_built_for(found, needs_gpu, expected):
    findings = list(machine.gpus(found, needs_gpu=needs_gpu))

    assert [one.status for one in findings] == [status for status, _ in expected]
    assert all(said in str(one) for one, (_, said) in zip(findings, expected, strict=True))


def test_the_summary_counts_them():
    found = [Finding("a", "ok", ""), Finding("b", "warn", ""), Finding("c", "fail", ""), Finding("d", "fail", "")]

    assert summary(found) == "1 ok, 1 warning, 2 failures"
    assert summary(found[:1]) == "1 ok, no warning, no failure"


def test_storage_is_tried_and_left_as_it_was(tmp_path):
    found = storage(str(tmp_path / "runs"))

    assert (found.status, "takes, gives, lists and renames" in found.said) == ("ok", True)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "there").mkdir()
    storage(str(tmp_path / "there"))
    assert not list((tmp_path / "there").iterdir())
    (tmp_path / "file").write_text("")
    (found,) = guarded("storage", lambda: storage(str(tmp_path / "file")))
    assert found.status == "fail"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Invalid address format: foo"), "ValueError: Invalid address format: foo"),
        (json.JSONDecodeError("Expecting value", "<html>", 0), "JSONDecodeError: Expecting value"),
        (SetupError("there is no cluster.\n   Start one."), "there is no cluster. Start one."),
    ],
)
def test_a_check_that_ends_with_an_error_is_a_line_of_the_page(error, said):
    def check():
        raise error

    (found,) = guarded("cluster", check)

    assert (found.name, found.status) == ("cluster", "fail")
    assert said in found.said


def test_models_are_looked_for_and_not_fetched(tiny_bert, tmp_path):
    assert model("model.backbone", str(tiny_bert)).said.endswith("is on this machine")
    assert model("mining.teacher", "https://host/v1#name").status == "ok"
    missing = model("mining.reranker", str(tmp_path / "nothing"))
    assert (missing.name, missing.status) == ("mining.reranker", "fail")


def asked(**settings):
    section = SynthesisSection.model_validate({"model": "m", **settings})
    (llm,) = section.pool
    return answers(section, llm, llm.endpoints[0])


def test_an_llm_answers_one_request_and_what_it_costs_is_said():
    endpoint = LLMServer(lambda _: "yes")
    with serving(endpoint) as address:
        free = asked(endpoint=address)
        priced = asked(endpoint=address, input_price=1.0, output_price=2.0)

    assert (free.status, "no price, so no money is counted" in str(free)) == ("warn", True)
    assert priced.status == "ok"
    assert "answers in" in priced.said
    assert endpoint.counts.received == 2


def test_an_llm_that_does_not_answer_is_named_at_once():
    away = asked(endpoint="http://127.0.0.1:9/v1")
    with serving(LLMServer(answer_by_rules, Behaviour(server_error=1.0))) as address:
        broken = asked(endpoint=address)

    assert (away.status, "cannot be reached" in away.said) == ("fail", True)
    assert broken.status == "fail"
    assert asked(endpoint="builtin", model="builtin-rules").status == "ok"


def test_each_stage_is_held_against_the_nodes():
    request = ResourceRequest("training", 2.0, 1.0, None, "", {}, {}, workers=2)
    enough = [NodeType("big", {"CPU": 8.0, "GPU": 1.0}, {}, 2)]

    assert [one.status for one in cluster(enough, [request], "it")] == ["ok", "ok"]
    _, lacking = cluster([NodeType("small", {"CPU": 8.0}, {}, 2)], [request], "it")
    assert (lacking.name, lacking.status) == ("cluster.training", "fail")
    assert lacking.said.startswith("each worker of training asks for 2 CPU, 1 GPU")
    assert [one.status for one in cluster([], [], "it")] == ["fail"]
    (unknown,) = cluster(None, [request], "it")
    assert "grows by itself" in unknown.said


def test_a_recipe_is_examined_as_a_whole(tmp_path, tiny_bert, capsys):
    path = tmp_path / "checked.toml"
    path.write_text(RECIPE.format(folder=tmp_path, backbone=tiny_bert))

    assert not examine(str(path))
    said = capsys.readouterr().out
    assert "fail  data: dataset 'tickets': no file matches" in said
    assert "1 failure" in said

    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "what is it?", "answer": "it is this"}))
    main(["doctor", str(path)])
    said = capsys.readouterr().out
    for name in ("recipe", "Python", "packages", "GPU", "storage", "data", "model.backbone", "cluster.training"):
        assert f"  {name}: " in said
    with pytest.raises(SystemExit) as end:
        main(["doctor", str(path), "--cluster.gpu", "true", "--run.storag", "x"])
    assert end.value.code == 1
    assert "fail  recipe: command line: --run.storag: no such setting" in capsys.readouterr().out


def test_without_a_recipe_the_machine_alone_is_looked_at(capsys):
    assert examine("", only_machine=True)
    said = capsys.readouterr().out
    assert "storage" not in said
    assert "Python" in said
