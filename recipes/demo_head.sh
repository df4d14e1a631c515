#!/bin/sh
# Trains the head that dspark/assets ships for the alias `demo`.
#
#   recipes/demo_head.sh GSM8K_TRAIN.jsonl SELF_INSTRUCT_SEED.jsonl SELF_INSTRUCT_USER.jsonl [OUT]
#
# The three files hold {"prompt": ...} lines: the training questions of grade-school-math (of which
# those from the 1,501st to the 3,465th are used) and the two instruction sets of self-instruct.
# demo_prompts.jsonl beside this file holds prompts that the target wrote itself. All answers are
# greedy, so that the data do not depend on a seed. Stopped at any moment, the same command goes on.
# Figures of the shipped head: its config.json, under "graft", and docs/log.md.
set -eu
gsm8k=$1 seed_tasks=$2 user_tasks=$3 out=${4:-demo_head}
questions=1965

mkdir -p "$out"
tail -n +1501 "$gsm8k" | head -n "$questions" > "$out/gsm8k.jsonl"
exec dspark graft --train --base demo --seed 0 --lean-head --out "$out" \
    --prompts "$(dirname "$0")/demo_prompts.jsonl" \
    --prompts "$seed_tasks" --prompts "$user_tasks" --prompts "$out/gsm8k.jsonl" \
    --max-answer-tokens 220 --answer-temperature 0 \
    --mask-token 5 --block-size 4 --layers 2 --kv-heads 9 --markov-rank 24 --init target \
    --steps 6000 --batch-size 4 --anchors 32 --lr 2e-3 --markov-share 0.1 --position-decay 2 \
    --distillation 1.0 --loss-vocabulary 500 --draft-vocabulary 4096 --tap-memory 20
