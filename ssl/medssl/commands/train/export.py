"""`medssl export`: hand an encoder over to other software, with a model card."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import load_encoder
from medssl.errors import UsageError, UserError, nearest
from medssl.exporting.model_card import model_card
from medssl.exporting.nnunet_plans import PLANS, write_nnunet
from medssl.exporting.onnx_graph import write_onnx
from medssl.exporting.timm_weights import write_timm
from medssl.files import disk_errors, follow_links, is_empty_folder, write_text
from medssl.results import Result
from medssl.runs.run_folder import Run
from medssl.scoring.score_table import read_tables
from medssl.store.store import Store

FORMS = ("onnx", "timm", "nnunet")
CARD = "README.md"


def export(run: str | Path, form: str, out: str | Path, *, store: str | Path | Store | None = None) -> Result:
    """Write the encoder of a run to the folder `out` for other software, with a model card in its README.md.

    - onnx: encoder.onnx takes scans as they are stored, of any number, shape and voxel size, and gives features; resampling
      and intensity scaling are inside. It is compared with the encoder on scans of the store.
    - timm: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, for encoders of timm.
    - nnunet: weights and plans from which nnU-Net trains a segmentation, for encoder=resenc.

    Args:
        run: a finished run folder.
        form: onnx, timm or nnunet.
        out: a new or empty folder; it appears only when it is complete.
        store: the run's store, only needed if it has moved.

    Returns {"out", "form", "files"} and what was checked.

    Raises UserError if the encoder has no such form, a library is missing, or the store is not the run's.
    """
    if form not in FORMS:
        raise UsageError(f"form is {form!r}.{nearest(form, FORMS)}")
    folder, target = Run(Path(run)), follow_links(Path(out).expanduser())
    settings = folder.finished()
    if target.exists() and not is_empty_folder(target):
        raise UserError(f"{target} is not empty; choose another out=")
    scans = _store(folder, store)
    encoder, config = load_encoder(folder.path)
    tables, seen = read_tables(folder.path / "scores.json"), _seen(folder)
    with _complete(target) as part:
        if form == "onnx":
            found = write_onnx(encoder, config.input, scans, part / "encoder.onnx")
            usage, unchecked = _onnx(found, config), ["other runtimes than onnxruntime on a processor"]
        elif form == "timm":
            found = {"line": write_timm(encoder, config, folder.path, part).format(folder=target)}
            usage, unchecked = _timm(found["line"].replace(str(target), "FOLDER")), []
        else:
            found = write_nnunet(encoder, config, scans, settings.seed, part)
            usage, unchecked = _nnunet(found), ["a segmentation: no run of nnU-Net was trained from these weights"]
        card = model_card(settings.name, config, scans, seen, tables, form, usage, unchecked)
        write_text(part / CARD, card)
        files = sorted(p.name for p in part.iterdir())
    lines = [f"{', '.join(files)}: {target}", *_said(form, found)]
    return Result({"out": str(target), "form": form, "files": files} | found, "\n".join(lines))


def _store(folder: Run, given: str | Path | Store | None) -> Store:
    """Return the store that a run was trained on."""
    config = folder.config()
    if given is None and not Path(config.store).exists():
        raise UserError(f"the store of {folder.path} is no longer at {config.store}; say where it is: store=STORE")
    scans = Store.open(given or config.store, config.where)
    if scans.fingerprint != config.fingerprint:
        raise UserError(f"{scans.path} is not the store this run was trained on; give that one as store=")
    return scans


def _seen(folder: Run) -> pa.Table:
    file = folder.path / "pretrained_on.parquet"
    try:
        return pq.read_table(file, columns=["patient", "patient_known"])
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{file} is missing or damaged; copy the whole run again") from e


@contextmanager
def _complete(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes `target` at the end, or is removed after an error."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with disk_errors(target):
            part.mkdir(parents=True)
            yield part
            if target.exists():
                target.rmdir()
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _said(form: str, found: dict[str, Any]) -> list[str]:
    """Return what is printed below the list of files."""
    if form == "onnx":
        scans = f"{found['scans']} scans of the store"
        return [f"the same features as the encoder's on {scans}, up to {found['difference']:.1e} (onnxruntime)"]
    if form == "timm":
        return [found["line"]]
    exact = "as in pretraining" if found["exact"] else "not as in pretraining, whose windows differ by scan"
    return [f"{found['configuration']}, {found['normalisation']}: intensities {exact}"]


def _onnx(found: dict[str, Any], config: EncoderConfig) -> str:
    axes = ", ".join(["batch", str(config.channels), *(["depth", "height", "width"][-len(config.size) :])])
    lines = [f"- `scan` ({axes}), float32: values as below, of any size; one size and spacing in a batch"]
    if found["window"]:
        low, high = found["window"]
        lines.append(f"- the values {low:g} and {high:g} map to 0 and 1 inside")
    else:
        lines.append("- `low`, `high` (batch,), float32: the values that map to 0 and 1, by the rule below")
    lines.append("- `spacing`, float64: mm per pixel along each axis; without it all axes count the same")
    fed = ", ".join(f'"{k}": {k}' for k in found["inputs"])
    return f"""`encoder.onnx` resamples, scales and encodes: `features` (batch, {config.dim}), float32.

{chr(10).join(lines)}

```python
session = onnxruntime.InferenceSession("encoder.onnx")
(features,) = session.run(["features"], {{{fed}}})
```

On {found["scans"]} scans of the training store (validation patients where there are any) its features differ from the encoder's
by at most {found["difference"]:.1e}; the largest feature is {found["largest"]:.3g}. Computed by onnxruntime on a processor."""


def _timm(line: str) -> str:
    return f"""`model.safetensors` and `config.json` load by

```python
model = {line}
```

with FOLDER the path of this folder. The model takes prepared scans, as below, and gives features."""


def _nnunet(found: dict[str, Any]) -> str:
    exact = (
        "These plans give the network the intensities of pretraining."
        if found["exact"]
        else "The intensity windows of pretraining differ by scan, which nnU-Net cannot do: intensities differ from pretraining."
    )
    return f"""`checkpoint.pth` has the pretrained encoder of a residual encoder U-Net, and a decoder at its initial weights;
`{PLANS}.json` has the plans that fit it. Copy the plans to `nnUNet_preprocessed/DatasetNNN_NAME/`, write the name of your
dataset into their `dataset_name`, and your `image_reader_writer` if it differs, then (nnU-Net 2)

```
nnUNetv2_extract_fingerprint -d NNN
nnUNetv2_preprocess -d NNN -plans_name {PLANS} -c {found["configuration"]}
nnUNetv2_train NNN {found["configuration"]} 0 -p {PLANS} -pretrained_weights checkpoint.pth
```

{exact} Scans are resampled to {found["spacing"]:g} mm per pixel, the grid of pretraining or its median; patch and batch size are
small and may be raised. nnU-Net reads its weights as a pickle; this one holds tensors alone."""
