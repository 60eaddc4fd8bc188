"""Slices keep the names that ledgers made by earlier versions use."""

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
    "frame": {"parse": True},
    "about": {"modality": "CT", "patient": "p", "facts": {"kvp": 120.0}, "held": "localizer", "born": "b"},
}


def test_slices_of_earlier_ledgers_are_read_and_written_unchanged():
    found = Slice.from_dict(STORED)
    assert found.about == {
        "modality": "CT",
        "patient": "p",
        "metadata": {"kvp": 120.0},
        "quarantined": "localizer",
        "birth_date_hash": "b",
    }
    assert (found.position, found.order) == ((0.0, 1.0, 2.0), (0.0, 1.0, 2.0))
    assert json.loads(json.dumps(found.as_dict())) == STORED
