"""The pretext task that CONTRIBUTING shows: one file outside the package, named by its import path."""

import re
import subprocess
import sys

import pytest
import yaml

import medssl
import tiny
from conftest import ROOT
from medssl.cli.main import main
from medssl.synthetic.cohort import write_cohort

BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
CODE = next(text for kind, text in BLOCKS if kind == "python")
COMMAND = next(text for _, text in BLOCKS if "method=upside_down" in text).split()[1:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "upside_down.py").write_text(CODE)
    cohort = write_cohort(folder / "cohort", patients=40, size=32, seed=3)
    medssl.ingest(cohort / "scans", folder / "STORE", labels=cohort / "labels.csv", key=tiny.secret(folder / "key"))
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    sys.modules.pop("upside_down", None)


def command(*more):
    """Return the command as shown, with the keys in `more` replaced."""
    keys = {m.partition("=")[0] for m in more}
    return [*[w for w in COMMAND if w.partition("=")[0] not in keys], *more]


def test_it_runs_as_shown_and_can_be_scored(folder):
    words = command(
        "encoder=cnn", "encoder.widths=[8,16]", "size=16", "steps=12", "batch=16", "log_every=1", "augment=xray"
    )
    words = [sys.executable, "-m", "medssl.cli", *words]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load((folder / "RUN" / "resolved.yaml").read_text())
    assert resolved["method"] == {"name": "upside_down.UpsideDown", "chance": 0.3}
    assert resolved["augment"]["name"] == "xray"
    assert len((folder / "RUN" / "metrics.jsonl").read_text().splitlines()) == 12
    table = medssl.knn(folder / "RUN", folder / "STORE", "lesion", baselines=["random init"])
    assert {r["features"] for r in table["rows"]} == {"upside_down.UpsideDown cnn", "random init"}


def test_its_defaults_apply_unless_the_command_overrides_them(inside):
    with pytest.raises(SystemExit) as done:
        main(command("out=R2", "encoder=cnn", "encoder.widths=[8]", "size=8", "steps=2", "batch=8", "monitor_every=0"))
    assert done.value.code == 0
    resolved = yaml.safe_load((inside / "R2" / "resolved.yaml").read_text())
    assert resolved["augment"]["name"] == "plain"
    assert resolved["steps"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=upside_dwon.UpsideDown"], "cannot be imported"),
        (["method=upside_down.Upside"], "cannot be imported"),
        (["method=upside_down.uniform"], "is not a medssl.methods.base.Method"),
        (["method.chanse=0.2"], "has no option 'chanse'. Did you mean 'chance'"),
        (["stes=3"], "Did you mean 'steps'"),
        (["target=lesion"], "does not learn from labels"),
    ],
)
def test_errors_are_one_line(inside, capsys, words, said):
    with pytest.raises(SystemExit) as done:
        main(command("out=R3", "encoder=cnn", *words))
    err = capsys.readouterr().err
    assert done.value.code in {1, 2}
    assert said in err
    assert err.count("\n") == 1
