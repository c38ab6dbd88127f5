"""The text and title of documents of every kind, and what is said of those that have none."""

import contextlib
import time

import pytest

from qzhou.data.documents.extract import MOST_BYTES, DocumentError, extract, title_of_name
from tests.document_files import WORDS, docx, pdf

PAGE = f"""<html><head><title>Kettles</title><script>var menu = 1</script></head><body>
<nav><a href="/">Start</a></nav>
<ul><li><a href="a">Radios</a></li><li><a href="b">Lamps</a></li><li><a href="c">Fans</a></li>
<li><a href="d">Irons</a></li></ul>
<main><h1><a class="toc" href="#reset">Reset</a></h1><p>{WORDS}</p>
<ul><li>Hold it for <b>ten</b> seconds, see <a href="#x">safety</a>.</li></ul>
<table><tr><th>lamp</th><th>meaning</th></tr><tr><td>red</td><td>too warm</td></tr></table>
<pre>reset --all</pre></main><footer>Copyright</footer></body></html>"""
SPHINX = """
Reset
=====

.. toctree::
   :maxdepth: 2

   other/file

.. versionadded:: 3.1

   Works with :confval:`power_button` and :doc:`the lamp <lamp>`.

.. py:function:: reset(seconds)

   Holds the button for some seconds.

.. code-block:: sh

   reset --all

.. note:: Unplug it first.
"""


def is_there(text, *parts):
    return [part for part in parts if part not in text] == []


