"""Where a user's settings are; ``tintray.jobs.config.settings`` reads them."""

from __future__ import annotations

import os
from pathlib import Path


def variable(name: str) -> str:
    """The environment variable of a setting: ``TINTRAY_STORE``."""
    return f"TINTRAY_{name.upper()}"


def config_file() -> Path:
    """Where the configuration file is, or would be."""
    if named := os.environ.get(variable("config")):
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "tintray" / "config.toml"


def may_be_set(name: str) -> bool:
    """Whether anything can say what a setting is: its variable, or a configuration file."""
    file = config_file()
    return bool(os.environ.get(variable(name))) or (str(file) != os.devnull and file.exists())
