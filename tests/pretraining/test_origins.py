"""Runs that start from weights at hand or learn from a frozen teacher: what is recorded, and whom the leak check then counts."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import medssl
import tiny
from medssl.cli.main import main
from medssl.errors import UserError
from medssl.synthetic.cohort import write_cohort

RUN = {"encoder": "cnn", "encoder_options": {"widths": [8, 16]}, "size": 16, "batch": 16, "monitor_every": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two hospitals of one lab, a third with another key, and a run on the first."""
    folder = tmp_path_factory.mktemp("origins")
    for name, key, seed in (("a", "key", 3), ("b", "key", 4), ("c", "other", 4)):
        cohort = write_cohort(folder / f"cohort {name}", patients=24, size=32, seed=seed)
        secret = tiny.secret(folder / key, "0" if key == "key" else "1")
        medssl.ingest(cohort / "scans", folder / name, labels=cohort / "labels.csv", key=secret)
    medssl.pretrain(folder / "a", folder / "run a", method="simclr", steps=6, **RUN)
    return folder


def pretrain(made, name, store="b", **options):
    return medssl.pretrain(made / store, made / name, **{"method": "byol", "steps": 2} | RUN | options)


def patients(folder) -> set[str]:
    return set(pq.read_table(folder / "pretrained_on.parquet")["patient"].to_pylist())


def training(made, store) -> set[str]:
    scans = medssl.Store.open(made / store)
    return set(scans.column("patient")[scans.rows("train")])


def test_a_run_from_a_run_starts_at_its_weights_and_lists_the_patients_of_both(made):
    """With a rate of almost nothing, the weights after two steps are those it started from."""
    run = pretrain(made, "from a", init=made / "run a", encoder=None, encoder_options=None, lr=1e-12)
    old, new = (load_file(made / name / "encoder.safetensors") for name in ("run a", "from a"))
    for k in old:
        if not k.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(new[k], old[k], rtol=0, atol=1e-8)
    assert patients(run) == training(made, "a") | training(made, "b")
    assert training(made, "a").isdisjoint(training(made, "b"))
    before = json.loads((made / "run a" / "encoder.json").read_text())
    told = json.loads((run / "encoder.json").read_text())["init"]
    assert told["weights"] == before["weights"]
    assert (told["method"], told["encoder"], told["step"], told["store"]) == ("simclr", "cnn", 6, before["store"])
    resolved = yaml.safe_load((run / "resolved.yaml").read_text())
    assert resolved["init"] == told
    assert resolved["encoder"] == {"name": "cnn", "widths": [8, 16], "norm": "batch"}
    assert "init" not in before


def test_test_patients_that_the_first_run_saw_are_refused(made):
    """The leak that a list of the second run's patients alone would miss."""
    run = pretrain(made, "from a again", init=made / "run a")
    alone = pretrain(made, "alone")
    words = r"pretraining includes \d+ of the \d+ test patients"
    with pytest.raises(UserError, match=words):
        medssl.knn(run, made / "b", "lesion", test_store=made / "a", baselines=[])
    assert medssl.knn(alone, made / "b", "lesion", test_store=made / "a", baselines=[])["rows"]


def test_origins_go_on_through_a_chain_and_a_bare_file_is_flagged(made):
    save_file(load_file(made / "run a" / "encoder.safetensors"), made / "bare.safetensors")
    first = pretrain(made, "first", init=made / "bare.safetensors")
    second = pretrain(made, "second", init=first)
    told = json.loads((second / "encoder.json").read_text())["init"]
    assert told["init"]["file"] == "bare.safetensors"
    assert str(made) not in (second / "encoder.json").read_text()
    table = medssl.knn(second, made / "b", "lesion", baselines=[])
    assert any("bare.safetensors, whose training scans are not listed" in flag for flag in table["flags"])


def test_patients_under_another_key_count_as_unnamed_and_are_flagged(made):
    run = pretrain(made, "from c", init=pretrain(made, "run c", store="c"))
    table = pq.read_table(run / "pretrained_on.parquet").to_pylist()
    known = {row["patient"]: row["patient_known"] for row in table}
    assert all(known[p] for p in training(made, "b"))
    assert not any(known[p] for p in training(made, "c"))
    flags = medssl.knn(run, made / "b", "lesion", baselines=[], allow_overlap=True)["flags"]
    assert any("saw under another key: shared images are found, shared patients are not" in flag for flag in flags)


