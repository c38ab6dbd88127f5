"""What a run would take, of any size and on any machines: rows, tokens, FLOPs, bytes, time, machines, money.

python jobs/plan.py RECIPE [--json] [--rows N] [--examples N] [--gpus N] [--gpu H100] [--SECTION.SETTING VALUE ...]

  --stage training          tokens, FLOPs, GPU hours and memory by ZeRO stage on 8, 32 and 64 GPUs
  --stage synthesis         requests, tokens and cost, and an example of each kind of request
  --measured FOLDER         a finished run, whose times scale those of the table
  --rows N, --examples N    raw rows, and what is trained on; --synthetic N: requests to an LLM; default: the recipe's
  --gpu NAME, --gpus N      A100, H100, H200, B200, L40S or L4; default: the recipe's, else none: this machine
  --cpus N                  for transform and synthesis
  --cloud NAME              aws, gcp or lambda: whose list prices; --gpu-price and --cpu-price ($/h of one) replace them
  --utilisation SHARE       of the GPU's peak that training reaches; default: 0.4
  --mean-query-tokens N, --mean-document-tokens N    default: what the run's examples say, else 40 and 200
  --assume NAME=VALUE,...   anything that the plan lists as what it rests on
"""

from functools import partial
from typing import Any

from qzhou.cli.job import Options, main
from qzhou.config.recipe import Recipe

WHOLE = "rows examples synthetic gpus cpus"
FRACTIONS = "gpu-price cpu-price utilisation mean-query-tokens mean-document-tokens"
TEXT = "stage measured gpu cloud assume"
KINDS = {int: WHOLE, float: FRACTIONS, str: TEXT}
OPTIONS: Options = {f"--{name}": kind for kind, names in KINDS.items() for name in names.split()}


def run(recipe: Recipe, **options: Any) -> None:
    """Print the plan, or the details of a stage."""
    from qzhou.estimate.command import print_plan
    from qzhou.estimate.options import PlanOptions
    from qzhou.synthesis.details import synthesis_details

    print_plan(recipe, PlanOptions(**options), synthesis_details)


if __name__ == "__main__":
    main(run, __doc__ or "", instead={"--json": partial(run, json=True)}, options=OPTIONS)
