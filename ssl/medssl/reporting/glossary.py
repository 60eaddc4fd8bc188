"""Terms of the glossary explained where they stand: the first of each in every section becomes hover text."""

import re
from collections.abc import Mapping

from markupsafe import Markup

TAGS = re.compile(r"(<[^>]*>)")
SILENT = {"code", "pre", "style", "title", "abbr", "h1", "h2", "h3", "nav", "a", "summary", "dt"}
"""Elements whose text is left as it is."""


def explain(page: Markup, terms: Mapping[str, str]) -> Markup:
    """Wrap the first occurrence of each term in every <section> and in the header in an <abbr> with its explanation."""
    if not terms:
        return page
    # longer terms first, so that "balanced accuracy" is not "accuracy"; Korean particles may follow a term
    names = sorted(terms, key=len, reverse=True)
    each = re.compile("|".join(rf"(?<![\w-]){re.escape(name)}(?![A-Za-z0-9_-])" for name in names))
    titles = {name: str(Markup.escape(text)) for name, text in terms.items()}
    silent: list[str] = []
    seen: set[str] = set()
    out = []

    def wrap(found: re.Match[str]) -> str:
        name = found[0]
        if name in seen:
            return name
        seen.add(name)
        return f'<abbr tabindex="0" title="{titles[name]}">{name}</abbr>'

    for part in TAGS.split(page):
        if not part.startswith("<"):
            out.append(part if silent else each.sub(wrap, part))
            continue
        out.append(part)
        name = part.strip("</>").split()[0] if part.strip("</>").split() else ""
        if name == "section":
            seen.clear()
        if name in SILENT:
            if part.startswith("</"):
                silent.remove(name)
            else:
                silent.append(name)
    return Markup("".join(out))
