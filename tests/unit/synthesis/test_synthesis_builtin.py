"""The builtin endpoint in the process and behind HTTP, and what its rules do to texts."""

import asyncio
import json
import urllib.error
import urllib.request

import openai
import pytest

from qzhou.config.api_keys import Keys
from qzhou.config.synthesis import LLMSection, SynthesisSection
from qzhou.data.records import RetrievalExample
from qzhou.data.storage import Folder
from qzhou.synthesis.builtin import answer_by_rules
from qzhou.synthesis.builtin_rules import CONTRARY, apply_rules, augmented, contradicted, paraphrased
from qzhou.synthesis.chat import ChatRequest
from qzhou.synthesis.client import ChatClient
from qzhou.synthesis.rate_limiter import RateLimiter, RequestLimits
from qzhou.synthesis.response_cache import ResponseCache
from qzhou.synthesis.techniques import requests_for
from tests.llm_server import LLMServer, serving

QUERY = "Return the first row of the array."
POSITIVE = (
    "The first row is returned as a new array. If the array is empty, an error is raised. "
    "The array must have at least one row."
)


def test_the_client_gets_chat_completions_by_rules_without_a_network(tmp_path):
    model = LLMSection(model="gpt-9", endpoints=("builtin",))
    settings = SynthesisSection(models=(model,), paraphrase_rows=1)
    example = RetrievalExample(id="x", dataset="d", query=QUERY, positives=(POSITIVE,))
    messages = requests_for(example, "paraphrase")[0].messages

    async def send():
        client = ChatClient(
            settings,
            keys=Keys.of(["OPENAI_API_KEY"], {}),
            cache=ResponseCache(Folder.open(str(tmp_path))),
            rate_limiter=RateLimiter(RequestLimits(settings)),
        )
        (result,) = await client.send([ChatRequest(model="gpt-9", messages=messages)])
        await client.close()
        return result.answer

    answer = asyncio.run(send())

    assert answer.model == "builtin-rules"
    assert set(json.loads(answer.content)) == {"query", "positive"}
    assert answer.prompt_tokens > answer.completion_tokens > 0


def test_the_openai_client_can_talk_to_the_server_of_the_tests_and_it_says_what_it_is():
    example = RetrievalExample(id="x", dataset="d", query=QUERY, positives=(POSITIVE,))
    with serving(LLMServer(answer_by_rules)) as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
        names = [model.id for model in client.models.list()]
        messages = requests_for(example, "paraphrase")[0].messages
        completion = client.chat.completions.create(model="gpt-9", messages=messages)
        client.close()

    assert names == ["builtin-rules"]
    assert completion.model == "builtin-rules"
    assert set(json.loads(completion.choices[0].message.content)) == {"query", "positive"}
    assert completion.usage.prompt_tokens > completion.usage.completion_tokens > 0


@pytest.mark.parametrize("body", [b"{", b"{}", b'{"messages": [{"content": "hello"}]}'])
def test_the_server_answers_anything_but_our_requests_with_400(body):
    with serving(LLMServer(answer_by_rules)) as base_url:
        request = urllib.request.Request(f"{base_url}/chat/completions", data=body)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)

    assert caught.value.code == 400


def test_a_paraphrase_swaps_clauses_and_words_and_keeps_its_length():
    text = "If the array is empty, an error is raised."

    result = paraphrased(text)

    assert result == "A failure is thrown if the array is empty."
    assert abs(len(result) - len(text)) <= 12


def test_a_paraphrase_leaves_names_and_code_alone():
    assert paraphrased("Use `return` or np.compute(x) here.") == "Employ `return` or np.compute(x) here."


def test_a_question_of_whether_is_no_condition():
    assert paraphrased("Check if the server is alive.") == "Test if the server is alive."


def test_where_no_rule_fits_the_answer_is_empty():
    assert paraphrased("Zipf law.") == contradicted("Zipf law.", about="Zipf") == ""
    assert augmented("One sentence only.") == {"query": "", "positive": "", "negative": ""}


def test_an_augmentation_asks_about_another_sentence_of_the_document():
    result = augmented(POSITIVE)

    assert result["query"] in POSITIVE
    assert result["query"] not in result["positive"]
    assert result["negative"] != result["positive"]


def test_a_hard_negative_keeps_the_form_and_changes_the_terms():
    result = contradicted(POSITIVE, about=QUERY)

    assert result.startswith("The last column is accepted as an existing scalar.")
    assert len(result.split()) == len(POSITIVE.split())


def test_one_changed_word_beside_the_point_is_no_negative():
    assert contradicted("Colours may be small.", about="Which colours are there?") == ""


def test_no_word_is_its_own_contrary():
    assert all(word != contrary for word, contrary in CONTRARY.items())


def test_an_unknown_technique_is_refused():
    with pytest.raises(ValueError, match="translate"):
        apply_rules({"technique": "translate", "text": "a"})
