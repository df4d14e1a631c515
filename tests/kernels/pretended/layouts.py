"""How the sums of a layer are dealt out to threads, in one launch and in the chain, as JSON.

    python -m tests.kernels.pretended.layouts --card 90

A sum's order follows from the layout of what is summed. Sums of two numbers have none.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator

from dspark_kernels.aot import compiled
from dspark_kernels.builds import all_builds

CHAIN = ("attention bf16 32:8x128", "norm_rope_write bf16 32 heads", "rms_norm bf16 4096")
WHOLE = ("persistent layer 4B bf16",)
OPERAND = re.compile(r"^ *\}\) : \((tensor<.*>)\) -> ")
OF_TWO = re.compile(r"tensor<(?:\d+x2|1)xf32")


def summed(names: Iterable[str], capability: int) -> list[str]:
    """Layouts of the sums and largest numbers of more than two."""
    builds = {build.name: build for build in all_builds()}
    found = {
        each for name in names for each in layouts(compiled(builds[name], capability).asm["ttgir"])
    }
    return sorted(each for each in found if not OF_TWO.search(each))


def layouts(text: str) -> Iterator[str]:
    lines = text.splitlines()
    names = dict(re.findall(r"^(#\w+) = (.*)$", text, re.MULTILINE))
    for index, line in enumerate(lines):
        if '"tt.reduce"' in line:
            operand = next(m[1] for m in map(OPERAND.match, lines[index:]) if m)
            name = max((n for n in names if n in operand), key=len)
            combined = next(each.split()[2] for each in lines[index + 2 :] if " = " in each)
            yield f"{combined} {operand.replace(name, names[name])}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--card", type=int, default=90)
    card = parser.parse_args().card
    json.dump({"chain": summed(CHAIN, card), "whole": summed(WHOLE, card)}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
