"""What an answer becomes, and every reason to refuse it."""

import json

import pytest

from qzhou.config.synthesis import FiltersSection
from qzhou.data.records import Document, Drop, LabeledExample, Negative, PairExample, RetrievalExample, Source
from qzhou.synthesis.answer_json import object_with
from qzhou.synthesis.chat import Answer
from qzhou.synthesis.parsing import normalised, parse
from qzhou.synthesis.techniques import VERSION, query_requests, requests_for

POSITIVE = "The days grow shorter and trees stop making chlorophyll, so red pigments become visible."
EXAMPLE = RetrievalExample(id="parent", dataset="d", query="Why do leaves turn red?", positives=(POSITIVE,))
SAME_MEANING = "Trees cease to produce chlorophyll once the days shorten, which lets red pigments show."
NEGATIVE = "The days grow longer and trees begin making blossoms, so white petals become visible."


FILTERS = FiltersSection()


def answered(example, technique, content, filters=FILTERS):
    text = content if isinstance(content, str) else json.dumps(content)
    answer = Answer(key="k", model="some-llm", content=text, prompt_tokens=1, completion_tokens=1)
    (request,) = requests_for(example, technique)
    return parse(request, example, answer, filters)


def paraphrase(**changes):
    texts = {"query": "What makes foliage red?", "positive": SAME_MEANING}
    return answered(EXAMPLE, "paraphrase", {**texts, **changes})


def test_a_paraphrase_becomes_a_new_example_that_names_its_origin():
    new = paraphrase()

    assert (new.query, new.positives) == ("What makes foliage red?", (SAME_MEANING,))
    assert new.source == Source(
        technique="paraphrase", parent="parent", model="some-llm", prompt=f"paraphrase.en@{VERSION}"
    )
    assert new.id == paraphrase().id != EXAMPLE.id


def test_an_augmentation_brings_its_own_negative():
    texts = {
        "query": "Why do trees blossom?",
        "positive": "Warm days wake the buds.",
        "negative": "Cold days kill them.",
    }

    new = answered(EXAMPLE, "augmentation", texts)

    assert new.negatives == (Negative(text="Cold days kill them.", origin="synthetic", source=new.source),)
    assert new.source.technique == "augmentation"


def test_a_hard_negative_is_a_negative_of_its_example():
    result = answered(EXAMPLE, "hard_negative", {"negative": NEGATIVE})

    source = Source(
        technique="hard_negative", parent="parent", model="some-llm", prompt=f"hard_negative.en@{VERSION}"
    )
    assert result == Negative(text=NEGATIVE, origin="synthetic", source=source)


def test_a_paraphrased_pair_keeps_its_score_and_its_other_side():
    pair = PairExample(id="p", dataset="d", text_a="A man plays a guitar.", text_b="A dog runs.", score=0.2)

    new = answered(pair, "paraphrase", {"text": "Someone is playing."})

    assert new.score == 0.2
    assert {new.text_a, new.text_b} - {pair.text_a, pair.text_b} == {"Someone is playing."}


def test_a_paraphrased_text_keeps_its_label():
    row = LabeledExample(id="l", dataset="d", text="Return the sum.", label="numpy")

    new = answered(row, "paraphrase", {"text": "Give back the sum."})

    assert (new.text, new.label, new.source.parent) == ("Give back the sum.", "numpy", "l")