@pytest.mark.parametrize(
    ("name", "content", "title", "parts"),
    [
        ("a.md", f"---\ntitle: Kettles\nlang: en\n---\n# Reset\n\n{WORDS}\n", "Kettles", ["# Reset", WORDS]),
        ("a.MD", f"# Reset `now`\n<!-- hidden -->\n{WORDS}", "Reset now", [WORDS]),
        ("a.markdown", f"```\n# no heading\n```\n\n## [Reset](x.md)\n{WORDS}", "Reset", ["# no heading"]),
        ("a.md", f"Reset\n=====\n\nNow\n---\n{WORDS}\n\n- item\n---\n", "Reset",
         ["# Reset\n\n## Now\n", "- item\n---"]),
        ("a.txt", f"{WORDS}\r\n\r\n\r\n\r\nAnd more.  ", "", [f"{WORDS}\n\nAnd more."]),
        ("a.html", PAGE, "Kettles",
         ["# Reset", WORDS, "* Hold it for **ten** seconds", "| red | too warm |", "```\nreset --all"]),
        ("a.rst", SPHINX, "Reset",
         ["# Reset", "power_button", "the lamp", "reset(seconds)", "Holds the button", "reset --all", "Unplug it"]),
        ("a.docx", docx(("Heading1", "Reset"), ("", WORDS)), "Reset", ["# Reset", WORDS]),
        ("a.pdf", pdf(WORDS, "Second page."), "", [WORDS, "Second page."]),
        ("a.pdf", pdf("The ket-\ntle is reset\nby its button."), "", ["The kettle is reset by its button."]),
        ("a.pdf", pdf(WORDS, title="Kettles"), "Kettles", [WORDS]),
    ],
    ids=["front matter", "heading", "fence", "underlined", "text", "html", "sphinx", "word", "pdf",
         "broken lines", "pdf title"],
)  # fmt: skip
def test_text_and_title(name, content, title, parts):
    found = extract(name, content.encode() if isinstance(content, str) else content)

    assert found.title == title
    assert is_there(found.text, *parts)
    assert not any(
        word in found.text for word in ("Radios", "Copyright", "var menu", "other/file", "hidden", "title:")
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "gb18030"])
def test_encodings(encoding):
    german = f"Größe über Maß: {WORDS} Die Lampe muss später grün leuchten, sonst zieht man den Stecker heraus."
    text = "价格不含税费，请注意。这是一个关于水壶的手册，说明如何重置水壶。" if encoding == "gb18030" else german
    assert extract("a.txt", text.encode(encoding)).text == text


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"\x89PNG", "no_document"),
        ("a", b"text", "no_document"),
        ("a.txt", b"", "no_text"),
        ("a.txt", b" \n \n", "no_text"),
        ("a.txt", bytes(range(256)) * 20, "unknown_encoding"),
        ("a.md", b"---\ntitle: x\n---\n", "no_text"),
        ("a.html", b"<html><body><script>x</script></body></html>", "no_text"),
        ("a.pdf", pdf(""), "no_text"),
        ("a.pdf", pdf(WORDS)[:200], "damaged_document"),
        ("a.pdf", pdf(WORDS, password="secret"), "encrypted_document"),  # pragma: allowlist secret
        ("a.docx", b"PK\x03\x04 no archive", "damaged_document"),
        ("a.docx", b"old Word", "damaged_document"),
        ("a.txt", b"x" * (MOST_BYTES + 1), "document_too_large"),
    ],
    ids=["image", "no ending", "empty", "blank", "bytes", "matter alone", "script alone", "scan", "cut", "locked",
         "no archive", "no word", "huge"],
)  # fmt: skip
def test_what_gives_no_text_says_why(name, content, reason):
    with pytest.raises(DocumentError) as error:
        extract(name, content)
    assert error.value.reason == reason
    assert str(error.value)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Write `<!--` first.\n\n## Kept\n\nThen `-->`.", ["`<!--`", "## Kept", "`-->`"]),
        ("```xml\n<!-- kept -->\n```\n<!-- gone -->", ["<!-- kept -->"]),
        ("````\n```\n# code\n```\n````\n\n# H\n\nx", ["# code", "# H"]),
        ("```\n# never closed", ["# never closed"]),
        (f"![p](data:image/png;base64,{'A' * 9000}) kept", ["kept"]),
    ],
    ids=["inline code", "fence", "fence in a fence", "unclosed", "picture"],
)
def test_code_stays_and_comments_and_pictures_go(text, kept):
    found = extract("a.md", text.encode())
    assert is_there(found.text, *kept)
    assert "gone" not in found.text
    assert "AAAA" not in found.text
    assert found.title in {"", "Kept", "H"}  # no heading is taken from code


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<h1 align="center">My <b>tool</b></h1>\n\nIt works.', "# My **tool**\n\nIt works."),
        ("<h2>\n  <img src='x.png'> Install\n</h2>", "## Install"),
        ('<h1><img src="logo.png"></h1>\n\nText', "Text"),
        ('<p align="center">\n<a href="x"><img src="y" alt="z"/></a>\nText</p>', "Text"),
        ("Press <kbd>Ctrl</kbd>+<kbd>C</kbd>.<br>Then go on.", "Press Ctrl+C. Then go on."),
        ("<details open>\n<summary>More</summary>\n\nHidden text.\n</details>", "More\n\nHidden text."),
        ('| <a id="x"></a>`name` | text<br>default |', "| `name` | text default |"),
        ("H<sub>2</sub>O and E=mc<sup>2</sup>", "H2O and E=mc2"),
        ("a <b and c> d", "a <b and c> d"),
        ("if a <i and b> 3", "if a <i and b> 3"),
        ("Use List<String> and Map<K, V>.", "Use List<String> and Map<K, V>."),
        ("Run it with <name> <your-file> <p1>.", "Run it with <name> <your-file> <p1>."),
        ("See <https://example.org> or <me@example.org>.", "See <https://example.org> or <me@example.org>."),
        ("Write `<br>` or ``<a id='x'>``.", "Write `<br>` or ``<a id='x'>``."),
        ("```html\n<h1>Code</h1><br>\n```", "```html\n<h1>Code</h1><br>\n```"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        (
            "- a list\n\n  ```html\n  <div id='a'>x</div>\n  ```",
            "- a list\n\n  ```html\n  <div id='a'>x</div>\n  ```",
        ),
        ("> ```html\n> <div>x</div>\n> ```", "> ```html\n> <div>x</div>\n> ```"),
        ("Code:\n\n    <a href='x'>hi</a>\n    <p>\n\nText", "Code:\n\n    <a href='x'>hi</a>\n    <p>\n\nText"),
        ("Use ``a ` <b>`` and `<i>`.", "Use ``a ` <b>`` and `<i>`."),
        ("A `span <b>\nover lines` and <b>bold</b>.", "A `span <b> over lines` and bold."),
        ("List<p>, Vec<i>, Box<a> and Map<b>.", "List<p>, Vec<i>, Box<a> and Map<b>."),
        ("Write \\<b> so.", "Write \\<b> so."),
        (
            "before\n\n<h2>Unclosed\n\ntext one\n\n## Real\n\ntext two",
            "before ## Unclosed text one ## Real text two",
        ),
        ("<H1>Big</H1>\n\nA<BR>b, <A HREF='x'>c</A>.", "# Big\n\nA b, c."),
        ("<section>\n\nText <input> and <label>more</label>\n\n</section>", "Text and more"),
        ("<script>\nvar x = 1;\n</script>\n\nText", "Text"),
        ("<!-- a\n\n# comment -->\n\nText <!-- and --> more", "Text more"),
        ("one\rtwo\n\n<div>three</div>\n\nfour\rfive <b>six</b>", "one two three four five six"),
        ("<!-- a --> kept <!-- b --> too\n\nText", "kept too Text"),
        ("<!-- a -->\n\nkept <!-- never closed\n\nText", "kept <!-- never closed Text"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>", "| a | b | | c | d |"),
        ("<your-file>\n\nText", "<your-file>\n\nText"),
        ("<Tabs>\n\nText\n\n</Tabs>", "<Tabs>\n\nText\n\n</Tabs>"),
        ("<pre><code># comment\n$ ls</code></pre>", "``` # comment $ ls ```"),
        ("Title\n=====\n\nPart\n---\n\nx", "# Title\n\n## Part\n\nx"),
        ("> Said <b>so</b>\n> again<br>", "> Said so\n> again"),
        ("<https://a.org/?x=<b>>", "<https://a.org/?x=>"),
    ],
)
def test_tags_of_html_go_and_what_only_looks_like_one_stays(text, expected):
    found = " ".join(extract("a.md", text.encode()).text.split())
    assert found.replace("| --- | --- | ", "").replace("| | | ", "") == " ".join(expected.split())


