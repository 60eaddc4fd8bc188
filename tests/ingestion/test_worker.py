"""A file with very many unusable parts gets few lines."""

import io

import nibabel
import numpy as np
import pytest

from medssl.ingestion.worker import MOST_REJECTS, Worker
from medssl.ingestion.worker_pool import receive


def answers(path, tmp_path):
    out = io.BytesIO()
    worker = Worker(out, {"key": "00" * 32, "intensity": "auto", "out": str(tmp_path)})
    worker.execute({"read": {"name": path.name, "path": str(path)}, "id": "f"})
    out.seek(0)
    found = []
    while not found or "end" not in found[-1]:
        found.append(receive(out)[0])
    return found


def write(path, volumes):
    """Write images of 3 x 3 pixels, constant but for the last."""
    images = np.zeros((volumes, 3, 3), np.int16)
    images[-1] = np.arange(9).reshape(3, 3) * 100
    if path.suffix == ".npz":
        np.savez_compressed(path, train_images=images)
    else:
        nibabel.save(nibabel.Nifti1Image(images.transpose(2, 1, 0)[:, :, None], np.eye(4)), path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.npz"])
def test_the_rejects_of_one_file_are_listed_up_to_a_number_and_then_counted(tmp_path, name):
    write(tmp_path / name, 3 * MOST_REJECTS)
    found = answers(tmp_path / name, tmp_path)
    rejects = [m["reject"] for m in found if "reject" in m]
    assert len(rejects) == MOST_REJECTS + 1
    assert {code for _, code, _ in rejects} == {"CONSTANT"}
    assert len({part for part, _, _ in rejects}) == len(rejects)
    assert rejects[-1][0] == "#more/CONSTANT"
    assert rejects[-1][2] == f"so are {2 * MOST_REJECTS - 1:,} more parts of this file: every pixel has the same value"
    assert sum("scan" in m for m in found) == 1
    assert (
        sum("heartbeat" in m for m in found) == 1
    )  # at 2,000, so that the parent does not think that the worker hangs


def test_few_rejects_are_all_listed(tmp_path):
    write(tmp_path / "a.npz", 12)
    for _ in range(2):  # counted anew for each file
        assert [m["reject"][0] for m in answers(tmp_path / "a.npz", tmp_path) if "reject" in m] == [
            f"#train/{k}" for k in range(11)
        ]
