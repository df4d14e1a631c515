"""A safetensors file that is opened once: its header, with every size and offset checked, and the
bytes of its tensors. Needs no torch.

The library opens a file for itself, maps it, and accepts a name that occurs twice; a test holds
that whatever it refuses is refused here too.
"""

import errno
import json
import math
import mmap
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

from dspark.checkpoints.files import one_line, shown, without_duplicates
from dspark.checkpoints.gguf_codes import Codes, codes_of_header
from dspark.errors import CheckpointError, DSparkError, MemoryFullError

LARGEST_HEADER = 32 << 20  # bytes; enough for 200,000 tensors in one file
LENGTH_BYTES = 8  # of the header's length, with which the file begins
METADATA = "__metadata__"
DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
# by the end of a tensor's name, numbers per stored value: AWQ and GPTQ, MXFP4
PACKED = {".qweight": 8, "_blocks": 2}
FETCH_AGAIN = "Download the model again."


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor's entry in the header; dtype by safetensors' name. `start` and `num_bytes` are its
    place in the file. With `codes` (of a GGUF) its bytes stand for other numbers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int
    codes: Codes | None = None

    @property
    def numbers_shape(self) -> tuple[int, ...]:
        """The shape of what is stored; of packed numbers and of codes, unpacked."""
        if self.codes:
            return self.codes.shape
        *sizes, last = self.shape or (1,)
        return (*sizes, numbers_in(self.name) * last)


def numbers_in(name: str) -> int:
    """Numbers per stored value of that tensor."""
    return next((n for end, n in PACKED.items() if name.endswith(end)), 1)


class SafetensorsFile:
    """Open until nothing refers to it. `entries` are in the order of their bytes; `metadata` is
    what else the header tells."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError for a file that is missing, truncated, or of another kind."""
        self.path = path
        if not path.is_file():  # a pipe would never end
            raise CheckpointError(f"{path} does not exist", FETCH_AGAIN)
        with _told(path, "is truncated or not a safetensors file"):
            self._file = path.open("rb", buffering=0)
            weakref.finalize(self, self._file.close)
            header, start = _read_header(self._file)
            self.metadata = _read_metadata(header)
            self.entries = _read_entries(self._file, header, start)

    def read_into(self, entry: Entry, memory: memoryview) -> None:
        """Its bytes; raises CheckpointError where the file was cut off since."""
        with _told(self.path, "cannot be read"):
            self._file.seek(entry.start)
            while len(memory):
                if not (num_read := self._file.readinto(memory)):
                    raise ValueError(f"truncated at {shown(entry.name)}")
                memory = memory[num_read:]

    @cached_property
    def mapped(self) -> mmap.mmap:
        """The whole file, read-only; the system reads what is looked at, and may forget it."""
        with _told(self.path, "cannot be mapped"):
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            if any(len(mapped) < each.start + each.num_bytes for each in self.entries.values()):
                raise ValueError("it was cut off after it was opened")
            return mapped


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _of_the_system(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} {what} ({one_line(error)})", FETCH_AGAIN) from error


def _of_the_system(path: Path, error: OSError) -> DSparkError:
    """The file may well be whole, so fetching it again is no way out."""
    if error.errno == errno.ENOMEM:
        return MemoryFullError(
            f"out of memory at {path}", "Close other programs, or see ulimit -v."
        )
    hint = "Check its permissions and its disk."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "Raise the limit of open files: ulimit -n."
    return CheckpointError(f"{path} cannot be read ({error.strerror or one_line(error)})", hint)


def _read_entries(file: FileIO, header: dict[str, Any], start: int) -> dict[str, Entry]:
    codes = codes_of_header(header)
    tensors = [(name, raw) for name, raw in header.items() if name != METADATA]
    entries = [_entry(name, raw, start, codes.get(name)) for name, raw in tensors]
    entries.sort(key=lambda entry: entry.start)
    end = start
    for entry in entries:
        if entry.start != end:
            raise ValueError(f"{shown(entry.name)} does not begin where the one before it ends")
        end += entry.num_bytes
    if end != (size := os.fstat(file.fileno()).st_size):
        raise ValueError(f"its tensors end at byte {end:,} of {size:,}")
    return {entry.name: entry for entry in entries}


def _read_header(file: FileIO) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors begin."""
    prefix = file.read(LENGTH_BYTES) or b""
    length = int.from_bytes(prefix, "little")
    if length > LARGEST_HEADER:
        raise ValueError(f"a header of {length:,} bytes")
    text = file.read(length) or b""
    if len(prefix) < LENGTH_BYTES or len(text) < length:
        raise ValueError("the header is cut off")
    header = json.loads(text.decode("utf-8"), object_pairs_hook=without_duplicates)
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    return header, LENGTH_BYTES + length


def _read_metadata(header: dict[str, Any]) -> dict[str, str]:
    if header.get(METADATA) is None:
        header[METADATA] = {}
    if not all(isinstance(each, str) for each in header[METADATA].values()):
        raise ValueError(f"{METADATA} is not a table of texts")
    return dict(header[METADATA])


def _entry(name: str, raw: Mapping[str, Any], begin: int, codes: Codes | None) -> Entry:
    name.encode("utf-8")  # JSON may escape half a character, which cannot be printed
    dtype, shape = raw["dtype"], raw["shape"]
    start, end = raw["data_offsets"]
    sizes = [*shape, start, end]
    if dtype not in DTYPE_BITS or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"the entry of {shown(name)} is invalid")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or end - start != bits // 8:
        raise ValueError(f"{shown(name)} of {shape} in {dtype} has {end - start} bytes")
    return Entry(name, dtype, tuple(shape), begin + start, bits // 8, codes)
