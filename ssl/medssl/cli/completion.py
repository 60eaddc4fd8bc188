"""The script of `medssl --completion`: commands, keys, options and choices, completed by bash and zsh without starting Python."""

from medssl import catalog
from medssl.cli.help import GROUPS, LAUNCH_KEYS, LAUNCHED, group_taken
from medssl.errors import UsageError, nearest

SHELLS = ("bash", "zsh")
CHOICES = (*GROUPS, "recipe")
"""Keys whose values are the names of yaml files."""

SCRIPT = r"""# Completion of medssl: put this line into ~/.{shell}rc
#   source <(medssl --completion {shell})
{start}
_medssl_keys() {{
    case "$1" in
{keys}
    esac
}}
_medssl_options() {{
    case "$1" in
{options}
    esac
}}
_medssl_values() {{
    case "$1" in
{values}
    esac
}}
_medssl() {{
    local line="${{COMP_LINE:0:$COMP_POINT}}" word command key value last prefix found chosen
    word="${{line##* }}"
    line="${{line#* }}"
    command="${{line%% *}}"
    COMPREPLY=()
    if [[ "$line" != *" "* ]]; then
        for found in $(compgen -W "{commands} --help --version" -- "$word"); do COMPREPLY+=("$found "); done
    elif [[ "$word" == *=* ]]; then
        key="${{word%%=*}}" value="${{word#*=}}"
        last="${{value##*,}}"
        prefix="${{value%"$last"}}"
        [[ "$COMP_WORDBREAKS" == *=* ]] || prefix="$key=$prefix"
        if [[ -n "$(_medssl_values "$key")" ]]; then
            for found in $(compgen -W "$(_medssl_values "$key")" -- "$last"); do COMPREPLY+=("$prefix$found"); done
        else
            while IFS= read -r found; do
                [[ -d "$found" ]] && found="$found/"
                COMPREPLY+=("$prefix$found")
            done < <(compgen -f -- "$last")
        fi
    else
        chosen="$(_medssl_keys "$command")"
        for found in $line; do chosen="$chosen $(_medssl_options "$found")"; done
        COMPREPLY=($(compgen -W "$chosen --help" -- "$word"))
    fi
}}
complete -o nospace -F _medssl medssl
"""


def script(shell: str) -> str:
    """Return the text that a shell sources. Raises UsageError for another shell."""
    if shell not in SHELLS:
        raise UsageError(f"--completion is for {' or '.join(SHELLS)}, got {shell!r}.{nearest(shell, SHELLS)}")
    commands = catalog.entries("command")
    groups = {name: [g for g in GROUPS if group_taken(name, g)] for name in commands}
    keys = {name: [*_keys("command", name), *groups[name]] for name in commands}
    keys["pretrain"].append("recipe")
    for name in LAUNCHED:
        keys[name] += LAUNCH_KEYS
    options = {
        f"{group}={name}": [f"{group}.{key}" for key in _keys(group, name)]
        for group in GROUPS
        for name in catalog.choices(group)
    }
    values = {key: sorted(catalog.choices(key)) for key in CHOICES}
    switches = sorted({k for name in commands for k in _switches(name)})
    return SCRIPT.format(
        shell=shell,
        start="autoload -U +X bashcompinit && bashcompinit" if shell == "zsh" else "",
        commands=" ".join(commands),
        keys=_cases({name: [f"{key}=" for key in of] for name, of in keys.items()}),
        options=_cases({name: [f"{key}=" for key in of] for name, of in options.items() if of}),
        values=_cases(values | {"|".join(switches): ["true", "false"]}),
    )


def _cases(words: dict[str, list[str]]) -> str:
    return "\n".join(f'    {pattern}) echo "{" ".join(of)}" ;;' for pattern, of in words.items())


def _keys(group: str, name: str) -> list[str]:
    """Return the keys in a yaml that users give."""
    return [key for key in catalog.load(group, name) if not key.startswith("_") and key != "defaults"]


def _switches(command: str) -> list[str]:
    """Return the keys of a command that are true or false."""
    return [key for key, value in catalog.load("command", command).items() if isinstance(value, bool)]
