"""Fits a trained head's confidences again, to more prompts than its training holds out.

python recipes/calibrate_head.py demo HEAD --prompts questions.jsonl --own 40

The prompts are those of the files and as many as asked for that the target writes itself. Every
other one is for the fit, the rest judge it; greedy requests and those that sample apart. Only the
head's config.json changes: its card and its plots keep the fit of the training.
"""

import argparse
import json
from pathlib import Path

from dspark.config import PairChoice, RuntimeConfig
from dspark.graft.data.write_answers import encode_prompt, write_prompts
from dspark.graft.judge.calibrate import calibrate_head
from dspark.graft.judge.open_target import OpenTarget
from dspark.records import json_records, prompt_of, read_bytes
from dspark_cli.loading import find_files
from dspark_cli.views.graft_lines import calibration_lines

SEED = 20261128  # of the prompts that the target writes; no other recipe's


def main() -> None:
    arguments = parse()
    files = find_files(PairChoice(arguments.pair))
    prompts = [
        prompt
        for path in arguments.prompts
        for _, record in json_records(path, read_bytes(path, "--prompts"))
        if (prompt := prompt_of(record)) is not None
    ]
    with OpenTarget(files, [arguments.head], RuntimeConfig()) as target:
        with target.with_head(arguments.head) as session:
            prompts += [text for _, text in write_prompts(session, arguments.own, SEED, {})]
            encoded = [encode_prompt(session, prompt) for prompt in prompts]
        result = calibrate_head(target, arguments.head, encoded, arguments.max_tokens)
    if result is None:
        raise SystemExit("nothing was fitted: no confidence head, or too few prompts")
    for fit, kind in ((result.sampled, "sampled answers"), (result.greedy, "greedy answers")):
        print("\n".join(calibration_lines(fit, kind)))
        print(json.dumps({"requests": kind, **fit.calibration.to_json(), **fit.figures()}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair")
    parser.add_argument("head", type=Path, help="folder of the head, which is changed")
    parser.add_argument("--prompts", type=Path, nargs="*", default=[])
    parser.add_argument("--own", type=int, default=0, help="prompts that the target writes")
    parser.add_argument("--max-tokens", type=int, default=96)
    return parser.parse_args()


if __name__ == "__main__":
    main()
