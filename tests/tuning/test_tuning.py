"""The search: its space, its study, which goes on after a kill, and a winner that is scored once."""

import json
import shlex
import sys
import time

import numpy as np
import pytest
import yaml

from medssl.cli.run import compose_config
from medssl.commands.train.tune import tune
from medssl.errors import UsageError, UserError
from medssl.files import locked
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan
from medssl.runs.run_folder import Run
from medssl.scoring.eval_splits import SplitOptions
from medssl.store.store import Store
from medssl.tuning.measure import LabelFree, measure_of
from medssl.tuning.space import Range, Space, Values
from medssl.tuning.study import Budget, Search
from medssl.tuning.wandb_sweep import wandb_sweep

BY = LabelFree("score", "score", 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """200 small images of as many patients; the label is their brightness."""
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path_factory.mktemp("tuning") / "store", Pseudonyms(bytes(32))) as writer:
        for i in range(200):
            pixels = rng.integers(0, 120 + 80 * (i % 2), (1, 12, 12)).astype(np.uint8)
            writer.add(
                Scan(pixels, scan=f"s{i}", patient=f"p{i}", modality="DX", labels={"bright": str(i % 2)}), f"s{i}"
            )
        writer.finish()
    return Store.open(writer.staged.out)


def curve(quality, steps=9, die_at=None):
    """Return a `Train` whose runs log quality(options) * step; it is killed at a step of its first run."""
    calls = []

    def train(options, run, watch):
        calls.append((options, run))
        run.mkdir(parents=True, exist_ok=True)
        rows = [{"step": step, "score": quality(options) * step} for step in range(1, steps + 1)]
        for row in rows:
            if die_at == (len(calls), row["step"]):
                raise KeyboardInterrupt
            watch(row)
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run

    return train, calls


def search(folder, space, pruner="none", sampler="random", **settings):
    return Search(folder, Space.of(space), BY, sampler, pruner, 0, {"search": space} | settings)


# the space


def test_a_value_is_fixed_a_list_is_a_choice_and_three_with_a_scale_are_a_range():
    space = Space.of(
        {"steps": 5, "lr": [1e-4, 1e-2, "log"], "batch": [16, 256, "log"], "momentum": [0.5, 0.9, "linear"],
         "size": [8, 32, "int"],
         "encoder": ["cnn", "vit"], "encoder.widths": [4, 8], "method.flag": [True, False], "method.small": [[1, 2], [3]]}
    )  # fmt: skip
    assert space.fixed == {"steps": 5, "encoder.widths": [4, 8]}
    assert space.searched == {
        "lr": Range(1e-4, 1e-2, True, False), "batch": Range(16, 256, True, True), "momentum": Range(0.5, 0.9, False, False),
        "size": Range(8, 32, False, True), "encoder": Values(("cnn", "vit")), "method.flag": Values((True, False)),
        "method.small": Values(("[1, 2]", "[3]")),
    }  # fmt: skip
    chosen = {"lr": 0.1, "method.small": "[1, 2]", "method.flag": True}
    assert space.options(chosen) == {
        "steps": 5, "lr": 0.1, "encoder_options": {"widths": [4, 8]}, "method_options": {"small": [1, 2], "flag": True}
    }  # fmt: skip
    with_recipe = Space.of({"recipe": "chest_xray_28", "lr": [1e-4, 1e-3]})
    assert with_recipe.fixed["method"] == "simclr"
    assert "lr" not in with_recipe.fixed


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({}, "search= is missing"),
        ({"lr": 0.1}, "nothing to search"),
        ({"lrr": [1, 2]}, "'lr'"),
        ({"seed": [1, 2]}, "sets seed itself"),
        ({"lr": [0.1]}, "two or more"),
        ({"lr": [0.1, 0.1]}, "two or more"),
        ({"lr": [0, 0.1, "log"]}, "no range"),
        ({"lr": [0.2, 0.1, "linear"]}, "no range"),
        ({"batch": [1.5, 4, "int"]}, "whole number"),
    ],
)
def test_a_search_that_cannot_work_is_refused(space, says):
    with pytest.raises(UserError, match=says):
        Space.of(space)


