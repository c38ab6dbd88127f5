"""`qzhou rehearse` as a script, for `ray job submit`."""

from qzhou.cli.main import main

if __name__ == "__main__":
    main(command="rehearse")
