"""Is the output of verification bit-identical to plain decoding?

Plain decoding takes one row a pass, alone and beside other requests. Then the same text is decoded
again in blocks of which some drafts are spoilt; refused rows are rolled back. How many tokens are
compared is a matter of time, and told.
"""

import time
from collections.abc import Iterator

import torch

from gpu_parts.identity_decoder import Decoder, Sizes, Written
from gpu_parts.identity_demo import demo_pair
from gpu_parts.rounds import made_room
from gpu_parts.setting import Record, Setting, attempt, summed


def check_identity(setting: Setting) -> Iterator[Record]:
    shape, begin = setting.shapes[0], time.time()
    pair = {"pair": f"random weights, {shape.name}"}
    decoders: list[Decoder] = []

    def make() -> Record:
        found = made_room(shape, setting)
        if not found:
            decoders.append(Decoder(shape, setting))
        return found

    failed = attempt(pair, make)
    if decoders:
        until = begin + 0.7 * (setting.deadline - begin)
        records = []
        for record in compare_blocks(decoders[0], setting, until):
            records.append(record)
            yield pair | record
        yield pair | summed(records)
        decoders.clear()
    else:
        yield failed
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        yield from demo_pair(setting)
    else:
        yield {"pair": "demo", "skipped": "the engine's own tests compare it on the CPU"}


def compare_blocks(decoder: "Decoder", setting: Setting, until: float) -> Iterator[Record]:
    sizes, begin = Sizes.of(setting), time.time()
    texts: list[Written] = []
    prompts = [decoder.prompt(sizes.prompt_of(r)) for r in range(sizes.num_requests)]

    def write(which: list[torch.Tensor], share: float) -> Record:
        started, end = time.time(), begin + share * (until - begin)
        texts.append(decoder.write(which, sizes.num_tokens, end))
        found = texts[-1].token_ids
        return {
            "arm": "plain",
            "requests": len(which),
            "written": found[:, 1:].numel(),
            "distinct_tokens": found.unique().numel(),
            "s": round(time.time() - started, 2),
        }

    yield attempt({}, lambda: write(prompts[:1], 0.15))
    yield attempt({}, lambda: write(prompts, 0.5))
    if len(texts) < 2:
        return
    alone, together = texts
    yield attempt({}, lambda: same_text(alone, together))
    longest = max(texts, key=lambda text: text.token_ids.shape[1])
    arms = [(longest.alone(), size, False) for size in sizes.blocks_alone]
    arms += [(together, size, False) for size in sizes.blocks_together]
    arms.append((together, sizes.blocks_together[-1], True))
    for index, (text, size, is_ragged) in enumerate(arms):
        end = time.time() + max(until - time.time(), 0.0) / (len(arms) - index)
        yield attempt(
            {}, lambda t=text, n=size, r=is_ragged, e=end: decoder.compare(t, n, e, is_ragged=r)
        )


def same_text(alone: Written, together: Written) -> Record:
    """A request's output in a batch equals its output alone."""
    count = min(alone.prints.shape[1], together.prints.shape[1])
    tokens = alone.token_ids[0, : count + 1] != together.token_ids[0, : count + 1]
    prints = alone.prints[0, :count] != together.prints[0, :count]
    differing, other_bits = int(tokens.sum()), int(prints.sum())
    return {
        "arm": "plain, beside other requests",
        "requests": len(together.prompts),
        "tokens": count,
        "differing_tokens": differing,
        "rows_with_other_bits": other_bits,
        "ok": count > 0 and not differing and not other_bits,
    }
