"""Silence for the libraries that read files: their warnings and log lines quote headers, and headers name patients."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced() -> Iterator[None]:
    """Nothing that pydicom, nibabel or Pillow warn about or log inside the block is printed."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel", "nibabel.global", "PIL")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was
