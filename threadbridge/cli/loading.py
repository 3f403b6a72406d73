"""Loads what import paths name: ``MODULE:ATTRIBUTE``, and for the application ``MODULE:FACTORY(ARGUMENTS)`` too."""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import sys
import traceback
from typing import Any

from threadbridge.settings.values import SettingError

# Modules whose frames come before the application's in a traceback.
_LOADERS = (__name__.partition(".")[0], "importlib")


class ApplicationError(SettingError):
    """The application cannot be loaded, through a mistake in its files; ``traceback`` is "" if it says nothing more."""

    traceback = ""


def load_application(path: str) -> Any:
    """The application at an import path, or what the factory there returns when called; raises `SettingError`.

    A factory's arguments may be positional or keywords, and must be literals: ``shop:create_app("test", debug=True)``.
    None of the text is evaluated as code.
    """
    module, _, expression = path.partition(":")
    if not (module and "(" in expression):
        return load_object(path, path)
    try:
        call = ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise SettingError(f"{path}: {error.msg}; expected MODULE:APP or MODULE:FACTORY(ARGUMENTS)") from None
    names = call.func if isinstance(call, ast.Call) else call
    while isinstance(names, ast.Attribute):
        names = names.value
    if not (isinstance(call, ast.Call) and isinstance(names, ast.Name)):
        raise SettingError(f"{path}: expected MODULE:APP or MODULE:FACTORY(ARGUMENTS), such as shop:create_app()")
    name = ast.unparse(call.func)
    try:
        args = [ast.literal_eval(argument) for argument in call.args]
        kwargs = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError):
        args, kwargs = [], {"**": None}
    if "**" in kwargs:
        raise SettingError(f"{path}: the arguments must be literals, such as 'test', 5, None or [1, 2]")
    return _made_by(load_object(f"{module}:{name}", path), name, args, kwargs, path)


def _made_by(factory: Any, name: str, args: list[Any], kwargs: dict[str, Any], path: str) -> Any:
    if not callable(factory):
        raise ApplicationError(f"{path}: {name} is not callable; leave out the parentheses if it is the application")
    try:
        inspect.signature(factory).bind(*args, **kwargs)
    except TypeError as error:
        raise ApplicationError(
            f"{path}: {name}{inspect.signature(factory)} cannot be called like this: {error}"
        ) from None
    except ValueError:
        # A callable written in C may have no signature.
        pass
    try:
        return factory(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever the application raises, it is shown with its place
        raise _with_traceback(f"{path}: {name} raised {type(error).__name__}: {error}") from None


def load_object(path: str, label: str) -> Any:
    """The object at an import path; ``label`` names the path in errors. Raises `SettingError`."""
    module_name, _, attributes = path.partition(":")
    if not (module_name and attributes):
        raise SettingError(f"{label}: expected MODULE:ATTRIBUTE, such as myapplication:app")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 - whatever the module raises, it cannot be imported
        text = f"{label}: cannot import {module_name}: {type(error).__name__}: {error}"
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{module_name}.".startswith(f"{missing}."):
            # A mistake inside the module: show where.
            raise _with_traceback(text) from None
        raise ApplicationError(text) from None
    try:
        return operator.attrgetter(attributes)(module)
    except AttributeError as error:
        raise ApplicationError(f"{label}: {error}") from None


def _with_traceback(text: str) -> ApplicationError:
    """An error with the traceback of the exception that is being handled, from the application's first line on."""
    kind, error, frames = sys.exc_info()
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _LOADERS:
        frames = frames.tb_next
    made = ApplicationError(text)
    # Python leaves this line out if no frame is left, as for an error in the syntax.
    head = "Traceback (most recent call last):\n" if frames is None else ""
    made.traceback = head + "".join(traceback.format_exception(kind, error, frames))
    return made
