"""DeepSeek-V4's passes on a pretended card: what they launch and compile, as JSON.

    python -m tests.kernels.pretended.deepseek_v4 --card 90

Four layers at the sizes of V4-Flash; of one row, of eight, and behind a text so long that the
indexer selects.
"""

import argparse
import json
import sys
from typing import Any

import torch

from benchmarks.gpu import ROOT  # which also makes gpu_parts known
from dspark.checkpoints.deepseek_v4_target import Block, TargetWeights, dense_shapes
from dspark.checkpoints.deepseek_v4_target_config import DeepseekV4TargetConfig
from dspark.models.deepseek_v4.cache import RequestCaches
from dspark.models.deepseek_v4.card_experts import ExpertRows
from dspark.models.deepseek_v4.card_pass import CardPass
from dspark_kernels.cpu.file_weight import FileWeight, file_weight
from dspark_kernels.deepseek_v4.fp4_experts import ExpertBank, add_experts
from dspark_kernels.deepseek_v4.host_exchange import ask_host, take_answers
from tests.kernels.pretended.card import PretendedCard, capturing
from tests.kernels.pretended.rounds import META, report

CASES = {"a row": (1, 40), "eight rows": (8, 40), "selects": (2, 5000)}  # rows, position


def weights_on_card(config: DeepseekV4TargetConfig) -> TargetWeights:
    from gpu_parts.deepseek_v4_model import PLAIN, below

    matrices: dict[str, FileWeight] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in dense_shapes(config).items():
        if len(shape) != 2 or name.endswith(".ape"):
            tensors[name] = torch.ones(shape)
        elif name.endswith((*PLAIN, "embed.weight", "_fn")):
            dtype = torch.float32 if name.endswith("_fn") else torch.bfloat16
            matrices[name] = file_weight(torch.empty(shape, dtype=dtype, device=META))
        else:
            codes = torch.empty(shape, dtype=torch.float8_e4m3fn, device=META)
            height, width = config.scale_block
            size = (-(-shape[0] // height), -(-shape[1] // width))
            scales = torch.empty(size, dtype=torch.uint8, device=META)
            matrices[name] = file_weight(codes, scales, height, width)
    table = torch.zeros(config.vocab_size, config.experts_per_token, dtype=torch.int64)
    tensors["layers.0.ffn.gate.tid2eid"] = table
    prefixes = [f"layers.{layer}." for layer in range(config.num_layers)]
    blocks = tuple(Block(below(matrices, each), below(tensors, each), ()) for each in prefixes)
    return TargetWeights(matrices, tensors, blocks)


class Experts:
    """Every kernel of experts, without the host."""

    key = "experts"

    def __init__(self, config: DeepseekV4TargetConfig) -> None:
        self._rows = ExpertRows(config, 8, META)
        size = config.hidden_size * config.expert_size * 17 // 32  # codes and scales of a matrix
        parts = (0, size, 2 * size, 3 * size, 4 * size, 5 * size)
        memory = torch.empty(2, 6 * size, dtype=torch.uint8, device=META)
        self._bank = ExpertBank(memory, parts, config.hidden_size, config.expert_size)
        self._table = torch.empty(config.num_experts, dtype=torch.int32, device=META)

    def __call__(
        self,
        layer: int,
        x: torch.Tensor,
        route: torch.Tensor,
        shares: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        rows = self._rows
        segments = rows.group(route, self._table)
        told = [torch.empty_like(each) for each in (x, segments.words, segments.pair_rows)]
        ask_host(x, segments, *told)
        rows.feed(x, segments, self._bank, 10.0)
        take_answers(torch.empty_like(rows.said), segments, rows.said)
        add_experts(out, rows.said, segments.places, shares)


@torch.inference_mode()
def run(card: PretendedCard) -> dict[str, Any]:
    from gpu_parts.deepseek_v4_model import sizes
    from gpu_parts.setting import Setting

    config = sizes(Setting(META, is_tiny=False, deadline=0.0))
    passing = CardPass(config, weights_on_card(config), (0, 3), META)
    experts, nodes = Experts(config), {}
    for name, (rows, position) in CASES.items():
        caches = RequestCaches(config, META)
        slot = caches.open()
        caches.stretches([slot], [position])
        slot.length = position
        stretches = caches.stretches([slot], [rows])
        step = passing._step([0] * rows, caches, stretches)
        passing._launch(step, rows, experts)
        begin = len(card.launches)
        with capturing() as capture:  # whatever waits for the card or reads the host raises
            passing._launch(step, rows, experts)
        nodes[name] = {"kernels": len(card.launches) - begin, "torch": dict(capture.operations)}
    return nodes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--card", type=int, default=90)
    card = PretendedCard(parser.parse_args().card)
    assert ROOT
    with card.active():
        json.dump(report(card, run(card)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
