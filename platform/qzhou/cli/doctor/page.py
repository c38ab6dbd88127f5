"""The page of ``qzhou doctor``: every finding as it is made, then how many there were of each kind."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import click

from qzhou.cli.doctor.findings import Finding, failed, summary
from qzhou.cli.doctor.machine import machine_findings
from qzhou.config.recipe import Recipe, load_recipe
from qzhou.errors import QzhouError


def examine(path: str, overrides: Sequence[str] = (), *, only_machine: bool = False) -> bool:
    """Print the page; whether nothing failed. The cluster at ``RAY_ADDRESS`` is asked, if there is one.

    Args:
        path: Of a recipe; empty: the machine alone.
        overrides: Dotted settings of the recipe.
        only_machine: Ask nothing that is not on this machine.
    """
    found = []
    for one in _findings(path, overrides, only_machine=only_machine):
        click.echo(str(one))
        found.append(one)
    click.echo(summary(found))
    return all(one.status != "fail" for one in found)


def _findings(path: str, overrides: Sequence[str], *, only_machine: bool) -> Iterator[Finding]:
    recipe = None
    if path:
        try:
            recipe = load_recipe(path, overrides)
        except QzhouError as error:
            yield failed("recipe", error)
        else:
            yield Finding("recipe", "ok", f"{path}: {len(recipe.datasets)} datasets, run '{recipe.run.name}'")
    there = os.environ.get("RAY_ADDRESS", "")
    here = bool(recipe and recipe.cluster.gpu and not there)  # a cluster has the GPUs
    yield from machine_findings(_places(recipe), needs_gpu=here)
    if only_machine:
        return
    from qzhou.cli.doctor.surroundings import cluster_findings, surroundings

    if recipe:
        yield from surroundings(recipe)
    yield from cluster_findings(recipe, there)


def _places(recipe: Recipe | None) -> dict[str, str]:
    """Folders of this machine on which a run writes much."""
    storage = recipe.run.storage if recipe else ""
    if storage.startswith("file:"):
        storage = urlsplit(storage).path
    return {storage: "run.storage"} if storage and "://" not in storage else {}
