"""The command ``qzhou``: one subcommand for each stage, for the whole run, and for what comes before and after it.

Each function imports its stage when it is called, so that ``--help`` and ``--dry-run`` load
neither torch nor ray.
"""

import functools
import os
import shlex
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from qzhou.cli.command import STAGES, Commands, OverridingCommand, RecipeCommand, flag
from qzhou.cli.errors import errors_for_people
from qzhou.cli.shipped import recipe_path
from qzhou.config.describe import tables_of
from qzhou.config.recipe import Recipe
from qzhou.errors import SetupError, UserError

ALL = tuple(place for _, place, _ in tables_of(Recipe))
EVERY = ("run", "model", "cluster")  # tables that every stage reads
JOBS = ["run", *STAGES, "index", "report", "rehearse"]
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Commands, invoke_without_command=True, context_settings=CONTEXT)
@click.version_option(package_name="qzhou")
@click.pass_context
def cli(context: click.Context) -> None:
    """Turn raw text datasets into a text-embedding model, and serve it.

    RECIPE is a TOML file, or the name of a recipe that ships with qzhou: quickstart. Every
    setting of a recipe can be overridden by its dotted name: qzhou train quickstart
    --training.stage1.steps 20. The help of a command lists the settings that it reads.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None, *, command: str = "") -> None:
    """Run a command and end the process where it failed.

    ``arguments`` are read instead of the process's own; ``command`` stands before them, in
    scripts of one command.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    words = [command, *words] if command else words
    with errors_for_people(words[0] if words else "qzhou"):
        try:
            with cli.make_context("qzhou", words) as context:
                cli.invoke(context)
        except click.exceptions.Exit as end:
            sys.exit(end.exit_code)
        except click.NoSuchOption as error:
            owners = cli.owners(error.option_name)
            raise UserError(
                f"{error.option_name} belongs to {owners}" if owners else error.format_message()
            ) from None
        except click.UsageError as error:
            raise UserError(error.format_message()) from None


on_recipe = functools.partial(cli.command, cls=RecipeCommand)
keep = click.option(
    "--keep",
    multiple=True,
    metavar="STAGE",
    help="Accept this finished stage as it is, whatever has changed; may stand several times.",
)


@cli.command("init")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@flag("--name", "Of the run and of the recipe's file; default: of the first path.", metavar="NAME")
@flag("--output", "The recipe's file; default: NAME.toml.", metavar="FILE")
@flag("--query", "The column of queries, where the guess is wrong.", metavar="COLUMN")
@flag("--positive", "The column of their answers.", metavar="COLUMN")
@flag("--text", "The column of texts with labels.", metavar="COLUMN")
@flag("--label", "The column of labels.", metavar="COLUMN")
@flag("--backbone", "Instead of one that this machine can train.", metavar="MODEL")
@flag("--endpoint", "Of a language model that writes queries for documents.", metavar="URL")
@flag("--model", "Its name there.", metavar="NAME")
def init(paths: Sequence[str], **options: Any) -> None:
    """Look at data and write a recipe for it.

    A PATH is a folder of documents (.md, .rst, .txt, .html, .pdf, .docx), a file or folder of
    CSV, TSV, JSON, JSON lines or Parquet, a folder as BEIR has them, or a dataset of the
    Hugging Face hub (hf://owner/name:split). What was found is printed with examples; flags
    correct what was guessed wrongly.
    """
    from qzhou.cli.init import InitOptions, init

    given = {name: value for name, value in options.items() if value is not None}
    names = ("query", "positive", "text", "label")
    columns: dict[str, str] = {name: given.pop(name) for name in names if name in given}
    click.echo(init(paths, InitOptions(columns=columns, **given)))


