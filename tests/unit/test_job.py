"""Errors become one message and an exit status; Ray's wrapping comes off."""

import contextlib
import socket
import subprocess
import sys

import pytest
import ray
from ray._private.parameter import RayParams
from ray.exceptions import RayTaskError

from qzhou.cli.job import main, one_of
from qzhou.cluster.session import _Quiet, _worker_env, filter_ray_log, local_options, our_error
from qzhou.errors import DataError, EndpointError, QzhouError

QUICKSTART = "recipes/quickstart.toml"


def ended(stage, *words, capsys):
    """Exit status and what stood on stderr."""
    with pytest.raises(SystemExit) as end:
        main(stage, "about", list(words))
    return end.value.code, capsys.readouterr().err


def raising(error):
    def stage(_):
        raise error

    return stage


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DataError("no rows"), 2, "error: no rows\n"),
        (EndpointError("down"), 1, "error: down\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from what is finished\n"),
    ],
)
def test_an_error_is_one_message_and_its_exit_status(error, status, said, capsys):
    assert ended(raising(error), QUICKSTART, capsys=capsys) == (status, said)


def test_an_error_that_nobody_meant_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        main(raising(ZeroDivisionError()), "about", [QUICKSTART])


def test_a_dry_run_prints_the_resolved_recipe_and_does_nothing(capsys):
    main(
        raising(AssertionError("ran")),
        "about",
        [QUICKSTART, "--dry-run", "--training.stage1.steps", "20"],
    )

    assert '"steps": 20' in capsys.readouterr().out


def test_without_a_recipe_the_usage_is_shown(capsys):
    with pytest.raises(SystemExit) as end:
        main(raising(AssertionError("ran")), "what it does", ["--help"])

    assert end.value.code == 0
    assert "RECIPE" in (shown := capsys.readouterr().out)
    assert "what it does" in shown


def test_the_recipe_comes_first(capsys):
    status, said = ended(
        raising(AssertionError("ran")), "--run.seed", "3", QUICKSTART, capsys=capsys
    )

    assert status == 2
    assert "the recipe comes first" in said


def test_a_flag_wants_a_recipe(capsys):
    with pytest.raises(SystemExit) as end:
        main(raising(AssertionError("ran")), "about", ["--dry-run"])

    assert end.value.code == 2
    assert "--dry-run wants a recipe before it" in capsys.readouterr().err


def test_an_option_is_one_of_some_names():
    with pytest.raises(ValueError, match="is 'plan', and it is one of mine, train"):
        one_of("mine", "train")("plan")


def test_what_runs_instead_takes_its_options():
    seen = {}
    flags = {
        "instead": {"--guess": lambda _, **given: seen.update(given)},
        "options": {"--share": float, "--on": str},
    }

    main(
        raising(AssertionError("ran")),
        "about",
        [QUICKSTART, "--share", "0.5", "--guess", "--on=a=b"],
        **flags,
    )

    assert seen == {"share": 0.5, "on": "a=b"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--share", "0.5"], "--share belongs to --guess"),
        (["--guess", "--share", "half"], "--share is 'half', and it wants a number"),
        (["--guess", "--share"], "--share"),
        (["--guess", "--dry-run"], "--dry-run and --guess are different things to do"),
    ],
)
def test_an_option_that_cannot_be_is_named(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(
            raising(AssertionError("ran")),
            "about",
            [QUICKSTART, *words],
            instead={"--guess": lambda _, share: share},
            options={"--share": float},
        )

    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_workers_get_no_variable_that_the_job_sets_itself(monkeypatch):
    """Ray refuses to start where both a job's runtime environment and ours set one."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    assert _worker_env()["TOKENIZERS_PARALLELISM"] == "false"

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")

    assert "TOKENIZERS_PARALLELISM" not in _worker_env()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "\x1b[36m(RayTrainWorker pid=12)\x1b[0m training: stage1: 1/3 steps",
            "training: stage1: 1/3 steps",
        ),
        (
            "\x1b[36m(TrainController pid=1)\x1b[0m [2026 E 1 1] core_worker.cc:2465: Actor with class name",
            None,
        ),
        ("\x1b[36m(PlacementGroupCleaner pid=7)\x1b[0m Traceback (most recent call last):", None),
        ("mining: docs: 4,100 queries", "mining: docs: 4,100 queries"),
    ],
)
def test_people_hear_the_stages_and_not_what_ray_says_to_itself(line, said, capsys):
    assert filter_ray_log(line) == said

    with contextlib.redirect_stdout(_Quiet(sys.stdout)):
        print(line)
        print()

    assert capsys.readouterr().out == (f"{said}\n\n" if said else "\n")


def wrapped(error):
    """As Ray raises it at the driver."""
    return RayTaskError("task", "traceback", error).as_instanceof_cause()


def test_an_error_of_ours_comes_out_of_what_ray_wrapped_around_it():
    error = our_error(wrapped(DataError("no rows")))

    assert type(error) is DataError
    assert str(error) == "no rows"


def test_an_error_inside_another_is_found():
    outer = RuntimeError("the job failed")
    outer.__cause__ = wrapped(wrapped(EndpointError("down")))

    assert isinstance(our_error(outer), EndpointError)


def test_the_failures_of_training_workers_are_looked_through():
    outer = RuntimeError("training failed")
    outer.worker_failures = {1: wrapped(DataError("no rows"))}

    assert isinstance(our_error(outer), DataError)


def test_other_errors_are_not_ours():
    circle = RuntimeError("a")
    circle.__context__ = RuntimeError("b")
    circle.__context__.__context__ = circle

    assert our_error(circle) is None
    assert our_error(wrapped(ValueError("x"))) is None
    assert not isinstance(wrapped(ValueError("x")), QzhouError)


def test_where_another_cluster_has_the_agents_port_ours_takes_another(monkeypatch):
    """Jobs are submitted through the agent: without its port nothing could be, as long as the other one runs."""
    before = RayParams.__init__.__defaults__
    with socket.socket() as other:
        other.bind((ray.util.get_node_ip_address(), 0))
        other.listen()
        monkeypatch.setattr(
            "qzhou.cluster.session.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT", other.getsockname()[1]
        )
        try:
            local_options()
            assert RayParams().dashboard_agent_listen_port == 0
            assert RayParams(num_cpus=3).num_cpus == 3
        finally:
            RayParams.__init__.__defaults__ = before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--floor", "0.5", "--floor=0.6"], "--floor stands there twice"),
        (["--floor"], "--floor has no value"),
        (["--floor="], "--floor has no value"),
        (["--floor", "--run.seed", "1"], "--floor has no value"),
    ],
)
def test_an_option_without_a_value_or_with_two_is_refused(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(raising(AssertionError()), "about", [QUICKSTART, *words], options={"--floor": str})

    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "jobs/transform.py", QUICKSTART, "--dry-run"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        said = process.stderr.read()

    assert "Traceback" not in said
