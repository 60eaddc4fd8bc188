"""Slices keep the names that ledgers use."""

import json

from medssl.readers.scan import Slice

STORED = {
    "file": "f",
    "uid": "u",
    "key": "k",
    "position": [0.0, 1.0, 2.0],
    "orientation": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    "spacing": [0.5, 0.75],
    "order": [0.0, 1.0, 2.0],
    "series": "s",
    "series_number": "n",
    "frame_of_reference": "r",
    "stack": "",
    "contrast": [[4.9], [], [0.0, 1.0, 0.0]],
    "frame": {"parse": True},
    "about": {"modality": "CT", "patient": "p", "facts": {"kvp": 120.0}, "held": "localizer", "born": "b"},
}


def test_slices_are_read_from_a_ledger_and_written_unchanged():
    found = Slice.from_dict(STORED)
    assert found.about == {
        "modality": "CT",
        "patient": "p",
        "metadata": {"kvp": 120.0},
        "quarantined": "localizer",
        "birth_date_hash": "b",
    }
    assert (found.position, found.order) == ((0.0, 1.0, 2.0), (0.0, 1.0, 2.0))
    assert found.contrast == ((4.9,), (), (0.0, 1.0, 0.0))
    assert json.loads(json.dumps(found.as_dict())) == STORED
