"""Words that no one would train on: placeholders, a model's excuses, talk of "the document". Pure."""

import re

_PLACEHOLDER = re.compile(r"\W*<[^<>\n]{1,60}>\W*|\W*\[(?:your|new|insert)[^\[\]\n]{0,60}\]\W*", re.IGNORECASE)
_REFUSAL = re.compile(
    r"""
    \bas\ an\ ai\b
    | \bi(?:'|’)?(?:\ a)?m\ (?:really\ |very\ |so\ )?sorry,?\ (?:but|i)\b
    | \b(?:sorry|unfortunately|apologies),?\ (?:but\ )?i\ (?:can|am|was|do)
    | \bi\ (?:can(?:'|’)?t|cannot|can\ not|won(?:'|’)?t|am\ unable\ to|am\ not\ able\ to)\ (?:assist|help|write|create|
        provide|generate|comply|fulfill|answer|do\ that|continue)
    | (?:很|非常)?抱歉.{0,6}(?:我|无法|不能)
    | 作为(?:一个|一名)?(?:ai|人工智能|语言模型)
    | 我(?:无法|不能)(?:提供|生成|编写|回答|协助|帮助)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_DOCUMENT = re.compile(
    r"\b(?:the|this|that)\ (?:given\ |provided\ |above\ )?(?:document|passage|text|article|excerpt|author|paragraph)\b"
    r"|(?:这篇|本篇|该|上述|这段|此)(?:文档|文章|文本|段落|文字)|文中|文章中|作者",
    re.IGNORECASE,
)


def is_placeholder(text: str) -> bool:
    """Whether a text stands for another: ``<query>``, ``[your answer]``."""
    return _PLACEHOLDER.fullmatch(text) is not None


def is_refusal(text: str) -> bool:
    """Whether a text is a model's excuse in place of what was asked for."""
    return _REFUSAL.search(text) is not None


def speaks_of_document(query: str) -> bool:
    """Whether a query speaks of the document that it was made from."""
    return _DOCUMENT.search(query) is not None
