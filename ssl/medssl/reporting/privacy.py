"""The page for an ethics board: what a store keeps of the people in it, what it dropped, and what nobody has checked."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.readers.reject_codes import CODES
from medssl.reporting.tags import Html, bullets, element, facts, page, paragraph, table
from medssl.store.release import read_released
from medssl.store.store import Store

HEAD = {"HEAD", "BRAIN", "SKULL", "HEADNECK", "NECK", "JAW", "EYE", "WHOLEBODY"}
THIN = 3.0  # mm: a surface rendered from thinner voxels shows a face
BY_HAND = "____________________"
PSEUDONYMS = {"scan", "patient", "study", "series", "group"}
ADDRESS = {"file", "offset", "length"}  # in the store
DROPPED = (
    "names of patients, relatives, physicians and operators",
    "patient, accession, admission and order numbers (only keyed pseudonyms are left)",
    "birth dates and all other dates and times",
    "addresses, telephone numbers, institutions and departments",
    "all free text: descriptions, comments, protocol names, reports, annotations",
    "all unique identifiers of DICOM (only keyed pseudonyms are left)",
    "serial numbers, station names and software of devices",
    "all private elements, overlays, curves, icons, preambles and embedded documents",
    "file names and paths; NIfTI descriptions and extensions; EXIF and other metadata of pictures",
)


def privacy_page(store: Store) -> str:
    """A self-contained HTML page about `store`, opened with held=True. Holds no id, no path and no picture."""
    released = _released(store)
    sections = [
        ("hand", "To be filled in by hand", _by_hand()),
        ("kept", "What is kept", _kept(store)),
        ("dropped", "What is dropped", _dropped()),
        ("pseudonyms", "Pseudonyms and their key", _pseudonyms(store)),
        ("options", "Options of DICOM PS3.15 Annex E that the store meets", _options(store)),
        ("pixels", "Text burned into pixels", _pixels(store, released)),
        ("faces", "Faces", _faces(store)),
        ("rejected", "Files left out", _rejected(store)),
        ("limits", "What this page does not say", bullets(_limits(store))),
    ]
    people = len(set(store.column("patient")))
    top = Html(
        element("h1", "Privacy of a store of scans")
        + paragraph(f"store {store.fingerprint}, key {store.info['key_id']}", klass="under")
        + paragraph(f"{len(store):,} scans of {people:,} patients. {_looked(released)}", klass="headline")
    )
    made = f"Made by {store.info['created_by']} from the store alone."
    return page("Privacy of a store of scans", sections, top, made)


def _released(store: Store) -> Counter[str]:
    """Reason -> scans a human has let in that were held for it."""
    return Counter(found["held"] for found in read_released(store.path).values())


def _looked(released: Counter[str]) -> str:
    if not released:
        return "The pixels were not inspected by a human."
    n = sum(released.values())
    return f"A human let in {n:,} scans that had been held back; the other pixels were not inspected by a human."


def _by_hand() -> Html:
    lines = ("DRB or IRB, and its number", "Purpose of the research", "Retained until", "Custodian of the key")
    return facts((line, BY_HAND) for line in (*lines, "Place of the key", "Who may read the store", "Date, signature"))


def _kept(store: Store) -> Html:
    n = len(store)
    names = [c for c in store.table.column_names if c.startswith("fact:")]
    labels = [c for c in store.table.column_names if c.startswith("label:")]
    parts = [
        paragraph(
            "The voxels, in the units of the scanner; their size and place in space; and what stands in these lists. "
            "Nothing is copied that is not in a list: what a scanner, a hospital or a vendor adds to a header stays out."
        ),
        element("h3", "Of every scan"),
        paragraph(", ".join(c for c in store.table.column_names if ":" not in c and c not in PSEUDONYMS | ADDRESS)),
        paragraph(
            "scanner is manufacturer and model as the header has them: letters and digits only, at most 48 characters."
        ),
        element("h3", "Facts from headers and tables: numbers, and words from fixed lists or of a fixed form"),
        table(["fact", "scans"], [[c.removeprefix("fact:"), f"{_known(store, c):,}"] for c in names])
        if names
        else paragraph("None."),
        element("h3", "Labels, as the person who made the store named them"),
        table(["label", "scans", "different values"], [_label(store, c) for c in labels])
        if labels
        else paragraph("None."),
    ]
    rare = [c.removeprefix("label:") for c in labels if n > 20 and _distinct(store, c) > max(20, n // 2)]
    if rare:
        words = f"More than half of the values are different in {', '.join(rare)}: make sure that it identifies nobody."
        parts.append(paragraph(words, klass="flag"))
    return Html("\n".join(parts))


def _values(store: Store, column: str) -> list[Any]:
    return [v for v in store.column(column) if v is not None and v != "" and v == v]


def _known(store: Store, column: str) -> int:
    return len(_values(store, column)) if column in store.table.column_names else 0


def _distinct(store: Store, column: str) -> int:
    return len(set(_values(store, column)))


def _label(store: Store, column: str) -> list[str]:
    return [column.removeprefix("label:"), f"{_known(store, column):,}", f"{_distinct(store, column):,}"]


def _dropped() -> Html:
    why = (
        "DICOM files are never copied. The store is written anew from the pixels and the lists above, so that what is not "
        "listed cannot get in. Dropped, among everything else:"
    )
    return Html(paragraph(why) + bullets(DROPPED))


def _pseudonyms(store: Store) -> Html:
    known = store.column("patient_known")
    return Html(
        bullets(
            [
                "Patients, studies, series and scans are named by HMAC-SHA256 under a secret key of 256 bits. Without the "
                "key nobody can go back, not even by trying every hospital number.",
                f"The key's own name is {store.info['key_id']}. It says nothing about the key, and tells stores of "
                "different keys apart. The same key gives the same person the same pseudonym in every store.",
                "The key must lie apart from the store, readable by its custodian only, in no backup, log, notebook or "
                "repository that others read. Whoever holds both the key and a list of patients can link them. Destroying "
                "the key makes the link irrecoverable.",
                f"For {int((~known).sum()):,} of {len(known):,} scans no patient number was found; each such study or file "
                "stands for a patient of its own.",
                "Every scan carries a hash of its pixels and a perceptual hash. Somebody who has the very image can find it "
                "again by them; they reveal nothing about a person otherwise.",
                "The ledger (ledger.sqlite) holds the pseudonyms of files and of what is in them, the place of every slice in "
                "its series, and hashes. Only adding to the store needs it; deleting it makes the store final.",
            ]
        )
    )


def _options(store: Store) -> Html:
    n = len(store)
    age, sex = _known(store, "fact:age"), _known(store, "fact:sex")
    scanners, sites = _known(store, "scanner"), sorted(set(_values(store, "site")))
    people = f"sex ({sex:,} scans) and age in whole years, 90 and more as 90 ({age:,} scans); nothing else of a person"
    rows: list[Sequence[object]] = [
        ("113100", "Basic Application Level Confidentiality Profile", "yes", "No attribute is there that the profile removes, "
         "but for those named under 113108 and 113109. The store is not DICOM, and says nothing of DICOM files elsewhere."),
        ("113101", "Clean Pixel Data", "no", "Pixels are stored as they are. Scans of risky kinds are held back until a human "
         "has looked; text in other scans would pass unseen."),
        ("113102", "Clean Recognizable Visual Features", "no", "Faces are not removed; see below."),
        ("113103", "Clean Graphics", "yes", "Overlays, curves and annotations are not read, and bits above the stored ones are "
         "masked."),
        ("113104", "Clean Structured Content", "yes", "Reports and other structured content are not read."),
        ("113105", "Clean Descriptors", "yes", "Descriptions are not kept at all."),
        ("113106", "Retain Longitudinal Temporal Information, Full Dates", "not used", "No date is kept."),
        ("113107", "Retain Longitudinal Temporal Information, Modified Dates", "not used", "No date is kept, shifted or not."),
        ("113108", "Retain Patient Characteristics", "partly" if age or sex else "not used", f"Kept: {people}."),
        ("113109", "Retain Device Identity", "partly" if scanners else "not used",
         f"Manufacturer and model ({scanners:,} of {n:,} scans) and settings; no serial number, no station name."),
        ("113110", "Retain UIDs", "not used", "UIDs become keyed pseudonyms."),
        ("113111", "Retain Safe Private", "not used", "Private elements are not kept. A slice's position or a diffusion "
         "weight may be read from one."),
        ("113112", "Retain Institution Identity", "partly" if sites else "not used",
         "Kept is the site's name as given by the person who made the store." if sites else "No site is named."),
    ]  # fmt: skip
    note = "Codes of context group CID 7050. Said of what is in the store, not of a process."
    return Html(table(["code", "option", "met", "why"], rows, words=4) + paragraph(note, klass="note"))


def _pixels(store: Store, released: Counter[str]) -> Html:
    held = store.column("held")
    waiting = Counter(str(h) for h in held if h)
    reasons = sorted({*waiting, *released})
    rows = [[r, f"{waiting[r]:,}", f"{released[r]:,}"] for r in reasons]
    text = sum("text in border" in (f or ()) for f in store.column("flags"))
    said = _known(store, "fact:burned_in")
    parts = [
        paragraph(
            "Ultrasound, screenshots, fluoroscopy and whatever its header says is annotated may show a name in the picture. "
            "Such scans are held: they do not train until a human has looked at them and released them. Pictures without a "
            "header (PNG, JPEG, TIFF) do not say what they are and are not held by class: look at them before training."
        ),
        table(["why held", "held now", "released by a human"], rows) if rows else paragraph("No scan was or is held."),
        paragraph(
            f"{text:,} scans have text-like edges at their border (laterality marks are text as well). {said:,} scans say in "
            "their header whether they are annotated, which is not to be relied upon."
        ),
        paragraph(_looked(released), klass="flag"),
    ]
    return Html("\n".join(parts))


def faces(store: Store) -> dict[str, int]:
    """Scans by whether a face may be rendered from them: {"possible": n, "cannot be excluded": n}."""
    parts = store.column("fact:body_part") if "fact:body_part" in store.table.column_names else [None] * len(store)
    counts = {"possible": 0, "cannot be excluded": 0}
    for modality, shape, spacing, part in zip(
        store.column("modality"), store.column("shape"), store.column("spacing"), parts, strict=True
    ):
        if len(shape) != 4 or modality not in {"CT", "MR", "PT", ""} or (spacing and max(spacing) > THIN):
            continue
        if part in HEAD:
            counts["possible"] += 1
        elif not part:
            counts["cannot be excluded"] += 1
    return counts


def _faces(store: Store) -> Html:
    counts = faces(store)
    return Html(
        paragraph(
            "From a volume of the head with thin slices a face can be rendered, and be recognised. Volumes of CT, MR and PET "
            f"with voxels of at most {THIN:g} mm on every side, or of unknown size:"
        )
        + table(
            ["a recognisable face", "scans"],
            [
                ["possible: the header names a part of the head", f"{counts['possible']:,}"],
                ["cannot be excluded: no part of the body is named", f"{counts['cannot be excluded']:,}"],
            ],
        )
        + paragraph("Faces are not removed.", klass="note")
    )


def _rejected(store: Store) -> Html:
    counts = sorted(store.info["counts"]["rejected"].items(), key=lambda item: -item[1])
    rows = [[code, CODES.get(code, ("",))[0], f"{n:,}"] for code, n in counts]
    return table(["code", "meaning", "files"], rows, words=2) if rows else paragraph("Every file was used.")


def _limits(store: Store) -> list[str]:
    ages: NDArray[Any] = np.array(_values(store, "fact:age") if _known(store, "fact:age") else [], np.float64)
    old = f"{int((ages >= 90).sum()):,} scans are of patients of 90 years or more." if len(ages) else ""
    return [
        " ".join(f"Rare combinations of facts (age, sex, site, label) may single a person out. {old}".split()),
        "Encoders trained on these scans, and features computed from them, may carry traces of single patients. Some terms "
        "of use ask for a review before they are exported.",
        "Whether the purpose is lawful and consent is needed is not for a program to say.",
        "Terms of use of the data's provider are not known to the program.",
    ]