@on_recipe("run", tables=ALL)
@keep
def run(recipe: Recipe) -> None:
    """Run all stages; those that are finished are skipped."""
    from qzhou.cluster.resources import resources_of_pipeline
    from qzhou.cluster.session import session
    from qzhou.evaluation.judge.mteb_tasks import task_texts
    from qzhou.evaluation.pipeline import evaluate
    from qzhou.export.pipeline import export
    from qzhou.mining.pipeline import mine
    from qzhou.run.run import Run
    from qzhou.serving.indexing import index
    from qzhou.synthesis.pipeline import synthesize
    from qzhou.training.pipeline import train
    from qzhou.transform.pipeline import transform

    with session(*resources_of_pipeline(recipe)):
        transform(recipe, task_texts)
        synthesize(recipe)
        mine(recipe)
        train(recipe)
        export(recipe)
        evaluate(recipe)
        if any(one.rule == "documents" for one in recipe.datasets):  # they are there to be searched
            index(recipe)
    _print_next_steps(recipe, Run.open(recipe).folder.uri)


def _print_next_steps(recipe: Recipe, folder: str) -> None:
    from qzhou.telemetry.events import print_block

    name, serving = shlex.quote(click.get_current_context().params["recipe"]), recipe.serving
    command = f"make serve RECIPE={name}" if Path("serve/app.py").exists() else f"qzhou serve {name}"
    block = f"""model:   {folder}/model
report:  {folder}/report.html
serve it:  {command}        and then, in another terminal:
  curl http://{serving.host}:{serving.port}/v1/embeddings -H 'Content-Type: application/json' \\
    -d '{{"model": "{recipe.run.name}", "input": "Return the sum of the elements."}}'"""
    print_block(block, "pipeline", "finished", model=f"{folder}/model", report=f"{folder}/report.html")


@on_recipe("transform", tables=(*EVERY, "cluster.transform", "transform"))
@keep
def transform(recipe: Recipe) -> None:
    """Turn raw datasets into typed training examples."""
    from qzhou.transform.pipeline import transform

    if recipe.transform.contamination.tasks:
        from qzhou.evaluation.judge.mteb_tasks import task_texts  # mteb takes seconds to load

        transform(recipe, task_texts)
    else:
        transform(recipe)


@on_recipe("synthesize", tables=(*EVERY, "cluster.synthesis", "synthesis"))
@keep
def synthesize(recipe: Recipe) -> None:
    """Let an LLM write paraphrases, negatives, queries and more."""
    from qzhou.synthesis.pipeline import synthesize

    synthesize(recipe)


@on_recipe("mine", tables=(*EVERY, "cluster.mining", "mining"))
@keep
def mine(recipe: Recipe) -> None:
    """Find hard negatives with a teacher's embeddings."""
    from qzhou.mining.pipeline import mine

    mine(recipe)


@on_recipe("train", tables=(*EVERY, "cluster.training", "training"))
@keep
def train(recipe: Recipe) -> None:
    """Train both stages: retrieval first, then all tasks."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun sets it for every rank
        from qzhou.training import torchrun

        torchrun.train(recipe)
    else:
        from qzhou.training.pipeline import train

        train(recipe)


@on_recipe("export", tables=EVERY)
@click.option("--onnx", is_flag=True, help="Write onnx/model.onnx into the model's folder too.")
@keep
def export(recipe: Recipe, onnx: bool) -> None:
    """Write the model in sentence-transformers' layout."""
    from qzhou.export.pipeline import export

    export(recipe, onnx=onnx)


@on_recipe("evaluate", tables=(*EVERY, "cluster.evaluation", "evaluation"))
@flag("--fail-below", "End with status 1 if a score of stage 2 is lower.", metavar="TASK=SCORE,...")
@flag("--no-worse-than", "End with status 1 if stage 2 is worse than another run.", metavar="RUN")
@keep
def evaluate(recipe: Recipe, fail_below: str | None, no_worse_than: str | None) -> None:
    """Score BM25, the backbone and both stages with mteb."""
    from qzhou.evaluation.gate import Gate, thresholds_of
    from qzhou.evaluation.pipeline import evaluate

    gate = Gate(thresholds_of(fail_below) if fail_below else {}, no_worse_than or "")
    evaluate(recipe, gate if fail_below or no_worse_than else None)


@on_recipe("report", tables=("run",))
def report(recipe: Recipe) -> None:
    """Write report.html again from what there is so far."""
    from qzhou.evaluation.report import PAGE, write_report
    from qzhou.run.run import Run
    from qzhou.telemetry.events import print_block

    found = Run.find(recipe)
    write_report(found)
    page = f"{found.folder.uri}/{PAGE}"
    print_block(f"report:  {page}", "report", "written", report=page)


