"""Show the contents of a store as tables, as a contact sheet, and as a page for an ethics committee."""

from pathlib import Path

from medssl.errors import UserError
from medssl.files import atomic, write_text
from medssl.reporting.contact_sheet import MOST, contact_sheet
from medssl.reporting.privacy import privacy_page
from medssl.reporting.store_tables import store_tables
from medssl.reporting.text_table import aligned
from medssl.results import Result
from medssl.store.query import evenly_spaced
from medssl.store.store import Store


def inspect(
    store: str | Path,
    *,
    where: str | None = None,
    quarantined: bool = False,
    sheet: str | Path | None = None,
    privacy: str | Path | None = None,
) -> Result:
    """Show the contents of a store, table by table, without any identifier.

    Args:
        store: the store.
        where: filter expression selecting scans; see `medssl.store.query`.
        quarantined: include scans that a person must look at before training.
        sheet: a PNG file for pictures of at most 200 evenly spaced scans, with the outlines of masks. Captions are row
            numbers of Store.open(store, where=where, quarantined=quarantined), modality, split, quality flags and labels. It
            shows patients: keep it where scans may be kept.
        privacy: an HTML file for an ethics committee, about the whole store.

    Returns:
        A dict: title of each table -> its rows as dicts.

    Raises:
        UserError: `where` is invalid or selects nothing, or a file cannot be written.
    """
    every = Store.open(store, where=where, quarantined=True)
    if not (quarantined and len(every)) and not (every.column("held") == "").any():
        more = (
            f"{len(every):,} are quarantined: look at them with quarantined=true"
            if len(every)
            else "choose another where="
        )
        raise UserError(f"no scan of {every.path} is selected; {more}")
    shown = every if quarantined else Store.open(store, where=where)
    tables = store_tables(shown, every)
    hidden = len(every) - len(shown)
    fingerprint = every.info["fingerprint"]
    lines = [f"{every.path}: {len(shown):,} scans shown, {hidden:,} quarantined and not shown. {fingerprint}"]
    for title, rows in tables.items():
        lines += ["", title, *(aligned(list(rows[0]), [list(row.values()) for row in rows]) if rows else ["  none"])]
    if sheet:
        path = Path(sheet).expanduser()
        picture = contact_sheet(shown, evenly_spaced(len(shown), MOST))
        with atomic(path) as part:
            picture.save(part, "PNG")
        lines += ["", f"sheet    {path}"]
    if privacy:
        path = Path(privacy).expanduser()
        write_text(path, privacy_page(Store.open(store, quarantined=True)))
        lines += ["", f"privacy  {path}"]
    return Result(tables, "\n".join(lines))