def test_a_run_is_not_continued_from_other_weights(made):
    options = {"init": made / "moving"}
    shutil.copytree(made / "run a", made / "moving")
    run = pretrain(made, "stays", **options)
    assert pretrain(made, "stays", **options) == run
    shutil.rmtree(made / "moving")
    shutil.copytree(pretrain(made, "another", store="a"), made / "moving")
    old, new = (json.loads((made / n / "encoder.json").read_text())["weights"] for n in ("run a", "moving"))
    with pytest.raises(
        UserError, match=f"holds a run with init=weights {old}, and now init=weights {new} is requested"
    ):
        pretrain(made, "stays", **options)
    with pytest.raises(UserError, match="holds a run with adapt='all', and now adapt='norm' is requested"):
        pretrain(made, "stays", init=made / "run a", adapt="norm")


@pytest.mark.parametrize("adapt", ["norm", "lora"])
def test_an_adapted_run_exports_the_plain_architecture(made, adapt):
    """Kill and resume: `tests/contracts/test_resume.py`."""
    run = pretrain(made, f"adapted {adapt}", init=made / "run a", adapt=adapt, lr=0.01, precision="bf16-mixed")
    old, new = (load_file(f / "encoder.safetensors") for f in (made / "run a", run))
    assert {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in new.items()}
    moved = {k for k in old if not torch.equal(old[k], new[k]) and k.endswith(("weight", "bias"))}
    assert moved == {k for k, v in old.items() if k.endswith(("weight", "bias")) and (v.ndim == 1) == (adapt == "norm")}
    assert yaml.safe_load((run / "resolved.yaml").read_text())["adapt"] == adapt
    assert medssl.knn(run, made / "b", "lesion", baselines=[])["rows"]


def test_a_teacher_is_recorded_and_its_patients_are_listed(made):
    run = pretrain(made, "student", method="distill", teacher=made / "run a", encoder_options={"widths": [4, 4]})
    told = json.loads((run / "encoder.json").read_text())
    assert told["teacher"]["weights"] == json.loads((made / "run a" / "encoder.json").read_text())["weights"]
    assert "init" not in told
    assert patients(run) == training(made, "a") | training(made, "b")
    assert told["dim"] == 4


def test_what_cannot_work_is_refused_before_training(made, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    run = made / "run a"
    for options, words in [
        ({"adapt": "lora"}, "adapt=lora trains a part of an encoder that has weights; give init=PATH"),
        ({"adapt": "Lora", "init": run}, "adapt is 'Lora'"),
        ({"adapt": "attention", "init": run}, "adapt=attention needs a transformer"),
        ({"adapt": "lora", "init": run, "lora_rank": 0}, "lora_rank must be at least 1"),
        ({"init": run, "encoder_options": {"widths": [8, 8]}}, r"does not fit encoder=cnn: layers\.1\.0\.weight"),
        ({"init": tmp_path / "nowhere"}, "does not exist"),
        ({"init": run, "encoder": "resnet18", "encoder_options": {"pretrained": True}}, "both give the encoder its weights"),
        ({"teacher": run}, "byol has no frozen teacher; leave out teacher"),
        ({"method": "distill"}, "distill learns from the encoder of another run; name it with teacher=RUN"),
        ({"method": "distill", "teacher": tmp_path / "x.safetensors"}, "does not say how it takes scans"),
        ({"method": "distill", "teacher": run, "equalise": True}, "the teacher was trained with equalise=false"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=words) as refused:
            pretrain(made, "refused", **options)
        assert "\n" not in str(refused.value)
        assert not (made / "refused" / "checkpoints").exists()


def test_the_command_line_takes_a_path_with_any_name(made, tmp_path):
    shutil.copytree(made / "run a", tmp_path / "it's, a=run")
    words = [f"store={made / 'b'}", f"out={tmp_path / 'out'}", "method=byol", "size=16", "batch=16", "steps=2"]
    with pytest.raises(SystemExit) as done:
        main(["pretrain", *words, "adapt=norm", f"init={tmp_path}/it's, a=run", "monitor_every=0"])
    assert not done.value.code
    old, new = (load_file(f / "encoder.safetensors") for f in (made / "run a", tmp_path / "out"))
    assert {k: v.shape for k, v in new.items()} == {k: v.shape for k, v in old.items()}
