"""Packs recipes/ into a wheel as qzhou/cli/recipes; pyproject.toml says everything else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """A checkout reads recipes where they lie, so an editable install copies nothing."""

    def run(self) -> None:
        """Copy the package's own files, then the recipes."""
        super().run()
        if not self.editable_mode and Path("recipes").is_dir():
            target = Path(self.build_lib, "qzhou", "cli", "recipes")
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree("recipes", target, ignore=unwanted, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithRecipes})
