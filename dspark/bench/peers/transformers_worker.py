"""transformers' generate in a process of its own: a line of JSON for each question and answer.

python -m dspark.bench.peers.transformers_worker FOLDER DEVICE DTYPE
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from dspark.targets.hf_model import read_hf_model


class FirstTokenClock(BaseStreamer):
    """Notes when the first new token comes. transformers hands over the prompt first."""

    def __init__(self) -> None:
        self.calls = 0
        self.first_token_at = 0.0

    def put(self, value: torch.Tensor) -> None:
        self.calls += 1
        if self.calls == 2:
            self.first_token_at = time.perf_counter()

    def end(self) -> None:
        """Nothing to close."""


@torch.inference_mode()
def answer(model: Any, device: str, prompt_ids: list[int], max_tokens: int) -> dict[str, Any]:
    ids = torch.tensor([prompt_ids], device=device)
    clock = FirstTokenClock()
    started = time.perf_counter()
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        streamer=clock,
    )
    token_ids = written[0, len(prompt_ids) :].tolist()
    ended = time.perf_counter()
    return {
        "token_ids": token_ids,
        "prefill_seconds": clock.first_token_at - started,
        "decode_seconds": ended - clock.first_token_at,
    }


def main() -> None:
    """Of the numbers, where a folder holds GGUF codes, which transformers does not read."""
    folder, device, dtype = sys.argv[1:]
    model = read_hf_model(Path(folder), device=torch.device(device), dtype=getattr(torch, dtype))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        reply = answer(model, device, asked["prompt_ids"], asked["max_tokens"])
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