@pytest.mark.parametrize(
    "piece", ["<h1>", "<h3>open\n\ntext\n\n", "<!-- ", "<a href=", "`", "``` ", "<b>x</b> ", "> "]
)
def test_the_time_grows_with_the_size(piece):
    def seconds(size):
        text = (piece * (size // len(piece) + 1))[:size].encode()
        began = time.process_time()
        with contextlib.suppress(DocumentError):
            extract("a.md", b"text " + text)
        return time.process_time() - began

    assert seconds(40_000) < 20 * max(seconds(10_000), 0.05)


@pytest.mark.parametrize(
    ("page", "kept", "gone"),
    [
        ("<article>Teaser</article><article><h2>Story</h2>It is long.</article>", ["Teaser", "## Story"], []),
        ("<form><h1>T</h1><p>Inside a form.</p><input value='x'></form>", ["# T", "Inside a form."], []),
        ("<h1>Links</h1><ul>" + "".join(f"<li><a>Page {n}</a></li>" for n in range(9)) + "</ul>", ["Page 8"], []),
        ("<h1>Install<a class='headerlink'>¶</a></h1><p>Run it.</p>", ["# Install\n"], ["¶"]),
        (
            "<aside class='admonition'>Careful.</aside><aside>Other pages</aside><p>Text</p>",
            ["Careful."],
            ["Other"],
        ),
    ],
    ids=["articles", "form", "links", "permalink", "aside"],
)
def test_what_a_page_says_is_kept(page, kept, gone):
    found = extract("a.html", f"<html><body>{page}</body></html>".encode())
    assert is_there(found.text, *kept)
    assert not any(part in found.text for part in gone)


def test_directives_of_sphinx_keep_their_content_whatever_options_they_have():
    text = """
T
=

.. code-block:: python
   :caption: a.py
   :emphasize-lines: 2

   kept = 1

.. versionadded:: 3.0
   The option is new.

.. py:class:: Kettle(size)
   :module: devices

   Boils water.

.. only:: html

   Shown on pages.

End.
"""
    found = extract("a.rst", text.encode())
    assert is_there(
        found.text, "kept = 1", "The option is new.", "Kettle(size)", "Boils water.", "Shown on pages.", "End."
    )
    assert not any(part in found.text for part in ("caption", ":module:", "3.0", "html"))


def test_two_documents_of_sphinx_do_not_disturb_each_other():
    first = extract("a.rst", SPHINX.encode())
    extract("b.rst", b"Title\n=====\n\n.. versionadded:: 2\n\n:confval:`x` and :math:`y`\n")
    assert extract("a.rst", SPHINX.encode()) == first


def test_a_title_made_of_a_name():
    assert title_of_name("manuals/release_notes-2024.md") == "release notes 2024"
