"""Options that several commands share, declared once as a dataclass and accepted as plain keyword arguments."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from typing import Any, get_type_hints

from medssl.errors import UsageError, nearest


def accepts(options: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function the fields of the dataclass `options` as keyword arguments, in place of its argument `options`.

    The decorated function's signature and type hints list all of them, so that `help`, the command line and a test of
    the yaml files see one flat list. An unknown keyword raises UsageError with the nearest known one.
    """
    names = [f.name for f in fields(options)]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function)
        hints = get_type_hints(function) | get_type_hints(options)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if unknown := [k for k in kwargs if k not in signature.parameters]:
                known = signature.parameters
                raise UsageError(f"{function.__name__} has no option {unknown[0]!r}.{nearest(unknown[0], known)}")
            given = {k: kwargs.pop(k) for k in names if k in kwargs}
            return function(*args, options=options(**given), **kwargs)

        added = [
            inspect.Parameter(
                f.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if f.default is MISSING else f.default,
                annotation=hints[f.name],
            )
            for f in fields(options)
        ]
        mine = [p.replace(annotation=hints[k]) for k, p in own.parameters.items() if k != "options"]
        signature = own.replace(parameters=[*mine, *added])
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__annotations__ = {k: p.annotation for k, p in signature.parameters.items()}
        return call

    return decorate
