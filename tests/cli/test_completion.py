"""`source <(medssl --completion bash)` completes commands, keys, options of what was chosen, names and files."""

import shutil
import subprocess

import pytest

from medssl import catalog
from medssl.cli.completion import script
from medssl.errors import UsageError


@pytest.fixture(scope="module")
def sourced(tmp_path_factory):
    file = tmp_path_factory.mktemp("completion") / "medssl.sh"
    file.write_text(script("bash"))
    return file


def completed(sourced, line, breaks="\\ \\=:"):
    """Return what bash would offer for the last word of a line, as readline asks for it."""
    code = f"""source {sourced}; COMP_WORDBREAKS={breaks or "''"}; COMP_LINE="$1"; COMP_POINT=${{#1}}; _medssl
    printf '%s\\n' "${{COMPREPLY[@]}}" """
    out = subprocess.run(["bash", "-c", code, "bash", line], capture_output=True, text=True, check=True)
    assert out.stderr == ""
    return [word for word in out.stdout.split("\n") if word]


def test_a_command_is_completed_with_a_blank_after_it(sourced):
    assert completed(sourced, "medssl pro") == ["probe "]
    assert {f"{name} " for name in catalog.entries("command")} < set(completed(sourced, "medssl "))


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("medssl probe label_b", ["label_budgets="]),
        ("medssl pretrain meth", ["method="]),
        ("medssl pretrain laun", ["launcher="]),
        ("medssl pretrain method=simclr method.temp", ["method.temperature="]),
        ("medssl pretrain method=byol method.temp", []),
        ("medssl pretrain method=simc", ["simclr"]),
        ("medssl pretrain -m method=simclr,byo", ["simclr,byol"]),
        ("medssl pretrain recipe=chest", ["chest_xray_28"]),
        ("medssl probe allow_overlap=", ["true", "false"]),
    ],
)
def test_keys_and_names_are_completed(sourced, line, offered):
    assert completed(sourced, line) == offered


def test_the_key_is_repeated_for_shells_that_do_not_break_words_at_the_equals_sign(sourced):
    assert completed(sourced, "medssl pretrain -m method=simclr,byo", breaks="") == ["method=simclr,byol"]


def test_files_are_completed_after_other_keys_with_a_slash_after_folders(sourced, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "still").touch()
    assert sorted(completed(sourced, f"medssl probe store={tmp_path}/st")) == [
        f"{tmp_path}/still",
        f"{tmp_path}/store/",
    ]


def test_another_shell_is_refused_by_name():
    with pytest.raises(UsageError, match="bash or zsh, got 'fish'"):
        script("fish")


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed here")
def test_zsh_reads_the_script(tmp_path):
    (tmp_path / "medssl.sh").write_text(script("zsh"))
    code = f'autoload -U compinit && compinit -u -d {tmp_path}/dump; source {tmp_path}/medssl.sh; echo "${{_comps[medssl]}}"'
    out = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, check=True)
    assert "_medssl" in out.stdout
    assert out.stderr == ""
