"""The demo's head beside changed copies of its target, before and after training it on theirs.

    python recipes/regraft_trial.py ANSWERS.jsonl --out FOLDER [--steps 500]

ANSWERS is a file of `dspark graft`, from which prompts are taken. Two copies, in codes as the
target is, so that they run on the same kernels: `tuned`, the target after some steps on its own
answers in another style, its layers in Q8_0 (the target's four bits would round the steps away);
and `int4`, the layers rounded to Q4_0. For each, `dspark graft --init-from` trains the head on the
copy's own answers. The table tells the accepted length on prompts that were held out, and how much
of what the change cost came back. Stopped at any moment, the same command goes on.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from safetensors import safe_open
from safetensors.torch import save_file

from dspark.checkpoints.gguf import WEIGHTS_NAME
from dspark.checkpoints.gguf_codes import Codes, codes_metadata
from dspark.checkpoints.safetensors_dir import StoredTensors
from dspark.config import PairChoice
from dspark.graft.data.answer_file import Answer, AnswerFile, split
from dspark.graft.judge.acceptance import evaluate
from dspark.graft.judge.judge import EVALUATION_TOKENS
from dspark.graft.judge.open_target import OpenTarget
from dspark.hub.catalog.pairs import PairFiles
from dspark.targets.hf_model import read_hf_model
from dspark.text.stream import load_tokenizer
from dspark_cli.loading import find_files
from dspark_kernels.cpu.stored_weight import stored_weight

CPU = torch.device("cpu")
LAYER_CODES = {"tuned": "q8_0", "int4": "q4_0"}
NO_LABEL, LONGEST_TEXT = -100, 384  # tokens that tuning learns nothing from; of a text
STYLE: Mapping[str, str] = {
    "the": "th'", "you": "ye", "your": "yer", "is": "be", "are": "be", "my": "me", "of": "o'",
    "and": "an'", "to": "t'", "for": "fer", "hello": "ahoy", "yes": "aye", "no": "nay",
}  # fmt: skip
DEMO = (  # as recipes/demo_head.sh; sizes are the head's own
    "--mask-token 5 --position-decay 2 --distillation 1.0 --markov-share 0.1 --loss-vocabulary 500 "
    "--draft-vocabulary 4096 --batch-size 4 --anchors 32 --answer-temperature 0 --no-measure "
    "--lean-head --checkpoint-every 50 --plain"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("answers", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--copies", nargs="*", default=["tuned", "int4"])
    parser.add_argument("--tuning-steps", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--answer-tokens", type=int, default=160)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--lr", type=float, default=5e-4)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    files = find_files(PairChoice("demo"))
    answers = AnswerFile(given.answers).read()[: given.prompts]
    prompts = given.out / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": a.prompt}) + "\n" for a in answers))
    rows = {}
    for name in given.copies:
        copy = given.out / name
        if not (copy / "config.json").exists():
            make_copy(files.target, copy, name, answers, given.tuning_steps)
        rows[name] = trained_on(files, copy, prompts, given)
    print(table(own_tau(files, answers, given), rows))


def make_copy(target: Path, copy: Path, name: str, answers: list[Answer], steps: int) -> None:
    model = read_hf_model(target, device=CPU, dtype=torch.float32)
    if name == "tuned":
        tune(model, load_tokenizer(target), answers, steps)
    unfinished = copy.with_suffix(".partial")
    shutil.copytree(target, unfinished, dirs_exist_ok=True)
    write_codes(model.state_dict(), unfinished / WEIGHTS_NAME, LAYER_CODES[name])
    unfinished.rename(copy)


def write_codes(values: Mapping[str, torch.Tensor], file: Path, layers: str) -> None:
    """The file's tensors with these values; matrices of layers become codes of the kind
    `layers`."""
    with safe_open(file, "pt") as former:
        names, metadata = list(former.keys()), former.metadata()
    known = StoredTensors(file.parent)
    weights, codes = {}, {}
    for name in names:
        value, kind = values[name].contiguous(), known.kind(name)
        if kind is None:
            weights[name] = value
            continue
        kind = layers if ".layers." in name else kind
        blocks = quantize(value.numpy(), GGMLQuantizationType[kind.upper()])
        stored = stored_weight(kind, torch.from_numpy(blocks))
        weights[name], codes[name] = stored.data, Codes(stored.kind, stored.shape)
    save_file(weights, file, metadata={**metadata, **codes_metadata(codes)})


def tune(model: Any, tokenizer: Any, answers: list[Answer], steps: int) -> None:
    """AdamW on answers in another style, four a step; the loss is of the answers alone."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    model.train()
    for step in range(steps):
        some = [answers[(4 * step + i) % len(answers)] for i in range(4)]
        texts = [styled_ids(tokenizer, answer) for answer in some]
        longest = max(map(len, texts))  # padded behind, where the loss does not look
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
        labels = ids.clone()
        for row, answer, text in zip(labels, some, texts, strict=True):
            row[: len(answer.prompt_ids)] = row[len(text) :] = NO_LABEL
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"tuning {step + 1}/{steps}: {float(loss.detach()):.3f}", file=sys.stderr)
    model.eval()


def styled_ids(tokenizer: Any, answer: Answer) -> list[int]:
    ids = tokenizer.encode(in_style(answer.answer), add_special_tokens=False)
    return [*answer.prompt_ids, *ids, answer.answer_ids[-1]][:LONGEST_TEXT]


def in_style(text: str) -> str:
    def spoken(match: re.Match[str]) -> str:
        word = match[0]
        said = STYLE.get(word.lower(), word)
        return said.capitalize() if word[0].isupper() else said

    return "Ahoy, matey! " + re.sub(r"[A-Za-z]+", spoken, text).replace(". ", ", arr! ")


def trained_on(
    files: PairFiles, copy: Path, prompts: Path, given: argparse.Namespace
) -> Mapping[str, float]:
    """The figures of the head that `dspark graft` leaves."""
    head = copy.with_name(f"{copy.name}-head")
    command = [sys.executable, "-m", "dspark_cli", "graft", "--train", "--base", copy]
    command += ["--init-from", files.draft, "--out", head, "--prompts", prompts, *DEMO.split()]
    command += ["--steps", given.steps, "--eval-prompts", given.held_out, "--lr", given.lr]
    command += ["--max-answer-tokens", given.answer_tokens]
    subprocess.run(list(map(str, command)), check=True)
    figures: Mapping[str, float] = json.loads((head / "config.json").read_text())["graft"]
    return figures


def own_tau(files: PairFiles, answers: list[Answer], given: argparse.Namespace) -> float:
    """Of the head beside the target that it was made for, on the prompts held out below."""
    assert files.draft is not None
    held_out = [answer.prompt_ids for answer in split(answers, given.held_out).held_out]
    with OpenTarget(files, [files.draft]) as target:
        return evaluate(target, files.draft, held_out, EVALUATION_TOKENS).tau


def table(own: float, rows: Mapping[str, Mapping[str, float]]) -> str:
    lines = [
        f"accepted length beside its own target: {own:.3f}",
        "| copy | before | after | of the loss regained |",
        "|---|---|---|---|",
    ]
    for name, figures in rows.items():
        before, after = figures["began_with_tau"], figures["tau_greedy"]
        share = f"{(after - before) / (own - before):.0%}" if before < own else "nothing was lost"
        lines.append(f"| {name} | {before:.3f} | {after:.3f} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
