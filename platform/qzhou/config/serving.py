"""The table ``[serving]``: the endpoint."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from qzhou.config.api_keys import LOOPBACK
from qzhou.config.section import AtLeastOne, Count, Experimental, Name, Positive, Section

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]


class ServingSection(Section):
    """The endpoint."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="HTTP port.")
    models: dict[Name, str] = Field(
        default_factory=dict, description="More models in the same endpoint: name -> folder, hub id or package."
    )
    precision: Experimental[Precision | None] = Field(
        None, description="What the model computes in; int8 on CPUs. Default: what texts are encoded in elsewhere."
    )
    measure_precision: bool = Field(
        True, description="Below float32, measure its cosine to float32 when it is loaded (twice, once for each)."
    )
    replicas: AtLeastOne = Field(1, description="Copies of each model; with max_replicas, those it starts with.")
    min_replicas: Count | None = Field(
        None, description="When there is little to do; 0 is allowed. Default: replicas."
    )
    max_replicas: AtLeastOne | None = Field(None, description="When there is much to do; default: no autoscaling.")
    target_requests: AtLeastOne = Field(32, description="At the same time; autoscaling keeps a replica at so many.")
    target_waiting_tokens: AtLeastOne | None = Field(
        None, description="Autoscale by tokens that wait, so many a replica, and not by requests."
    )
    max_batch_tokens: AtLeastOne | None = Field(
        None, description="Padded tokens that one forward pass may hold; default: what suits the device."
    )
    max_wait_s: Positive = Field(10.0, description="A request that would be answered later is refused with 429.")
    max_waiting_tokens: AtLeastOne = Field(
        4_000_000, description="Of all requests at a replica; bounds its memory."
    )
    max_inputs: AtLeastOne = Field(2048, description="Texts per request; more is refused with 400.")
    max_request_chars: AtLeastOne = Field(
        8_000_000, description="Characters per request; more is refused with 400."
    )
    max_request_tokens: AtLeastOne = Field(1_000_000, description="Tokens per request; more is refused with 400.")
    token_ids: bool = Field(
        False,
        description="Take token ids in place of texts. They must be of the served model's tokenizer, and some clients "
        "send those of OpenAI's by default.",
    )
    truncate: bool = Field(
        False,
        description="Cut texts above the model's limit where a request does not say 'truncate'; else they are refused "
        "with 400.",
    )
    max_body_mib: AtLeastOne = Field(64, description="Of a request's body; more is refused with 413.")
    request_timeout_s: Positive = Field(600.0, description="Then 503; OpenAI's clients wait as long.")
    cache_mib: Count = Field(64, description="Vectors of earlier texts that a replica keeps; 0: none.")
    tokens_per_minute: AtLeastOne | None = Field(
        None, description="Of a key without a limit of its own; more is refused with 429."
    )
    api_keys_env: str = Field(
        "QZHOU_API_KEYS", description="Variable with comma-separated keys; unset: no key asked."
    )
    api_keys_file: str = Field(
        "",
        description="TOML on every node, a table for each key: its key or sha256, and its tokens_per_minute if it has "
        "a limit of its own. Read again when it changes. Empty: none.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Names that an endpoint without keys may be called by; default: those of this machine where it "
        "listens to that alone, else any.",
    )
    cors_origins: tuple[str, ...] = Field((), description="Web pages of other origins that browsers may let ask.")
    access_log: bool = Field(
        True, description="A line of JSON for each request in Ray's Serve logs, without its texts."
    )

    @property
    def known_hosts(self) -> frozenset[str]:
        """Names that an endpoint without keys answers to; empty: any.

        A web page can let its own name mean 127.0.0.1 (DNS rebinding) and ask through a
        browser on this machine; the name in the request gives it away.
        """
        if self.allowed_hosts:
            return frozenset(self.allowed_hosts)
        return frozenset(LOOPBACK if self.host in LOOPBACK else ())

    @model_validator(mode="after")
    def _scales(self) -> Self:
        if self.max_replicas is None and self.min_replicas is not None:
            raise ValueError("min_replicas needs max_replicas; without it, replicas is all there is")
        if self.max_replicas is not None and not (self.min_replicas or 0) <= self.replicas <= self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}), replicas ({self.replicas}) and max_replicas "
                f"({self.max_replicas}) must not fall in this order"
            )
        return self