@pytest.mark.parametrize(
    ("reason", "technique", "content"),
    [
        ("not_json", "paraphrase", "Sure! Here it is."),
        ("not_json", "hard_negative", '{"negative": "it was cut off here'),
        ("not_json", "hard_negative", '{"negative": "one"} or perhaps {"negative": "another"}'),
        ("not_json", "paraphrase", '["a", "b"]'),
        ("no_text", "hard_negative", ""),
        ("missing_field", "paraphrase", {"query": "What makes foliage red?"}),
        ("missing_field", "hard_negative", {"negative": None}),
        ("empty", "hard_negative", {"negative": " ... "}),
        ("unchanged", "paraphrase", {"query": "why do leaves turn RED", "positive": NEGATIVE}),
        ("unchanged", "augmentation", {"query": "New?", "positive": POSITIVE, "negative": NEGATIVE}),
        ("length", "paraphrase", {"query": "What makes foliage red?", "positive": NEGATIVE * 2}),
        ("length", "hard_negative", {"negative": "Too short."}),
        ("negative_is_positive", "hard_negative", {"negative": POSITIVE.upper()}),
        ("negative_is_positive", "augmentation", {"query": "New?", "positive": "It is.", "negative": "it is"}),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_dropped(reason, technique, content):
    result = answered(EXAMPLE, technique, content)

    assert isinstance(result, Drop)
    assert (result.stage, result.dataset, result.reason) == ("synthesis", "d", reason)
    assert json.loads(result.record)["request"]["example_id"] == "parent"


DRAFT = '{"negative": "a draft"}'


@pytest.mark.parametrize(
    "around",
    [
        "```json\n%s\n```", "```\n%s\n```", "```JSON\n%s```", " %s\n", "\ufeff%s", "%s<|im_end|>",
        f"<think>\nHm {{no}}.\n{DRAFT}</think>\n\n%s", f"Okay, {DRAFT}?\n</think>\n%s",
        f"<thinking>{DRAFT}</thinking>%s", f"<|channel|>analysis<|message|>{DRAFT}<|channel|>final<|message|>%s",
        "Sure! Here it is:\n```json\n%s\n```\nI hope that helps {really}.", "%s\n\nNote: it is worse.", "%s %s",
        "{ not json } %s",
    ],
)  # fmt: skip
def test_what_stands_around_the_object_is_looked_past(around):
    content = around.replace("%s", json.dumps({"negative": NEGATIVE}))

    assert answered(EXAMPLE, "hard_negative", content).text == NEGATIVE


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"negative": "Two\nlines\tof it.",}', "Two\nlines\tof it."),
        (r'{"negative": "It\'s a {brace} and a \"quote\"."}', 'It\'s a {brace} and a "quote".'),
        ('{"negative": "Two\r\nlines, and \\u00e9."}', "Two\r\nlines, and é."),
        ('{"negative": "One", "why": ["it", "differs",]}', "One"),
    ],
)
def test_what_models_write_for_json_is_read_as_it_is_meant(content, text):
    assert object_with(["negative"], content)["negative"] == text


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("placeholder", "<document>"),
        ("placeholder", '"<new positive>"'),
        ("placeholder", "[Your answer here]"),
        ("example_of_prompt", "When spring comes back, twigs begin to form their buds, and white blossoms open in the "
         "sun."),
        ("refusal", "I'm sorry, but I can't write a misleading document about leaves for you, whatever they are."),
        ("refusal", "As an AI language model I do not have a view on why leaves turn red or do not, I am afraid so."),
        ("refusal", "I cannot provide a document that is wrong on purpose, since it would mislead whoever read it.."),
        ("copied", POSITIVE.removesuffix(" visible.")),
        ("other_language", "Die Tage werden länger, und die Bäume treiben Blüten, also sieht man weiße Blätter."),
    ],
)  # fmt: skip
def test_what_no_one_would_train_on_is_refused(reason, text):
    assert answered(EXAMPLE, "hard_negative", {"negative": text}).reason == reason


def test_an_excuse_that_the_data_holds_is_no_excuse():
    text = "I'm sorry, but I can't come to the phone right now, so please leave a message after the long tone."
    example = RetrievalExample(id="p", dataset="d", query="What does it say?", positives=(text,))

    written = "I'm sorry, but I cannot take your call at present; kindly leave some words once you hear the beep."

    assert answered(example, "hard_negative", {"negative": written}).text == written


PASSAGE = (
    "The river floods every spring, when the snow of the mountains melts, and farmers move their cattle uphill."
)


def asked(query, document=PASSAGE, persona="3"):
    return asked_as(json.dumps({"persona": persona, "query": query}), document)


def asked_as(content, document=PASSAGE):
    seed = Document(id="x", text=document)
    (request,) = query_requests(seed, "d", seed=0)
    answer = Answer(key="k", model="m", content=content, prompt_tokens=1, completion_tokens=1)
    return parse(request, seed, answer, FILTERS)


