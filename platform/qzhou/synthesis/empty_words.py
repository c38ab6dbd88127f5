"""Words that no one would train on: placeholders, a model's excuses, talk of "the document", loops. Pure."""

import re
from collections import Counter

_FIELD = (
    r"(?:search\ |hard\ |rewritten\ |new\ |your\ |the\ |a\ )*"
    r"(?:query|question|document|positive|negative|text|answer|passage|paraphrase|string|content|placeholder|todo)"
    r"(?:\ (?:here|text|goes\ here))*"
)
_PLACEHOLDER = re.compile(
    rf"""
    \W*<[^<>\n]{{1,60}}>\W*
    | \W*\[(?:your|new|insert)[^\[\]\n]{{0,60}}\]\W*
    | \W*{_FIELD}\W*
    | \W*todo\W*
    | \W*todo:\ .*
    | \W*(?:新的?|改写后的)?(?:查询|文档|问题|答案|负例|文本)\W*
    """,
    re.IGNORECASE | re.VERBOSE,
)
# what a model says it cannot do, and nothing that a customer could say
_ASKED_FOR = (
    r"(?:quer(?:y|ies)|questions?|paraphrases?|negatives?|documents?|passages?|texts?|content|requests?|response"
    r"|information|instructions|examples?|versions?)"
)
_TASK = (
    r"(?:(?:assist|help)\ (?:you\ )?with\ (?:that|this)|comply|fulfill|do\ that|(?:re)?write\ or"
    rf"|(?:(?:re)?write|create|provide|generate|answer|continue)\b[^.\n]{{0,60}}\b{_ASKED_FOR}\b)"
)
_CANNOT = r"(?:can(?:'|’)?t|cannot|can\ not|won(?:'|’)t|(?:(?:'|’)?m|am)\ (?:unable|not\ able)\ to)"
_CANNOT_ZH = "(?:无法|不能)(?:提供|生成|编写|撰写|改写|回答|协助|帮助|满足|完成)"
_REFUSAL = re.compile(
    rf"""
    \bas\ an?\ (?:ai|artificial\ intelligence)(?:[ -](?:assistant|system|model))?(?:,|\ i\b)
    | \bas\ an?\ (?:ai|artificial\ intelligence)[ -]language\ model\b
    | \bas\ a\ (?:large\ )?language\ model\b
    | \bi\ ?{_CANNOT}\ {_TASK}
    | \b(?:sorry|apologies|unfortunately),?\ (?:but\ )?i\ (?:don(?:'|’)?t|do\ not)\ have\ (?:enough|access)
    | ^unable\ to\ {_TASK}
    | \bals\ (?:ki|ai)[- ]?(?:sprach)?modell
    | \bleid,?\ aber\ ich\ kann\b
    | \bdésolée?,?\ (?:mais\ )?je\ ne\ peux
    | \blo\ siento,?\ (?:pero\ )?no\ puedo
    | 作为(?:一个|一名)?(?:ai|人工智能|语言模型)
    | 我{_CANNOT_ZH}
    | 抱歉.{{0,6}}{_CANNOT_ZH}
    """,
    re.IGNORECASE | re.VERBOSE,
)
_PREAMBLE = re.compile(
    r"(?:(?:sure|certainly|of course)[,!.:][^\n]{0,60}"
    rf"|here(?:'s| is| are)[^\n:]{{0,40}}\b{_ASKED_FOR}\b[^\n:]{{0,30}}"
    r"|here(?:'s| is| are) (?:it|one|my|the (?:rewritten|rephrased|result|json|output)\w*)[^\n:]{0,30}"
    r"|好的[，,！!。][^\n]{0,60}|以下是[^\n：:]{0,20}(?:查询|问题|改写|文档|答案|负例|文本|版本)[^\n：:]{0,20})[:：]",
    re.IGNORECASE,
)
_SAYS = (
    r"(?:say|said|mention|describ|discuss|stat|explain|argu|claim|suggest|report|provid|giv|list|tell|conclud)\w*"
)
_SOURCE = r"(?:document|passage|excerpt|text|article|paragraph|paper|context|author|writer)"
# "the text file" and "this paper shredder" are things of the world
_AND_NO_NOUN = (
    r"(?=\W*$|\W*[,.;:?!)]|\ (?:is|are|was|were|does|do|did|has|have|had|can|could|should|what|who|whom|why|how|which"
    r"|when|where|and|or|that|as|about|above|below|say|said|mention|describ|discuss|stat|explain|argu|claim|suggest"
    r"|report|provid|giv|list|tell|conclud|refer|mean)\w*\b)"
)
_DOCUMENT = re.compile(
    rf"""
    \b(?:the|this|that)\ (?:given|provided|above|following)\ {_SOURCE}\b
    | \b(?:the|this|that)\ (?:passage|excerpt)\b(?!\ of\b)
    | \b(?:according\ to|in|from|of|by|does|do|did)\ (?:the|this|that)\ {_SOURCE}\b{_AND_NO_NOUN}
    | \b(?:according\ to|in|from|of|by|does|do|did)\ (?:the|this|that)\ (?:author|writer)\b(?!\ of\b)
    | \b(?:the|this|that)\ {_SOURCE}\ (?:also\ )?{_SAYS}
    | \b(?:described|mentioned|stated|listed|discussed)\ above\b
    | \b(?:in|laut|aus|nach|von)\ (?:dem|diesem)\ (?:dokument|text|artikel|abschnitt)\b
    | \bim\ (?:vorliegenden\ |obigen\ )?(?:dokument|text|artikel|abschnitt)\b
    | (?:这篇|本篇|该|上述|这段|此)(?:文档|文章|文本|段落|文字|内容)
    | (?<!文)本文
    | (?<![中英日韩法德俄古作论散译短长美外国])文中
    | 文章中
    | (?:^|[，。？！、；：\s]|这位|该)作者(?!是谁|是哪|简介)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
LOOP_WORDS = 4  # shorter texts may well repeat a word
LOOP_SHARE = 0.5


def is_placeholder(text: str) -> bool:
    """Whether a text stands for another: ``<query>``, ``[your answer]``, ``Query``."""
    return _PLACEHOLDER.fullmatch(text) is not None


def is_refusal(text: str) -> bool:
    """Whether a text is a model's excuse in place of what was asked for."""
    return _REFUSAL.search(text) is not None


def has_preamble(text: str) -> bool:
    """Whether a text begins with a model's announcement of it: "Here is a query:"."""
    return _PREAMBLE.match(text) is not None


def speaks_of_document(query: str) -> bool:
    """Whether a query speaks of the document that it was made from."""
    return _DOCUMENT.search(query) is not None


def goes_in_circles(text: str) -> bool:
    """Whether most of a text says again what stands in it before, as weak models do until they are stopped."""
    words = _WORD.findall(text.casefold())
    if len(words) < LOOP_WORDS:
        return False
    size = 3 if len(words) > 3 * LOOP_WORDS else 1
    counts = Counter(zip(*(words[start:] for start in range(size)), strict=False))
    total = counts.total()
    # of single words a text of some length repeats many; only one that is hardly anything else is a loop
    return total - len(counts) > (LOOP_SHARE if size == 3 else 0.7) * total