def test_the_command_line_gives_the_search_as_it_is_written():
    words = [
        "store=S",
        "out=O",
        "search={lr: [1e-4, 1e-2, log], encoder: [cnn, vit], encoder.widths: [4, 8], steps: 5}",
    ]
    assert compose_config("tune", words).search == {
        "lr": [1e-4, 1e-2, "log"], "encoder": ["cnn", "vit"], "encoder.widths": [4, 8], "steps": 5
    }  # fmt: skip


# the study


def test_a_killed_trial_goes_on_with_its_own_settings_in_its_own_folder(tmp_path):
    space = {"lr": [1e-4, 1e-2, "log"], "batch": [8, 16, 32]}
    train, calls = curve(lambda o: o["lr"], die_at=(3, 4))
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, space).run(Budget(5, None), train)
    again, after = curve(lambda o: o["lr"])
    study = search(tmp_path, space)
    study.run(Budget(5, None), again)
    assert after[0] == calls[2]
    assert len(after) == 3
    assert study.counts() == {"tried": 5, "finished": 5, "pruned": 0, "failed": 0}
    every = [options for options, _ in (*calls[:2], *after)]
    assert len({o["lr"] for o in every}) == 5  # the sampler does not begin anew
    best, value = study.ranked()[0]
    assert best["lr"] == max(o["lr"] for o in every)
    assert value.value == pytest.approx(9 * best["lr"])
    study.run(Budget(5, None), again)
    assert len(after) == 3  # the budget is that of all calls


def test_asha_ends_runs_that_are_behind_and_keeps_the_best(tmp_path):
    values = [5, 1, 2, 3, 4, 6]
    train, _ = curve(lambda o: o["batch"])
    study = Search(tmp_path, Space.of({"batch": values}), BY, "grid", "asha", 0, {})
    study.run(Budget(100, None), train)
    counts = study.counts()
    assert counts["tried"] == 6
    assert counts["pruned"] == 4
    assert [chosen["batch"] for chosen, _ in study.ranked()] == [6, 5]


def test_a_measure_that_is_better_lower_is_minimised(tmp_path):
    train, _ = curve(lambda o: o["batch"])
    study = Search(tmp_path, Space.of({"batch": [3, 1, 2]}), LabelFree("score", "score", -1), "grid", "asha", 0, {})
    study.run(Budget(100, None), train)
    best, value = study.ranked()[0]
    assert (best, value.value) == ({"batch": 1}, 9.0)


def test_grid_tries_every_combination_once_and_refuses_ranges(tmp_path):
    train, calls = curve(lambda o: 1.0)
    space = {"lr": [0.1, 0.2], "batch": [8, 16, 32]}
    search(tmp_path, space, sampler="grid").run(Budget(4, None), train)
    search(tmp_path, space, sampler="grid").run(Budget(100, None), train)
    assert sorted((o["lr"], o["batch"]) for o, _ in calls) == [(a, b) for a in (0.1, 0.2) for b in (8, 16, 32)]
    with pytest.raises(UserError, match="lr is a range"):
        search(tmp_path / "b", {"lr": [0.1, 0.2, "log"]}, sampler="grid")


def test_the_budget_in_seconds_ends_the_running_trial(tmp_path):
    def train(options, run, watch):
        for step in range(10**6):
            time.sleep(0.01)
            watch({"step": step})

    study = search(tmp_path, {"lr": [0.1, 0.2, "log"]})
    study.run(Budget(100, 0.2), train)
    assert study.counts() == {"tried": 1, "finished": 0, "pruned": 1, "failed": 0}
    with pytest.raises(UserError, match="out of time"):
        study.ranked()


def test_a_trial_with_impossible_settings_is_counted_and_the_others_go_on(tmp_path):
    good, _ = curve(lambda o: 1.0)

    def train(options, run, watch):
        if options["batch"] == 8:
            raise UserError("batch=8 is impossible")
        return good(options, run, watch)

    study = search(tmp_path, {"batch": [8, 16]}, sampler="grid")
    study.run(Budget(9, None), train)
    assert study.counts() == {"tried": 2, "finished": 1, "pruned": 0, "failed": 1}


