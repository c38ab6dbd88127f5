"""What an LLM writes for a run: how many rows, by which models, which texts are refused.

Part of :mod:`qzhou.config.recipe`, in a file of its own because an endpoint has many
limits.
"""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from qzhou.config.section import (
    AtLeastOne,
    Cosine,
    Count,
    Experimental,
    Fraction,
    Name,
    NotNegative,
    Positive,
    Section,
)

BUILTIN = "builtin"
LOCAL = "local"
BUILTIN_MODEL = "builtin-rules"


class ChatSection(Section):
    """What a request holds besides the messages."""

    max_tokens: AtLeastOne | None = Field(
        None, description="Longest answer; default: by what is asked for, and more after one that was cut."
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of each request: { chat_template_kwargs = { enable_thinking = false } }.",
    )
    headers: dict[str, str] = Field(default_factory=dict, description="Further HTTP headers of each request.")


class LLMSection(ChatSection):
    """One model, and the endpoints that offer it."""

    model: str = Field(description="Model name that is sent.")
    endpoints: tuple[str, ...] = Field(
        min_length=1,
        description="OpenAI-compatible base URLs, or 'local'; the first healthy one gets the requests.",
    )
    weight: Positive = Field(1.0, description="Its share of the requests, beside the other models' weights.")
    api_key_env: str = Field("OPENAI_API_KEY", description="Environment variable that holds the key.")
    input_price: NotNegative = Field(0.0, description="Money per million prompt tokens.")
    output_price: NotNegative = Field(0.0, description="Money per million answered tokens.")
    structured: Literal["auto", "on", "off"] = Field(
        "auto", description="Ask for JSON that fits a schema; auto: unless the endpoint refuses."
    )
    temperature: NotNegative | None = Field(None, description="Of this model; default: synthesis.temperature.")
    top_p: Fraction | None = Field(None, description="Nucleus sampling; default: the endpoint's.")


class FiltersSection(Section):
    """Which of the LLM's texts are refused. The report draws the teacher's scores, so that thresholds can be set."""

    max_ngram_overlap: Fraction = Field(
        0.8,
        description="Texts that share more of their n-grams with what they are made of are dropped: rewrites with the "
        "original (paper: a fifth new), negatives with their positive, queries with their document.",
    )
    same_language: bool = Field(True, description="Texts in another language than the original are dropped.")
    teacher: str = Field("", description="Encoder that scores, named like a backbone; '' takes mining's.")
    scores: bool = Field(True, description="Score new records with the teacher.")
    min_rewrite_cosine: Cosine | None = Field(None, description="Rewrites further from their original are dropped.")
    max_rewrite_cosine: Cosine | None = Field(None, description="Rewrites nearer to their original are dropped.")
    min_positive_score: Cosine | None = Field(
        None,
        description="Pairs whose query and positive are further apart are dropped (Conan-v2: 0.4, Qwen3: 0.7).",
    )
    negative_below_positive: bool = Field(True, description="Negatives that score above the positive are dropped.")
    max_negative_cosine: Cosine = Field(
        0.98, description="Negatives nearer to their positive are dropped: they say the same."
    )
    relevance_check: bool = Field(False, description="An LLM says whether each document answers its query.")

    @model_validator(mode="after")
    def _thresholds_agree(self) -> Self:
        low, high = self.min_rewrite_cosine, self.max_rewrite_cosine
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"min_rewrite_cosine ({low:g}) is not below max_rewrite_cosine ({high:g}), so every rewrite would be "
                "dropped; lower the one or raise the other"
            )
        for name in ("min_rewrite_cosine", "max_rewrite_cosine", "min_positive_score"):
            if (value := getattr(self, name)) and not self.scores:
                raise ValueError(f"{name} is {value:g}, but scores is false; let the teacher score")
        return self


