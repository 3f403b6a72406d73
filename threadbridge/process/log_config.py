"""The logging configuration in a file: the dictionary of `logging.config.dictConfig`."""

from __future__ import annotations

import json
import logging.config
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from threadbridge.settings.values import SettingError


def _read_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise SettingError(
            "it is YAML, which needs the package PyYAML; pip install PyYAML, or use TOML or JSON"
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


_READERS: dict[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".json": json.loads,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}


def configure(path: str) -> None:
    """Configure logging as this file says; its suffix tells the format. Raises `SettingError`.

    Existing loggers, the server's included, stay enabled unless the file says otherwise.
    """
    read = _READERS.get(Path(path).suffix.lower())
    if read is None:
        raise SettingError(f"log_config: {path}: expected a file .toml, .json, .yaml or .yml")
    try:
        config = read(Path(path).read_text())
        if not isinstance(config, dict):
            raise ValueError("expected a table with the keys of logging.config.dictConfig")
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, **config})
    except OSError as error:
        # Of this file, or of one that a handler opens.
        raise SettingError(f"log_config: {path}: {error.filename or path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        # `dictConfig` names only what it was doing; the cause says why that failed.
        cause = f": {error.__cause__}" if error.__cause__ is not None else ""
        raise SettingError(f"log_config: {path}: {error}{cause}") from None
