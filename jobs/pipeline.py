"""The whole run, stage by stage; finished stages are skipped.

python jobs/pipeline.py recipes/quickstart.toml [--dry-run] [--SECTION.SETTING VALUE ...]
"""

import sys

from qzhou.job import main
from qzhou.recipe import Recipe


def run(recipe: Recipe) -> None:
    from qzhou.checkpoints import resolve_all
    from qzhou.cluster import session
    from qzhou.evaluation.pipeline import evaluate
    from qzhou.evaluation.texts import task_texts
    from qzhou.mining.pipeline import mine
    from qzhou.resources import asks_of_pipeline
    from qzhou.runs import Run
    from qzhou.synthesis.pipeline import synthesize
    from qzhou.training.pipeline import export, train
    from qzhou.transform.pipeline import transform

    resolve_all(recipe.model.backbone, recipe.mining.teacher)  # a wrong name costs seconds here, and hours later
    with session(*asks_of_pipeline(recipe)):
        transform(recipe, task_texts)
        synthesize(recipe)
        mine(recipe)
        train(recipe)
        export(recipe)
        evaluate(recipe)
    folder, serving = Run.open(recipe).folder, recipe.serving
    print(f"model:   {folder.uri}/model\nreport:  {folder.uri}/report.html")
    print(f"serve it:  make serve RECIPE={sys.argv[1]}        and then, in another terminal:")
    print(f"  curl http://{serving.host}:{serving.port}/v1/embeddings -H 'Content-Type: application/json' \\")
    print(f"""    -d '{{"model": "{recipe.run.name}", "input": "Return the sum of the elements."}}'""", flush=True)


if __name__ == "__main__":
    main(run, __doc__ or "")
