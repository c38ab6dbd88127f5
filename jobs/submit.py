"""Submit the pipeline with `ray job submit` to a cluster that is started here and ends with the job.

python jobs/submit.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]

For a cluster that runs already:
  RAY_AUTH_MODE=token ray job submit --address http://HEAD:8265 --working-dir . \\
    --runtime-env jobs/runtime_env.yaml -- python jobs/pipeline.py RECIPE
"""

import sys

from qzhou.job import main
from qzhou.recipe import Recipe


def run(_: Recipe) -> None:
    from qzhou.cluster import run_as_job

    sys.exit(run_as_job("jobs/pipeline.py", sys.argv[1:]))


if __name__ == "__main__":
    main(run, __doc__ or "")
