"""The network settings that pip is configured with, for uv, which does not read pip's.

Sources: https://pip.pypa.io/en/stable/topics/configuration/ and https://docs.astral.sh/uv/reference/environment/.
"""

from __future__ import annotations

import configparser
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path

# pip's option → uv's variable, and what else counts as having set it for uv.
INDEX = {
    "index-url": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "extra-index-url": ("UV_INDEX", "UV_EXTRA_INDEX_URL"),
    "find-links": ("UV_FIND_LINKS",),
    "no-index": ("UV_NO_INDEX",),
}
CONNECTION = {
    "cert": ("SSL_CERT_FILE", "SSL_CERT_DIR"),
    "trusted-host": ("UV_INSECURE_HOST",),
    "proxy": ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"),
    "timeout": ("UV_HTTP_TIMEOUT",),
}


def config_files(environment: Mapping[str, str], home: Path) -> list[Path]:
    """pip's configuration files, the later ones overriding the earlier ones."""
    named = environment.get("PIP_CONFIG_FILE")
    if named == "/dev/null":
        return []
    config_home = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    found = [Path(folder) / "pip/pip.conf" for folder in reversed((environment.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":"))]
    found += [Path("/etc/pip.conf"), home / ".pip/pip.conf"]
    if sys.platform == "darwin":
        found += [Path("/Library/Application Support/pip/pip.conf"), home / "Library/Application Support/pip/pip.conf"]
    return [*found, config_home / "pip/pip.conf", *([Path(named)] if named else [])]


def pip_options(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """pip's options as its files and `PIP_*` variables set them, with dashes in the names."""
    options: dict[str, str] = {}
    for path in config_files(environment, home):
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeError, configparser.Error):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                options |= {name.replace("_", "-"): value for name, value in parser.items(section) if value}
    options |= {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in environment.items()
        if name.startswith("PIP_") and value
    }
    if "default-timeout" in options:
        options.setdefault("timeout", options["default-timeout"])
    return options


def uv_names_index(environment: Mapping[str, str], home: Path) -> bool:
    """Whether a configuration file of uv's own names an index: then pip's is none of its business."""
    named = environment.get("UV_CONFIG_FILE")
    config_home = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path(named)] if named else [config_home / "uv/uv.toml", Path("/etc/xdg/uv/uv.toml"), Path("/etc/uv/uv.toml")]
    return any(path.is_file() and "index" in path.read_text(encoding="utf-8", errors="replace") for path in files)


def uv_environment(environment: Mapping[str, str], home: Path | None = None) -> dict[str, str]:
    """`environment` with uv's index, certificates, proxy and timeout filled in from pip's where uv's own are unset."""
    home = home or Path.home()
    options = pip_options(environment, home)
    result = dict(environment)
    table = CONNECTION if uv_names_index(environment, home) else INDEX | CONNECTION
    for option, variables in table.items():
        if option in options and not any(result.get(name) for name in variables):
            separator = "," if variables[0] == "UV_FIND_LINKS" else " "
            result[variables[0]] = separator.join(options[option].split())
    if "UV_INDEX" in result and "UV_INDEX" not in environment:
        # pip takes a version from whichever index has it; the hashes in the lock say which file is right.
        result.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    store = ssl.get_default_verify_paths()
    if not result.get("SSL_CERT_FILE") and (store.cafile or store.capath or sys.platform == "darwin"):
        # The system's certificates, as pip and git use: a proxy's own authority is in there. Older uv knows the second name.
        result.setdefault("UV_SYSTEM_CERTS", "true")
        result.setdefault("UV_NATIVE_TLS", "true")
    return result


def pip_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with pip's index and certificates filled in from uv's where pip's own are unset."""
    result = dict(environment)
    for ours, theirs in (("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), ("PIP_CERT", "SSL_CERT_FILE")):
        if environment.get(theirs):
            result.setdefault(ours, environment[theirs])
    return result | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
