"""In which form an endpoint takes a request: what it does not know is left out, and remembered. Pure.

OpenAI's own models refuse ``max_tokens`` or a temperature, others know no JSON schemas, some
no JSON mode. The message of a refusal tells; a refusal that could be one request's fault
counts only when it comes again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

from qzhou.config.synthesis import LLMSection

Structured = Literal["json_schema", "json_object", "off"]
SIMPLER: dict[Structured, Structured] = {"json_schema": "json_object", "json_object": "off"}
NOT_UNDERSTOOD = {400, 415, 422, 501}
SURE_AFTER = 3  # times that a simpler form was answered after a refusal


@dataclass(frozen=True, slots=True)
class RequestForm:
    """What a request holds.

    Attributes:
        structured: How the form of the answer is asked for.
        temperature: Whether a temperature is sent.
        limit: The field with the longest answer; empty for none.
        model: Whether a model is named; a server of one model may know it by another name.
    """

    structured: Structured = "json_schema"
    temperature: bool = True
    limit: Literal["max_tokens", "max_completion_tokens", ""] = "max_tokens"
    model: bool = True

    def simpler(self, status: int, message: str, *, may_be_plain: bool) -> RequestForm | None:
        """The next form after a refusal; None where the form is not to blame."""
        said = message.casefold()
        speaks_of_schema = any(word in said for word in ("response_format", "json_schema", "grammar", "guided"))
        if status not in NOT_UNDERSTOOD and not (status == 500 and speaks_of_schema):
            return None
        if "pinned to" in said and self.model:  # what the server of transformers says
            return replace(self, model=False)
        if "temperature" in said and self.temperature:
            return replace(self, temperature=False)
        if self.limit and self.limit in said:
            is_old = self.limit == "max_tokens" and "max_completion_tokens" in said
            return replace(self, limit="max_completion_tokens" if is_old else "")
        if may_be_plain and self.structured in SIMPLER:
            return replace(self, structured=SIMPLER[self.structured])
        return None


@dataclass(slots=True)
class LearnedForm:
    """What is known of one endpoint and model; ``longest`` is the limit after an answer that was cut."""

    form: RequestForm = field(default_factory=RequestForm)
    longest: int = 0
    answered: Counter[Structured] = field(default_factory=Counter)

    def form_for(self, model: LLMSection, *, has_schema: bool) -> RequestForm:
        """The form of the next request."""
        is_plain = model.structured == "off" or not has_schema
        return replace(self.form, structured="off") if is_plain else self.form

    def learn(self, form: RequestForm, *, asked: RequestForm, was_cut_at: int = 0) -> None:
        """A request that was ``asked`` in one form was answered in another, or the same.

        ``was_cut_at`` is its limit if the answer reached it.
        """
        self.longest = max(self.longest, 2 * was_cut_at)
        self.form = replace(self.form, temperature=form.temperature, limit=form.limit, model=form.model)
        if asked.structured != self.form.structured:
            return  # it had no schema
        if form.structured == self.form.structured:
            self.answered.clear()  # the richer form works, so a refusal was one request's
            return
        self.answered[form.structured] += 1
        if self.answered[form.structured] >= SURE_AFTER:
            self.form = replace(self.form, structured=form.structured)