@on_recipe("index", tables=(*EVERY, "cluster.mining"))
def index(recipe: Recipe) -> None:
    """Encode the run's documents for POST /v1/search of the endpoint."""
    from qzhou.serving.indexing import index

    index(recipe)


@on_recipe("serve", tables=(*EVERY, "cluster.serving", "serving"))
@click.option("--rollback", is_flag=True, help="Go back to the model that was served before; see --newest.")
@click.option("--newest", is_flag=True, help="Serve the run's own model again, after --rollback.")
def serve(recipe: Recipe, rollback: bool, newest: bool) -> None:
    """Serve the run's model with OpenAI's API until Ctrl-C."""
    if rollback or newest:
        _choose_served(recipe, rollback=rollback, newest=newest)
        return
    from qzhou.serving.app import serve_until_stopped

    serve_until_stopped(recipe)


def _choose_served(recipe: Recipe, *, rollback: bool, newest: bool) -> None:
    from qzhou.run.run import Run
    from qzhou.serving.snapshots import roll_back, serve_newest

    if rollback and newest:
        raise click.UsageError("--rollback and --newest are different things to do; give one of them")
    following = "An endpoint that runs takes it over when it gets SIGHUP, one that starts at once."
    if rollback:
        finished_at = roll_back(Run.at(recipe))
        click.echo(f"serve: the model of {finished_at} is to be served. {following}")
        return
    was = serve_newest(Run.at(recipe))
    click.echo(f"serve: the run's own model is to be served{'' if was else ', as before'}. {following}")


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [kind(part) for part in text.split(",")]


@cli.command("merge")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@flag("--into", "A new folder, local or a URI.", required=True, metavar="FOLDER")
@flag("--weights", "One for each model; default: equal.", _list_of(float), metavar="W,W,...")
@click.option("--method", type=click.Choice(["average", "slerp"]), default="average")
@flag("--prompts-of", "Whose prompts are kept where the models' differ.", metavar="MODEL")
@click.option("--dry-run", is_flag=True, help="Say whether they can be merged, and stop.")
def merge(models: Sequence[str], into: str, **options: Any) -> None:
    """Merge models: average their weights, or slerp two.

    A MODEL is a sentence-transformers folder, a hub id, package:<import name>/<folder>, or
    the folder of a run, of which the last finished model is taken.
    """
    from qzhou.export.merge_models import merge_models

    merge_models(models, into, **options)


@cli.command("embed")
@click.argument("model")
@click.argument("texts", metavar="IN")
@click.argument("into", metavar="OUT")
@flag("--column", "Of the texts; default: text.", metavar="NAME")
@flag("--id", "Column of their ids; default: file and row.", metavar="NAME")
@click.option("--keep", multiple=True, metavar="NAME", help="A further column to write; may stand several times.")
@click.option(
    "--side", type=click.Choice(["document", "query"]), default="document", help="Whose prompt of the model."
)
@flag("--prompt", "Before each text, in place of the model's own.", metavar="TEXT")
@flag("--dimensions", "The first so many of a vector (Matryoshka); default: all.", click.IntRange(1), metavar="N")
@click.option("--precision", type=click.Choice(["float32", "float16", "int8", "ubinary"]), default="float32")
@flag(
    "--max-tokens", "Texts are truncated here; default: where the model truncates.", click.IntRange(1), metavar="N"
)
@flag(
    "--chunk-tokens",
    "Cut documents by their structure into pieces of so many tokens.",
    click.IntRange(1),
    metavar="N",
)
@flag("--workers", "At the most; default: the cluster's GPUs, or half its CPUs.", click.IntRange(1), metavar="N")
@click.option("--gpu", is_flag=True, help="A GPU for each worker.")
def embed(model: str, texts: str, into: str, **options: Any) -> None:
    """Encode any number of texts: Parquet with vectors.

    MODEL is named as for merge. IN is a Parquet file, a file of JSON lines, or a folder of such
    files or of documents (.md, .rst, .txt, .html, .pdf, .docx); OUT a folder. Both may be URIs.
    The same command goes on where an earlier one ended.
    """
    from qzhou.serving.batch_embed import EmbedOptions, embed, settings_of
    from qzhou.serving.batch_texts import TextInput

    column, workers = options.pop("column") or "text", options.pop("workers")
    tokens = options.pop("chunk_tokens")
    found = TextInput.find(texts, column=column, id_column=options.pop("id") or "", keep=options.pop("keep"))
    settings = settings_of(model, EmbedOptions(**options))
    if tokens is not None:
        found = found.chunked(tokens, settings.model)
    embed(found, into, settings, workers=workers)


