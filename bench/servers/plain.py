"""What one writes in an hour: FastAPI around SentenceTransformer.encode. A peer of bench/serve.py.

python -m bench.servers.plain MODEL PORT
"""

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

web = FastAPI()
model = SentenceTransformer(sys.argv[1], device="cpu", model_kwargs={"dtype": torch.float32})


class Request(BaseModel):
    """The fields of OpenAI's that matter here."""

    input: str | list[str]
    model: str


@web.post("/v1/embeddings")
def embeddings(request: Request) -> dict[str, object]:
    texts = [request.input] if isinstance(request.input, str) else request.input
    vectors = model.encode(texts, normalize_embeddings=True)
    data = [{"object": "embedding", "index": n, "embedding": one.tolist()} for n, one in enumerate(vectors)]
    return {"object": "list", "model": request.model, "data": data}


if __name__ == "__main__":
    uvicorn.run(web, port=int(sys.argv[2]), log_level="warning")