class SynthesisSection(ChatSection):
    """An LLM paraphrases, augments, writes hard negatives (QZhou-Embedding, section 4)."""

    endpoint: str = Field(
        "",
        description="OpenAI-compatible base URL; 'local': 'model' is served on this machine; 'builtin': rules; '' "
        "writes nothing.",
    )
    model: str = Field(
        BUILTIN_MODEL,
        description="Model name that is sent to the endpoint; local: folder, hub id, package or GGUF file.",
    )
    api_key_env: str = Field("OPENAI_API_KEY", description="Environment variable that holds the key.")
    input_price: NotNegative = Field(0.0, description="Money per million prompt tokens.")
    output_price: NotNegative = Field(0.0, description="Money per million answered tokens.")
    models: tuple[LLMSection, ...] = Field(
        (), description="Several models, drawn by weight, instead of 'endpoint' and 'model'."
    )
    datasets: tuple[Name, ...] = Field((), description="Datasets that are written for; default: all small enough.")
    max_dataset_rows: Count = Field(60_000, description="Larger datasets are left alone, as in the paper.")
    paraphrase_rows: Count = Field(0, description="Examples per dataset that are paraphrased.")
    paraphrases_per_row: AtLeastOne = Field(1, description="Paraphrases of each of them.")
    augment_rows: Count = Field(0, description="Retrieval examples per dataset that are augmented.")
    augmentations_per_row: AtLeastOne = Field(1, description="New examples from each of them.")
    hard_negative_rows: Count = Field(0, description="Retrieval examples per dataset that get written negatives.")
    hard_negatives_per_row: AtLeastOne = Field(1, description="Negatives for each of them.")
    query_rows: Count = Field(0, description="Documents per corpus that get a generated query.")
    queries_per_row: AtLeastOne = Field(1, description="Queries for each of them, asked by different persons.")
    parse_retries: Count = Field(
        1, description="Times that a refused answer goes back to the model with the reason."
    )
    filters: FiltersSection = FiltersSection()
    mode: Experimental[Literal["live", "batch"]] = Field(
        "live", description="batch: OpenAI's Batch API, slower and cheaper."
    )
    concurrency: AtLeastOne = Field(16, description="Requests in flight at the same time, in the whole job.")
    requests_per_minute: Positive | None = Field(None, description="Budget of the whole job; default: none.")
    tokens_per_minute: Positive | None = Field(None, description="Budget of the whole job; default: none.")
    max_cost: Positive | None = Field(None, description="Money; the job stops cleanly before it spends more.")
    give_up_after_s: Positive = Field(300.0, description="An endpoint that fails for so long is given up.")
    timeout_s: Positive = Field(90.0, description="One request; then it is retried.")
    max_retries: Count = Field(
        5, description="Further tries after 5xx, a timeout or a broken connection; at 429 for give_up_after_s."
    )
    temperature: NotNegative = Field(0.7, description="Sampling temperature of the LLM.")

    @property
    def is_on(self) -> bool:
        """Whether anything is sent to an LLM or to the builtin rules."""
        return bool(self.endpoint or self.models)

    @property
    def is_builtin(self) -> bool:
        """Whether rules answer instead of a model."""
        return any(BUILTIN in model.endpoints for model in self.pool)

    @property
    def local_models(self) -> tuple[str, ...]:
        """The models that are served on this machine for the time of the stage."""
        return tuple(model.model for model in self.pool if LOCAL in model.endpoints)

    @property
    def pool(self) -> tuple[LLMSection, ...]:
        """The models that share the requests."""
        if self.models or not self.endpoint:
            return self.models
        own = {"model", "api_key_env", "input_price", "output_price", *ChatSection.model_fields}
        shared = self.model_dump(include=own)
        return (LLMSection(endpoints=(self.endpoint,), **shared),)

    @property
    def sampling(self) -> dict[str, dict[str, Any]]:
        """Model -> the fields of its requests on which an answer depends, besides the messages."""
        found = {}
        for model in self.pool:
            temperature = self.temperature if model.temperature is None else model.temperature
            nucleus = {} if model.top_p is None else {"top_p": model.top_p}
            found[model.model] = {"temperature": temperature, **nucleus, **model.extra_body}
        return found

    @model_validator(mode="after")
    def _models_agree(self) -> Self:
        if self.models and self.endpoint:
            raise ValueError(
                f"endpoint is '{self.endpoint}' and models names {len(self.models)}; take one of the two away"
            )
        names = [model.model for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"models: '{name}' stands twice; give one entry all its endpoints")
        if self.endpoint not in {"", BUILTIN} and self.model == BUILTIN_MODEL:
            raise ValueError(
                f"endpoint is '{self.endpoint}', and no model is named; set model to one that it offers"
            )
        free = [model.model for model in self.pool if not model.input_price + model.output_price]
        if self.max_cost is not None and free:
            raise ValueError(
                f"max_cost is {self.max_cost:g}, but '{free[0]}' has no price, so nothing would count; set its "
                "input_price and output_price, in money per million tokens"
            )
        return self

    @model_validator(mode="after")
    def _endpoints_agree(self) -> Self:
        urls = [url for model in self.pool for url in model.endpoints]
        for url in urls:
            if url not in {BUILTIN, LOCAL} and not url.startswith(("http://", "https://")):
                raise ValueError(
                    f"endpoint '{url}' is no URL; write it as http://host:port/v1 or https://..., or 'local'"
                )
        if self.local_models and self.mode == "batch":
            raise ValueError("mode is 'batch', which a local model does not know; set mode to 'live'")
        if not self.is_builtin:
            return self
        if self.endpoint and self.model != BUILTIN_MODEL:
            raise ValueError(
                f"model is '{self.model}', but the builtin endpoint only speaks as '{BUILTIN_MODEL}'; "
                "remove the model or name a URL as endpoint"
            )
        if len(urls) > 1:
            raise ValueError("models: the builtin endpoint cannot share requests with others; take it away")
        if self.mode == "batch":
            raise ValueError("mode is 'batch', which the builtin endpoint does not know; set mode to 'live'")
        return self