def test_another_search_in_the_folder_a_second_process_and_a_damaged_file_are_refused(tmp_path):
    search(tmp_path / "a", {"lr": [0.1, 0.2]})
    with pytest.raises(UserError, match="holds a search with search="):
        search(tmp_path / "a", {"lr": [0.1, 0.3]})
    with pytest.raises(UsageError, match="sampler"):
        search(tmp_path / "b", {"lr": [0.1, 0.2]}, sampler="tpi")
    with (
        locked(tmp_path, "medssl tune"),
        pytest.raises(UserError, match="another medssl tune"),
        locked(tmp_path, "medssl tune"),
    ):
        pass
    (tmp_path / "c").mkdir()
    (tmp_path / "c/study.db").write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="cannot be read"):
        search(tmp_path / "c", {"lr": [0.1, 0.2]})


def test_a_missing_optuna_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"medssl\[tune\]"):
        search(tmp_path, {"lr": [0.1, 0.2]})


# the measure


def test_the_probe_reads_training_and_validation_patients_only(store):
    by = measure_of(None, store, "bright", None, SplitOptions())
    assert {*by.splits.test.rows} <= {*store.rows("val")}
    assert {*by.splits.train.rows} <= {*store.rows("train")}
    assert not len(by.splits.val)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((None, None, None), "give target="),
        (("rankme_shar", None, None), "rankme_share"),
        (("alpha", None, None), "neither more nor less"),
        (("trusted", None, None), "needs runs="),
    ],
)
def test_measures_that_cannot_work_are_refused(store, options, says):
    name, target, runs = options
    with pytest.raises(UserError, match=says):
        measure_of(name, store, target, runs, SplitOptions())


# the whole


def test_the_winner_is_trained_anew_scored_once_and_the_table_says_how_many_were_tried(store, tmp_path):
    space = {"lr": [1e-3, 1e-2], "method": "simclr", "encoder": "cnn", "encoder.widths": [4, 8], "size": 12, "batch": 16,
             "steps": 4, "monitor_every": 2, "accelerator": "cpu"}  # fmt: skip
    asked = {"target": "bright", "sampler": "grid", "pruner": "none", "seeds": 2, "device": "cpu"}
    result = tune(store, tmp_path / "out", space, **asked)
    assert result["counts"] == {"tried": 2, "finished": 2, "pruned": 0, "failed": 0}
    assert "best of 2 trials (2 finished)" in str(result)
    runs = {Run(p.parent).config().seed for p in (tmp_path / "out").glob("winner/*/encoder.json")}
    assert runs == {1, 2}
    assert {Run(p.parent).config().seed for p in (tmp_path / "out").glob("trials/*/encoder.json")} == {0}
    assert not list((tmp_path / "out").glob("trials/*/scores.json"))  # no trial was scored on the test
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    again = tune(store, tmp_path / "out", space, **asked | {"sampler": "random"})
    assert dict(again) == json.loads(json.dumps(dict(result)))
    assert "closed" in str(again)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


def test_the_sweep_of_wandb_starts_commands_that_can_be_parsed(tmp_path):
    space = Space.of({"lr": [1e-4, 1e-2, "log"], "encoder": ["cnn", "vit"], "method.temperature": 0.2, "steps": 5})
    text = wandb_sweep(space, BY, "tpe", tmp_path / "it's a store", "dims == 2", tmp_path / "sweep")
    sweep = yaml.safe_load(text)
    assert sweep["parameters"] == {
        "lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}, "encoder": {"values": ["cnn", "vit"]}
    }  # fmt: skip
    assert sweep["metric"] == {"name": "score", "goal": "maximize"}
    assert sweep["command"][:2] == ["bash", "-c"]
    words = shlex.split(sweep["command"][2])
    assert words[:3] == ["exec", "medssl", "pretrain"]
    from medssl.cli.words import literal

    cfg = compose_config("pretrain", [literal("pretrain", w) for w in words[3:-1]])
    assert cfg.store == str(tmp_path / "it's a store")
    assert cfg.where == "dims == 2"
    assert cfg.method.temperature == 0.2
    assert cfg.out == f"{tmp_path}/sweep/$WANDB_RUN_ID"
