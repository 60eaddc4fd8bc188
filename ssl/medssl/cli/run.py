"""Turn the words of the command line into plain arguments, with Hydra. No other file knows Hydra."""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from itertools import count, product
from math import isfinite, prod
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medssl import catalog
from medssl.cli.aliases import known_as
from medssl.cli.help import GROUPS
from medssl.cli.launch import launch, take_launcher
from medssl.errors import Interrupted, UsageError, UserError, nearest
from medssl.results import Result

QUOTED = re.compile(r"""(['"])(\\.|(?!\1).)*\1""")


def run(command: str, args: list[str]) -> None:
    """Run a command once, or with -m once for each combination of comma-separated values."""
    if modules := os.environ.get("MEDSSL_IMPORT"):
        from medssl.encoders.own import import_named

        import_named(modules)
    sweep = bool({"-m", "--multirun"} & set(args))
    given = [a for a in args if a not in {"-m", "--multirun"}]
    given, launcher = take_launcher(given) if command == "pretrain" else (given, {})
    asked = given
    if command == "pretrain":
        given = expand_recipe(given)
    if _has_groups(command):
        given = [word for a in given for word in _any_timm(a)]
    given = [named(command, word) for word in given]
    words = [literal(command, word if sweep else bracketed(command, word)) for word in given]
    _refuse_old_keys(command, words)
    for word in words:
        if "=" not in word or word.startswith("-"):
            raise UsageError(f"cannot read {word!r}: options are key=value. {_example(command)}")
    words, own = _own_code(words)
    parsed = _parse(words)
    swept = [o.key_or_group for o in parsed if o.is_sweep_override()]
    if swept and not sweep:
        raise UsageError(f"{swept[0]} has several values; add -m to sweep over them")
    first = [_first(o) if o.is_sweep_override() else w for o, w in zip(parsed, words, strict=True)]
    cfg = compose_config(command, first)
    if launcher:
        out = Path(str(OmegaConf.select(cfg, "out"))).expanduser()
        runs = _swept_runs(out, given, parsed, own) if sweep else {out: asked}
        print(launch(runs, out.with_name(f"{out.name}.jobs"), launcher))
    elif sweep:
        _sweep(command, cfg, words, parsed, own)
    else:
        call(command, cfg, dict(cfg.hydra.runtime.choices) | own, None)


def _sweep(command: str, cfg: DictConfig, words: list[str], parsed: list[Override], own: dict[str, str]) -> None:
    """Run every combination in a folder of its own below out=, one after the other."""
    if command != "pretrain" or int(cfg.devices) > 1:
        raise UsageError("-m sweeps medssl pretrain on one device; for anything else use a shell loop")
    swept = [o for o in parsed if o.is_sweep_override()]
    for o in swept:
        group = o.key_or_group
        for value in map(str, o.sweep_string_iterator()) if group in GROUPS else ():
            if value not in catalog.choices(group):
                timm = " A timm model in a sweep: encoder=timm encoder.model=A,B." if group == "encoder" else ""
                raise UsageError(f"there is no {group} {value!r}.{timm or nearest(value, catalog.choices(group))}")
    out = OmegaConf.select(cfg, "out")
    fixed = {o.key_or_group for o in parsed} - {o.key_or_group for o in swept}
    sys.argv = [
        f"medssl {command}",
        "--multirun",
        *words,
        *_search_path(command),
        f"hydra.sweep.dir={_quote(str(out))}",
        "hydra.sweep.subdir=${hydra.job.override_dirname}",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(sorted(fixed))}]",
        "hydra.output_subdir=null",
        "hydra/job_logging=disabled",
        "hydra/hydra_logging=disabled",
    ]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach cli.main unchanged

    failed: list[UserError] = []
    total, begun = prod(sum(1 for _ in o.sweep_string_iterator()) for o in swept), count(1)

    def job(cfg: DictConfig) -> None:
        """Run one combination. A wrong one does not stop the others; an interrupt does."""
        hydra_cfg = HydraConfig.get()
        if any(isinstance(e, Interrupted) for e in failed):
            return
        print(f"run {next(begun)} of {total}: {hydra_cfg.job.override_dirname}", file=sys.stderr, flush=True)
        try:
            call(command, cfg, dict(hydra_cfg.runtime.choices) | own, Path(hydra_cfg.runtime.output_dir))
        except Exception as e:
            error = e if isinstance(e, UserError) else UserError(f"unexpected {type(e).__name__}: {e}")
            print(f"medssl: {hydra_cfg.job.override_dirname}: {error}", file=sys.stderr)
            failed.append(error)

    hydra.main(version_base="1.3", config_path=str(catalog.root() / "command"), config_name=command)(job)()
    if failed:
        raise UserError(f"{len(failed)} of the runs under {out} did not finish; {failed[-1]}", failed[-1].code)


