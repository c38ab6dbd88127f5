"""Where the recipes are that ship with the package."""

import os
from pathlib import Path

from qzhou.errors import RecipeError

PACKED = Path(__file__).parent / "recipes"  # in an installed wheel
CHECKOUT = Path(__file__).parents[3]  # otherwise: the root of the project


def recipe_path(name: str, *, kind: str = "recipe") -> str:
    """The file that RECIPE on a command line names: a path, or the bare name of one that ships with the package.

    ``kind`` is ``recipe`` or ``experiment``.

    Raises:
        RecipeError: It is a bare name, and nothing of that name ships.
    """
    if Path(name).is_file() or Path(name).name != name or name.endswith(".toml"):
        return name
    folder = PACKED if PACKED.is_dir() else CHECKOUT / "recipes"
    folder = folder / "experiments" if kind == "experiment" else folder
    found = folder / f"{name}.toml"
    if not found.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.toml")))
        raise RecipeError(f"{name}: no such {kind} file, and none that ships with qzhou: {known}")
    return os.path.relpath(found) if found.is_relative_to(Path.cwd()) else str(found)
