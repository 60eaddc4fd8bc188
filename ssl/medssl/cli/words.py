"""The words of the command line before Hydra reads them: recipes, lists without brackets, paths taken literally, old keys."""

import os
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, get_args, get_origin, get_type_hints

from medssl import catalog
from medssl.errors import UsageError

QUOTED = re.compile(r"""(['"])(\\.|(?!\1).)*\1""")


def any_timm(word: str) -> list[str]:
    """Turn encoder=NAME into the timm model of that name if there is no such yaml."""
    key, _, value = word.partition("=")
    known = value in catalog.choices("encoder") or catalog.is_own("encoder", value)
    if key == "encoder" and re.fullmatch(r"[\w.\-]+", value) and not known:
        return ["encoder=timm", f"encoder.model={value}"]
    return [word]


def expand_recipe(words: list[str]) -> list[str]:
    """Return the words with recipe=NAME replaced by its settings, except those that the other words give.

    Another method, encoder or augment than the recipe's comes without the recipe's options for it.
    """
    names = [value for word in words for key, eq, value in [word.partition("=")] if eq and key == "recipe"]
    if not names:
        return words
    own = [word for word in words if word.partition("=")[0] != "recipe"]
    given = {word.partition("=")[0] for word in own}
    out = []
    for key, value in catalog.recipe(names[-1]).items():
        if isinstance(value, dict):
            group = key.removesuffix("_options")
            options = {f"{group}.{option}": v for option, v in value.items()} if group not in given else {}
        else:
            options = {key: value}
        out += [f"{k}={v}" for k, v in options.items() if k not in given]
    return [*out, *own]


def own_code(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take method=my_module.MyMethod and encoder=… out of the words: they have no yaml, and their options go in as new keys."""
    chosen: dict[str, str] = {}
    for group in ("method", "encoder"):
        own = [v for w in words for k, _, v in [w.partition("=")] if k == group and catalog.is_own(group, v)]
        if own:
            chosen[group] = own[-1]
            words = [f"+{w}" if w.startswith(f"{group}.") else w for w in words if w != f"{group}={own[-1]}"]
            words = [f"~{group}", *words] if group == "method" else words
    return words, chosen


def literal(command: str, word: str) -> str:
    """Quote the value of a key whose value is taken literally: paths and filter expressions (`_literal_` in the yaml)."""
    key, eq, value = word.partition("=")
    if not eq or key not in _special(command, "_literal_") or value in {"null", ""}:
        return word
    if value[0] == "[" and _takes_list(command, key):
        return word
    # quoted by the user, as Hydra wants it; a filter, and the name of a file, may well have quotes
    if not key.endswith("where") and QUOTED.fullmatch(value) and not os.path.lexists(value):
        return word
    return f"{key}={quote(value)}"


def bracketed(command: str, word: str) -> str:
    """Return the word with [ ] around the values of a key that takes several: runs=A,B, as shells leave it alone.

    A value with quotes, or that is the name of a file, is left as it is.
    """
    key, _, value = word.partition("=")
    if "," not in value or value[0] in "[{'\"" or key.endswith("where") or not _takes_list(command, key):
        return word
    return word if os.path.lexists(value) else f"{key}=[{value}]"


def named(command: str, word: str) -> str:
    """Return a lone word as the value of the key that it stands for (`_bare_` in the yaml): medssl runs FOLDER."""
    key = _special(command, "_bare_")
    return f"{key}={word}" if key and "=" not in word and not word.startswith("-") else word


def _takes_list(command: str, key: str) -> bool:
    """Return whether the value of a key may be a list, by the annotation of the command's function."""
    module, _, name = catalog.entries("command")[command].target.rpartition(".")
    hint = get_type_hints(getattr(import_module(module), name)).get(key)
    return any(get_origin(kind) in (list, Sequence, Iterable) for kind in (hint, *get_args(hint)))


def example(command: str) -> str:
    """Return the example in a command's yaml."""
    return catalog.entries("command")[command].more


def _special(command: str, key: str) -> Any:
    return catalog.load("command", command).get(key, ())


def refuse_old_keys(command: str, words: Iterable[str]) -> None:
    """Raise UsageError for a key that has been renamed (`_renamed_` in the yaml)."""
    renamed = dict(_special(command, "_renamed_"))
    for word in words:
        key, eq, value = word.partition("=")
        if eq and key in renamed:
            raise UsageError(f"{key}= is called {renamed[key]}= now; write {renamed[key]}={value}")


def has_groups(command: str) -> bool:
    """Return whether method=, encoder= and augment= choose a yaml with options, rather than being plain keys."""
    return bool(_special(command, "defaults"))


def quote(value: str) -> str:
    """Quote for Hydra: escape backslashes before a quote or the end, and ${, which would be interpolated."""
    value = re.sub(r"(\\*)'", r"\1\1\\'", value.replace("${", "\\${"))
    return "'" + re.sub(r"(\\+)$", r"\1\1", value) + "'"
