"""The application that `serve run` and `serve deploy` take, and `qzhou serve` as a script.

python serve/app.py recipes/quickstart.toml --serving.port 8001
serve run serve.app:build recipe=recipes/quickstart.toml
"""

from qzhou.cli.main import main
from qzhou.serving.app import Arguments, build

__all__ = ["Arguments", "build"]

if __name__ == "__main__":
    main(command="serve")
