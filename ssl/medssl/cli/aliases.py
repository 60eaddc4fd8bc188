"""Keys that people know from other tools, and what they are called here."""

from collections.abc import Collection

ALIASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("epochs", "epoch", "max_epochs", "num_epochs", "iterations", "max_steps"), ("steps",)),
    **dict.fromkeys(("gpu", "gpus", "cuda"), ("accelerator=cuda", "device=cuda")),
    "cpu": ("accelerator=cpu", "device=cpu"),
    **dict.fromkeys(("wandb", "logger", "use_wandb"), ("log=wandb",)),
    **dict.fromkeys(("image_size", "img_size", "input_size", "resolution", "crop_size"), ("size",)),
    **dict.fromkeys(("batch_size", "bs"), ("batch",)),
    **dict.fromkeys(("learning_rate", "base_lr"), ("lr",)),
    **dict.fromkeys(("model", "backbone", "arch", "architecture", "network"), ("encoder",)),
    **dict.fromkeys(("ssl", "algorithm", "algo", "loss"), ("method",)),
    **dict.fromkeys(("augmentation", "augmentations", "transform", "transforms"), ("augment",)),
    **dict.fromkeys(("num_workers", "n_jobs", "threads"), ("workers",)),
    **dict.fromkeys(("data", "dataset", "data_dir", "input", "folder", "path"), ("source", "store")),
    **dict.fromkeys(("output", "output_dir", "out_dir", "save_dir", "logdir", "outdir"), ("out",)),
    **dict.fromkeys(("checkpoint", "ckpt", "weights", "pretrained"), ("init", "run")),
    **dict.fromkeys(("label", "labels", "y", "targets"), ("target",)),
    **dict.fromkeys(("filter", "query", "select"), ("where",)),
    **dict.fromkeys(("random_state", "rng"), ("seed",)),
    **dict.fromkeys(("wd", "decay"), ("weight_decay",)),
    **dict.fromkeys(("amp", "fp16", "bf16", "mixed_precision"), ("precision=bf16-mixed",)),
}
"""What others call it -> the keys, or keys with their value, that may stand for it; the first that a command has is meant."""
WHY = {
    "steps": "; training is counted in updates of the weights, and an epoch is training scans / batch of them",
    "log": "; wandb is offline, wandb-online sends the numbers to wandb",
}


def known_as(key: str, keys: Collection[str]) -> str:
    """Return a sentence that says what `key` is called in a command with these keys, "" if nothing stands for it."""
    for name in ALIASES.get(key.lower().replace("-", "_"), ()):
        bare = name.partition("=")[0]
        if bare in keys:
            return f"write {name if '=' in name else f'{name}=…'}{WHY.get(bare, '')}"
    return ""
