"""What a run would take, of any size and on any machines: rows, tokens, FLOPs, bytes, time, machines, money.

python jobs/plan.py RECIPE [--json] [--rows N] [--examples N] [--gpus N] [--gpu H100] [--SECTION.SETTING VALUE ...]

  --measured FOLDER         a finished run, for what things cost there; default: the table of planning/units.toml
  --rows N, --examples N    raw rows, and what is trained on; default: the recipe's, or the measured run's
  --synthetic N             requests to an LLM, instead of what the recipe asks for
  --gpu NAME, --gpus N      A100, H100, H200, B200, L40S or L4; default: the recipe's, else none: this machine
  --cpus N                  for transform and synthesis
  --cloud NAME              aws, gcp or lambda: whose list prices; --gpu-price and --cpu-price ($/h of one) replace them
  --mean-query-tokens N, --mean-document-tokens N, --utilisation SHARE     as with jobs/train.py --estimate
  --assume NAME=VALUE,...   anything that the plan lists as what it rests on
"""

from typing import Any

from qzhou.cli.job import Options, main
from qzhou.config.recipe import Recipe

COUNTS = ("--rows", "--examples", "--synthetic", "--gpus", "--cpus")
NUMBERS = (
    "--gpu-price",
    "--cpu-price",
    "--utilisation",
    "--mean-query-tokens",
    "--mean-document-tokens",
)
WORDS = ("--measured", "--gpu", "--cloud", "--assume")
OPTIONS: Options = {
    **dict.fromkeys(COUNTS, int),
    **dict.fromkeys(NUMBERS, float),
    **dict.fromkeys(WORDS, str),
}


def run(recipe: Recipe, **asked: Any) -> None:
    from qzhou.planning.command import print_plan

    print_plan(recipe, **asked)


def as_json(recipe: Recipe, **asked: Any) -> None:
    from qzhou.planning.command import print_json

    print_json(recipe, **asked)


if __name__ == "__main__":
    main(run, __doc__ or "", instead={"--json": as_json}, options=OPTIONS)
