"""Embeddings as a pandas DataFrame. pandas is an extra, imported where it is used."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from medssl.errors import UserError


def data_frame(columns: dict[str, Any], features: Any) -> Any:
    """Return a pandas DataFrame of `columns`, indexed by its "scan", then the features (N, D) as f0, f1, …

    Raises UserError without pandas.
    """
    if find_spec("pandas") is None:
        raise UserError("a DataFrame needs pandas: pip install 'medssl[pandas]'")
    pandas = import_module("pandas")
    index = pandas.Index(columns["scan"], name="scan")
    known = pandas.DataFrame({k: v for k, v in columns.items() if k != "scan"}, index=index)
    return known.join(pandas.DataFrame(features, index=index, columns=[f"f{i}" for i in range(features.shape[1])]))
