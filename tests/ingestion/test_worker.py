"""A worker shows signs of life for every frame and slice, so that no store depends on the speed of the machine."""

import gzip
import io
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest

from dicom_files import JPEG_LS, PLACED, PSEUDONYMS, compressed, dataset, make
from medssl.ingestion import worker
from medssl.ingestion.worker_pool import receive
from medssl.readers.dicom import reader


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "ALIVE_SECONDS", 0.0)
    (tmp_path / "out" / "volumes").mkdir(parents=True)

    def execute(message):
        answers = io.BytesIO()
        init = {"key": "00" * 32, "intensity": "auto", "out": str(tmp_path / "out")}
        worker.Worker(answers, init).execute(message)
        answers.seek(0)
        found = []
        while "end" not in (found[-1] if found else {}):
            found.append(receive(answers)[0])
        return found

    return execute


FRAMES = 12


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_every_frame_of_a_long_file_is_a_sign_of_life(run, tmp_path, pack):
    stored = np.random.default_rng(0).integers(0, 4096, (FRAMES, 16, 16)).astype(np.uint16)
    ds = dataset(stored[0], bits=16, modality="XA", NumberOfFrames=str(FRAMES))
    path = tmp_path / "long"
    path.write_bytes(pack(compressed([imagecodecs.jpegls_encode(f) for f in stored], ds, JPEG_LS)))
    file = {"name": "long", "path": str(path), "size": path.stat().st_size}
    answers = run({"read": file, "id": "x"})
    scans = [i for i, m in enumerate(answers) if "scan" in m]
    assert len(scans) == FRAMES
    for before, after in zip([0, *scans], scans, strict=False):
        assert sum("alive" in m for m in answers[before:after]) >= 3  # two more before the frame is packed


def test_every_compared_slice_is_a_sign_of_life(run, tmp_path):
    files, slices = {}, []
    for k in range(5):
        path = tmp_path / f"{k}.dcm"
        path.write_bytes(make(np.arange(20).reshape(4, 5) + k, modality="MR", **PLACED))
        files[str(k)] = {"name": path.name, "path": str(path), "size": path.stat().st_size}
        with path.open("rb") as f:
            slices.append(replace(reader.read(f, path.name, PSEUDONYMS), file=str(k)).as_dict())
    answers = run({"digest": slices, "files": files})
    assert sum("alive" in m for m in answers) >= 5
    assert len(set(answers[-2]["digests"].values())) == 5
