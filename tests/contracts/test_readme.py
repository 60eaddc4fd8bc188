"""The README and the pages it leads to are correct: commands, Python, links, folders. The wheel runs without a checkout."""

import ast
import inspect
import re
import shlex
import subprocess
import sys
import zipfile

import family_tree
import pytest
import timm
import torch

import medssl
from conftest import ROOT
from medssl import catalog
from medssl.cli.run import compose_config
from medssl.cli.words import literal, named
from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import save_encoder
from medssl.encoders.timm2d import TimmEncoder

README = (ROOT / "README.md").read_text()
KOREAN = (ROOT / "README.ko.md").read_text()
PAGES = {path: path.read_text() for path in sorted(ROOT.glob("ssl/medssl/*/README.md"))}
ETHICS = ROOT / "ssl/medssl/ingestion/ETHICS.md"
PAGES |= {page: page.read_text() for page in (family_tree.PAGE, ETHICS)} | {
    ROOT / name: (ROOT / name).read_text() for name in ("README.md", "README.ko.md", "benchmarks/results/README.md")
}


def blocks_of(text):
    return re.findall(r"```(\w*)\n(.*?)```", text, re.S)


BLOCKS = [block for text in PAGES.values() for block in blocks_of(text)]
COMMAND_LINES = [
    shlex.split(line, comments=True) for _, block in BLOCKS for line in block.splitlines() if line.startswith("medssl ")
]


def test_every_command_is_shown_and_can_be_parsed():
    assert {words[1] for words in COMMAND_LINES} == set(catalog.entries("command")) - {"demo"}
    for words in COMMAND_LINES:
        compose_config(words[1], [literal(words[1], named(words[1], w)) for w in words[2:]])


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+) ", README):
        assert f"\n{target}:" in makefile, target


def test_the_python_is_real():
    (code,) = [block for language, block in blocks_of(README) if language == "python"]
    calls = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)]
    assert len(calls) == 7
    for call in calls:
        function = getattr(medssl, call.func.attr)
        inspect.signature(function).bind(*call.args, **{k.arg: None for k in call.keywords if k.arg})


@pytest.mark.parametrize("model", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_the_timm_lines_load_an_encoder(model, tmp_path):
    """As they stand there, for the named models; Swin with the line of the other transformer."""
    lines = [line for _, block in BLOCKS for line in block.splitlines() if line.startswith("timm.create_model")]
    (line,) = [x for x in lines if ("resnet18" in x) == (model == "resnet18")]
    encoder = TimmEncoder(1, (64, 64), model)
    save_encoder(tmp_path, encoder, EncoderConfig())
    code = re.sub(r"(?<=create_model\(\")\w+", model, line).replace("RUN/", f"{tmp_path}/")
    net = eval(code, {"timm": timm}).eval()
    x = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(net(x), encoder.eval()(x))


def test_every_folder_of_the_package_is_described():
    described = (ROOT / "CONTRIBUTING.md").read_text()
    rows = [line.split("|")[1] for line in described.splitlines() if line.startswith("| `")]
    folders = {p.name for p in (ROOT / "ssl/medssl").iterdir() if p.is_dir() and p.name[0] != "_"}
    assert {name for row in rows for name in re.findall(r"`(\w+)/`", row)} == folders
    ground = next(row for row in rows if "errors" in row)
    assert set(re.findall(r"\w+", ground)) == {p.stem for p in (ROOT / "ssl/medssl").glob("*.py")} - {"__init__"}


def test_every_link_leads_to_a_file():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page}: {target}"


def test_the_korean_readme_says_the_same():
    """The same headings, commands, numbers and links; the words cannot be compared."""

    def facts(text):
        plain = [[line.split("#")[0].rstrip() for line in block.splitlines()] for _, block in blocks_of(text)]
        links = set(re.findall(r"\]\(([^)#]+)\)", text)) - {"README.md", "README.ko.md"}
        numbers = sorted(re.findall(r"\d*\.\d+|\d[\d,]*\d", text))
        return plain, links, numbers, len(re.findall("^## ", text, re.M)), sorted(re.findall(r"`[^`\n]+`", text))

    assert facts(KOREAN) == facts(README)


def test_every_method_that_is_named_exists_and_stands_in_its_family():
    from medssl.cli.help import FAMILIES

    section = PAGES[ROOT / "ssl/medssl/methods/README.md"]
    rows = {cells[1].strip(): cells[2] for line in section.splitlines() if len(cells := line.split("|")) == 4}
    families = {name: FAMILIES[e.folder] for name, e in catalog.entries("method").items()}
    named = {name: family for family, text in rows.items() for name in re.findall(r"`(\w+)`", text)}
    assert named.items() <= families.items()
    assert len(named) > 30


def test_the_family_tree_is_what_its_script_writes_and_every_method_says_when_to_choose_it():
    assert family_tree.PAGE.read_text("utf-8") == family_tree.page()
    named = re.findall(r"^\| (\d*) \| `(\w+)` \|", family_tree.page(), re.M)
    entries = catalog.entries("method")
    assert sorted(name for _, name in named) == sorted(entries)
    assert [name for name, e in entries.items() if not re.match(r"When: .{20,}\.$", e.more)] == []
    assert ("2006", "dbn") in named


def test_the_top_level_is_what_it_should_be():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout, so untracked files cannot be told from tracked ones")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    allowed = {
        "ssl",
        "configs",
        "benchmarks",
        "tests",
        "notebooks",
        "pyproject.toml",
        "README.md",
        "Makefile",
        "Dockerfile",
    }
    assert top <= allowed | {
        "README.ko.md",
        "LICENSE",
        "CONTRIBUTING.md",
        ".ci",
        ".gitignore",
        ".pre-commit-config.yaml",
    }


def test_a_wheel_runs_outside_the_checkout(tmp_path):
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert not [p for p in (tmp_path / "site").iterdir() if p.name == "ssl"]
    code = (
        "import medssl, sys; assert medssl.__file__.startswith(sys.argv[1]); from medssl import catalog;"
        "assert str(catalog.root()).startswith(sys.argv[1]); from medssl.cli.main import main; main(['pretrain', '--help'])"
    )
    site = str(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", code, site],
        cwd=tmp_path,
        env={"PYTHONPATH": site},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in catalog.choices("method"))
    for name in ("page.css", "report.html.j2"):
        assert (tmp_path / "site/medssl/reporting/templates" / name).is_file()
