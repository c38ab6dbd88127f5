"""The three techniques as rules for English documentation prose. Pure and deterministic; no language model.

They know a few hundred words and the order of clauses. Where no rule fits, the text is
empty, and parsing drops it.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

# a little less than parsing allows for a paraphrase
LENGTH_SHARE = 0.13
SLACK_CHARS = 12
LONGEST_QUERY_WORDS = 16


def _pairs(text: str) -> list[list[str]]:
    return [pair.split("=") for pair in re.split("[;\n]", text.strip())]


# Synonyms: left -> right. Only words that mean the same wherever documentation uses them.
SYNONYMS = dict(
    _pairs("""
return=give back;returns=gives back;returned=given back;compute=calculate;computes=calculates;computed=calculated
calculate=compute;calculates=computes;create=build;creates=builds;created=built;construct=build;constructs=builds
build=construct;remove=delete;removes=deletes;removed=deleted;delete=remove;deletes=removes;get=obtain;gets=obtains
retrieve=obtain;retrieves=obtains;check=test;checks=tests;determine=find out;determines=finds out
convert=transform;converts=transforms;converted=transformed;generate=produce;generates=produces;generated=produced
perform=carry out;performs=carries out;performed=carried out;represents=stands for;representing=standing for
contains=holds;contain=hold;containing=holding;begin=start;begins=starts;display=show;displays=shows;show=display
specify=state;specifies=states;specified=given;provided=given;provides=offers;provide=offer;allows=lets;obtain=get
initialize=set up;initializes=sets up;initialise=set up;apply=use;applies=uses;applied=used;use=employ;uses=employs
used=employed;using=by means of;whether=if;only=just;also=in addition;currently=at present
should=ought to;same=identical;many=numerous;several=a number of;various=different;each=every
via=through;within=inside;between=among;because=since;however=yet
therefore=hence;thus=so;for example=for instance;e.g.=for example;i.e.=that is;number of=count of;default=standard
error=failure;errors=failures;base=parent;method=function;function=routine;functions=routines
parameter=argument;parameters=arguments;argument=parameter;arguments=parameters;object=instance;objects=instances
element=item;elements=items;item=element;items=elements;list=sequence;folder=directory
directory=folder;filename=file name;helper=auxiliary routine;test=check;tests=checks;wrapper=thin layer
simple=plain;fast=quick;efficient=economical;new=fresh;current=present;entire=whole;given=supplied
read=load;reads=loads;write=store;writes=stores;save=store;saves=stores;load=read in;loads=reads in
find=locate;finds=locates;update=refresh;updates=refreshes;raise=throw;raises=throws;raised=thrown
ensure=make sure;ensures=makes sure;handle=deal with;handles=deals with
run=execute;runs=executes;make=build;makes=builds;add=append;adds=appends;change=alter;changes=alters;modify=alter
print=output;split=divide;splits=divides;join=combine;merge=combine;merges=combines;combine=merge;copy=duplicate
sets=assigns;implements=realises;implement=realise;implementation=realisation
register=enrol;registers=enrols;parse=interpret;parses=interprets;close=shut;closes=shuts
send=transmit;sends=transmits;receive=take in;store=keep;stores=keeps;define=declare;defines=declares;defined=declared
related=connected;corresponding=matching;multiple=several;first=initial;last=final;large=big;small=little
""")
)

# Opposites or other things: left -> right and right -> left, of one kind and of about the same length.
OPPOSITES = _pairs("""
return=accept;returns=accepts;returned=accepted;first=last;maximum=minimum;max=min;add=remove;adds=removes;added=removed
input=output;inputs=outputs;start=end;starts=ends;begin=finish;open=close;opens=closes;opened=closed;read=write
reads=writes;reading=writing;encode=decode;encodes=decodes;encoded=decoded;encoding=decoding;before=after;left=right
upper=lower;true=false;load=save;loads=saves;loaded=saved;increase=decrease;increasing=decreasing;insert=delete
ascending=descending;row=column;rows=columns;array=scalar;arrays=scalars;list=mapping;lists=mappings;string=number
strings=numbers;file=socket;files=sockets;directory=process;create=destroy;creates=destroys;created=destroyed
compress=expand;compressed=expanded;positive=negative;all=none;always=never;enable=disable;enabled=disabled
enables=disables;local=remote;public=private;client=server;clients=servers;request=response;requests=responses
sender=receiver;send=receive;sends=receives;sent=received;import=export;imports=exports;push=pull;lock=release
forward=backward;horizontal=vertical;source=target;parent=child;key=value;keys=values;mean=variance;sum=product
sorted=shuffled;sort=shuffle;index=label;indices=labels;set=clear;sets=clears;get=reject;equal=different;same=different
success=failure;successful=failed;valid=invalid;allow=forbid;allows=forbids;required=optional;include=exclude
includes=excludes;included=excluded;new=existing;single=multiple;small=large;smaller=larger;short=long;thread=timer
threads=timers;function=variable;functions=variables;method=constant;methods=constants;class=module;classes=modules
axis=dtype;matrix=text;vector=date;vectors=dates;tree=queue;graph=string;node=file;nodes=files;edge=path;edges=paths
data=code;date=color;time=size;width=height;x=y;parallel=sequential;async=blocking;complex=real;dense=sparse
union=intersection;join=split;joins=splits;merge=divide;byte=line;bytes=lines;error=result;errors=results;test=install
object=pattern;objects=patterns;element=header;elements=headers;name=age;names=ages;type=place;model=user;models=users
parameter=exception;parameters=exceptions;argument=comment;arguments=comments;option=warning;options=warnings
distribution=permission;random=constant;plot=table;figure=archive;image=message;label=margin;layer=folder
tensor=certificate;gradient=password;query=reply;message=signal;event=record;state=style;context=content
""")
# Reversed, so that the first pair of a word decides.
CONTRARY = {word: other for left, right in reversed(OPPOSITES) for word, other in ((right, left), (left, right))}

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(*])")
_CLAUSE_AFTER = re.compile(
    r"^(?P<main>[^,;:()]+?),? (?P<link>if|when|unless|because|while|after|before|until) "
    r"(?P<rest>[^,;:()]+?)(?P<end>[.!?]?)$"
)
_CLAUSE_BEFORE = re.compile(
    r"^(?P<link>If|When|Unless|Because|While|After|Before|Until) "
    r"(?P<rest>[^,;:()]+), (?P<main>[^;:()]+?)(?P<end>[.!?]?)$"
)
_ASKS_WHETHER = re.compile(  # "check if it holds": what follows is no condition
    r"\b((check|test|determine|verify|decide|detect|indicat|control)\w*|see|know|tell|find out|even|only|as|or|and)$",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"--|==|>>>|::|\|")  # tables, section lines and sessions are no prose
_STOP_TEXT = """
a an the this that these those it its is are was were be been of to in on at by for from with and or not no
as if when which who whose will would can could may might must should has have had do does did so than then
but into over under you your they their there here such used use using
"""
_STOP_WORDS = frozenset(_STOP_TEXT.split())
# only before words whose first sound is clear
_ARTICLE = re.compile(r"\b(?P<article>[Aa])n? (?=(?P<sound>[a-z]))(?!u|eu|one|hour|hono|[a-z]\b)")


def apply_rules(fields: Mapping[str, Any]) -> dict[str, str]:
    """The answer to one user message of the prompts.

    Raises:
        ValueError: The technique is unknown.
    """
    technique = fields["technique"]
    if technique == "paraphrase":
        return {name: paraphrased(fields[name]) for name in ("query", "positive", "text") if name in fields}
    if technique == "augmentation":
        return augmented(fields["positive"])
    if technique == "hard_negative":
        return {"negative": contradicted(fields["positive"], about=fields["query"])}
    if technique == "query":
        return {"persona": "1", "query": key_words(fields["document"], int(fields["words"]))}
    if technique == "relevance_check":
        shared = set(_content_words(fields["query"])) & set(_content_words(fields["document"]))
        return {"verdict": "answers" if shared else "does_not_answer"}
    raise ValueError(f"unknown technique '{technique}'")


def paraphrased(text: str) -> str:
    """A paraphrase: clauses in another order, and synonyms. Empty if no rule fits."""
    allowed = max(LENGTH_SHARE * len(text), SLACK_CHARS - 1)
    result = " ".join(_reordered(sentence) for sentence in sentences(text))
    if abs(len(result) - len(text)) > allowed:
        result = text
    # From the end, so that the positions of earlier words stay valid.
    for match in reversed(list(re.finditer(r"[A-Za-z][A-Za-z.]*\w", result))):
        synonym = SYNONYMS.get(match[0].lower())
        if synonym and _is_plain_word(result, match):
            word = _cased(synonym, like=match[0])
            replaced = result[: match.start()] + word + result[match.end() :]
            if abs(len(replaced) - len(text)) <= allowed:
                result = replaced
    return "" if result.split() == text.split() else _with_articles(result)


def augmented(positive: str) -> dict[str, str]:
    """A new query, positive and negative from one document.

    The sentence that shares most words with the others becomes the query, and the others
    become the positive.
    """
    parts = sentences(positive)
    words_in = Counter(word for part in parts for word in set(_content_words(part)))

    def shared_words(part: str) -> int:
        return sum(words_in[word] - 1 for word in set(_content_words(part)))

    def may_be_query(part: str) -> bool:
        return 3 <= len(part.split()) <= LONGEST_QUERY_WORDS and not _MARKUP.search(part)

    queries = list(filter(may_be_query, parts[1:]))
    if len(parts) < 3 or not queries:
        return {"query": "", "positive": "", "negative": ""}
    query = max(queries, key=shared_words)
    rest = " ".join(part for part in parts if part != query)
    return {"query": query, "positive": rest, "negative": contradicted(rest, about=query)}


def contradicted(text: str, *, about: str) -> str:
    """A text of the same form that answers something else: opposites replace key terms.

    Empty unless a word of ``about`` was replaced, or three other words; with fewer it might
    still be an answer.
    """
    subjects = set(_content_words(about))
    changed: set[str] = set()

    def contrary(match: re.Match[str]) -> str:
        word = match[0].lower()
        if word not in CONTRARY or not _is_plain_word(text, match):
            return match[0]
        changed.add(word)
        return _cased(CONTRARY[word], like=match[0])

    result = re.sub(r"[A-Za-z]\w*", contrary, text)
    return _with_articles(result) if changed & subjects or len(changed) >= 3 else ""


def key_words(document: str, words: int) -> str:
    """The most frequent words of a text, at most ``words``, in the order of first use."""
    counts = Counter(_content_words(document))
    most = {word for word, _ in counts.most_common(words)}
    return " ".join(word for word in counts if word in most)


def sentences(text: str) -> list[str]:
    """Sentences in order; a line break does not end one."""
    return [part for part in _SENTENCE_END.split(" ".join(text.split())) if part]


def _reordered(sentence: str) -> str:
    """The sentence, main clause and condition exchanged if it has exactly these two."""
    if match := _CLAUSE_BEFORE.match(sentence):
        main, link = _capital(match["main"]), match["link"].lower()
        return f"{main} {link} {match['rest']}{match['end']}"
    match = _CLAUSE_AFTER.match(sentence)
    if match and len(match["main"].split()) > 1 and not _ASKS_WHETHER.search(match["main"]):
        main, link = _small(match["main"]), match["link"].capitalize()
        return f"{link} {match['rest']}, {main}{match['end']}"
    return sentence


def _content_words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]\w+", text.lower()) if word not in _STOP_WORDS]


def _is_plain_word(text: str, match: re.Match[str]) -> bool:
    """Whether a word is prose, not a name, path or code: ``np.sum``, `--all`, ``True_``."""
    around = text[max(0, match.start() - 1) : match.start()] + text[match.end() : match.end() + 1]
    followed_by_name = re.match(r"\.\w|\(", text[match.end() :])
    return not followed_by_name and not re.search(r"[\w`_=<>/\\@#-]", around)


def _cased(word: str, *, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return _capital(word) if like[0].isupper() else word


def _with_articles(text: str) -> str:
    """The text with ``a`` or ``an`` as the next word, which may be new, requires it."""
    return _ARTICLE.sub(lambda match: match["article"] + ("n " if match["sound"] in "aeio" else " "), text)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _small(text: str) -> str:
    """A small first letter, unless the first word is a name or an abbreviation."""
    first = text.split(" ", 1)[0]
    return text if first != first.capitalize() or first == "I" else text[:1].lower() + text[1:]
