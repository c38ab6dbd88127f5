"""The whole run, stage by stage; finished stages are skipped.

python jobs/pipeline.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
"""

from qzhou.cli.job import main, say_what_to_do_next
from qzhou.config.recipe import Recipe


def run(recipe: Recipe) -> None:
    from qzhou.cluster.resources import resources_of_pipeline
    from qzhou.cluster.session import session
    from qzhou.evaluation.pipeline import evaluate
    from qzhou.evaluation.texts import task_texts
    from qzhou.mining.pipeline import mine
    from qzhou.run.models import resolve_all
    from qzhou.run.run import Run
    from qzhou.synthesis.pipeline import synthesize
    from qzhou.training.pipeline import export, train
    from qzhou.transform.pipeline import transform

    # a wrong name costs seconds here, and hours later
    resolve_all(recipe.model.backbone, recipe.mining.teacher)
    with session(*resources_of_pipeline(recipe)):
        transform(recipe, task_texts)
        synthesize(recipe)
        mine(recipe)
        train(recipe)
        export(recipe)
        evaluate(recipe)
    say_what_to_do_next(recipe, Run.open(recipe).folder.uri)


if __name__ == "__main__":
    main(run, __doc__ or "")
