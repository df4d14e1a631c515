"""Times drafting with untrained heads, for compare_drafters.py."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from dspark.checkpoints.deepspec import write_draft_vocabulary, write_head
from dspark.checkpoints.head_config import HeadConfig
from dspark.config import RuntimeConfig, SamplingConfig
from dspark.drafters.kinds import build_head
from dspark.engine.runtime import resolve_runtime
from dspark.engine.sampling import BatchChooser, Sampler
from dspark.engine.session import open_session
from dspark.graft.head.init_from_target import start_random
from dspark.hub import PairFiles
from dspark.progress import follow

CONTEXT, BLOCKS = 200, 15


def draft_seconds(files: PairFiles, config: HeadConfig, num_draft_tokens: int, seed: int) -> float:
    """Of a block behind CONTEXT tokens, by a head at its first values: the median of BLOCKS.

    num_draft_tokens: those that every request drafts from; 0 for all.
    """
    head = build_head(config)
    start_random(head, torch.Generator().manual_seed(seed))
    with tempfile.TemporaryDirectory() as folder:
        write_head(Path(folder), config, head.state_dict(), {})
        if num_draft_tokens:
            write_draft_vocabulary(Path(folder), torch.arange(num_draft_tokens))
        session = follow(open_session(replace(files, draft=Path(folder)), RuntimeConfig()))
        drafter = session.engine.drafter
        assert drafter is not None
        slot, times = drafter.open(), []
        width = len(config.target_layer_ids) * config.hidden_size
        place = resolve_runtime(RuntimeConfig())
        dtype = getattr(torch, place.dtype)
        taps = torch.randn(CONTEXT, width, dtype=dtype, device=place.device)
        ids = torch.arange(CONTEXT, device=taps.device) % config.vocab_size
        chooser = BatchChooser([Sampler(SamplingConfig(), 0)], [CONTEXT], config.vocab_size)
        with torch.inference_mode():
            drafter.extend([slot], [ids], [taps])
            for _ in range(BLOCKS):
                began = time.perf_counter()
                drafter.propose([slot], ids[:1], chooser).token_ids.tolist()
                times.append(time.perf_counter() - began)
        drafter.close(slot)
        session.close()
    return median(times)
