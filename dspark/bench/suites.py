"""Published prompt sets: fetched once into the store at a pinned revision, checked by hash.

Their authors publish these files as JSON lines; the copies on the Hugging Face hub hold the same
questions as Parquet, which takes another library.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dspark.bench.prompts import PromptText, own_prompts, read_prompts
from dspark.errors import DownloadError, InputError
from dspark.events import FetchProgress
from dspark.http_client import make_client
from dspark.hub import home
from dspark.hub.paths import check_disk
from dspark.hub.sources.http_download import check_sha256, download
from dspark.hub.store import storage_errors
from dspark.records import json_records, prompt_of, read_bytes, usable

AS_IT_IS = "the prompt as it is in the file"
STEP_BY_STEP = "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
FUNCTION = (
    "Complete this Python function. Answer with the whole function in one code block.\n\n"
    "```python\n{}```"
)
MT_BENCH = (
    *("writing", "roleplay", "reasoning", "math"),
    *("coding", "extraction", "stem", "humanities"),
)


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts with what a reader has to know of them. `revision` and `licence` are None if they are
    not stated, as for a file of one's own."""

    name: str
    source: str
    revision: str | None
    licence: str | None
    wording: str
    texts: tuple[PromptText, ...]

    @property
    def sha256(self) -> str:
        """Of categories and prompts: equal for equal work."""
        digest = hashlib.sha256()
        for each in self.texts:
            digest.update(f"{each.category}\0{each.text}\0".encode())
        return digest.hexdigest()

    def first(self, limit: int | None) -> "PromptSet":
        return replace(self, texts=tuple(first_of_each_kind(self.texts, limit)))

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source": self.source,
            "revision": self.revision,
            "licence": self.licence,
            "wording": self.wording,
            "prompts": len(self.texts),
            "sha256": self.sha256,
        }


@dataclass(frozen=True, slots=True)
class Suite:
    """A file of a repository on GitHub. `wording` frames the text of `field`, None for the first
    turn as it is; only lines of `categories` count, where given. `category` None: the file's."""

    name: str
    repository: str
    revision: str
    path: str
    num_bytes: int
    sha256: str
    licence: str
    wording: str | None = None
    field: str | None = None
    categories: tuple[str, ...] = ()
    category: str | None = None

    @property
    def url(self) -> str:
        return f"https://raw.githubusercontent.com/{self.repository}/{self.revision}/{self.path}"


_SPEC_BENCH = (
    "hemingkx/Spec-Bench",
    "fd2c1cd7d2201ef71db4c5f4e455008f017967bf",
    "data/spec_bench/question.jsonl",
    698768,
    "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04",
    "Apache-2.0",
)
SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "gsm8k",
            "openai/grade-school-math",
            "3101c7d5072418e28b9008a6636bde82a006892c",
            "grade_school_math/data/test.jsonl",
            749738,
            "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            "MIT",
            STEP_BY_STEP,
            "question",
            category="gsm8k",
        ),
        Suite(
            "humaneval",
            "openai/human-eval",
            "6d43fb980f9fee3c892a914eda09951f772ad10d",
            "data/HumanEval.jsonl.gz",
            44877,
            "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
            "MIT",
            FUNCTION,
            "prompt",
            category="humaneval",
        ),
        Suite("mt-bench", *_SPEC_BENCH, categories=MT_BENCH),
        Suite("spec-bench", *_SPEC_BENCH),
    )
}


def find_suite(name: str) -> Generator[FetchProgress, None, PromptSet]:
    """A suite by name, or a file of one's own. Raises InputError or DownloadError."""
    suite = SUITES.get(name)
    if suite is not None:
        path = yield from _fetched(suite)
        return _read(suite, path)
    path = Path(name)
    if not path.exists():
        raise InputError(
            f"there is no suite and no file {name}",
            f"Suites are {', '.join(SUITES)}; a file has a prompt on each line, as JSON.",
        )
    known = _published(path)
    return file_set((path,)) if known is None else _read(known, path)


def _published(path: Path) -> Suite | None:
    """The suite whose very file this is, fetched by hand."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    return next((suite for suite in SUITES.values() if suite.sha256 == digest), None)


def first_of_each_kind(texts: Sequence[PromptText], limit: int | None) -> list[PromptText]:
    """At most `limit` prompts, in their order: the first of every category, then the second, so
    that a short run has seen all."""
    if limit is None:
        return list(texts)
    seen: Counter[str] = Counter()
    ranks = []
    for place, each in enumerate(texts):
        ranks.append((seen[each.category], place))
        seen[each.category] += 1
    return [texts[place] for place in sorted(place for _, place in sorted(ranks)[:limit])]


def own_set() -> PromptSet:
    """The prompts that ship with dspark."""
    source = "dspark/assets/prompts/bench.jsonl"
    return PromptSet("dspark", source, None, "MIT", AS_IT_IS, tuple(own_prompts()))


def file_set(paths: Sequence[Path], limit: int | None = None) -> PromptSet:
    """Of files of one's own, at most `limit` of each."""
    texts = [text for path in paths for text in first_of_each_kind(read_prompts(path), limit)]
    names = ", ".join(path.name for path in paths)
    return PromptSet(names, names, None, None, AS_IT_IS, tuple(texts))


def _fetched(suite: Suite) -> Generator[FetchProgress, None, Path]:
    """The file in the store, which one fetch fills."""
    folder = home() / "suites"
    path = folder / f"{suite.sha256[:16]}-{Path(suite.path).name}"
    if path.exists():
        return path
    with storage_errors(home()):
        folder.mkdir(parents=True, exist_ok=True)
        check_disk(folder, suite.num_bytes)
        part = path.with_name(f"{path.name}.part")
        if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
            raise DownloadError(
                f"{suite.name} is not in the store, and HF_HUB_OFFLINE is set",
                f"Unset it, or fetch {suite.url} yourself and give its path to --suite.",
            )
        with make_client(suite.url, follow_redirects=True) as client:
            try:
                yield from download(client, suite.url, part, suite.name, suite.num_bytes)
            except DownloadError as error:
                raise DownloadError(
                    error.message,
                    f"Check the network, or fetch {suite.url} yourself and give its path to "
                    "--suite.",
                ) from error
        check_sha256(part, suite.name, suite.sha256)
        os.replace(part, path)
    return path


def _read(suite: Suite, path: Path) -> PromptSet:
    texts = []
    for place, record in json_records(path, read_bytes(path, "--suite")):
        if suite.categories and (record or {}).get("category") not in suite.categories:
            continue
        field = suite.field
        text = prompt_of(record) if field is None else usable((record or {}).get(field))
        if text is None or record is None:
            raise InputError(f"{place} has no prompt", f"Remove {path} to fetch it again.")
        words = text if suite.wording is None else suite.wording.format(text)
        texts.append(PromptText(suite.category or str(record["category"]), words))
    source = f"github.com/{suite.repository}/{suite.path}"
    wording = (suite.wording or "{}, the first turn as it is").format("PROMPT")
    return PromptSet(suite.name, source, suite.revision, suite.licence, wording, tuple(texts))
