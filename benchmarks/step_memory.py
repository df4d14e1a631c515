"""Peak memory of one training step by the number of anchors; each setting in a fresh process.

python benchmarks/step_memory.py --reference DIR --json benchmarks/results/step-memory-cpu.json
python benchmarks/step_memory.py --only step --anchors 32 128 512 --anchors-at-once 512

DIR is a checkout of DeepSpec, measured on the same step; without it ours alone.
"""

import argparse
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.vs_deepspec import Reference, planned_steps
from dspark.bench.document import provenance, write_document
from dspark.config import GraftConfig
from dspark.graft.data.answer_file import Answer
from dspark.graft.head.shape import draft_config
from dspark.graft.target.frozen_target import FrozenTarget
from dspark.graft.train.loss import LossWeights, OutputHead, distribution_loss
from dspark.graft.train.trainer import Trainer
from dspark.models.dspark_head import DSparkHead

VOCABULARY, HIDDEN, LENGTH, BLOCK, RANK = 151_936, 256, 640, 7, 64
ANCHORS = (32, 64, 128, 256, 512)
MIB = 2**20


def build_trainer(anchors: int, device: str, at_once: int) -> Trainer:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    }
    torch.manual_seed(0)
    model: Any = Qwen3ForCausalLM(Qwen3Config(**sizes))
    target = FrozenTarget(model.to(device))
    config = GraftConfig(
        steps=2,
        batch_size=1,
        anchors=anchors,
        anchors_at_once=at_once,
        length=LENGTH,
        betas=(0.9, 0.999),
        block_size=BLOCK,
        taps=(0, 1),
        mask_token_id=VOCABULARY - 1,
        markov_rank=RANK,
    )
    target.tap(config.taps or ())
    ids = tuple(torch.randint(VOCABULARY - 1, (LENGTH,)).tolist())
    head = DSparkHead(draft_config(target.config, config, VOCABULARY - 1)).to(device)
    return Trainer(head, target, [Answer(ids[:8], ids[8:], "", "")], config)


def whole_step(anchors: int, device: str, at_once: int) -> Callable[[], object]:
    return build_trainer(anchors, device, at_once).step


def loss_part(anchors: int, device: str) -> Callable[[], object]:
    """The loss over the vocabulary with its gradients, as if every block were whole."""
    rows = anchors * BLOCK
    head = OutputHead(torch.randn(VOCABULARY, HIDDEN, device=device) * 0.02, RANK)
    w2 = torch.zeros(VOCABULARY, RANK, device=device, requires_grad=True)
    head.load_markov(w2)
    hidden = torch.randn(rows, HIDDEN, device=device, requires_grad=True)
    features = torch.randn(rows, RANK, device=device, requires_grad=True)
    targets = torch.randn(LENGTH, HIDDEN, device=device)
    drawn = torch.randint(LENGTH, (rows,), device=device).sort().values
    target_rows = drawn.unique(return_inverse=True)[1]  # no gaps, as in the trainer
    labels = torch.randint(VOCABULARY, (rows,), device=device)
    weights = torch.full((rows,), 1.0 / rows, device=device)

    def run() -> None:
        loss, _ = distribution_loss(
            hidden,
            features,
            w2,
            targets,
            target_rows,
            labels,
            weights,
            head,
            LossWeights(0.1, 0.9),
            GraftConfig().chunk_rows,
        )
        loss.backward()

    return run


def reference_step(anchors: int, device: str, folder: Path) -> Callable[[], object]:
    trainer = build_trainer(anchors, device, anchors)
    reference = Reference(folder, trainer)
    step = next(planned_steps(trainer))
    return lambda: reference.step(step)


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Above what was held before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak of building does not count
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def measure_here(arguments: argparse.Namespace) -> int:
    what, anchors, device = arguments.measure, arguments.anchors[0], arguments.device
    if what == "loss":
        run = loss_part(anchors, device)
    elif what == "step":
        run = whole_step(anchors, device, arguments.anchors_at_once)
    else:
        run = reference_step(anchors, device, arguments.reference)
    return peak_bytes(run, device)


def measure(what: str, anchors: int, arguments: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--measure", what, "--anchors", str(anchors)]
    command += ["--device", arguments.device]
    command += ["--anchors-at-once", str(arguments.anchors_at_once)]
    command += ["--reference", str(arguments.reference)] if arguments.reference else []
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(out.split()[-1])


def print_table(results: dict[str, dict[int, int]], anchors: list[int]) -> None:
    print(f"{'MiB above baseline':20}" + "".join(f"{count:>8}" for count in anchors))
    for what, peaks in results.items():
        cells = (f"{peaks[n] / MIB:8.0f}" if n in peaks else f"{'-':>8}" for n in anchors)
        print(f"{what:20}" + "".join(cells))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, help="a checkout of DeepSpec")
    parser.add_argument("--reference-limit", type=int, default=64, help="its most anchors")
    parser.add_argument("--anchors", type=int, nargs="+", default=list(ANCHORS))
    at_once = GraftConfig().anchors_at_once
    parser.add_argument("--anchors-at-once", type=int, default=at_once, help="of our step")
    parser.add_argument("--only", choices=("loss", "step"), help="instead of all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=("loss", "step", "reference"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.measure:
        print(measure_here(arguments))
        return
    kinds = [arguments.only] if arguments.only else ["loss", "step"]
    kinds += ["reference"] if arguments.reference else []
    results: dict[str, dict[int, int]] = {what: {} for what in kinds}
    for what in kinds:
        for anchors in arguments.anchors:
            if what != "reference" or anchors <= arguments.reference_limit:
                results[what][anchors] = measure(what, anchors, arguments)
    print_table(results, arguments.anchors)
    if arguments.json:
        settings = {"vocabulary": VOCABULARY, "hidden": HIDDEN, "length": LENGTH, "block": BLOCK}
        settings |= {"markov_rank": RANK, "reference_limit": arguments.reference_limit}
        settings["anchors_at_once"] = arguments.anchors_at_once
        document = {"device": arguments.device, "bytes_by_anchors": results, "settings": settings}
        given = (a if not a.startswith("/") else "DIR" for a in sys.argv[1:])
        command = shlex.join(["python", "benchmarks/step_memory.py", *given])
        write_document(arguments.json, {**document, **provenance(command)})


if __name__ == "__main__":
    main()
