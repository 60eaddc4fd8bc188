"""The few HTML elements a report needs, from plain values. Everything that is not `Html` already gets escaped."""

import base64
import html
import struct
from collections.abc import Iterable, Sequence
from importlib import resources

SCALE = 1.5  # pixels of a figure per CSS pixel: sharp in print; at 144 dpi, a point of type stays a point


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` as markup: escaped, unless it is `Html`."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def element(tag: str, *inside: object, **attributes: str) -> Html:
    """<tag attributes>inside</tag>; `klass` stands for class."""
    words = "".join(f' {k.replace("klass", "class")}="{html.escape(v)}"' for k, v in attributes.items() if v)
    return Html(f"<{tag}{words}>{''.join(map(text, inside))}</{tag}>")


def paragraph(*inside: object, klass: str = "") -> Html:
    """<p>."""
    return element("p", *inside, klass=klass)


def bullets(items: Iterable[object]) -> Html:
    """<ul>, or nothing when there are no items."""
    lines = [element("li", item) for item in items]
    return element("ul", *lines) if lines else Html()


def table(
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    words: int = 1,
    marked: Iterable[int] = (),
    caption: str = "",
) -> Html:
    """A table whose first `words` columns are text and whose others are numbers, set right; `marked` rows stand out."""
    strong = set(marked)

    def line(cells: Sequence[object], tag: str, klass: str = "") -> Html:
        first = [element("th", cell, scope="row" if tag == "td" else "col") for cell in cells[:1]]
        rest = [element(tag, cell, klass="num" if i >= words else "") for i, cell in enumerate(cells) if i]
        return element("tr", *first, *rest, klass=klass)

    body = [line(row, "td", "ours" if i in strong else "") for i, row in enumerate(rows)]
    title = element("caption", caption) if caption else Html()
    inner = element("table", title, element("thead", line(head, "th")), element("tbody", *body))
    return element("div", inner, klass="wide")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """A two-column table of names and values; empty values are left out."""
    rows = [
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in pairs
        if value is not None and value != ""
    ]
    return element("table", element("tbody", *rows), klass="facts") if rows else Html()


def figure(png: bytes, alt: str, caption: str = "") -> Html:
    """An image inside the page, with a text for those who cannot see it."""
    width, height = struct.unpack(">II", png[16:24])
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    size = f'width="{width / SCALE:.0f}" height="{height / SCALE:.0f}"'
    image = Html(f'<img src="{source}" {size} alt="{html.escape(alt)}">')
    return element("figure", image, element("figcaption", caption) if caption else Html())


def absent(what: str, command: str) -> Html:
    """One line for a section whose input is missing, with the command that makes it."""
    return paragraph(what, " Make it with ", element("code", command), klass="absent")


def page(title: str, sections: Sequence[tuple[str, str, Html]], top: Html, foot: str) -> str:
    """A whole page. `sections` are (id, heading, body). Its policy forbids loading anything from anywhere."""
    style = resources.files("medssl.reporting").joinpath("page.css").read_text("utf-8")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    links = Html(" ".join(element("a", heading, href=f"#{key}") for key, heading, _ in sections))
    body = [
        element("section", element("h2", heading), "\n", inside, "\n", id=key) + "\n"
        for key, heading, inside in sections
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{element('header', top, element('nav', links))}\n<main>\n{''.join(body)}</main>\n"
        f"{element('footer', foot)}\n</body>\n</html>\n"
    )