@cli.command("adapt")
@click.argument("new")
@click.argument("old")
@flag("--documents", "Some of what the old index holds.", required=True, metavar="IN")
@flag("--queries", "Some that people ask.", required=True, metavar="IN")
@flag("--into", "A new folder, local or a URI.", required=True, metavar="FOLDER")
@flag("--column", "Of the texts in both; default: text.", metavar="NAME")
def adapt(new: str, old: str, documents: str, queries: str, into: str, column: str | None) -> None:
    """Let a new model search an index that an old one made.

    NEW and OLD are named as for merge. IN is a Parquet file, a file of JSON lines, or a folder of
    such files or of documents. The model that is written turns NEW's vectors into OLD's space; how
    much of what NEW would find in an index of its own it finds in OLD's is printed.
    """
    from qzhou.serving.batch_texts import TextInput
    from qzhou.serving.query_adapter import adapt

    texts = [TextInput.find(address, column=column or "text") for address in (documents, queries)]
    adapt(new, old, texts[0], texts[1], into)


@cli.command("compare")
@click.argument("model")
@click.argument("url")
@flag("--api-key-env", "Variable with the endpoint's key; default: OPENAI_API_KEY.", metavar="NAME")
def compare(model: str, url: str, api_key_env: str | None) -> None:
    """Check that an endpoint gives a model's vectors.

    Whatever engine it is. MODEL is named as for merge, URL as https://host/v1#name. Where the vectors are others, what
    the engine does instead is looked for: another direction, pooling or prompt, a shorter limit.
    Ends with status 1 then.
    """
    from qzhou.serving.compare import compare

    found = compare(model, url, *([api_key_env] if api_key_env else []))
    click.echo(str(found))
    if not found.is_same:
        sys.exit(1)


@on_recipe("plan", tables=ALL)
@click.option("--json", is_flag=True, help="Print it for machines, in base units.")
@flag("--stage", "The details of one stage alone.", click.Choice(["training", "synthesis"]))
@flag("--measured", "A finished run, for what things cost there.", metavar="FOLDER")
@flag("--rows", "Raw rows; default: the recipe's, or the measured run's.", int)
@flag("--examples", "Examples that are trained on; default: as for rows.", int)
@flag("--synthetic", "Requests to an LLM, instead of what the recipe asks for.", int)
@flag("--gpu", "A100, H100, H200, B200, L40S or L4.", metavar="NAME")
@flag("--gpus", "How many; default: none, this machine.", int)
@flag("--cpus", "For transform and synthesis.", int)
@flag("--cloud", "Whose list prices: aws, gcp or lambda.", metavar="NAME")
@flag("--gpu-price", "Of one GPU for an hour, instead of the list's.", float)
@flag("--cpu-price", "Of one CPU for an hour, instead of the list's.", float)
@flag("--utilisation", "Share of the GPU's peak that training reaches.", float)
@flag("--mean-query-tokens", "Instead of what the run's examples say.", float)
@flag("--mean-document-tokens", "Instead of what the run's examples say.", float)
@flag("--assume", "Anything that the plan lists as an assumption.", metavar="NAME=VALUE,...")
def plan(recipe: Recipe, **options: Any) -> None:
    """Estimate tokens, FLOPs, bytes, time, machines and money."""
    from qzhou.estimate.command import print_plan
    from qzhou.estimate.options import PlanOptions
    from qzhou.synthesis.details import synthesis_details

    given = {name: value for name, value in options.items() if value is not None}
    print_plan(recipe, PlanOptions(**given), synthesis_details)


