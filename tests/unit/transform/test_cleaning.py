import unicodedata

import pytest

from qzhou.data.cleaning import clean_text, cut
from qzhou.data.records import normalized_text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a  b\t c", "a b c"),
        ("line one  \r\n  line two", "line one\nline two"),
        ("paragraph\n \n\n\nnext", "paragraph\n\nnext"),
        ("bell\x07 and\u200b zero width\ufeff", "bell and zero width"),
        ("fish &amp; chips &#233;", "fish & chips é"),
        # no entities without their semicolon
        ("if a &lt b: copy&copy_id", "if a &lt b: copy&copy_id"),
        ("schÃ¶n", "schön"),
        ("“curly” ，full width", "“curly” ，full width"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("", ""),
    ],
)
def test_damage_is_repaired_and_nothing_else(raw, clean):
    assert clean_text(raw) == clean


def test_text_is_composed():
    decomposed = unicodedata.normalize("NFD", "é Å 각")

    assert clean_text(decomposed) == unicodedata.normalize("NFC", decomposed)


@pytest.mark.parametrize("raw", ["  a &amp; b\r\n\n\n c\u200b ", "schÃ¶n \x00 x", "猫  と犬"])
def test_cleaning_twice_changes_nothing(raw):
    assert clean_text(clean_text(raw)) == clean_text(raw)


@pytest.mark.parametrize(
    ("text", "max_chars", "head"),
    [
        ("one two three", 13, "one two three"),
        ("one two three", 12, "one two"),
        ("one two three", 7, "one two"),
        ("one two three", 6, "one"),
        ("unbroken", 3, "unb"),
        ("猫" * 500, 300, "猫" * 300),
        ("x " + "猫" * 500, 300, "x " + "猫" * 298),  # a blank far back does not cost the whole text
    ],
)
def test_a_cut_ends_with_a_whole_word_where_there_are_words(text, max_chars, head):
    assert cut(text, max_chars) == head


def test_keys_ignore_case_and_white_space():
    assert normalized_text(" Straße\n NAME ") == normalized_text("STRASSE name")
    assert normalized_text("a b") != normalized_text("ab")
