"""Run notebooks and keep their outputs, in English and in the Korean twin: python notebooks/execute.py [NAME.ipynb ...]

They run one after another in one empty folder, as for a reader who works through the book, and in one kernel, whose names are
deleted in between: starting one takes longer than most notebooks.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import start_new_kernel
from nbformat import NotebookNode
from nbformat.v4 import output_from_msg

FOLDER = Path(__file__).parent
LONGEST = 3000  # characters of plain text beside HTML


@contextmanager
def kernel(folder: Path) -> Iterator[Callable[[Path], NotebookNode]]:
    """Start a kernel in `folder`, and give a function that returns a notebook with the outputs of its cells."""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(folder))

    def run(path: Path) -> NotebookNode:
        client.execute_interactive("%reset -f", silent=True)
        notebook = nbformat.read(path, 4)
        for cell in (c for c in notebook.cells if c.cell_type == "code"):
            cell.outputs = []
            reply = client.execute_interactive(cell.source, timeout=600, output_hook=partial(collect, cell.outputs))
            if reply["content"]["status"] != "ok":
                raise RuntimeError(
                    f"{path.name}: {reply['content']['ename']}: {reply['content']['evalue']}\n{cell.source}"
                )
        tidy(notebook, folder)
        return notebook

    try:
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def collect(outputs: list[NotebookNode], message: dict[str, Any]) -> None:
    """Append what a kernel shows, without stderr; text that goes on is one output."""
    if message["msg_type"] not in ("stream", "display_data", "execute_result"):
        return
    if message["content"].get("name") == "stderr":
        return
    found = output_from_msg(message)
    if found.output_type == "stream" and outputs and outputs[-1].get("name") == found.name:
        outputs[-1].text += found.text
    else:
        outputs.append(found)


def tidy(notebook: NotebookNode, folder: Path) -> None:
    """Take the path of the folder out of the outputs, and number the cells from 1."""
    for i, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        cell.metadata, cell.execution_count = {}, i + 1
        for output in cell.outputs:
            output.pop("transient", None)
            if output.output_type == "execute_result":
                output.execution_count = i + 1
            texts = output if "text" in output else output.get("data", {})
            for kind in ("text", "text/plain", "text/html"):
                if kind in texts:
                    texts[kind] = texts[kind].replace(f"{folder}/", "")
            if "text/html" in texts and len(texts["text/plain"]) > LONGEST:
                texts["text/plain"] = "shown as HTML"


def keep(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook, and its outputs into its twin, whose code is the same."""
    other = path.parent / "ko" / path.name
    twin = nbformat.read(other, 4)
    for cell, done in zip(twin.cells, notebook.cells, strict=True):
        if cell.cell_type == "code":
            cell.source, cell.outputs, cell.execution_count = done.source, done.outputs, done.execution_count
    for file, book in ((path, notebook), (other, twin)):
        file.write_text(nbformat.writes(book, 4, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty, kernel(Path(empty).resolve()) as run:
        for chosen in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
            keep(run(chosen), chosen)
            print(chosen)
