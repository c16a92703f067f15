"""Words in Markdown and in HTML: the same sentences are composed for both, what users wrote is escaped for each."""

import re
from typing import Protocol

from markupsafe import escape


class Style(Protocol):
    """What a renderer does to words: `text` shows them literally, `code` as paths are set, `strong` in bold."""

    def text(self, words: str) -> str: ...

    def code(self, words: str) -> str: ...

    def strong(self, words: str) -> str: ...


class Markdown:
    """As Markdown shows them, in a table too."""

    def text(self, words: str) -> str:
        return re.sub(r"([\\|*<`])", r"\\\1", " ".join(words.split()))

    def code(self, words: str) -> str:
        return "`{}`".format(words.replace("|", r"\|"))

    def strong(self, words: str) -> str:
        return f"**{words}**"


class Html:
    """As HTML shows them, in text and in quoted attributes."""

    def text(self, words: str) -> str:
        return str(escape(words))

    def code(self, words: str) -> str:
        return f"<code>{escape(words)}</code>"

    def strong(self, words: str) -> str:
        return f"<strong>{words}</strong>"


MARKDOWN, HTML = Markdown(), Html()
