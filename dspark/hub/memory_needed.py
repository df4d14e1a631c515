"""The memory that a pair needs: one sum, whatever the source of its sizes.

benchmarks/memory_fit.py compares it with the measured memory of processes.
"""

from dataclasses import dataclass

from dspark.checkpoints.deepseek_v4_cache_layout import INDEX_SCORES
from dspark.config import EXPERTS_PREFILL_CHUNK, GPU_PREFILL_CHUNK, PREFILL_CHUNK
from dspark.hub.footprint import FLOAT, Footprint

USABLE = 0.9  # usable share of a memory; the system and other programs need the rest
CACHE_TOKENS = 4096  # a long chat; the cache grows with the context
PROGRAM_BYTES = 280_000_000  # the interpreter, torch and a tokenizer; measured
TRANSFORMERS_BYTES = 110_000_000  # where its code reads the model or the tokenizer; measured
KERNEL_BYTES = 80_000_000  # LLVM, which builds the kernels of codes; measured
GPU_BYTES = 1_500_000_000  # on a GPU: its context, passes and captured graphs
KV_CODE_BYTE = 17 / 16  # bytes of a code of keys and values, with its scale in rows of 64
MIN_CAPACITY = 256  # initial capacity of a cache in tokens; it doubles
MAX_ROWS = 64  # of a pass that verifies
LOGITS = 3  # logits tensors alive at once: raw, adjusted, probabilities
DOUBLES = 2  # rows of an MLP and attention alive at once
COPY_BYTE = 1.2  # bytes of an int8 copy with its scales; keys' and values' are there twice


@dataclass(frozen=True, slots=True)
class Room:
    """The total memory of one device, and the bytes per number there.

    `keeps_quantized`: FP8 weights stay as stored; otherwise they are loaded as bfloat16.
    `keeps_codes`: so do weights in the codes of a GGUF; elsewhere they are numbers. `codes_cache`:
    keys and values are codes of 8 bits.
    """

    device: str
    total: int
    value_bytes: int
    keeps_quantized: bool = False
    keeps_codes: bool = False
    codes_cache: bool = False

    @property
    def cached_bytes(self) -> float:
        """Of a number of keys and values."""
        return KV_CODE_BYTE if self.codes_cache else self.value_bytes

    @property
    def usable(self) -> int:
        return int(self.total * USABLE)

    @property
    def dtype(self) -> str:
        return "float32" if self.value_bytes == FLOAT else "bfloat16"


def memory_needed(of: Footprint, room: Room, tokens: int = CACHE_TOKENS) -> int:
    """Peak bytes with a context of `tokens`: weights, cache, a pass, the program."""
    held = weight_bytes(of, room) + cache_bytes(of, room, tokens)
    return held + pass_bytes(of, room) + program_bytes(of, room)


def least_memory(of: Footprint, room: Room, tokens: int = CACHE_TOKENS) -> int:
    """As memory_needed, with routed experts left in their files where those are mapped; on a card
    that runs DeepSeek-V4's own layout the host has them."""
    leaves = is_mapped(of, room) or runs_on_card(of, room)
    left = of.experts.total_bytes if of.experts is not None and leaves else 0
    return memory_needed(of, room, tokens) - left


def weight_bytes(of: Footprint, room: Room) -> int:
    """Bytes of the weights, each held once; a prepacked output head keeps its plain form too.

    Pages of a file that transformers maps while reading are not counted: the system reclaims them
    when needed.
    """
    if of.stored_bytes is not None:  # bfloat16 unless kept quantized, whatever the dtype
        stays = room.keeps_quantized and not of.unpacks_elsewhere
        is_kept = stays or is_mapped(of, room) or runs_on_card(of, room)
        return of.stored_bytes if is_kept else of.values * 2
    if room.device == "cuda" and room.keeps_codes and of.is_dense and of.gpu_coded_values:
        return (of.values - of.gpu_coded_values) * room.value_bytes + of.gpu_coded_bytes
    if room.device == "cpu" and room.keeps_codes and of.coded_values:
        numbers = of.values - of.coded_values - of.copied_values
        small = of.coded_bytes + int(of.copied_values * COPY_BYTE)
        return numbers * room.value_bytes + small + KERNEL_BYTES
    packs = of.is_dense and room.device == "cpu" and room.value_bytes == FLOAT
    copy = of.vocab_size * of.hidden_size if packs else 0
    return (of.values + copy) * room.value_bytes


def is_mapped(of: Footprint, room: Room) -> bool:
    """Whether weights are read where their files have them, in memory that others may take back
    at the price of reading again."""
    return of.runs_mapped and room.device == "cpu" and room.value_bytes == FLOAT


def runs_on_card(of: Footprint, room: Room) -> bool:
    """Whether a GPU multiplies with the weights as stored, with as many experts there as fit."""
    has_kernels = room.device == "cuda" and room.keeps_codes
    return has_kernels and of.runs_mapped and not of.unpacks_elsewhere


def cache_bytes(of: Footprint, room: Room, tokens: int = CACHE_TOKENS) -> int:
    capacity = MIN_CAPACITY
    while capacity < tokens:
        capacity *= 2
    return int((of.cache * capacity + of.rings) * room.cached_bytes)


def pass_bytes(of: Footprint, room: Room) -> int:
    """Bytes of a pass's activations."""
    if of.row and is_mapped(of, room):
        scores = INDEX_SCORES if of.rings else 0  # of DeepSeek-V4's indexers, at most
        return FLOAT * (EXPERTS_PREFILL_CHUNK * of.row + MAX_ROWS * of.vocab_size + scores)
    is_fast = room.device == "cuda" and room.value_bytes < FLOAT
    num_rows = GPU_PREFILL_CHUNK if is_fast else PREFILL_CHUNK
    rows = num_rows * (2 * of.inner_size + 4 * of.hidden_size) * DOUBLES
    logits = LOGITS * FLOAT * MAX_ROWS * of.vocab_size
    return rows * room.value_bytes + logits


def program_bytes(of: Footprint, room: Room) -> int:
    if room.device != "cpu":
        return GPU_BYTES
    is_converted = room.keeps_codes and of.coded_values  # so config and tokenizer are plain
    return PROGRAM_BYTES + (0 if is_converted else TRANSFORMERS_BYTES)
