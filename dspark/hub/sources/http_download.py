"""Downloads one file over HTTP into `PATH.part`, resuming where an earlier attempt ended."""

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

from dspark.errors import DownloadError
from dspark.events import FetchProgress
from dspark.lazy_httpx import httpx

MAX_IDLE_ATTEMPTS = 4  # consecutive attempts without a byte
PAUSE_SECONDS = 0.5
HINT = "Check the network and run the same command again; it resumes from there."
TRANSIENT_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})


def download(
    client: "httpx.Client", url: str, part: Path, name: str, num_bytes: int
) -> Iterator[FetchProgress]:
    """Complete `part` to `num_bytes`. Dropped connections are resumed as long as bytes arrive."""
    idle_attempts = 0
    while (before := size_of(part)) != num_bytes:
        reason = "the connection ended early"
        try:
            yield from _continue(client, url, part, name, num_bytes)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = describe_http(error)
            if _is_final(error):
                raise DownloadError(f"{name} cannot be downloaded: {reason}", HINT) from error
        idle_attempts = 0 if size_of(part) > before else idle_attempts + 1
        if idle_attempts == MAX_IDLE_ATTEMPTS:
            raise DownloadError(
                f"{name} stopped at {size_of(part):,} of {num_bytes:,} bytes: {reason}",
                HINT,
            )
        time.sleep(PAUSE_SECONDS * idle_attempts)
    yield FetchProgress(name, num_bytes, num_bytes)


def _continue(
    client: "httpx.Client", url: str, part: Path, name: str, num_bytes: int
) -> Iterator[FetchProgress]:
    done = size_of(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()
            return
        response.raise_for_status()
        start, total = _range_of(response)
        if start not in (0, done):
            part.unlink()
            return
        if total not in (None, num_bytes):
            part.unlink(missing_ok=True)
            raise DownloadError(
                f"{name} has {total:,} bytes on the server, not {num_bytes:,}", HINT
            )
        with part.open("ab" if start else "wb") as file:
            done = start
            yield FetchProgress(name, done, num_bytes)
            for chunk in response.iter_raw():
                file.write(chunk[: num_bytes - done])
                done = min(done + len(chunk), num_bytes)
                yield FetchProgress(name, done, num_bytes)


def _range_of(response: "httpx.Response") -> tuple[int, int | None]:
    """First byte and total size of the response; a server that ignores ranges starts at 0."""
    if response.status_code != httpx.codes.PARTIAL_CONTENT:
        length = response.headers.get("content-length", "")
        return 0, int(length) if length.isdigit() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
    if match is None:
        raise httpx.DecodingError("its response to a range request is invalid")
    return int(match[1]), int(match[2]) if match[2] != "*" else None


def describe_http(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"answered {error.response.status_code}"
    return str(error) or type(error).__name__


def _is_final(error: "httpx.HTTPError | httpx.InvalidURL") -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code not in TRANSIENT_CODES
    return not isinstance(error, httpx.TransportError | httpx.DecodingError)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check_sha256(path: Path, name: str, expected: str) -> None:
    """Raises DownloadError, and removes the file, if its content differs."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        path.unlink()
        raise DownloadError(
            f"{name} has sha256 {digest[:12]}…, expected {expected[:12]}…; it was discarded",
            "Run the same command again; if it fails again, the server has another file.",
        )
