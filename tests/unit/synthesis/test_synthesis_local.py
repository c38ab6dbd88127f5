"""A language model served on this machine for the time of a stage."""

import json
import urllib.request

import psutil
import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from qzhou.config.synthesis import SynthesisSection
from qzhou.errors import ModelError
from qzhou.synthesis.local_server import LocalServer, with_addresses


@pytest.fixture(scope="module")
def language_model(tiny_qwen2, tmp_path_factory):
    """A random one of two layers, which can chat."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llm")
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    tokenizer.chat_template = "{% for one in messages %}{{ one.content }}{% endfor %}"
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_a_folder_is_served_until_it_is_closed(language_model):
    server = LocalServer(language_model)
    below = psutil.Process().children(recursive=True)
    (process,) = [one for one in below if "serve" in one.cmdline() and "sh" not in one.cmdline()]

    def said(temperature):
        chat = [{"role": "user", "content": "the sum of the list"}]
        body = {"messages": chat, "max_tokens": 5, "temperature": temperature}
        request = urllib.request.Request(
            f"{server.url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            answer = json.load(response)
        assert answer["usage"]["completion_tokens"] <= 5
        return answer["choices"][0]["message"]["content"]

    cold, warm = {said(0.0) for _ in range(3)}, {said(1.5) for _ in range(5)}
    server.close()

    assert len(cold) == 1
    assert len(warm) > 1, "the temperature counts, although the model's own settings do not sample"
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_what_cannot_be_served_is_said_with_the_server_s_words(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')

    with pytest.raises(ModelError, match=r"cannot be served on this machine: \w+Error: "):
        LocalServer(str(tmp_path))
    with pytest.raises(ModelError, match="does not exist"):
        LocalServer(str(tmp_path / "nowhere"))


def test_its_address_takes_the_place_of_its_name():
    settings = SynthesisSection(endpoint="local", model="some/model", max_tokens=99)

    reachable = with_addresses(settings, {"some/model": "http://127.0.0.1:1/v1"})

    assert settings.local_models == ("some/model",)
    assert [model.endpoints for model in reachable.pool] == [("http://127.0.0.1:1/v1",)]
    assert reachable.pool[0].max_tokens == 99
    assert reachable.sampling == settings.sampling
    with pytest.raises(ValueError, match="a local model does not know"):
        SynthesisSection(endpoint="local", model="m", mode="batch")