@pytest.mark.parametrize(
    ("reason", "query"),
    [
        ("speaks_of_document", "What does the document say about cattle?"),
        ("speaks_of_document", "Why does the author mention snow in this text?"),
        ("copied", "when the snow of the mountains melts, and farmers move their cattle"),
        ("refusal", "I'm sorry, I can't assist with that."),
        ("placeholder", "<query>"),
        ("other_language", "每年春天这条河为什么会泛滥，农民会把他们的牲畜赶到哪里去？"),
    ],
)
def test_a_query_that_no_one_would_type_is_refused(reason, query):
    assert asked(query).reason == reason


@pytest.mark.parametrize(
    "query",
    [
        "Who is the author of Moby Dick?",
        "how to convert the text of a label to uppercase in python",
        "how to center the paragraph horizontally in css",
        "Which paragraph of the constitution forbids it?",
        "Sorry, I can not log in to my account, what now?",
        "why can't I write to the shared drive",
        "As an AI engineer, which courses do I need?",
        "welches Dokument brauche ich für die Anmeldung",
    ],
)
def test_queries_that_people_type_are_kept(query):
    assert not isinstance(asked(query, "Some text about it. " * 30), Drop)


@pytest.mark.parametrize(
    "query",
    [
        "红楼梦的作者是谁",
        "中文中的标点怎么用",
        "论文中怎样引用网页",
        "抱歉，我无法激活新的银行卡",
        "怎样打开文本文件",
    ],
)
def test_chinese_queries_that_people_type_are_kept(query):
    assert not isinstance(asked(query, "关于这个问题有很多说法，下面一一介绍各种做法和它们的由来。" * 5), Drop)


@pytest.mark.parametrize(
    ("reason", "query"),
    [
        ("speaks_of_document", "What points does the author make about snow?"),
        ("speaks_of_document", "what does this paper say about floods"),
        ("speaks_of_document", "Based on the provided context, when do farmers move?"),
        ("speaks_of_document", "What is described above?"),
        ("speaks_of_document", "Was steht in dem Dokument über die Schneeschmelze?"),
        ("refusal", "Als KI-Sprachmodell kann ich dazu leider keine Anfrage erstellen."),
        ("refusal", "Es tut mir leid, aber ich kann dabei nicht helfen."),
        ("refusal", "Désolé, je ne peux pas faire cela."),
        ("refusal", "I'm unable to provide a query for that"),
        ("refusal", "Unable to generate a query."),
        ("refusal", "As a language model, I have no view on floods."),
        ("preamble", "Here is a query: spring floods"),
        ("placeholder", "query"),
        ("placeholder", "[query]"),
        ("placeholder", "{query}"),
        ("placeholder", "your query here"),
        ("placeholder", "string"),
        ("placeholder", "（查询）"),
        ("placeholder", "TODO: write the query"),
        ("repetition", "whale whale whale whale whale whale whale whale whale"),
        (
            "repetition",
            "The text is a recipe for a recipe. It is a recipe for a recipe. It is a recipe for a recipe.",
        ),
        ("nested", '{"query": "who moves cattle"}'),
        ("control_character", "what is \x0crac about"),
        ("copied", "farmers move their cattle uphill"),
    ],
)
def test_more_queries_that_no_one_would_type_are_refused(reason, query):
    assert asked(query).reason == reason


def test_a_query_in_latin_letters_for_a_chinese_document_is_refused_unless_its_words_are_there():
    document = "《白鲸》由赫尔曼·梅尔维尔写成，讲述亚哈船长追捕白鲸 Moby Dick 的故事，被视为美国文学的代表作。"

    assert asked("who wrote this famous novel", document).reason == "other_language"
    assert asked("Moby Dick", document).query == "Moby Dick"


def test_a_query_that_is_its_persona_is_refused():
    (request,) = query_requests(Document(id="x", text=PASSAGE), "d", seed=0)
    assert asked(request.fields["personas"][4].partition(": ")[2]).reason == "placeholder"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (r'{"negative": "match \d+\.\w* here"}', r"match \d+\.\w* here"),
        (r'{"negative": "C:\Users\me and \alpha"}', r"C:\Users\me and \alpha"),
        (r'{"negative": "a \"quote\", a line\nand \u00e9"}', 'a "quote", a line\nand é'),
        ('[THINK]{"negative": "a draft"}[/THINK]{"negative": "final"}', "final"),
        ('◁think▷{"negative": "a draft"}◁/think▷{"negative": "final"}', "final"),
        ('Using the form {"negative": "<document>"}: {"negative": "final"}', "final"),
        ('{"answer": {"negative": "final"}}', "final"),
        ('{"Negative": "final"}', "final"),
    ],
)
def test_an_answer_is_read_as_it_is_meant(content, text):
    assert object_with(["negative"], content)["negative"] == text


