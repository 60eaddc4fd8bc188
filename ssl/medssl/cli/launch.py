"""`launcher=slurm`, `ray` or `local`: commands as jobs, one per run, of which `pretrain` goes on after preemption."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medssl.cli.help import LAUNCH_KEYS, LAUNCHERS
from medssl.cli.job import Job
from medssl.cli.launch_ray import launch_on_ray
from medssl.errors import UsageError, UserError, nearest
from medssl.progress import say


def take_launcher(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the words without those of a launch, and these by key; {} without launcher=.

    Raises UsageError for an unknown launcher.
    """
    pairs = [word.partition("=") for word in words]
    if not any(key == "launcher" and eq for key, eq, _ in pairs):
        return list(words), {}
    settings = {key: value for key, eq, value in pairs if eq and key in LAUNCH_KEYS}
    if settings["launcher"] not in LAUNCHERS:
        raise UsageError(f"launcher is {settings['launcher']!r}.{nearest(settings['launcher'], LAUNCHERS)}")
    for key in ("gpus", "cpus", "memory", "hours"):
        try:
            fits = float(settings.get(key, 1)) > 0
        except ValueError:
            fits = False
        if not fits:
            raise UsageError(f"{key} must be a positive number, got {settings[key]!r}")
    return [word for word in words if word.partition("=")[0] not in LAUNCH_KEYS], settings


def launch(runs: Mapping[Path, Sequence[str]], folder: Path, settings: Mapping[str, str]) -> str:
    """Submit the jobs {run folder: words of the command}; returns what to print.

    slurm returns at once; ray and local (one after the other) return when all have ended.

    folder: for logs and submitit's files. Raises UserError without submitit, Slurm or Ray, and with ray and local if a job
    fails.
    """
    kind, gpus = settings["launcher"], int(float(settings.get("gpus", 0)))
    jobs = {}
    for out, words in runs.items():
        more = [f"devices={gpus}", "accelerator=cuda"] if words[0] == "pretrain" else ["device=cuda"]
        more = [w for w in more if gpus and not any(x.startswith(w.split("=")[0] + "=") for x in words)]
        jobs[out] = Job([*words, *more])
    if kind == "ray":
        return launch_on_ray(jobs, folder, settings)
    try:
        import submitit
    except ImportError as e:
        raise UserError("launcher= needs submitit: pip install 'medssl[slurm]'") from e
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=kind)
    except RuntimeError as e:
        raise UserError("launcher=slurm, but there is no sbatch here; run it on a login node, or launcher=local") from e
    executor.update_parameters(**_parameters(settings))
    if kind == "slurm":
        try:
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs.values()]
        except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as e:
            why = " ".join(str(e).split())[-300:]
            raise UserError(f"Slurm did not take the jobs: {why}") from e
        lines = [f"job {job.job_id}: {out}" for job, out in zip(submitted, jobs, strict=True)]
        return "\n".join([*lines, f"logs: {folder}; squeue shows the jobs, scancel ends one"])
    failed = []
    for out, job in jobs.items():
        submitted_job = executor.submit(job)
        say(f"job {submitted_job.job_id}: {out}")
        try:
            submitted_job.result()
        except Exception:  # submitit raises what the job raised
            said = [line for line in (submitted_job.stderr() or "").splitlines() if line.startswith("medssl: ")]
            failed.append((out, said[-1].removeprefix("medssl: ") if said else f"see {submitted_job.paths.stderr}"))
            say(f"{out}: {failed[-1][1]}")
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} runs did not finish; {failed[-1][0]}: {failed[-1][1]}")
    return f"{len(jobs)} run{'s'[: len(jobs) > 1]} finished; logs: {folder}"


def _parameters(settings: Mapping[str, str]) -> dict[str, Any]:
    """Return submitit's names for the settings."""
    minutes = max(1, round(60 * float(settings.get("hours", 24))))
    out: dict[str, Any] = {"name": "medssl", "timeout_min": minutes, "nodes": 1, "tasks_per_node": 1}
    for key, name in (("gpus", "gpus_per_node"), ("cpus", "cpus_per_task"), ("memory", "mem_gb")):
        if key in settings:
            out[name] = int(float(settings[key]))
    for key in ("partition", "account", "qos"):
        if key in settings:
            out[f"slurm_{key}"] = settings[key]
    return out
