"""The command line as a tired person meets it: one line, the file or key, the way out, the right exit code."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import medssl as medssl_package
import tiny
from conftest import ROOT
from medssl import catalog
from medssl.cli.aliases import ALIASES, known_as
from medssl.cli.help import GROUPS
from medssl.cli.main import main
from medssl.cli.run import compose_config, run_name, typed
from medssl.cli.run import run as run_command
from medssl.cli.words import bracketed, expand_recipe, literal
from medssl.errors import UsageError, UserError
from medssl.runs.config import PretrainOptions
from medssl.scoring.baselines import select_baselines

ENV = {"PYTHONPATH": "ssl", "PATH": os.environ["PATH"], "CI": "true", "OMP_NUM_THREADS": "1"}


def medssl(capsys, *args: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process."""
    with pytest.raises(SystemExit) as done:
        main(args)
    out = capsys.readouterr()
    return done.value.code, out.out, out.err


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """Forty bright or dark discs of twenty patients, with a table."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    rows = ["file,patient,label"]
    for i in range(40):
        disc = ((y - 16) ** 2 + (x - 16) ** 2 < (5 + 4 * (i % 2)) ** 2) * 110
        Image.fromarray((disc + rng.integers(20, 100, (32, 32))).astype(np.uint8)).save(folder / f"{i:02}.png")
        rows.append(f"{i:02}.png,p{i // 2},{'big' if i % 2 else 'small'}")
    (folder.parent / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def store(scans, tmp_path_factory) -> Path:
    from medssl import ingest

    out = tmp_path_factory.mktemp("made") / "store"
    ingest(scans, out, labels=scans.parent / "labels.csv", key=tiny.secret(out.parent / "key"))
    return out


@pytest.fixture(scope="module")
def run(store) -> Path:
    from medssl import pretrain

    return pretrain(store, store.parent / "run", encoder="mlp", encoder_options={"widths": [16]}, steps=6, batch=8)


def test_a_wrong_key_or_choice_is_answered_in_the_words_of_the_user(capsys):
    code, _, err = medssl(capsys, "ingest", "source=a", "out=b", "qqqq=1")
    assert code == 2
    assert "Known: address, aihub" in err
    assert "_" not in err.partition("Known:")[2].replace("strict_patients", "")
    with pytest.raises(UserError, match=r"there is no baseline 'pixels'\. Did you mean 'raw pixels'\?$"):
        select_baselines(["pixels"])


def test_help_lists_every_command_and_every_choice(capsys):
    code, out, _ = medssl(capsys, "--help")
    assert code == 0
    commands = catalog.entries("command")
    assert [line.split()[0] for line in out.splitlines() if re.match(r"  [a-z]+ ", line)] == [
        *commands,
        *["medssl"] * 4,
    ]
    for command, entry in commands.items():
        code, out, _ = medssl(capsys, command, "--help")
        assert code == 0
        assert entry.more in out
    code, out, _ = medssl(capsys, "pretrain", "--help")
    for group in ("method", "encoder", "augment"):
        for name in catalog.choices(group):
            assert re.search(rf"^  {name}(  |$)", out, re.M), f"{name} is missing, or runs into its text"


def test_help_fits_80_columns_and_groups_methods_by_family(capsys):
    pages = [medssl(capsys, "--help")[1]]
    pages += [medssl(capsys, c, "--help")[1] for c in catalog.entries("command")]
    long = [line for page in pages for line in page.splitlines() if len(line) > 80 and "medssl " not in line]
    assert long == []
    page = medssl(capsys, "pretrain", "--help")[1]
    at = [
        page.index(f"\n{title}\n")
        for title in (" Contrastive and mutual information", " Metric learning", " With labels")
    ]
    assert (
        at[0] < page.index("\n  simclr ") < at[1] < page.index("\n  triplet ") < at[2] < page.index("\n  supervised ")
    )


def test_yaml_means_the_same_to_the_catalog_and_to_hydra():
    """PyYAML alone reads 1e-3 as a string, OmegaConf as a number."""
    assert catalog.read_yaml("{a: 1e-3, b: 1.5, c: 3, d: 1e3x, e: -.5, f: 1.0e-4, g: 2020-01, h: ''}") == {
        "a": 1e-3, "b": 1.5, "c": 3, "d": "1e3x", "e": -0.5, "f": 1e-4, "g": "2020-01", "h": "",
    }  # fmt: skip
    for file in sorted(catalog.root().rglob("*.yaml")):
        read = catalog.read_yaml(file.read_text())
        assert read == OmegaConf.to_container(OmegaConf.create(file.read_text())), file
        assert [type(v) for v in read.values()] == [
            type(v) for v in OmegaConf.to_container(OmegaConf.load(file)).values()
        ]


RENAMED = [
    (c, old, new)
    for c in catalog.entries("command")
    for old, new in catalog.load("command", c).get("_renamed_", {}).items()
]


def test_every_name_from_elsewhere_stands_for_a_key_that_exists():
    keys = {k for c in catalog.entries("command") for k in catalog.load("command", c)} | set(GROUPS)
    for alias, names in ALIASES.items():
        assert {name.partition("=")[0] for name in names} <= keys, alias
        assert known_as(alias, keys - {alias}).startswith("write "), alias


def test_help_of_a_command_and_of_a_choice(capsys):
    assert medssl(capsys, "help", "probe") == medssl(capsys, "probe", "--help")
    code, out, _ = medssl(capsys, "pretrain", "method=dino", "--help")
    assert code == 0
    assert out.startswith("method=dino: DINO: predict")
    assert "  method.small.size=0.43 " in out
    assert "Keys" not in out
    assert max(map(len, out.splitlines())) <= 80
    for group in GROUPS:
        for name in catalog.choices(group):
            given = {k: v for k, v in catalog.load(group, name).items() if not k.startswith("_")}
            options = [k for k, v in given.items() if not (isinstance(v, dict) and set(v) <= {"op", "slot"})]
            text = medssl(capsys, "pretrain", f"{group}={name}", "--help")[1]
            assert all(f" {group}.{k}" in text for k in options), name
    assert "Keys" in medssl(capsys, "demo", "encoder=cnn", "--help")[1], "a plain key there"


@pytest.mark.parametrize(
    ("command", "word", "meant"),
    [
        ("compare", "runs=a,b c", "runs=[a,b c]"),
        ("probe", "label_budgets=10 %,all", "label_budgets=[10 %,all]"),
        ("explore", "maps=pca,tsne", "maps=[pca,tsne]"),
        ("probe", "target=a,b", "target=[a,b]"),
        ("probe", "target=a", "target='a'"),
        ("knn", "where=age in (1,2)", r"where='age in (1,2)'"),
    ],
)
def test_a_list_needs_no_brackets(command, word, meant):
    assert literal(command, bracketed(command, word)) == meant


def test_a_file_with_a_comma_in_its_name_is_one_value(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert bracketed("compare", f"runs={tmp_path / 'a,b'}") == f"runs={tmp_path / 'a,b'}"


@pytest.mark.parametrize(("command", "old", "new"), RENAMED)
def test_an_old_key_names_the_new_one(capsys, command, old, new):
    code, _, err = medssl(capsys, command, f"{old}=x")
    assert (code, err.count("\n")) == (2, 1)
    assert f"write {new}=x" in err
    assert new in catalog.load("command", command) or new in ("method", "encoder", "augment")


USAGE = [
    (["pretain"], "Did you mean 'pretrain'"),
    (["pretrain", "store=x", "out=y", "method.temprature=1"], "Did you mean 'method.temperature'"),
    (["pretrain", "store=x", "out=y", "method=simcrl"], "Did you mean 'simclr'"),
    (["pretrain", "store=x", "out=y", "augment=xry"], "Did you mean 'xray'"),
    (["pretrain", "store=x", "out=y", "stes=3"], "Did you mean 'steps'"),
    (["pretrain", "store=x", "out=y", "encoder.widths=[8]"], "encoder=NAME"),
    (["pretrain", "out=y"], "store=…"),
    (["pretrain", "store=x", "out=y", "seed=0,1"], "add -m"),
    (["probe", "run=x", "--store", "y"], "options are key=value"),
    (["ingest"], "source=…"),
    (["release", "store=x"], "where=…"),
    (["inspect", "-m", "store=x", "where=dims == 2,dims == 3"], "-m sweeps medssl pretrain"),
    (["knn", "-m", "run=x", "store=y", "target=z", "k=1,2"], "-m sweeps medssl pretrain"),
    (["pretrain", "-m", "store=x", "out=y", "encoder=mlp,resnet10t"], "encoder=timm"),
    (["pretrain", "-m", "store=x", "out=y", "method=simclr,nope"], "there is no method 'nope'"),
    (["ingest", "source=x", "out=y", "intensity=xry"], "Did you mean 'xray'"),
    (["pretrain", "store=x", "out=y", "epochs=3"], "write steps=…; training is counted in updates of the weights"),
    (["pretrain", "store=x", "out=y", "gpu=1"], "write accelerator=cuda"),
    (["probe", "run=x", "store=y", "target=z", "gpu=1"], "write device=cuda"),
    (["pretrain", "store=x", "out=y", "wandb=true"], "write log=wandb; wandb is offline, wandb-online sends"),
    (["pretrain", "store=x", "out=y", "image_size=224"], "write size=…"),
    (["pretrain", "store=x", "out=y", "backbone=vit"], "write encoder=…"),
    (["ingest", "data=x", "out=y"], "write source=…"),
    (["embed", "run=x", "data=y"], "write store=…"),
    (["help", "pretrane"], "there is no command 'pretrane'. Did you mean 'pretrain'"),
    (["pretrain", "method=dyno", "--help"], "there is no method 'dyno' with a help text. Did you mean 'dino'"),
]


@pytest.mark.parametrize(("args", "words"), USAGE, ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_a_command_that_cannot_be_understood_exits_2_with_one_line(capsys, args, words):
    code, _, err = medssl(capsys, *args)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def wrong_inputs(scans, store, run, tmp_path):
    """(arguments, words of the error) of everything that is understood and cannot work."""
    empty = tmp_path / "empty"
    empty.mkdir()
    return [
        (["ingest", "source=/no/such folder(1)=x,y", f"out={tmp_path / 'a'}"], "/no/such folder(1)=x,y"),
        (["ingest", f"source={empty}", f"out={tmp_path / 'a'}"], str(empty)),
        (["ingest", f"source={scans}", f"out={store}"], "overwrite"),
        (["ingest", f"source={scans}", f"out={tmp_path / 'a'}", "labels=/no/labels.csv"], "/no/labels.csv"),
        (["pretrain", f"store={empty}", f"out={tmp_path / 'r'}"], str(empty)),
        (["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "batch=1000"], "lower batch to at most"),
        (["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "encoder=resnet19"], "resnet1"),
        (["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "steps=0"], "steps must be at least 1"),
        (["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "lr=-1"], "lr must be positive"),
        (["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "method=mae", "encoder=cnn"], "encoder=vit"),
        (["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "log=tensorboard"], "wandb"),
        (["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "precision=16"], "precision"),
        (["pretrain", f"store={store}", f"out={run}", "steps=7"], "choose another out="),
        (["ingest", f"source={scans}", f"out={store}", "overwrite=no"], "overwrite must be true or false"),
        (
            ["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "steps=ten"],
            "steps must be a whole number, got 'ten'",
        ),
        (["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "lr=fast"], "lr must be a number"),
        (["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "size=0"], "size must be at least 4"),
        (
            ["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "warmup=5"],
            "warmup must be at least 0 and at most 0.99",
        ),
        (["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "batch=1"], "batch must be at least 2"),
        (["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "seed=-1"], "seed must be at least 0"),
        (["pretrain", f"store={store}", f"out={tmp_path / 'r'}", "method.hidden=wide"], "hidden=wide"),
        (["pretrain", f"store={store}", f"out={scans / '00.png'}"], "is a file"),
        (["knn", f"run={run}", f"store={store}", "target=label", "k=0"], "k must be at least 1"),
        (
            ["probe", f"run={run}", f"store={store}", "target=label", "allow_overlap=no"],
            "allow_overlap must be true or false",
        ),
        (["probe", f"run={run}", f"store={store}", "target=label", "device=tpu"], "device is 'tpu'"),
        (["embed", f"run={empty}", f"store={store}"], "medssl pretrain"),
        (["probe", f"run={run}", f"store={store}", "target=lable"], "Did you mean 'label'"),
        (["probe", f"run={run}", f"store={store}", "target=label", "baselines=[raw]"], "raw pixels"),
        (["report", f"run={empty}"], "medssl pretrain"),
        (["inspect", f"store={empty}"], str(empty)),
        (["inspect", f"store={store}", "where=lable == 'big'"], "Did you mean 'label'"),
        (["inspect", f"store={store}", 'where="big" == label and (dims = 2)'], "Equality is written =="),
        (["inspect", f"store={store}", f"sheet={scans / '00.png' / 'a.png'}"], "choose another place"),
        (["rejects", f"store={store}", "code=TRUNCATE"], "Did you mean 'TRUNCATED'"),
        (["release", f"store={store}", "where=label in ['big', 'small']"], "none of which is quarantined"),
    ]


def test_wrong_input_exits_1_with_one_line_and_leaves_nothing(capsys, scans, store, run, tmp_path):
    for args, words in wrong_inputs(scans, store, run, tmp_path):
        code, _, err = medssl(capsys, *args)
        last = err.strip().splitlines()[-1]
        assert code == 1, (args, err)
        assert last.startswith("medssl: "), (args, err)
        assert words in last, (args, err)
        assert "unexpected" not in last, (args, err)
        assert "Traceback" not in err
        assert not (tmp_path / "r").exists(), (args, err)
    assert [p.name for p in tmp_path.iterdir() if p.name != "empty"] == []


@pytest.mark.parametrize(
    "value",
    [
        *("a b(1)=c,d", "it's", "back\\slash", "end\\", "한글 폴더", "${HOME}", "person(\\d+)"),
        *("[2024] scans", "[scans]", "[a, b]", "[", "'tis", "'", "'a' and 'b'", '"quoted" scans', "'\\", "{a: b}"),
    ],
)
def test_a_path_is_taken_as_it_is(value):
    word = literal("ingest", f"source={value}")
    assert compose_config("ingest", [word, "out=x"]).source == value


@pytest.mark.parametrize("key", ["out", "labels", "masks", "patient"])
def test_every_path_of_a_command_may_begin_with_a_bracket_or_a_quote(key):
    word = literal("ingest", f"{key}=['a")
    given = ["source=x", *(["out=y"] if key != "out" else []), word]
    assert compose_config("ingest", given)[key] == "['a"


def test_quotes_around_a_whole_path_are_not_part_of_it_unless_a_file_has_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compose_config("ingest", [literal("ingest", "source='a b'"), "out=x"]).source == "a b"
    (tmp_path / "'a b'").mkdir()
    assert compose_config("ingest", [literal("ingest", "source='a b'"), "out=x"]).source == "'a b'"


def test_lists_stay_lists():
    assert list(compose_config("probe", ["run=r", "store=s", literal("probe", "target=[a,b]")]).target) == ["a", "b"]
    assert list(compose_config("compare", [literal("compare", "runs=[x,'y z']")]).runs) == ["x", "y z"]


@pytest.mark.parametrize(
    "value",
    [
        'modality == "CT" and spacing <= 2',
        '"cut off" in flags',
        "'it''s' != label.x",
        "modality in ['CT', \"MR\"]",
        "[1, 2] == dims",
        "finding == '폐렴, 좌' or ${HOME} == \\",
        "a=b",
        "3 < slices",
        "true",
    ],
)
def test_a_where_is_taken_as_it_is(value):
    assert compose_config("inspect", ["store=x", literal("inspect", f"where={value}")]).where == value
    assert compose_config("inspect", ["store=x", literal("inspect", "where=null")]).where is None


def test_debug_shows_where(capsys, monkeypatch):
    monkeypatch.setenv("MEDSSL_DEBUG", "1")
    _, _, err = medssl(capsys, "pretain")
    assert "Traceback" in err


@pytest.mark.parametrize("encoding", ["cp949", "euc-kr", "latin-1", "ascii", "utf-8"])
def test_no_terminal_costs_a_score(store, run, tmp_path, monkeypatch, encoding):
    """Tables have a Δ, dashes and labels in Korean; a terminal without them gets other characters, and code 0."""
    copy = shutil.copytree(run, tmp_path / "한글 run")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for args in (
        ["knn", f"run={copy}", f"store={store}", "target=label", "baselines=[raw pixels]"],
        ["--help"],
        ["knn", "--help"],
        ["probe", f"run={copy}", f"store={tmp_path / '없는 폴더 …'}", "target=label"],
    ):
        with pytest.raises(SystemExit) as done:
            main(args)
        assert done.value.code == (1 if args[0] == "probe" else 0), err.buffer.getvalue()
    out.flush()
    err.flush()
    text = out.buffer.getvalue().decode(encoding)
    assert ("Δ AUROC vs run" if encoding in ("cp949", "euc-kr", "utf-8") else "D AUROC vs run") in text
    lines = err.buffer.getvalue().decode(encoding).strip().splitlines()
    assert lines[-1].startswith("medssl: ")
    assert "does not exist" in lines[-1]
    assert [t["command"] for t in json.loads((copy / "scores.json").read_text("utf-8"))["tables"]] == ["knn"]


def test_a_machine_without_unicode_scores_too(scans, tmp_path):
    """In the C locale with UTF-8 switched off, files are still read and written as UTF-8."""
    table = tmp_path / "labels.csv"
    table.write_text((scans.parent / "labels.csv").read_text().replace("small", "정상").replace("big", "폐렴"), "utf-8")
    key = tiny.secret(tmp_path / "key")
    code = (
        "import sys; from medssl.cli.main import main\n"
        "for words in (line.split('|') for line in sys.argv[1:]):\n"
        "    try: main(words)\n"
        "    except SystemExit as e:\n"
        "        if e.code: raise\n"
    )
    commands = [
        f"ingest|source={scans}|out={tmp_path / 's'}|labels={table}|key={key}|workers=1",
        f"pretrain|store={tmp_path / 's'}|out={tmp_path / 'r'}|encoder=mlp|encoder.widths=[16]|steps=2|batch=8|monitor_every=0",
        f"probe|run={tmp_path / 'r'}|store={tmp_path / 's'}|target=label|baselines=[raw pixels]",
        f"report|run={tmp_path / 'r'}",
    ]
    env = ENV | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code, *commands], env=env, cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert b"D AUROC vs run" in done.stdout
    (scored,) = json.loads((tmp_path / "r" / "scores.json").read_text("utf-8"))["tables"]
    assert sorted(scored["classes"]) == ["정상", "폐렴"]
    assert "폐렴" in (tmp_path / "r" / "report.html").read_text("utf-8")


def test_a_full_disk_behind_the_pipe_is_one_line(store, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    args = ["knn", f"run={copy}", f"store={store}", "target=label", "baselines=[]"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run([sys.executable, "-m", "medssl.cli", *args], env=ENV, cwd=ROOT, check=False,
                              stdout=full, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert done.returncode == 1
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert (copy / "scores.json").exists()


def test_a_sweep_makes_a_run_for_each_combination(store, tmp_path):
    out = tmp_path / "sweep"
    args = ["pretrain", "-m", f"store={store}", f"out={out}", "method=simclr,byol", "seed=0,1", "steps=2", "batch=8"]
    args += ["encoder=mlp", "encoder.widths=[16]", "monitor_every=0"]
    done = subprocess.run([sys.executable, "-m", "medssl.cli", *args], env=ENV, cwd=ROOT, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("run ")]
    assert said == [f"run {k} of 4" for k in (1, 2, 3, 4)]
    runs = {p.name for p in out.iterdir() if (p / "encoder.json").exists()}
    assert runs == {f"{m}-seed{s}" for m in ("simclr", "byol") for s in (0, 1)}


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ({"seed": "0", "method": "simclr"}, "simclr-seed0"),
        ({"lr": "1e-3", "encoder.widths": "[8,16]"}, "encoder.widths8_16-lr1e-3"),
        ({"augment": "xray", "precision": "bf16-mixed"}, "xray-precision-bf16-mixed"),
    ],
)
def test_the_folder_of_a_run_of_a_sweep_is_a_word_that_shells_and_lists_leave_alone(chosen, name):
    assert run_name(chosen.items()) == name


def test_values_that_differ_in_other_characters_get_different_folders():
    names = {run_name([("where", f"slices {sign} 5")]) for sign in ("<", ">", ">=", "==")}
    assert len(names) == 4
    assert all(re.fullmatch(r"[\w.+-]+", name) for name in names)


def test_any_timm_model_by_its_name(capsys, store, tmp_path):
    args = (f"store={store}", f"out={tmp_path / 'r'}", "encoder=resnet10t", "steps=1", "batch=4", "monitor_every=0")
    code, _, err = medssl(capsys, "pretrain", *args)
    assert code == 0, err
    import timm

    path = str(tmp_path / "r" / "encoder.safetensors")
    timm.create_model("resnet10t", in_chans=1, num_classes=0, checkpoint_path=path)


def test_ctrl_c_is_one_line(store, tmp_path):
    """SIGINT in the middle of a run: saved, said, code 1; the same command then finishes."""
    import signal

    out = tmp_path / "r"
    args = ["pretrain", f"store={store}", f"out={out}", "steps=3000", "batch=8", "encoder=mlp", "encoder.widths=[16]",
            "log_every=1", "monitor_every=0"]  # fmt: skip
    command = [sys.executable, "-m", "medssl.cli", *args]
    child = subprocess.Popen(command, env=ENV, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    rows = out / "metrics.jsonl"
    while child.poll() is None and not (rows.exists() and rows.read_text().count("\n") > 3):
        pass
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode == 1, err
    assert "run the same command again" in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert (out / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("command", "words", "key", "value"),
    [
        ("finetune", ["run=x", "store=y", "target=z", "augment=plain"], "augment", "plain"),
        ("segment", ["run=x", "store=y", "augment=mr"], "augment", "mr"),
        ("cam", ["run=x", "store=y", "method=similarity"], "method", "similarity"),
        ("demo", ["method=byol", "encoder=vit"], "method", "byol"),
    ],
)
def test_a_plain_key_may_have_the_name_of_a_group(command, words, key, value):
    """Only pretrain chooses yamls with method=, encoder= and augment=; for the others Hydra must not look for any."""
    assert compose_config(command, words)[key] == value
    assert compose_config("pretrain", ["store=x", "out=y", "augment=mr"]).augment.crop is not None


def test_a_timm_encoder_of_the_demo_is_passed_on(monkeypatch):
    given = {}
    monkeypatch.setattr("medssl.cli.run.call", lambda command, cfg, *_: given.update(cfg))
    run_command("demo", ["encoder=resnet18"])
    assert given["encoder"] == "resnet18"


@pytest.mark.parametrize(
    ("command", "key", "value", "taken"),
    [
        ("probe", "positive", ["pneumonia", 1], ["pneumonia", "1"]),
        ("probe", "unknown", [-1], ["-1"]),
        ("survive", "positive", [1], ["1"]),
        ("probe", "positive", 1, "1"),
        ("probe", "label_budgets", [50, "all"], [50, "all"]),
        ("ingest", "missing", ["NR", 9], ["NR", "9"]),
        ("ingest", "missing", False, False),
        ("ingest", "missing", [], []),
    ],
)
def test_a_list_of_values_is_taken(command, key, value, taken):
    assert typed(key, value, get_type_hints(getattr(medssl_package, command))[key]) == taken


def test_a_recipe_is_the_settings_in_its_yaml_and_other_keys_win():
    words = expand_recipe(["store=S", "recipe=chest_xray_28", "steps=20", "method.temperature=0.5", "out=R"])
    keys = [word.partition("=")[0] for word in words]
    assert len(set(keys)) == len(keys)
    found = dict(word.split("=", 1) for word in words)
    recipe = catalog.recipe("chest_xray_28")
    assert found.pop("steps") == "20"
    assert found.pop("method.temperature") == "0.5"
    assert found == {"store": "S", "out": "R", "method.hidden": "512", "method.out": "256"} | {
        k: str(v) for k, v in recipe.items() if k not in ("steps", "method_options")
    }
    other = expand_recipe(["recipe=chest_xray_28", "method=byol"])
    assert not [word for word in other if word.startswith("method.")]
    with pytest.raises(UsageError, match=r"no recipe 'chest_xray'.*chest_xray_28"):
        expand_recipe(["recipe=chest_xray"])


@pytest.mark.parametrize("name", catalog.entries("recipe"))
def test_every_recipe_can_be_composed(name):
    """Its keys are known, on the command line and in Python, and its values are those of the composed config."""
    recipe = catalog.recipe(name)
    assert set(recipe) <= {f.name for f in fields(PretrainOptions)}
    cfg = compose_config("pretrain", expand_recipe(["store=S", "out=R", f"recipe={name}"]))
    for key, value in recipe.items():
        if key.endswith("_options"):
            assert {k: cfg[key.removesuffix("_options")][k] for k in value} == value
        elif key in ("method", "encoder", "augment"):
            assert cfg.hydra.runtime.choices[key] == value
        else:
            assert cfg[key] == value
