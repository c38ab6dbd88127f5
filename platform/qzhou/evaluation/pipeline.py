"""A run's evaluation: the stage, its printed tables, the report, the gate at the end."""

from dataclasses import astuple

from qzhou.config.recipe import Recipe
from qzhou.data.records import Manifest
from qzhou.data.storage import Folder
from qzhou.encoder.arithmetic import with_arithmetic
from qzhou.errors import RecipeError
from qzhou.evaluation.comparison import benchmark_table, differences_of, rows_of, table
from qzhou.evaluation.diagnosis import diagnosis_text
from qzhou.evaluation.gate import Gate
from qzhou.evaluation.judge.model_specs import models_to_score
from qzhou.evaluation.judge.workers import MakeEvaluator, make_evaluator
from qzhou.evaluation.report import PAGE, write_report
from qzhou.evaluation.scoring import score_run
from qzhou.evaluation.settings_check import refuse_changed_settings
from qzhou.run.files import EVALUATION, SYNTHESIS, TRAINING_STAGE2, TRANSFORM, RunFiles
from qzhou.run.model_card import write_model_card
from qzhou.run.models import weights_fingerprint
from qzhou.run.run import Run, Stage
from qzhou.telemetry.events import log_event, print_block

NOTHING_HELD_OUT = (
    "evaluation: there is nothing to judge, because no dataset holds out enough and evaluation.tasks is empty. Give a "
    "dataset an eval_fraction above 0, or name tasks of mteb."
)
# These folders stay valid when settings change: their entries carry the key of all that they depend on.
PERSISTENT = ("scores", "results", "vectors")


def evaluate(
    recipe: Recipe, gate: Gate | None = None, *, make_evaluator: MakeEvaluator = make_evaluator
) -> Manifest:
    """Score BM25, backbone, both stages and further models; returns the stage's manifest.

    Writes the comparison, the diagnosis and the report, and prints them.

    Args:
        recipe: The recipe of the run.
        gate: What stage 2 has to reach.
        make_evaluator: Makes the evaluator in each worker.

    Raises:
        RecipeError: The models were trained with other settings.
        DataError: Training has not finished, or a task could not be scored; the scores of the others are kept.
        RegressionError: Stage 2 does not pass the gate.
    """
    refuse_changed_settings(recipe)
    _refuse_unknown_names(recipe)
    run = with_arithmetic(Run.open(recipe))
    if gate is not None:
        gate.refuse_unknown_run(run.folder)

    def work(folder: Folder) -> dict[str, int]:
        counts = score_run(run, folder, make_evaluator)
        if run.folder.exists(PAGE):
            run.folder.remove(PAGE)  # it shows an earlier evaluation
        return counts

    stage = Stage(
        name=EVALUATION,
        settings=_settings(run.recipe),
        inputs={
            "transform": run.manifest(TRANSFORM).fingerprint,
            **({"synthesis": run.manifest(SYNTHESIS).fingerprint} if _asks_what_was_written(recipe) else {}),
            "stage2": run.manifest(TRAINING_STAGE2).fingerprint,
            "backbone": weights_fingerprint(recipe.model.backbone),
            **{source: weights_fingerprint(source) for source in recipe.evaluation.models},
        },
        code_of=("qzhou.evaluation.scoring",),
        persistent=PERSISTENT,
        shared=[f"scores/{one.name}" for one in models_to_score(recipe) if not one.trained],
    )
    manifest = run.stage(stage, work)
    if not run.folder.exists(PAGE):
        # after the stage, so that they have its manifest too
        write_report(run)
        write_model_card(run.recipe, run.folder)
    files = RunFiles(run.folder)
    _print_results(files)
    if gate is not None:
        gate.check(rows_of(files.comparison), run.folder, seed=recipe.run.seed)
    return manifest


def _asks_what_was_written(recipe: Recipe) -> bool:
    """Whether a task is made of queries that synthesis has written for held-out documents."""
    return any(one.rule == "documents" and one.eval_fraction for one in recipe.datasets)


def _refuse_unknown_names(recipe: Recipe) -> None:
    known = [one.name for one in models_to_score(recipe)]
    for name in recipe.evaluation.models_with_recipe_prompts:
        if name not in known:
            raise RecipeError(
                f"evaluation.models_with_recipe_prompts: the table has no model '{name}'; it has {', '.join(known)}"
            )


def _settings(recipe: Recipe) -> dict[str, object]:
    """The parts of the recipe that scores depend on."""
    return {
        "evaluation": recipe.evaluation.model_dump(),
        "model": recipe.model.settings_for(*recipe.evaluation.models),
        "prompts": {one.name: astuple(one.prompt) for one in recipe.datasets},
        "kinds": {one.name: [one.kinds, one.train_split_of] for one in recipe.datasets},
        "seed": recipe.run.seed,
    }


def _print_results(files: RunFiles) -> None:
    comparison = files.comparison
    rows = rows_of(comparison)
    if rows:
        shown = table(rows, differences_of(comparison))
        scores = [{"task": row.task, "model": row.model, "metric": row.metric, "score": row.score} for row in rows]
        print_block(f"\n{shown}\n", "evaluation", "scores", scores=scores)
    else:
        log_event(NOTHING_HELD_OUT, "nothing_held_out", level="warning")
    for benchmark in comparison["benchmarks"]:
        print_block(f"{benchmark_table(benchmark)}\n", "evaluation", "benchmark", benchmark=benchmark)
    checks = [finding["check"] for finding in files.diagnosis["findings"]]
    print_block(f"{diagnosis_text(files.diagnosis)}\n", "evaluation", "diagnosis", checks=checks)
