"""Options that several commands share, declared once as a dataclass and accepted as plain keyword arguments."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from functools import wraps
from typing import Any, get_type_hints

from medssl.errors import UsageError, nearest


def accepts(*options: type, omit: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function the fields of dataclasses as keyword arguments, in place of its parameters of these types.

    The decorated function's signature and type hints list all of them, so that `help`, the command line and a test of
    the yaml files see one flat list. An unknown keyword raises UsageError with the nearest known one. Fields named in
    `omit` keep their defaults and are not arguments.
    """
    taken = {option: [f for f in fields(option) if f.name not in omit] for option in options}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function)
        hints = get_type_hints(function)
        target = {option: next(k for k, hint in hints.items() if hint is option) for option in options}

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if unknown := [k for k in kwargs if k not in signature.parameters]:
                known = signature.parameters
                raise UsageError(f"{function.__name__} has no option {unknown[0]!r}.{nearest(unknown[0], known)}")
            for option, name in target.items():
                kwargs[name] = option(**{f.name: kwargs.pop(f.name) for f in taken[option] if f.name in kwargs})
            return function(*args, **kwargs)

        added = [_parameter(f, get_type_hints(option)[f.name]) for option in options for f in taken[option]]
        mine = [p.replace(annotation=hints[k]) for k, p in own.parameters.items() if k not in target.values()]
        signature = own.replace(parameters=[*mine, *added])
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__annotations__ = {k: p.annotation for k, p in signature.parameters.items()}
        return call

    return decorate


def _parameter(field: Field[Any], hint: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