def test_a_draft_in_thoughts_that_never_end_is_no_answer():
    with pytest.raises(ValueError, match="holds no JSON object"):
        object_with(["negative"], '<think>Perhaps {"negative": "a draft"}? Or')


def test_the_input_of_an_example_is_no_answer_either():
    texts = {
        "query": "How do I undo the last commit but keep my changes?",
        "positive": "Run `git reset --soft HEAD~1`. The commit disappears from the branch, and everything it contained "
        "stays in the index, ready to be committed again.",
        "negative": "x",
    }
    example = RetrievalExample(id="p", dataset="d", query="How is glass cooled?", positives=("In a kiln.",))

    assert answered(example, "augmentation", texts).reason == "example_of_prompt"


@pytest.mark.parametrize("persona", ["3: a novelist", " 3 ", "3.0", 3])
def test_a_persona_is_known_by_its_number(persona):
    assert asked("spring flooding and livestock", persona=persona).query == "spring flooding and livestock"


@pytest.mark.parametrize("persona", ["an astronaut", "0", "13", 13, True, ["1"], ""])
def test_a_persona_that_was_not_offered_is_refused(persona):
    assert asked("spring flooding and livestock", persona=persona).reason in {"no_choice", "missing_field", "empty"}


def test_the_number_of_a_persona_may_be_a_number():
    assert asked("spring flooding and livestock", persona=12).query == "spring flooding and livestock"


def test_most_of_an_example_of_the_prompt_is_refused_unless_the_data_speaks_of_it():
    leaked = "Trees cease to produce chlorophyll once days shorten, which lets pigments that are red appear now."
    other = "Glass cools slowly in the kiln, so that it does not crack, and colours become visible by day."
    example = RetrievalExample(id="p", dataset="d", query="How does glass cool?", positives=(other,))

    refused = answered(example, "paraphrase", {"query": "In what way is glass cooled?", "positive": leaked})

    assert (refused.reason, "of 'positive' stands in the prompt" in refused.detail) == ("example_of_prompt", True)
    assert isinstance(paraphrase(), RetrievalExample)


def test_a_query_of_ones_own_words_is_kept():
    assert asked("spring flooding and livestock").query == "spring flooding and livestock"
    assert (
        asked(
            "In which season of the year do floods come to the valley?", "作者写道：每年春天河水都会泛滥。" * 6
        ).reason
        == "other_language"
    )


def test_a_rewrite_that_copies_is_refused():
    copied = POSITIVE.replace("become visible", "turn visible")

    refused = paraphrase(positive=copied)

    assert refused.reason == "copied"
    assert "'positive'" in refused.detail
    texts = {"query": "What makes foliage red?", "positive": copied}
    assert isinstance(
        answered(EXAMPLE, "paraphrase", texts, FiltersSection(max_ngram_overlap=1.0)), RetrievalExample
    )


def test_a_rewrite_in_another_language_is_refused_unless_that_is_wanted():
    german = "Die Tage werden kürzer, und die Bäume bilden kein Chlorophyll mehr, sodass Rot sichtbar wird."
    texts = {"query": "What makes foliage red?", "positive": german}

    assert paraphrase(positive=german).reason == "other_language"
    assert isinstance(answered(EXAMPLE, "paraphrase", texts, FiltersSection(same_language=False)), RetrievalExample)


@pytest.mark.parametrize(("added", "accepted"), [(12, True), (13, False)])
def test_a_short_text_may_differ_by_twelve_characters(added, accepted):
    query = "Why does foliage go red".ljust(len(EXAMPLE.query) + added, "x")

    assert isinstance(paraphrase(query=query), RetrievalExample) is accepted