@cli.command("doctor", cls=OverridingCommand)
@click.argument("recipe", required=False)
@flag("--address", "Ask a cluster that runs, as ray.init() takes it: auto, or ray://HEAD:10001.")
def doctor(recipe: str | None, address: str | None, settings: Sequence[str], dry_run: bool) -> None:
    """Check machine, packages, storage, models, LLM and cluster.

    With a RECIPE also what that needs. One small request is sent to each of its LLM endpoints,
    and a small file is written to its storage and removed. Ends with status 1 where something
    fails.
    """
    from qzhou.cli.doctor.page import examine

    if address:
        os.environ["RAY_ADDRESS"] = address
    if not examine(recipe_path(recipe) if recipe else "", settings, only_machine=dry_run):
        sys.exit(1)


@on_recipe("rehearse", tables=(*EVERY, "cluster.training", "training"))
def rehearse(recipe: Recipe) -> None:
    """Try training on this cluster: a few minutes, made-up texts."""
    from qzhou.experiments.rehearsal import rehearse

    rehearse(recipe)


@cli.command("experiment", cls=OverridingCommand)
@click.argument("experiment")
@flag("--recipe", "Instead of the one that the experiment names.", metavar="RECIPE")
@flag("--seeds", "Instead of the experiment's own.", _list_of(int), metavar="K,K,...")
def experiment(experiment: str, settings: Sequence[str], dry_run: bool, **options: Any) -> None:
    """Train variants of a recipe with several seeds; compare.

    EXPERIMENT is a TOML file, or the name of an experiment that ships with qzhou: eta. The
    same command goes on where an earlier one ended.
    """
    from qzhou.experiments.settings import load_experiment

    path = recipe_path(experiment, kind="experiment")
    recipe = recipe_path(options["recipe"]) if options["recipe"] else ""
    trials = load_experiment(path, settings, recipe=recipe, seeds=options["seeds"] or ())
    print(trials, flush=True)
    if not dry_run:
        from qzhou.experiments.pipeline import run_experiment

        run_experiment(trials)


@on_recipe("submit")
@flag("--address", "Dashboard of a cluster that runs: http://HEAD:8265. Default: start one here.")
@flag("--job", "One stage instead of all.", click.Choice(JOBS))
@click.option("--status", is_flag=True, help="Show the jobs of the recipe's run.")
@click.option("--follow", is_flag=True, help="Print the log of the run's last job to its end.")
@click.option("--stop", is_flag=True, help="End the run's job; the next one goes on from there.")
@keep
@click.pass_context
def submit(context: click.Context, /, recipe: Recipe, address: str | None, job: str | None, **asked: bool) -> None:
    """Run the pipeline as a Ray job, here or on a cluster.

    Ctrl-C leaves a job alone that runs on a cluster, and ends one that runs here.
    """
    methods = [name for name, is_given in asked.items() if is_given]
    if len(methods) > 1 or (methods and job):
        flags = " and ".join(f"--{name}" for name in [*methods, *(["job"] if job else [])])
        raise click.UsageError(f"{flags} are different things to do; give one of them")
    if not address and not methods:
        # a cluster on this machine is guarded; Ray reads this when it is loaded
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from qzhou.cluster.submission import Jobs, run_as_job

    if methods:
        sys.exit(getattr(Jobs(recipe, address or "http://127.0.0.1:8265"), methods[0])())
    words = [recipe_path(context.params["recipe"]), *context.params["settings"]]
    words += [word for stage in context.params["keep"] for word in ("--keep", stage)]
    script = f"jobs/{'pipeline' if job in {None, 'run'} else job}.py"
    if not Path(script).is_file():  # outside a checkout
        if address:
            raise SetupError(
                f"there is no {script} here, and a cluster gets its code from the working directory; submit from the "
                "root of the project"
            )
        script, words = f"{sysconfig.get_path('scripts')}/qzhou", [job or "run", *words]
    sys.exit(Jobs(recipe, address).submit(script, words) if address else run_as_job(script, words))
