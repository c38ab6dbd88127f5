"""What the commands of ``qzhou`` have in common: a recipe, overrides of its settings, flags, and a help page."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click

from qzhou.cli.shipped import recipe_path
from qzhou.config.describe import default_of, is_experimental, kind_of, tables_of, unit_of
from qzhou.config.loading import nearest
from qzhou.config.recipe import Recipe, load_recipe
from qzhou.encoder.model_check import check_models, check_served_models

Function = TypeVar("Function", bound=Callable[..., None])
STAGES = ["transform", "synthesize", "mine", "train", "export", "evaluate"]
GROUPS = {
    "The pipeline, in its order": ["run", *STAGES],
    "After a run": ["report", "index", "serve", "embed", "merge", "adapt", "compare"],
    "Before a run, and many runs": ["init", "doctor", "plan", "rehearse", "experiment", "submit"],
}
CHECKED = {"run", "rehearse", *STAGES}  # commands that load the models of a recipe
EXPERIMENTAL = " (experimental)"  # no measurement shows yet that it helps


class Commands(click.Group):
    """Commands that are listed in the groups of ``GROUPS``."""

    def owners(self, flag: str) -> str:
        """The commands that a flag belongs to: ``qzhou experiment, qzhou submit``; empty where there are none."""
        return ", ".join(f"qzhou {name}" for name, one in self.commands.items() if flag in _flags_of(one))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command of a first word; an unknown one is named with the one that may be meant."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command '{args[0]}'{nearest(args[0], list(self.commands))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one line for each command under the heading of its group."""
        for heading, names in GROUPS.items():
            found = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(heading):
                formatter.write_dl([(name, one.get_short_help_str(100)) for name, one in found if one])


class OverridingCommand(click.Command):
    """A command that passes dotted settings of a recipe on; its help page lists those of its tables.

    Args:
        tables: Of the recipe, each with the tables inside; ``cluster`` is without them.
    """

    ignore_unknown_options = True  # they are settings

    def __init__(self, *args: Any, tables: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.tables = tables
        metavar = "[--TABLE.SETTING VALUE]..."
        self.params += [
            click.Argument(["settings"], nargs=-1, type=click.UNPROCESSED, metavar=metavar),
            click.Option(["--dry-run"], is_flag=True, help="Print what would be used, and stop."),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse a flag of another command, which would be taken for a setting."""
        rest = super().parse_args(ctx, args)
        root = ctx.find_root().command
        for word in ctx.params["settings"]:
            name = word.partition("=")[0]
            if isinstance(root, Commands) and (owners := root.owners(name)):
                raise click.UsageError(f"{name} belongs to {owners}")
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own flags, then the settings of its tables."""
        super().format_options(ctx, formatter)
        for heading, rows in settings_of(self.tables):
            with formatter.section(heading):
                formatter.write_dl(rows)


class RecipeCommand(OverridingCommand):
    """A command whose first word is a recipe; its function gets it with all overrides."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.params.insert(0, click.Argument(["recipe"]))
        if self.name in CHECKED:
            text = "Open files and models, convert some rows, say what was found and how long it takes, and stop."
            self.params.append(click.Option(["--check"], is_flag=True, help=text))

    def invoke(self, ctx: click.Context) -> Any:
        """Load the recipe and call the function, or print the recipe."""
        values = {name: value for name, value in ctx.params.items() if name != "settings"}
        path, keep = values.pop("recipe"), values.pop("keep", ())
        if path.startswith("-"):
            raise click.UsageError(f"the recipe comes first, before {path}")
        recipe = load_recipe(recipe_path(path), ctx.params["settings"])
        if ctx.command.name in CHECKED:
            # a wrong model is found here in seconds, and by the stage that needs it after hours
            recipe = check_models(recipe)
        elif recipe.model.prompts == "model":
            recipe = check_models(recipe, quiet=True)
        if ctx.command.name == "serve":
            check_served_models(recipe)
        if ctx.command.name in {"run", "evaluate"} and recipe.evaluation.tasks:
            from qzhou.evaluation.judge.tasks import check_tasks  # loads mteb

            check_tasks(recipe)
        if keep:
            from qzhou.run.run import accept_stages

            accept_stages(keep)
        if values.pop("check", False):
            from qzhou.cli.check import checked

            click.echo(checked(recipe, f"qzhou {ctx.command.name} {path}"))
            return None
        if values.pop("dry_run"):
            click.echo(recipe.model_dump_json(indent=2))
            return None
        return ctx.invoke(self.callback, recipe, **values) if self.callback else None


def _flags_of(command: click.Command) -> set[str]:
    return {name for one in command.params if isinstance(one, click.Option) for name in one.opts}


def flag(name: str, text: str, kind: Any = str, **more: Any) -> Callable[[Function], Function]:
    """A flag with a value that may stand once; its function gets None where it does not stand."""
    return click.option(name, type=kind, help=text, multiple=True, callback=_once, **more)


def _once(_: click.Context, parameter: click.Parameter, values: Sequence[Any]) -> Any:
    if len(values) > 1:
        raise click.UsageError(f"{parameter.opts[0]} stands there twice; give it once")
    if values and isinstance(values[0], str) and (not values[0] or values[0].startswith("--")):
        raise click.UsageError(f"{parameter.opts[0]} has no value")
    return values[0] if values else None


def settings_of(tables: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The settings of some tables of a recipe: the heading of each table and its rows, name and description."""
    found = list(tables_of(Recipe))
    lists = [place for _, place, listed in found if listed]  # a command line cannot override them
    for model, place, _ in found:
        outer = [one for one in (*tables, *lists) if place == one or place.startswith(f"{one}.")]
        if not outer or set(outer) & set(lists) or (outer == ["cluster"] and place != "cluster"):
            continue
        schema = model.model_json_schema()["properties"]
        rows = []
        for name, field in model.model_fields.items():
            if field.description:  # a table inside has none, and a heading of its own
                mark = EXPERIMENTAL if is_experimental(field) else ""
                value = f"{kind_of(schema[name])}{unit_of(name, schema[name])}; {default_of(field)}"
                rows.append((f"--{place}.{name}", f"{field.description}{mark} [{value}]"))
        yield f"[{place}]", rows