def _swept_runs(out: Path, given: list[str], parsed: list[Override], own: dict[str, str]) -> dict[Path, list[str]]:
    """Return the words of each run of a sweep by its folder, where `_sweep` would put it."""
    if own:
        raise UsageError("launcher= does not sweep over code of your own; submit its runs one by one")
    fixed = [word for word, o in zip(given, parsed, strict=True) if not o.is_sweep_override()]
    fixed = [word for word in fixed if word.partition("=")[0] != "out"]
    keys = [o.get_key_element() for o in parsed if o.is_sweep_override()]
    runs = {}
    for values in product(*(o.sweep_string_iterator() for o in parsed if o.is_sweep_override())):
        chosen = [f"{k}={v}" for k, v in zip(keys, values, strict=True)]
        folder = out / ",".join(sorted(chosen))
        runs[folder] = [*fixed, *chosen, f"out={folder}"]
    return runs


def call(command: str, cfg: DictConfig, choices: Any, out: Path | None) -> None:
    """Call the function of a command with plain arguments, and print its result."""
    given = {str(k): v for k, v in cfg.items() if k != "hydra" and not str(k).startswith("_")}
    kwargs: dict[str, Any] = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in given.items()}
    if out is not None:
        kwargs["out"] = str(out)
    if command == "pretrain":
        for group in GROUPS:
            options = kwargs.pop(group, None)
            kwargs[group] = choices.get(group)
            kwargs[f"{group}_options"] = {k: v for k, v in (options or {}).items() if not k.startswith("_")}
    module, _, name = catalog.entries("command")[command].target.rpartition(".")
    function = getattr(import_module(module), name)
    hints = get_type_hints(function)
    result = function(**{k: typed(k, v, hints[k]) for k, v in kwargs.items()})
    text = str(result) if isinstance(result, Result) else getattr(result, "summary", "")
    if text:
        print(text)


def typed(key: str, value: Any, hint: Any) -> Any:
    """Return `value` as the function's annotation wants it. Raises UserError for a value of another kind."""
    kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    if value is None and NoneType in kinds:
        return None
    if isinstance(value, str) and str not in kinds and any(get_origin(kind) is list for kind in kinds):
        return [value]
    if (
        isinstance(value, list)
        and len(kinds) > 1
        and any(get_origin(kind) in {list, Iterable, Sequence} for kind in kinds)
    ):
        return [str(v) for v in value]
    if bool in kinds:
        fits, wanted = isinstance(value, bool), "true or false"
    elif int in kinds:
        fits, wanted = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif float in kinds:
        fits, wanted = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value), "a number"
    elif str in kinds:
        fits, wanted = isinstance(value, str | int | float) and value != "", "a word"
        value = str(value) if fits else value
        fits = fits or (key == "site" and value == "")
    else:
        return value
    if not fits:
        raise UserError(f"{key} must be {wanted}, got {value!r}")
    return value


