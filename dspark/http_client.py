"""HTTP clients that use the environment's proxies and certificates, or report why they cannot.

Desktops, containers and companies set values that make an HTTP library refuse to create a client.
A setting that only another address needs must not break this one.
"""

import ipaddress
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies_environment

from dspark.errors import NetworkSetupError
from dspark.lazy_httpx import httpx

VARIABLE = re.compile(r"(http|https|all|no)_proxy", re.IGNORECASE)
HOST = re.compile(
    r"\.?[\w-]+(\.[\w-]+)*\.?(:\d+)?", re.ASCII
)  # accepted in NO_PROXY by the library
BRACKETS = re.compile(r"^\[(.*)\](/\d+)?$")  # of an IPv6 address, with the length of a range
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
_environment = threading.RLock()


def make_client(*urls: str, **options: Any) -> "httpx.Client":
    """A client for requests to `urls`; `options` decide about redirects.

    Raises NetworkSetupError if a proxy that they need, the certificates or a header cannot be
    used.
    """
    with usable_environment(*urls):
        return httpx.Client(**options)


def make_async_client(*urls: str, **options: Any) -> "httpx.AsyncClient":
    """As make_client."""
    with usable_environment(*urls):
        return httpx.AsyncClient(**options)


def proxy_for(url: str) -> str:
    """The proxy used for this address, without its password; "" without a proxy."""
    proxies, address = getproxies_environment(), urlsplit(url)
    if is_direct(address, re.split(r"[,\s]+", proxies.get("no", ""))):
        return ""
    proxy = proxies.get(address.scheme) or proxies.get("all")
    return re.sub(r"//[^/@]*@", "//", _spelled(proxy)) if proxy else ""


@contextmanager
def usable_environment(*urls: str) -> Iterator[None]:
    """Inside, an HTTP library can create a client for `urls`; other threads wait."""
    with _environment, _proxies_set(_usable_proxies(urls)):
        try:
            yield
        except UnicodeEncodeError as error:
            raise NetworkSetupError(
                "a key or token has characters that are not allowed in an HTTP header",
                "Copy it again; look for spaces, line breaks and letters beyond ASCII.",
            ) from error
        except OSError as error:  # ssl's error is one too
            named = [f"{name}={os.environ[name]}" for name in CERTIFICATES if name in os.environ]
            raise NetworkSetupError(
                f"the certificates for HTTPS cannot be read ({error.strerror or error})",
                f"Check {' and '.join(named)}." if named else "Reinstall the package certifi.",
            ) from error
        except Exception as error:  # several HTTP libraries, whose errors share no base
            raise NetworkSetupError(
                f"the HTTP client cannot be created ({error})",
                "Check HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.",
            ) from error


@contextmanager
def _proxies_set(proxies: Mapping[str, str] | None) -> Iterator[None]:
    """Sets the variables while a client is created; None leaves them unchanged."""
    if proxies is None:
        yield
        return
    before = {name: value for name, value in os.environ.items() if VARIABLE.fullmatch(name)}
    try:
        for name in before:
            del os.environ[name]
        os.environ.update({f"{scheme}_proxy": value for scheme, value in proxies.items()})
        yield
    finally:
        for scheme in proxies:
            os.environ.pop(f"{scheme}_proxy", None)
        os.environ.update(before)


def _usable_proxies(urls: tuple[str, ...]) -> dict[str, str] | None:
    """By scheme ("no": hosts without a proxy), without unusable entries that are not needed."""
    named = {
        scheme: value
        for scheme, value in getproxies_environment().items()
        if scheme in ("http", "https", "all", "no")
    }
    if not named:
        return None
    exceptions = re.split(r"[,\s]+", named.pop("no", "").strip())
    faults = {scheme: _fault(_spelled(value)) for scheme, value in named.items()}
    kept = [entry for entry in map(_plain, exceptions) if entry]
    for address in filter(None, map(_split, urls)):
        if is_direct(address, exceptions):
            host = address.hostname or ""
            kept.append(host)
            continue
        needed = address.scheme if address.scheme in named else "all"
        if faults.get(needed):
            raise NetworkSetupError(
                f"the proxy for {address.hostname} cannot be used: {faults[needed]}",
                f"Check {needed.upper()}_PROXY, or name the host in NO_PROXY.",
            )
    usable = {scheme: _spelled(value) for scheme, value in named.items() if not faults[scheme]}
    return {**usable, "no": ",".join(kept)} if kept else usable


def _split(url: str) -> SplitResult | None:
    """None for an invalid URL, which the request itself reports."""
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _spelled(proxy: str) -> str:
    """In an HTTP library's spelling; desktops write socks:// for SOCKS 5."""
    proxy = proxy.strip()
    return re.sub(r"^socks://", "socks5://", proxy if "://" in proxy else f"http://{proxy}")


def _fault(proxy: str) -> str:
    """Why it cannot be used; "" if it can."""
    shown = re.sub(r"//[^/@]*@", "//", proxy)  # never a password
    try:
        url = httpx.Proxy(proxy).url
    except (httpx.InvalidURL, ValueError):
        return f"{shown} is not the address of an HTTP or SOCKS 5 proxy"
    if not url.host:
        return f"{shown} has no host"
    if url.scheme.startswith("socks") and find_spec("socksio") is None:
        return f"{shown} needs the package socksio (pip install socksio)"
    return ""


def is_direct(url: SplitResult, exceptions: list[str]) -> bool:
    """Whether the host needs no proxy: this machine itself, or an entry of NO_PROXY.

    Its entries: *, a host with all below it, an address or a range of them, each with a port or
    without.
    """
    host = (url.hostname or "").rstrip(".")
    address = _network(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_covers(entry.strip().lower(), host, address, _port(url)) for entry in exceptions)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _covers(entry: str, host: str, address: Network | None, port: int | None) -> bool:
    if entry == "*":
        return True
    network = _network(entry)
    if network is not None:
        same_version = address is not None and network.version == address.version
        return same_version and network.supernet_of(address)  # type: ignore[arg-type]
    name, separator, stated_port = entry.rpartition(":")
    if separator and stated_port.isdigit():
        return int(stated_port) == port and _covers(name, host, address, None)
    name = entry.removeprefix("*").lstrip(".").rstrip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _network(text: str) -> Network | None:
    """An address is the range of itself."""
    try:
        return ipaddress.ip_network(BRACKETS.sub(r"\1\2", text), strict=False)
    except ValueError:
        return None


def _port(url: SplitResult) -> int | None:
    try:
        return url.port or {"http": 80, "https": 443}.get(url.scheme)
    except ValueError:
        return None


def _plain(entry: str) -> str:
    """An entry of NO_PROXY in an HTTP library's spelling; "" for one that it does not support."""
    entry = entry.strip()
    if entry == "*":
        return entry
    network = _network(entry)
    if network is not None:
        return str(network.network_address) if network.num_addresses == 1 else ""
    entry = entry.removeprefix("*")
    return entry if HOST.fullmatch(entry) else ""
