"""Selecting scans: compared with an evaluation row by row, and errors for invalid expressions."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.errors import UserError
from medssl.readers.quality_flags import FLAGS
from medssl.store.query import query_name, select

AFFINE = [*np.eye(4).ravel()]
ROWS = [
    # modality shape spacing affine flags known age(fact) finding(label) size(label) size(fact)
    ("CT", [1, 40, 64, 48], [2.5, 0.7, 0.8], AFFINE, [], True, 61.0, "tumour", "big", 3.0),
    ("CT", [1, 8, 64, 64], [5.0, 0.9, 0.9], AFFINE, ["low contrast"], True, None, "", "small", None),
    ("DX", [1, 90, 70], [0.2, 0.3], None, ["blank", "cut off"], True, 44.0, None, None, 1.0),
    ("US", [3, 50, 60], None, None, ["text in border"], False, float("nan"), "폐렴", "big", 2.0),
    ("", [1, 16, 16], None, None, ["made up"], False, 90.0, "tumour", None, None),
]
TYPES = {
    "modality": pa.string(),
    "shape": pa.list_(pa.int32()),
    "spacing": pa.list_(pa.float32()),
    "affine": pa.list_(pa.float64()),
    "flags": pa.list_(pa.string()),
    "patient_known": pa.bool_(),
    "fact:age": pa.float64(),
    "label:finding": pa.string(),
    "label:size": pa.string(),
    "fact:size": pa.float64(),
}
LISTS = [dict(zip(TYPES, row, strict=True)) for row in ROWS]


def make(rows: list[dict]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in TYPES.items()})


TABLE = make(LISTS)


def chosen(where: str, table: pa.Table = TABLE) -> list[int]:
    return select(table, where).tolist()


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ('modality == "CT"', [0, 1]),
        ("modality != 'CT'", [2, 3, 4]),
        ('modality in ["CT", "DX"]', [0, 1, 2]),
        ('modality not in ("CT", "DX")', [3, 4]),
        ("modality in []", []),
        ("dims == 3", [0, 1]),
        ("channels == 3", [3]),
        ("slices >= 32", [0]),
        ("not slices >= 32", [1]),  # null for 2D scans
        ("height == 64", [0, 1]),
        ("width < 60", [0, 4]),
        ("spacing <= 2.5", [0, 2]),
        ("spacing_z > 2.5", [1]),
        ("spacing_y < 0.25", [2]),
        ("0.25 < spacing_x <= 0.85", [0, 2]),
        ("spacing is None", [3, 4]),
        ("spacing is not None", [0, 1, 2]),
        ("affine is None", [2, 3, 4]),
        ("blank", [2]),
        ("not blank", [0, 1, 3, 4]),
        ("low_contrast or cut_off", [1, 2]),
        ("saturated", []),  # a flag of no scan
        ("made_up", [4]),
        ('"cut off" in flags', [2]),
        ('"cut off" not in flags', [0, 1, 3, 4]),
        ("patient_known", [0, 1, 2]),
        ("patient_known == False", [3, 4]),
        ("age > 50", [0, 4]),
        ("age is None", [1, 3]),  # NaN is missing
        ("age != 44", [0, 4]),
        ("not age == 44", [0, 4]),
        ("age > 50 or dims == 3", [0, 1, 4]),
        ("not (age > 50 and dims == 2)", [0, 1, 2]),  # false if one part is false, whatever the rest
        ("age >= -1 and not (age > +50)", [2]),
        ('finding == "tumour"', [0, 4]),
        ('finding == "폐렴"', [3]),
        ('finding == ""', [1]),
        ('"um" in finding', [0, 4]),
        ('"um" not in finding', [1, 3]),
        ('label.size == "big"', [0, 3]),
        ("fact.size >= 2", [0, 3]),
        ("fact.size in [1, 2]", [2, 3]),
        ("fact.size not in [1, 2]", [0]),
        ("label.finding == 'tumour' and fact.age == 90", [4]),
        ("  dims==2\t", [2, 3, 4]),
        ("spacing_y == spacing_x", [1]),
    ],
)
def test_what_is_selected(where, rows):
    found = select(TABLE, where)
    assert found.dtype == np.int64
    assert found.tolist() == rows


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ('modality = "CT"', "Equality is written =="),
        ("", "where= is empty"),
        (" \n", "where= is empty"),
        ("modality ==", "cannot be read"),
        ("(dims == 3", "was never closed"),
        ("class == 'a'", "class_"),
        ("modalty == 'CT'", "Did you mean 'modality'"),
        ("modality == CT", "text must be in quotes"),
        ("dims == 3 and (modality == CT)", "character 28"),
        ("finding == '폐' and modality == CT", "character 32"),
        ("size == 'big'", "label:size and fact:size"),
        ("size == 'big'", "label.size or fact.size"),
        ("label.siz == 'big'", "Did you mean 'size'"),
        ("fact.finding == 'x'", "there is no fact 'finding'"),
        ("modality == 3", "text must be in quotes"),
        ("age == '44'", "text must be in quotes"),
        ("modality < 'CT'", "has no order"),
        ("modality", "is not true or false by itself"),
        ("True", "is not true or false by itself"),
        ("not age", "is not true or false by itself"),
        ("age == None", "None can only follow"),
        ("age is 3", "None"),
        ("3 is None", "constant"),
        ("1 == 1", "both constants"),
        ("modality in ['CT', 3]", "cannot be 3"),
        ("modality in [None]", "None can only follow"),
        ("'CT' in ['CT']", "a name must be here"),
        ("modality in 'CT'", "a name must be here"),
        ("3 in age", "`in` needs a list"),
        ("'CT' in shape", "`in` needs a list"),
        ("'blurry' in flags", "Did you mean 'blurred'"),
        ("shape == 3", "shape is a list"),
        ("flags == 'blank'", "flags is a list of texts"),
        ("age + 1 == 45", "age + 1 is not allowed here"),
        ("-modality == 3", "modality is not allowed here"),
        ("__import__('os').system('x') == 0", "is not allowed here"),
        ("modality.upper() == 'CT'", "is not allowed here"),
        ("(lambda: 1)() == 1", "is not allowed here"),
        ("[dims for dims in shape]", "is not allowed here"),
        ("f'{age}' == '44'", "is not allowed here"),
        ("(age := 3) == 3", "is not allowed here"),
        ("age == 1" + "0" * 400, "shorter"),
        ("not " * 2400 + "blank", "cannot be read"),
        ("(" * 150 + "dims == 3" + ")" * 150 + "\0", "cannot be read"),
        ("dims == 3 or " * 2000 + "dims == 3", "longer than"),
    ],
)
def test_invalid_expressions_raise_one_line(where, words):
    with pytest.raises(UserError) as wrong:
        select(TABLE, where)
    assert words in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_name_that_is_both_label_and_flag_raises_with_both_spellings():
    table = TABLE.append_column("label:blank", pa.array(["yes", None, None, None, None]))
    with pytest.raises(UserError, match=r'label\.blank, or "blank" in flags'):
        select(table, "blank")
    assert chosen('label.blank == "yes"', table) == [0]
    assert chosen('"blank" in flags', table) == [2]


def test_names_that_are_no_python_identifiers():
    names = {"age at scan": "age_at_scan", "class": "class_", "2nd": "_2nd", "폐": "폐", "a-b": "a_b"}
    assert {name: query_name(name) for name in names} == names
    for name, word in names.items():
        table = TABLE.append_column(f"label:{name}", pa.array(["x", None, "y", None, None]))
        assert chosen(f"{word} == 'x'", table) == [0]
        assert chosen(f"label.{word} == 'y'", table) == [2]


def test_an_empty_table_and_a_sliced_one():
    assert chosen("blank or age > 3 or spacing > 1 or slices > 1", TABLE.slice(0, 0)) == []
    assert chosen("blank or slices > 20", TABLE.slice(2)) == [0]
    halves = pa.concat_tables([TABLE.slice(0, 2), TABLE.slice(2)])
    assert chosen("blank or slices > 20 or spacing_x < 0.5", halves) == [0, 2]


# A second implementation: an expression is a tree of tuples, written as text for `select` and evaluated here row by row.

VALUE = {
    "dims": lambda r: len(r["shape"]) - 1,
    "channels": lambda r: r["shape"][0],
    "slices": lambda r: r["shape"][1] if len(r["shape"]) == 4 else None,
    "spacing": lambda r: None if r["spacing"] is None else float(np.float32(max(r["spacing"]))),
    "spacing_z": lambda r: float(np.float32(r["spacing"][0])) if r["spacing"] and len(r["spacing"]) == 3 else None,
    "age": lambda r: None if r["fact:age"] is None or np.isnan(r["fact:age"]) else r["fact:age"],
    "modality": lambda r: r["modality"],
    "finding": lambda r: r["label:finding"],
    "patient_known": lambda r: r["patient_known"],
}
NUMBERS = ("dims", "channels", "slices", "spacing", "spacing_z", "age")
COMPARED = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "in": lambda a, b: a in b,
    "not in": lambda a, b: a not in b,
}
number = st.one_of(st.integers(-2, 70), st.floats(-3, 90, allow_nan=False).map(lambda v: round(v, 2)))
word = st.sampled_from(["CT", "DX", "tumour", "폐렴", "", 'it\'s "so"'])
leaf = st.one_of(
    st.tuples(st.sampled_from(NUMBERS), st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), number),
    st.tuples(st.sampled_from(NUMBERS), st.sampled_from(["in", "not in"]), st.lists(number, max_size=3)),
    st.tuples(st.sampled_from(["modality", "finding"]), st.sampled_from(["==", "!="]), word),
    st.tuples(st.sampled_from(["modality", "finding"]), st.sampled_from(["in", "not in"]), st.lists(word, max_size=3)),
    st.tuples(st.sampled_from([*NUMBERS, "finding"]), st.sampled_from(["is", "is not"]), st.none()),
    st.tuples(st.just("patient_known"), st.sampled_from(["==", "!="]), st.booleans()),
    st.sampled_from([query_name(f) for f in FLAGS]),
)
tree = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=6,
)
row = st.fixed_dictionaries(
    {
        "modality": st.sampled_from(["CT", "DX", ""]),
        "shape": st.lists(st.integers(1, 4), min_size=3, max_size=4),
        "spacing": st.none() | st.lists(st.sampled_from([0.25, 0.7, 1.0, 5.0]), min_size=2, max_size=3),
        "affine": st.none(),
        "flags": st.lists(st.sampled_from(sorted(FLAGS)), max_size=3, unique=True),
        "patient_known": st.booleans(),
        "fact:age": st.sampled_from([None, float("nan"), 44.0, 60.5]),
        "label:finding": st.sampled_from([None, "", "tumour", "폐렴"]),
        "label:size": st.none(),
        "fact:size": st.none(),
    }
)


def text(node) -> str:
    if isinstance(node, str):
        return node
    if node[0] == "not":
        return f"not ({text(node[1])})"
    if node[0] in {"and", "or"}:
        return f" {node[0]} ".join(f"({text(n)})" for n in node[1])
    return f"{node[0]} {node[1]} {node[2]!r}"


def holds(node, r: dict) -> bool | None:
    """Return True, False or None (unknown)."""
    if isinstance(node, str):
        return node in {query_name(f) for f in r["flags"]}
    if node[0] == "not":
        inner = holds(node[1], r)
        return None if inner is None else not inner
    if node[0] in {"and", "or"}:
        found = [holds(n, r) for n in node[1]]
        decides = node[0] == "or"
        return decides if decides in found else None if None in found else not decides
    name, op, right = node
    left = VALUE[name](r)
    if op in {"is", "is not"}:
        return (left is None) == (op == "is")
    return None if left is None else COMPARED[op](left, right)


@settings(max_examples=200, deadline=None)
@given(tree, st.lists(row, max_size=6))
def test_the_same_rows_as_evaluating_row_by_row(node, rows):
    assert chosen(text(node), make(rows)) == [i for i, r in enumerate(rows) if holds(node, r) is True]


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ('grade == "1"', [0, 1, 2]),
        ("grade == 1", [0, 1, 2]),
        ("grade == 1.0", [0, 1, 2]),
        ("grade == True", [0, 1, 2]),
        ("grade != 1", [3]),
        ("grade in [1, 2.0]", [0, 1, 2, 3]),
        ('grade in ["1.0"]', [0, 1, 2]),
        ("1 == grade", [0, 1, 2]),
        ("size >= 3", [1, 2]),
        ("3 <= size < 10", [1]),
        ("size == 3", [1]),
        ('finding == "MASS"', [0, 1]),
        ('finding in ["mass "]', [0, 1]),
        ('finding not in ["mass"]', [2, 3]),
        ("grade == size", [0]),
    ],
)
def test_labels_compare_as_they_do_in_scores(where, rows):
    table = pa.table(
        {
            "label:grade": ["1", "1.0", "true", "2", None],
            "label:size": ["1", "3.0", "10", None, None],
            "label:finding": ["Mass", "mass", "nodule", "x", None],
        }
    )
    assert chosen(where, table) == rows


def test_words_have_no_size():
    table = pa.table({"label:size": ["1", "<5"]})
    with pytest.raises(UserError, match="only numbers can be compared by size, and label:size has other values"):
        select(table, "size > 3")
