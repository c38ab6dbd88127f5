"""The language of a text, by py3langid's naive Bayes, and the script of its letters, by their code points."""

import functools
import re
from collections.abc import Iterable
from typing import Any

# ranges of characters, for the inside of a regular expression's brackets
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # with extension A and the compatibility forms
KANA = "\u3040-\u30ff"
HANGUL = "\uac00-\ud7af"
CJK = KANA + HAN  # written without spaces: each character counts as a word
SCRIPTS = {  # language and script as mteb writes them
    "eng-Latn": "A-Za-z\u00c0-\u024f",
    "cmn-Hans": HAN,
    "jpn-Jpan": KANA,
    "kor-Hang": HANGUL,
    "tha-Thai": "\u0e00-\u0e7f",
    "rus-Cyrl": "\u0400-\u04ff",
    "arb-Arab": "\u0600-\u06ff",
    "ell-Grek": "\u0370-\u03ff",
    "hin-Deva": "\u0900-\u097f",
}
# the letters of a text rule out all languages but these; Latin ones tell nothing
LANGUAGES_OF_SCRIPT = {
    "cmn-Hans": {"zh", "ja", "ko"},
    "jpn-Jpan": {"ja"},
    "kor-Hang": {"ko"},
    "tha-Thai": {"th"},
    "rus-Cyrl": {"be", "bg", "kk", "ky", "mk", "mn", "ru", "sr", "tg", "uk"},
    "arb-Arab": {"ar", "fa", "ku", "ps", "sd", "ug", "ur"},
    "ell-Grek": {"el"},
    "hin-Deva": {"hi", "mr", "ne", "sa"},
}
SCRIPT_TEXTS = 2000  # enough to tell the script of a dataset
SCRIPT_CHARS = 200  # of each text
KANA_SHARE = 0.1  # of Japanese letters: names and headings are mostly Han

CLASSIFIED_CHARS = 1000
CERTAIN = 0.75  # technical prose is taken for many languages, seldom with such confidence
SHORTEST_BYTES = 40  # below, a name or two decides
# a written sentence seldom tells Mandarin from Wu and Cantonese
CHINESE = {"wuu": "zh", "yue": "zh"}


def language_of(text: str) -> str:
    """ISO 639-1 code of the most likely language; written Chinese is always ``zh``."""
    return _classified(text)[0]


def script_of(texts: Iterable[str]) -> str:
    """Language and script of most letters in some texts, as mteb writes them: "cmn-Hans".

    Latin letters do not tell the language; they count as English.
    """
    some = [text[:SCRIPT_CHARS] for text, _ in zip(texts, range(SCRIPT_TEXTS), strict=False)]
    sample = "".join(some)
    letters = {name: len(re.findall(f"[{script}]", sample)) for name, script in SCRIPTS.items()}
    if letters["jpn-Jpan"] > KANA_SHARE * (letters["jpn-Jpan"] + letters["cmn-Hans"]):
        letters["jpn-Jpan"] += letters.pop("cmn-Hans")
    return max(letters, key=lambda name: letters[name])


def certain_language(text: str) -> str:
    """ISO 639-1 code of a text's language where it is beyond doubt, else empty; short texts leave doubt."""
    if len(text.encode("utf-8", "replace")) < SHORTEST_BYTES:
        return ""
    language, share = _classified(text)
    return language if share >= CERTAIN else ""


def are_different_languages(text: str, other: str) -> bool:
    """Whether two texts are in different languages beyond doubt; short ones leave doubt."""
    first, second = certain_language(text), certain_language(other)
    if not (first and second):
        return _is_ruled_out(first, other) or _is_ruled_out(second, text)
    return first != second


def _is_ruled_out(language: str, text: str) -> bool:
    """Whether the letters of a text rule out a language; "" is none."""
    possible = LANGUAGES_OF_SCRIPT.get(script_of([text]))
    return bool(language) and possible is not None and language not in possible


def _classified(text: str) -> tuple[str, float]:
    code, share = _identifier().classify(text[:CLASSIFIED_CHARS])
    return CHINESE.get(str(code), str(code)), float(share)


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
