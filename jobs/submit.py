"""Submit the pipeline with `ray job submit`, and follow it.

python jobs/submit.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
    to a cluster that is started on this machine and ends with the job

python jobs/submit.py RECIPE --address http://HEAD:8265 [--job mine] [--SECTION.SETTING VALUE ...]
    to a cluster that runs already; Ctrl-C leaves the job alone; --job: one stage instead of the pipeline
python jobs/submit.py RECIPE --address http://HEAD:8265 --status | --follow | --stop
    the jobs of the recipe's run
"""

import sys
from functools import partial

from qzhou.cli.job import Options, main, one_of, split_options
from qzhou.config.recipe import Recipe

JOBS = (
    "pipeline",
    "transform",
    "synthesize",
    "mine",
    "train",
    "export",
    "evaluate",
    "index",
    "report",
)
OPTIONS: Options = {"--address": str, "--job": one_of(*JOBS)}


def run(recipe: Recipe, address: str = "", job: str = "pipeline") -> None:
    from qzhou.cluster.submission import Jobs, run_as_job

    (_, words), script = split_options(sys.argv[1:], OPTIONS), f"jobs/{job}.py"
    sys.exit(Jobs(recipe, address).submit(script, words) if address else run_as_job(script, words))


def about_the_run(method: str, recipe: Recipe, address: str = "http://127.0.0.1:8265") -> None:
    from qzhou.cluster.submission import Jobs

    sys.exit(getattr(Jobs(recipe, address), method)())


if __name__ == "__main__":
    asked = {
        f"--{method}": partial(about_the_run, method) for method in ("status", "follow", "stop")
    }
    main(run, __doc__ or "", instead=asked, options=OPTIONS)