def compose_config(command: str, words: list[str]) -> DictConfig:
    """Return the config of one run. Raises UsageError, in one line, for any key or value that cannot be understood."""
    with initialize_config_dir(str(catalog.root() / "command"), version_base="1.3"):
        try:
            cfg = compose(command, [*words, *_search_path(command)], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as e:
            raise UsageError(_explain(command, words, e)) from e
    missing = [str(k) for k in cfg if k != "hydra" and OmegaConf.is_missing(cfg, k)]
    if missing:
        raise UsageError(
            f"medssl {command} needs {', '.join(f'{k}=…' for k in missing)}. For example: {_example(command)}"
        )
    return cfg


def _explain(command: str, words: list[str], error: Exception) -> str:
    """Return which word is wrong, and the nearest known one."""
    said = [w for w in words if w != "~method" and not w.startswith("+method.")]  # see _own_code
    for word in said:
        key, _, value = word.partition("=")
        bare = key.lstrip("+~")
        if bare in GROUPS and command == "pretrain" and value.strip("'") not in catalog.choices(bare):
            return f"there is no {bare} {value!r}.{nearest(value, catalog.choices(bare))}"
    groups = [w for w in words if w.partition("=")[0] in GROUPS]
    known = set(_keys(compose(command, [*groups, *_search_path(command)])))
    for word in said:
        bare = word.partition("=")[0].lstrip("+~")
        if bare not in known and bare not in GROUPS:
            if called := known_as(bare, known | set(GROUPS if _has_groups(command) else ())):
                return f"medssl {command} has no key {bare!r}: {called}"
            group = bare.partition(".")[0]
            hint = (
                f" Choose the {group} first: {group}=NAME."
                if group in GROUPS and f"{group}." not in "".join(known)
                else ""
            )
            return f"medssl {command} has no key {bare!r}.{hint or nearest(bare, known)}"
    return f"medssl {command}: {str(error).splitlines()[0]}"


def _keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    for k in cfg:
        inner = None if OmegaConf.is_missing(cfg, k) else cfg[k]
        if isinstance(inner, DictConfig):
            yield from (x for x in _keys(inner, f"{prefix}{k}.") if "._" not in x)
        elif not str(k).startswith("_"):
            yield f"{prefix}{k}"


def _parse(words: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    try:
        return parser.parse_overrides(words)
    except HydraException as e:
        for word in words:
            try:
                parser.parse_override(word)
            except HydraException:
                raise UsageError(f"cannot read {word!r}: quote the value, as in \"key='…'\"") from e
        raise


def _first(o: Override) -> str:
    """Return the override with the first of its values."""
    value = next(iter(o.sweep_string_iterator()))
    return f"{o.get_key_element()}={value}"


def _any_timm(word: str) -> list[str]:
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


def _own_code(words: list[str]) -> tuple[list[str], dict[str, str]]:
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
    return f"{key}={_quote(value)}"


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


def _example(command: str) -> str:
    return catalog.entries("command")[command].example


def _special(command: str, key: str) -> Any:
    return catalog.load("command", command).get(key, ())


def _refuse_old_keys(command: str, words: Iterable[str]) -> None:
    """Raise UsageError for a key that has been renamed (`_renamed_` in the yaml)."""
    renamed = dict(_special(command, "_renamed_"))
    for word in words:
        key, eq, value = word.partition("=")
        if eq and key in renamed:
            raise UsageError(f"{key}= is called {renamed[key]}= now; write {renamed[key]}={value}")


def _has_groups(command: str) -> bool:
    """Return whether method=, encoder= and augment= choose a yaml with options, rather than being plain keys."""
    return bool(_special(command, "defaults"))


def _search_path(command: str) -> list[str]:
    """Tell Hydra where the config groups are: beside the folder of commands.

    Other commands have plain keys with the names of groups, which Hydra would take for choices of a group.
    """
    return [f"hydra.searchpath=[{_quote(str(catalog.root()))}]"] if _has_groups(command) else []


def _quote(value: str) -> str:
    """Quote for Hydra: escape backslashes before a quote or the end, and ${, which would be interpolated."""
    value = re.sub(r"(\\*)'", r"\1\1\\'", value.replace("${", "\\${"))
    return "'" + re.sub(r"(\\+)$", r"\1\1", value) + "'"
