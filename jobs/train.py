"""`qzhou train` as a script, for `ray job submit` and `torchrun --nproc-per-node 8 jobs/train.py RECIPE`."""

from qzhou.cli.main import main

if __name__ == "__main__":
    main(command="train")
