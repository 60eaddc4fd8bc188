"""The network that `medssl segment` trained, kept with the run, so that it can be used on new scans."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from medssl.encoders.export import load_encoder, read_tensors
from medssl.errors import UserError
from medssl.files import atomic, write_json
from medssl.tasks.segment import Segment

WEIGHTS, ABOUT = "network.safetensors", "network.json"


def keep_network(folder: Path, method: Segment, labels: tuple[int, ...], width: int) -> None:
    """Write the weights, and what is needed to build the network again."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in method.state_dict().items()}
    with atomic(folder / WEIGHTS) as part:
        save_file(tensors, part)
    write_json(folder / ABOUT, {"labels": list(labels), "width": width})


def find_network(run: Path) -> tuple[Segment, tuple[int, ...], Path]:
    """Return the run's own network trained on the most masks, the values in masks, background first, and its folder.

    Of several, that of the table written last. Raises UserError if there is none, or it is damaged.
    """
    kept = sorted((run / "segment").glob(f"*/all-*-run-fine-tuned/{ABOUT}"), key=lambda p: (p.stat().st_mtime, str(p)))
    if not kept:
        raise UserError(
            f"{run} keeps no network that segments; train one: medssl segment run={run} store=STORE "
            f"(delete {run / 'segment'} first if an earlier medssl wrote it)"
        )
    folder = kept[-1].parent
    try:
        about: dict[str, Any] = json.loads(kept[-1].read_text("utf-8"))
        labels = tuple(about["labels"])
        method = Segment(load_encoder(run)[0], len(labels), about["width"])
        method.load_state_dict(read_tensors(folder / WEIGHTS))
    except (ValueError, KeyError, TypeError, RuntimeError) as e:
        raise UserError(f"{folder} is damaged; delete it and run medssl segment again") from e
    return method.eval(), labels, folder
