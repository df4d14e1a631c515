"""The install command of an optional part of dspark, matching how dspark was installed."""

import json
from urllib.parse import unquote, urlsplit


def install_command(extra: str) -> str:
    """The pip command for one of the extras of pyproject.toml; from the clone, if there is one."""
    folder = _clone()
    return (
        f'pip install "dspark[{extra}]"'
        if folder is None
        else (f'pip install -e "{folder}[{extra}]"')
    )


def _clone() -> str | None:
    """The folder of an editable install (PEP 610)."""
    from importlib import metadata

    try:
        text = metadata.distribution("dspark").read_text("direct_url.json")
        origin = json.loads(text or "{}")
        is_editable = origin.get("dir_info", {}).get("editable", False)
        return unquote(urlsplit(origin["url"]).path) if is_editable else None
    except (metadata.PackageNotFoundError, ValueError, KeyError, AttributeError):
        return None
