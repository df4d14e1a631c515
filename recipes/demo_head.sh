#!/bin/sh
# Trains the head that dspark/assets ships for the alias `demo`.
#
#   recipes/demo_head.sh GSM8K_TRAIN.jsonl SELF_INSTRUCT_SEED.jsonl SELF_INSTRUCT_USER.jsonl [OUT]
#
# The shipped head was trained on the first 1,380 answers that such runs wrote, 609 of them with
# --answer-temperature 0; docs/log.md has the details.
#
# The three files hold {"prompt": ...} lines: the training questions of grade-school-math (the first
# 1,500 are used) and the two instruction sets of self-instruct. Stopped at any moment, the same
# command goes on. Figures of the shipped head: its config.json, under "graft", and docs/log.md.
set -eu
gsm8k=$1 seed_tasks=$2 user_tasks=$3 out=${4:-demo_head}

mkdir -p "$out"
head -n 1500 "$gsm8k" > "$out/gsm8k_1500.jsonl"
exec dspark graft --base demo --seed 0 --out "$out" \
    --prompts "$out/gsm8k_1500.jsonl" --prompts "$seed_tasks" --prompts "$user_tasks" \
    --prompts self:1600 --max-answer-tokens 256 --answer-temperature 0.7 \
    --mask-token 5 --block-size 4 --layers 1 --markov-rank 64 --init target \
    --steps 3200 --batch-size 4 --anchors 32 --lr 1.5e-3 --markov-share 0.1 \
    --position-decay 2 --distillation 1.0 --loss-vocabulary 2000 --tap-memory 8
