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
from medssl.cli.help import GROUPS, LAUNCHED, SCORED
from medssl.cli.launch import launch, take_launcher
from medssl.cli.terminal import fitted
from medssl.cli.words import (
    any_timm,
    bracketed,
    example,
    expand_recipe,
    has_groups,
    literal,
    named,
    own_code,
    quote,
    refuse_old_keys,
)
from medssl.errors import Interrupted, UsageError, UserError, nearest
from medssl.files import digest
from medssl.results import Result


def run(command: str, args: list[str]) -> None:
    """Run a command once, or with -m once for each combination of comma-separated values."""
    if modules := os.environ.get("MEDSSL_IMPORT"):
        from medssl.encoders.own import import_named

        import_named(modules)
    sweep = bool({"-m", "--multirun"} & set(args))
    given = [a for a in args if a not in {"-m", "--multirun"}]
    given, launcher = take_launcher(given) if command in LAUNCHED else (given, {})
    scored: dict[Path, list[str]] = {}
    if launcher and command in SCORED:
        scored = _scored_runs(command, given)
        given = next(iter(scored.values()))[1:]
    asked = [command, *given]
    if command == "pretrain":
        given = expand_recipe(given)
    if has_groups(command):
        given = [word for a in given for word in any_timm(a)]
    given = [named(command, word) for word in given]
    words = [literal(command, word if sweep else bracketed(command, word)) for word in given]
    refuse_old_keys(command, words)
    for word in words:
        if "=" not in word or word.startswith("-"):
            raise UsageError(f"cannot read {word!r}: options are key=value. {example(command)}")
    words, own = own_code(words)
    parsed = _parse(words)
    swept = [o.key_or_group for o in parsed if o.is_sweep_override()]
    if swept and not sweep:
        raise UsageError(f"{swept[0]} has several values; add -m to sweep over them")
    first = [_first(o) if o.is_sweep_override() else w for o, w in zip(parsed, words, strict=True)]
    cfg = compose_config(command, first)
    if launcher:
        out = next(iter(scored)) if scored else Path(str(OmegaConf.select(cfg, "out"))).expanduser()
        runs = scored or (_swept_runs(out, given, parsed, own) if sweep else {out: asked})
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
    sys.argv = [
        f"medssl {command}",
        "--multirun",
        *words,
        *_search_path(command),
        f"hydra.sweep.dir={quote(str(out))}",
        "hydra.sweep.subdir=.",
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
        keys = {o.get_key_element() for o in swept}
        pairs = (word.split("=", 1) for word in hydra_cfg.overrides.task)
        name = run_name((key, value) for key, value in pairs if key in keys)
        print(f"run {next(begun)} of {total}: {name}", file=sys.stderr, flush=True)
        try:
            call(command, cfg, dict(hydra_cfg.runtime.choices) | own, Path(hydra_cfg.runtime.output_dir) / name)
        except Exception as e:
            error = e if isinstance(e, UserError) else UserError(f"unexpected {type(e).__name__}: {e}")
            print(f"medssl: {name}: {error}", file=sys.stderr)
            failed.append(error)

    hydra.main(version_base="1.3", config_path=str(catalog.root() / "command"), config_name=command)(job)()
    if failed:
        raise UserError(f"{len(failed)} of the runs under {out} did not finish; {failed[-1]}", failed[-1].code)


def _scored_runs(command: str, given: list[str]) -> dict[Path, list[str]]:
    """Return the words of a job for each run of run=A,B, by the run's folder."""
    found = [word.partition("=")[2] for word in given if word.startswith("run=")]
    if len(found) != 1:
        raise UsageError(f"a job of {command} needs run=RUN, or run=A,B for a job for each. {example(command)}")
    runs = found[0].strip("[]").split(",")
    return {Path(r).expanduser(): [command, *(f"run={r}" if w.startswith("run=") else w for w in given)] for r in runs}


def _swept_runs(out: Path, given: list[str], parsed: list[Override], own: dict[str, str]) -> dict[Path, list[str]]:
    """Return the words of each run of a sweep by its folder, where `_sweep` would put it."""
    if own:
        raise UsageError("launcher= does not sweep over code of your own; submit its runs one by one")
    fixed = [word for word, o in zip(given, parsed, strict=True) if not o.is_sweep_override()]
    fixed = [word for word in fixed if word.partition("=")[0] != "out"]
    keys = [o.get_key_element() for o in parsed if o.is_sweep_override()]
    runs = {}
    for values in product(*(o.sweep_string_iterator() for o in parsed if o.is_sweep_override())):
        folder = out / run_name(zip(keys, values, strict=True))
        runs[folder] = ["pretrain", *fixed, *(f"{k}={v}" for k, v in zip(keys, values, strict=True)), f"out={folder}"]
    return runs


def run_name(chosen: Iterable[tuple[str, str]]) -> str:
    """Return the folder of one run of a sweep, a word that shells leave alone: simclr-lr0.001-seed0."""
    parts = []
    for key, value in sorted(chosen, key=lambda pair: (pair[0] not in GROUPS, pair[0])):
        plain = re.sub(r"[,\s]+", "_", value.strip("[]'\" "))
        word = re.sub(r"[^\w.+-]+", "_", plain).strip("_")
        if word != plain or not word:  # other values may lose the same characters
            word += digest(value, 4)
        parts.append(word if key in GROUPS else f"{key}{word}" if word[0].isdigit() else f"{key}-{word}")
    return "-".join(parts)


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
        print(fitted(text))


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
            f"medssl {command} needs {', '.join(f'{k}=…' for k in missing)}. For example: {example(command)}"
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
            if called := known_as(bare, known | set(GROUPS if has_groups(command) else ())):
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
        if str(k).startswith("_"):
            continue
        inner = None if OmegaConf.is_missing(cfg, k) else cfg[k]
        if isinstance(inner, DictConfig):
            yield from _keys(inner, f"{prefix}{k}.")
        else:
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


def _search_path(command: str) -> list[str]:
    """Tell Hydra where the config groups are: beside the folder of commands.

    Other commands have plain keys with the names of groups, which Hydra would take for choices of a group.
    """
    return [f"hydra.searchpath=[{quote(str(catalog.root()))}]"] if has_groups(command) else []
