"""What a notebook shows for the answers of the glass box: text as it stands in a terminal, and a trace as its page."""

from __future__ import annotations

from html import escape

from lightwell.show.html import fragment

HEIGHT = 720  # pixels of a page in a cell


class Shown:
    """An answer that a notebook shows as a terminal does."""

    def _repr_html_(self) -> str:
        return text(str(self))


def text(said: str) -> str:
    """Words and tables, their columns kept."""
    return fragment(f"<pre>{escape(said)}</pre>")


def frame(page: str, title: str) -> str:
    """A whole page inside a cell. It asks for nothing: its own policy holds inside the frame as well."""
    style = f"width: 100%; height: {HEIGHT}px; border: 1px solid #8885"
    return f'<iframe title="{escape(title)}" style="{style}" srcdoc="{escape(page)}"></iframe>'