def test_a_lone_surrogate_does_not_reach_a_record():
    result = paraphrase(query="What makes foliage \ud800 red?")

    assert result.query.encode()


def test_normalising_forgets_case_space_and_punctuation():
    assert normalised("  Return\nthe SUM! ") == normalised("return the sum")


@pytest.mark.parametrize(
    "query",
    [
        "Unable to create partition on external drive",
        "I can't create a new account",
        "I'm unable to continue the top up",
        "I am unable to provide proof of address",
        "As an AI assistant engineer salary",
        "todo list app for mac",
        "Todo sobre la fotosíntesis",
        "好的睡眠习惯有哪些：",
        "When was the passage of the Civil Rights Act?",
        "how to count words in the text file python",
        "in the context menu add item",
        "How does this paper shredder work",
        "wages in the paper industry",
    ],
)
def test_words_of_people_that_are_like_those_of_models_pass(query):
    documents = {True: "关于这个问题有很多说法，下面一一介绍。" * 9, False: "Some text about it. " * 30}
    if "ó" in query:
        documents[False] = (
            "La fotosíntesis es el proceso por el que las plantas hacen azúcar con la luz del sol. " * 5
        )
    assert not isinstance(asked(query, documents["好" in query]), Drop)


def test_an_answer_of_steps_is_no_announcement():
    positive = (
        "Here are the steps to reset it: hold the power key for ten seconds, then wait until the light is green."
    )
    example = RetrievalExample(
        id="e", dataset="d", query="my router hangs", positives=("Hold the power key. " * 5,)
    )

    new = answered(example, "paraphrase", {"query": "the router does not react", "positive": positive})

    assert new.positives == (positive,)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"query": "how does <think> work in deepseek"}', "how does <think> work in deepseek"),
        ('{"query": "what does </think> mean"}', "what does </think> mean"),
        ('{"query": "a draft"} better: </think> {"query": "the answer"}', "the answer"),
        (
            '<|channel|>analysis<|message|>{"query": "a draft"}<|end|><|start|>assistant<|channel|>final '
            '<|constrain|>json<|message|>{"query": "the answer"}',
            "the answer",
        ),
        ('<seed:think>{"query": "a draft"}</seed:think>{"query": "the answer"}', "the answer"),
        (r"{'query': 'match \d+\.\w'}", r"match \d+\.\w"),
        ("{'query': 'use } here'}", "use } here"),
        ('Use { to open. {"query": "the answer"}', "the answer"),
    ],
)
def test_thoughts_quotes_and_braces_are_told_from_words(content, text):
    assert object_with({"query"}, content) == {"query": text}


@pytest.mark.parametrize(
    "content",
    [
        '{"draft": {"query": "the draft"}, "query": "the real ans',
        '{"query": "' + '{"a": ' * 4_000,
        "{" * 8_000,
        '{"a":' * 3_000,
    ],
    ids=["cut with a draft inside", "a string of objects", "braces", "objects"],
)
def test_a_loop_or_a_cut_answer_is_no_answer_and_takes_no_time(content):
    with pytest.raises(ValueError, match="not whole"):
        object_with({"query"}, content)


@pytest.mark.parametrize(
    "text", [r"the angle \theta grows", r"slope is \nabla f", r"5 \times 3", r"where is C:\temp\new"]
)
def test_a_backslash_that_json_swallows_is_refused(text):
    """Unescaped LaTeX and paths of Windows are valid JSON, and mean tabs and line breaks."""
    assert asked_as(f'{{"query": "{text}", "persona": "1"}}').reason == "control_character"


def test_written_texts_are_cleaned_as_raw_ones_are():
    assert asked("What&#39;s the cafe\u0301's opening\u200b  hour?").query == "What's the café's opening hour?"


@pytest.mark.parametrize("reason", ["content_filter", "length"])
def test_an_answer_without_text_says_why(reason):
    answer = Answer(key="k", model="m", content=" ", prompt_tokens=1, completion_tokens=1, finish_reason=reason)
    (request,) = requests_for(EXAMPLE, "paraphrase")

    dropped = parse(request, EXAMPLE, answer, FILTERS)

    assert (dropped.reason, dropped.detail) == ("no_text", f"the answer is empty (finish_reason '{reason}')")
