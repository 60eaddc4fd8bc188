"""medssl runs: every run with its status, step, time and score, and the command that continues it."""

import json
import shlex

import pytest

import medssl
from explored import write_store
from medssl.commands.analyse.runs import runs
from medssl.errors import UserError
from medssl.runs.listing import list_runs
from medssl.runs.run_folder import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished, a stopped and a damaged run."""
    folder = tmp_path_factory.mktemp("runs")
    store = write_store(folder / "store", n=160)
    options = {
        "encoder": "cnn",
        "encoder_options": {"widths": [4]},
        "method_options": {"hidden": 32},
        "steps": 4,
        "batch": 8,
    }
    for name in ("done", "stopped"):
        medssl.pretrain(store, folder / f"all/{name}", method="vicreg", monitor_every=0, log_every=2, **options)
    medssl.knn(folder / "all/done", store, "site", k=3, baselines=[])
    stopped = folder / "all/stopped"
    (stopped / "encoder.json").unlink()
    rows = [(1, 5.0), (2, 9.0), (2, 4.0), (3, 6.5)]  # a second session begins at 0 seconds
    (stopped / "timing.jsonl").write_text("".join(json.dumps({"step": s, "seconds": t}) + "\n" for s, t in rows))
    (folder / "all/broken").mkdir()
    (folder / "all/broken/resolved.yaml").write_text("method: [")
    return folder


def test_each_run_has_its_status_time_score_and_how_to_continue(folder):
    broken, done, stopped = medssl.list_runs(folder / "all")
    assert (done["run"], done["status"], done["step"], done["steps"], done["resume"]) == ("done", "finished", 4, 4, "")
    kept = json.loads((folder / "all/done/scores.json").read_text())["tables"][0]["rows"][0]["scores"]["AUROC"]
    assert (done["metric"], done["score"], done["target"]) == ("AUROC", kept, "site")
    assert (stopped["status"], stopped["step"], stopped["seconds"]) == ("not finished", 3, 15.5)
    assert (broken["status"], "resolved.yaml" in broken["problem"]) == ("damaged", True)
    text = str(runs(folder / "all"))
    table = text.splitlines()
    assert f"AUROC {kept['value']:.3f} [{kept['low']:.3f}, {kept['high']:.3f}] (site)" in table[2]
    assert "vicreg cnn" in table[3]
    assert "3/4" in table[3]
    assert "16 s" in table[3]
    assert table[-1] == f"to continue stopped: {stopped['resume']}"
    (alone,) = list_runs(folder / "all/done")
    assert alone["run"] == "done"


def test_the_command_to_continue_is_that_of_the_run(folder, monkeypatch):
    from medssl.cli import run as cli

    command = list_runs(folder / "all")[2]["resume"]
    words = shlex.split(command)
    assert words[:2] == ["medssl", "pretrain"]
    assert "lora_rank=8" not in words, "a default"
    cli.run("pretrain", words[2:])
    (again,) = list_runs(folder / "all/stopped")
    assert again["status"] == "finished"
    assert Run(folder / "all/stopped").config().method.options["hidden"] == 32


def test_a_folder_without_runs_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="holds no run; make one with: medssl pretrain"):
        runs(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        runs(tmp_path / "none")
