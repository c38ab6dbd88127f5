"""Chunks: sizes, headings, queries, and that no word is lost."""

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qzhou.data.documents.chunking import chunks

MANUAL = """# Kettle

The kettle boils water. It has one button.

## Reset

Hold the button for ten seconds. Then plug the kettle in again. The lamp is green after that.

```
# a comment and no heading
reset --all
```

## Cleaning

### Inside

Boil a cup of vinegar in it once a month. Rinse it three times.

### Outside

Use a soft cloth. Never put it under water.
"""


def words(text):
    return re.findall(r"\w+", text)


def test_chunks_stand_under_their_headings():
    found = chunks(MANUAL, "Kettle manual", tokens=30)

    by_text = {one.body.split(".")[0]: one for one in found}
    assert by_text["Hold the button for ten seconds"].headings == ("Kettle manual", "Kettle", "Reset")
    inside = by_text["Boil a cup of vinegar in it once a month"]
    assert inside.headings == ("Kettle manual", "Kettle", "Cleaning", "Inside")
    assert inside.query == "Kettle manual: Kettle: Cleaning: Inside"
    assert inside.in_context.startswith("Kettle manual > Kettle\n\n## Cleaning\n\n### Inside")
    assert [one.number for one in found] == list(range(len(found)))
    assert not any("a comment" in heading for one in found for heading in one.headings)


def test_a_chunk_without_a_heading_of_its_own_is_asked_for_by_its_first_sentence():
    lines = [f"Lamp number {n} is red when it is warm. Let it cool for {n} minutes." for n in range(9)]
    text = "# Lamps\n\n" + "\n\n".join(lines)
    first, second, *_ = chunks(text, "", tokens=24)
    assert first.query == "Lamps"
    assert re.fullmatch(r"Lamp number \d is red when it is warm\.", second.query)
    assert second.query not in second.body


def test_chinese_is_cut_at_its_sentences():
    text = "# 水壶\n\n" + "".join(f"水壶第{n}次加热时，指示灯会变成红色。请等待{n}分钟再使用。" for n in range(20))
    found = chunks(text, "", tokens=60, count=len)
    assert all(len(one.text) <= 60 for one in found)
    assert sum(one.text.endswith("。") for one in found) >= len(found) - 1


def test_overlap_repeats_the_end_of_the_chunk_before():
    text = " ".join(f"Sentence number {n} says something." for n in range(60))
    plain, overlapping = (chunks(text, "", tokens=40, overlap=overlap) for overlap in (0, 12))
    assert sum(len(one.text) for one in overlapping) > sum(len(one.text) for one in plain)
    common = {"Sentence", "number", "says", "something"}
    for one, after in itertools.pairwise(overlapping):
        assert set(words(one.text)) & set(words(after.text)) - common


PIECES = st.lists(
    st.one_of(
        st.sampled_from(["# One", "## Two words", "### Three", "- item one\n- item two", "```\n# code\nrun\n```"]),
        st.text("abc déf。，. 水", min_size=1, max_size=120).filter(str.strip),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(PIECES, st.integers(4, 60), st.booleans())
def test_no_word_is_lost_and_no_chunk_too_large(pieces, tokens, has_title):
    text = "\n\n".join(pieces)
    found = chunks(text, "A title" if has_title else "", tokens=tokens, count=lambda piece: len(piece) // 2)

    assert all(len(one.text) // 2 <= tokens for one in found)
    assert found == chunks(text, "A title" if has_title else "", tokens=tokens, count=lambda piece: len(piece) // 2)
    given_words, kept_words = (
        Counter("".join(words(re.sub(r"^#+ .*$", "", part, flags=re.MULTILINE))))
        for part in (text, "\n".join(one.text for one in found))
    )
    assert not given_words - kept_words


@pytest.mark.parametrize("text", ["# Heading alone", "## One\n\n## Two"])
def test_headings_alone_make_no_chunk(text):
    assert chunks(text, "", tokens=20) == []


@pytest.mark.parametrize("run", ["x" * 50_000, "水" * 50_000, "# Heading\n\n" + "ab" * 20_000 + "\n\nThe end."])
def test_text_without_blanks_is_cut_all_the_same(run):
    found = chunks(run, "", tokens=50, count=len)
    assert all(len(one.text) <= 50 for one in found)
    assert "".join(one.text for one in found).replace("# Heading\n\n", "") == run.replace(
        "# Heading\n\n", ""
    ).replace("\n\n", "")
