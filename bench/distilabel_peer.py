"""distilabel's part of bench/synthesize.py; runs in an environment of its own, which has `distilabel[openai]`."""

import json
import sys

from distilabel.models import OpenAILLM  # type: ignore[import-not-found]
from distilabel.pipeline import Pipeline  # type: ignore[import-not-found]
from distilabel.steps import LoadDataFromDicts  # type: ignore[import-not-found]
from distilabel.steps.tasks import TextGeneration  # type: ignore[import-not-found]

if __name__ == "__main__":
    url, limit, requests = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rows = [
        {
            "instruction": json.dumps(
                {"technique": "relevance_check", "query": f"question {n}", "document": "word " * 60}
            )
        }
        for n in range(requests)
    ]
    with Pipeline(name="bench") as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=limit)
        llm = OpenAILLM(model="m", base_url=url, api_key="none")
        write = TextGeneration(llm=llm, system_prompt="You judge. " * 60, input_batch_size=limit)
        load >> write
    found = pipeline.run(use_cache=False)
    assert found["default"]["train"].num_rows == requests
