"""``python -m qzhou.cli``: the command ``qzhou`` where its script is not on the path."""

from qzhou.cli.main import main

main()
