"""Where settings come from: the command line, the environment, a config file, the program and the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import cast

from threadbridge.settings.table import (
    ALL,
    ENVIRONMENT_PREFIX,
    OTHER_VARIABLES,
    CommandLineSettings,
    check_combinations,
    option_name,
    with_defaults,
)
from threadbridge.settings.values import SettingError

# The ``__name__`` of a config file in Python.
_CONFIG_MODULE = "threadbridge_config"


@dataclass(frozen=True)
class Resolved:
    """All settings, and their origins.

    An origin is ``default``, ``program``, ``environment``, ``command line``, or the path of the config file.
    """

    values: CommandLineSettings
    origins: Mapping[str, str]

    def label(self, name: str, value: object = None) -> str:
        """How an error names this setting, or one value of its list: as the user wrote it."""
        shown = cast(dict[str, object], self.values)[name] if value is None else value
        return _label(self.origins[name], name, ALL[name].show(shown))


def resolve(
    options: Mapping[str, Sequence[str]], environment: Mapping[str, str], defaults: CommandLineSettings
) -> Resolved:
    """Combine the command line, the environment, the config file, ``defaults`` and the table; the first has precedence.

    ``options`` has the texts given for each setting, in order. Raises `SettingError`.
    """
    values = with_defaults(CommandLineSettings, defaults)
    origins = {name: "program" if name in defaults else "default" for name in ALL}
    variables = dict(_read_environment(environment))
    given = [("environment", variables), ("command line", options)]
    config = options.get("config") or variables.get("config")
    if config is not None and config[-1].endswith(".py"):
        in_file, objects = _read_python(config[-1])
        values |= objects
        origins |= dict.fromkeys(objects, config[-1])
        given.insert(0, (config[-1], in_file))
    elif config is not None:
        given.insert(0, (config[-1], dict(_read_toml(config[-1]))))
    for origin, texts in given:
        for name, parts in texts.items():
            # The items of a list add up; of other values the last one wins.
            text = ",".join(parts) if ALL[name].kind.is_list else parts[-1]
            values[name] = ALL[name].read(text, _label(origin, name, text))
            origins[name] = origin
    check_combinations(values, origins)
    settings = cast(CommandLineSettings, values)
    if any("lanes" in texts for _, texts in given):
        for lane in settings["lanes"]:
            lane.queue = settings["queue"]
    return Resolved(settings, origins)


def _label(origin: str, name: str, text: str) -> str:
    if origin == "command line":
        return f"--{option_name(name)}={text}"
    if origin == "environment":
        return f"{ENVIRONMENT_PREFIX}{name.upper()}={text}"
    return f"{origin}: {name} = {text}"


def _read_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, Sequence[str]]]:
    """The settings among the environment variables, as texts."""
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in OTHER_VARIABLES:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            _check_name(name, variable, lambda near: ENVIRONMENT_PREFIX + near.upper())
            yield name, [text]


def _read_toml(path: str) -> Iterator[tuple[str, Sequence[str]]]:
    """The settings of a config file in TOML, as texts."""
    # Not at the top: few processes have such a file, and the parser takes memory.
    import tomllib

    try:
        with open(path, "rb") as file:
            entries = tomllib.load(file)
    except OSError as error:
        raise SettingError(f"cannot read the config file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"the config file {path} is not TOML: {error}") from None
    for name, value in entries.items():
        _check_name_in_file(name, path)
        kind = ALL[name].kind
        items = value if isinstance(value, list) and kind.is_list else [value]
        if not all(type(item) in kind.in_file for item in items):
            raise SettingError(f"{path}: {name} = {value!r}: expected {kind.expected}")
        yield name, [str(item) for item in items]


def _read_python(path: str) -> tuple[dict[str, Sequence[str]], dict[str, object]]:
    """The settings of a config file in Python, texts and other values: its variables and functions, not its imports."""
    # Not at the top: as above.
    import runpy

    try:
        found = runpy.run_path(path, run_name=_CONFIG_MODULE)
    except OSError as error:
        raise SettingError(f"cannot read the config file {path}: {error.strerror}") from None
    except Exception as error:  # noqa: BLE001 - whatever the file raises, it cannot be used
        raise SettingError(f"the config file {path} raised {type(error).__name__}: {error}") from None
    texts: dict[str, Sequence[str]] = {}
    objects: dict[str, object] = {}
    for name, value in found.items():
        is_imported = isinstance(value, ModuleType) or getattr(value, "__module__", _CONFIG_MODULE) != _CONFIG_MODULE
        if name.startswith("_") or (name not in ALL and is_imported):
            continue
        _check_name_in_file(name, path, "; start the names of your own variables and functions with an underscore")
        items = value if isinstance(value, (list, tuple)) and ALL[name].kind.is_list else [value]
        if items and all(isinstance(item, str) for item in items):
            texts[name] = items
        else:
            objects[name] = ALL[name].check(value, f"{path}: {name} = {value!r}")
    return texts, objects


def _check_name_in_file(name: str, path: str, more: str = "") -> None:
    _check_name(name, f"{path}: {name}", more=more)
    if name in ("config", "check", "json"):
        raise SettingError(f"{path}: {name}: this setting cannot be given in a config file")


def _check_name(name: str, label: str, spelled: Callable[[str], str] = str, more: str = "") -> None:
    if name not in ALL:
        # Not at the top: few make this mistake.
        from difflib import get_close_matches

        near = get_close_matches(name, ALL, 1)
        hint = f"; did you mean {spelled(near[0])}?" if near else ""
        raise SettingError(f"{label}: there is no setting of this name{hint}{more}")
