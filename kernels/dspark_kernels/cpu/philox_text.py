"""Philox 4x64-10 (Salmon et al. 2011) in LLVM's text, as noise.py has it from NumPy."""

from collections.abc import Sequence

from dspark_kernels.cpu.llvm_text import Loop, Text

ROUNDS = 10
FACTORS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
GROUP_WORDS = 8  # of 32 bits, that a block has
UNIT_GROUPS = 256  # blocks of a unit


def write_noise_words(text: Text) -> None:
    """Words: seed, place, out, number of blocks. Numbers of 32 bits, as noise.py's `_words`."""
    text.raw("define void @noise_words(ptr %own, ptr %step, i64 %first, i64 %last) {")
    seed, place, groups = (text.argument("%own", word) for word in (0, 1, 3))
    out, keys = text.argument("%own", 2, "ptr"), write_keys(text, seed)
    begin, end = (text.set(f"mul i64 {unit}, {UNIT_GROUPS}") for unit in ("%first", "%last"))
    end = text.set(f"call i64 @llvm.smin.i64(i64 {end}, i64 {groups})")
    loop = Loop(text, begin, end)
    block = write_block(text, loop.index, place, keys)
    offset = text.set(f"mul i64 {loop.index}, {4 * GROUP_WORDS}")
    for index, word in enumerate(block):
        text.store("i64", word, text.at(out, text.set(f"add i64 {offset}, {8 * index}")))
    loop.close()
    text.do("ret void")
    text.raw("}")


def write_keys(text: Text, seed: str) -> list[tuple[str, int]]:
    """Both keys of each round; the second of a seed of 64 bits is 0 at first."""
    return [
        (text.set(f"add i64 {seed}, {_signed(number * KEY_STEPS[0])}"), number * KEY_STEPS[1])
        for number in range(ROUNDS)
    ]


def write_block(
    text: Text, index: str, place: str, keys: Sequence[tuple[str, int]]
) -> tuple[str, str, str, str]:
    """Four numbers of 64 bits: block `index` of a place, in the stream of tokens' noise."""
    counter = (text.set(f"add i64 {index}, 1"), place, "0", "0")  # NumPy counts from 1
    for key, other_key in keys:
        high, low = _product(text, counter[0], FACTORS[0])
        high2, low2 = _product(text, counter[2], FACTORS[1])
        first = text.set(f"xor i64 {high2}, {counter[1]}")
        third = text.set(f"xor i64 {high}, {counter[3]}")
        counter = (
            text.set(f"xor i64 {first}, {key}"),
            low2,
            text.set(f"xor i64 {third}, {_signed(other_key)}"),
            low,
        )
    return counter


def _product(text: Text, x: str, factor: int) -> tuple[str, str]:
    """Its higher and its lower half."""
    wide = text.set(f"mul i128 {text.set(f'zext i64 {x} to i128')}, {factor}")
    high = text.set(f"trunc i128 {text.set(f'lshr i128 {wide}, 64')} to i64")
    return high, text.set(f"trunc i128 {wide} to i64")


def _signed(number: int) -> int:
    """The same 64 bits, as LLVM writes them."""
    return (number + 2**63) % 2**64 - 2**63
