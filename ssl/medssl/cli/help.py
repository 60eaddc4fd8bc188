"""Text of `medssl --help` and `medssl COMMAND --help`, at 80 columns, from the yaml files alone."""

import textwrap
from collections.abc import Iterable, Mapping

from medssl import catalog
from medssl.errors import UsageError, nearest

WIDTH = 80
GROUPS = ("method", "encoder", "augment")
LAUNCHERS = ("slurm", "ray", "local")
LAUNCH_KEYS = {
    "launcher": "slurm, ray, or local: jobs of this machine, one after the other",
    "address": "host:port of a Ray cluster, auto if not given: the one of this machine",
    "gpus": "GPUs of a job, all on one node; pretrain has one process on each",
    "cpus": "processor cores of a job",
    "memory": "GB of a job of Slurm",
    "hours": "longest time of a job of Slurm, 24 if not given; an unfinished run is requeued",
    "partition": "of Slurm",
    "account": "of Slurm",
    "qos": "of Slurm",
}
"""Keys of a launch, with launcher=."""
SCORED = ("embed", "probe", "knn", "retrieve", "survive", "finetune", "segment", "transfer", "quality")
LAUNCHED = ("pretrain", *SCORED)
"""Commands that launcher= takes; those that score have a job for each run of run=A,B."""
COMMAND_GROUPS = {"data": "Data", "train": "Train", "score": "Score", "analyse": "Look at results"}
FAMILIES = {
    "contrastive": "Contrastive and mutual information",
    "redundancy": "Redundancy reduction",
    "distillation": "Self-distillation",
    "clustering": "Clustering",
    "masked": "Masked modelling",
    "metric": "Metric learning",
    "reconstruction": "Reconstruction",
    "pretext": "Pretext tasks",
    "volumes": "Volumes (and images)",
    "layerwise": "Layer-wise training and energy models",
    "adversarial": "Adversarial",
    "tasks": "With labels",
}


def overview() -> str:
    """Return the commands by group, with one line about each."""
    commands = catalog.entries("command")
    lines = ["medssl: self-supervised representation learning for medical scans"]
    for folder, title in COMMAND_GROUPS.items():
        lines += ["", title, *_columns((n, e.about) for n, e in commands.items() if e.folder == folder)]
    more = {
        "medssl COMMAND --help": "keys and choices",
        "medssl pretrain method=NAME --help": "options of one method",
        "medssl pretrain -m …": "sweep: method=simclr,byol seed=0,1,2",
        "medssl --completion bash": "for the shell, to complete keys; or zsh",
    }
    return "\n".join([*lines, "", *_columns(more.items())])


def command_help(command: str) -> str:
    """Return what a command does, its keys with their defaults, and the choices of its config groups."""
    entry = catalog.entries("command")[command]
    keys, groups = [], []
    for line in catalog.text("command", command).splitlines():
        if line.startswith("  - ") and ":" in line:
            groups.append(line.strip("- ").split(":")[0])
        elif line and not line.startswith(("#", "_", "defaults:", "  - ")):
            setting, _, note = line.partition("# ")
            keys.append((setting.strip().replace(": ", "=", 1).replace("???", "…"), note))
    lines = [
        *textwrap.wrap(entry.about, WIDTH),
        "",
        f"  {entry.more}",
        "",
        "Keys (those shown as … are required):",
        *_columns(keys),
    ]
    for group in groups:
        lines += ["", *_group_help(group)]
    if command == "pretrain":
        recipes = catalog.entries("recipe")
        lines += ["", "recipe= one of (sets the keys in its yaml; other keys win):"]
        lines += [
            *_columns((name, entry.about) for name, entry in recipes.items()),
            "  listed in configs/recipe/NAME.yaml",
        ]
        lines += [
            "",
            "As jobs of a cluster, for one run or a sweep (-m), with launcher=:",
            *_columns(LAUNCH_KEYS.items()),
        ]
    elif command in LAUNCHED:
        words = (
            "As jobs of a cluster: launcher=slurm, ray or local, with the keys that medssl pretrain --help lists; run=A,B is "
            "a job for each run."
        )
        lines += ["", *textwrap.wrap(words, WIDTH)]
    return "\n".join(lines)


def group_taken(command: str, group: str) -> bool:
    """Return whether a command chooses a yaml of `group`, rather than having a plain key of that name."""
    return f"\n  - {group}: " in catalog.text("command", command)


def choice_help(group: str, name: str) -> str:
    """Return what one choice of a group is and its options with their defaults: method=NAME --help.

    Raises UsageError for a choice that has no yaml.
    """
    if name not in catalog.choices(group):
        raise UsageError(f"there is no {group} {name!r} with a help text.{nearest(name, catalog.choices(group))}")
    entry = catalog.entries(group)[name]
    options, run, inside = [], [], ""
    for line in catalog.text(group, name).splitlines():
        setting, _, note = line.partition("#")
        key, colon, value = setting.strip().partition(":")
        if line[:1] not in ("", " ", "#"):
            inside = key if not value.strip() else ""
        hidden = key in {"op", "slot", "_target_", "_order_"}  # not for users to choose
        if not colon or line.startswith("#") or hidden or (inside and line[0] != " "):
            continue
        if inside == "_run_":
            run.append((f"{key}={value.strip()}", note.strip()))
        else:
            options.append((f"{group}.{inside + '.' if inside else ''}{key}={value.strip()}", note.strip()))
    head = [f"{group}={name}: {entry.about}", *([entry.more] if group == "method" and entry.more else [])]
    lines = [*(line for text in head for line in textwrap.wrap(text, WIDTH)), "", "Options:", *_columns(options)]
    if run:
        lines += ["", f"Defaults of pretrain with this {group}:", *_columns(run)]
    return "\n".join(lines if options or run else [*lines[:-1], "This has no options."])


def _group_help(group: str) -> list[str]:
    """The choices of a config group; methods by family."""
    entries = catalog.entries(group)
    also = {"encoder": " (or any timm model by name)", "method": " (or your own: module.Class)"}.get(group, "")
    lines = [f"{group}= one of{also}:"]
    families = _families(entries) if group == "method" else [""]
    wide = max(map(len, entries))
    for family in families:
        mine = [(n, e.about) for n, e in sorted(entries.items()) if not family or e.folder == family]
        lines += [*([f" {FAMILIES.get(family, family)}"] if family else []), *_columns(mine, wide)]
    return [*lines, f"  options: {group}.KEY=…, listed in configs/{group}/NAME.yaml"]


def _families(entries: Mapping[str, catalog.Entry]) -> list[str]:
    """The families of methods in the order of FAMILIES; one that is not listed there comes last, by its folder's name."""
    order = [*FAMILIES]
    return sorted({e.folder for e in entries.values()}, key=lambda f: (order.index(f) if f in order else len(order), f))


def _columns(rows: Iterable[tuple[str, str]], width: int = 0) -> list[str]:
    """Return lines in two columns: names as wide as the longest, and text wrapped beside them."""
    rows = list(rows)
    width = min(max([width, *(len(name) for name, _ in rows)]), 26)
    lines = []
    for name, note in rows:
        indent = " " * (width + 4)
        if len(name) > width:
            lines += textwrap.wrap(name, WIDTH, initial_indent="  ", subsequent_indent="    ")
            first = indent
        else:
            first = f"  {name:<{width}}  "
        lines += textwrap.wrap(note, WIDTH, initial_indent=first, subsequent_indent=indent) or (
            [first.rstrip()] if first.strip() else []
        )
    return lines
