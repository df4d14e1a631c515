#!/bin/sh
# Trains the head that dspark/assets ships for the alias `demo`.
#
#   recipes/demo_head.sh GSM8K_TRAIN.jsonl SELF_INSTRUCT_SEED.jsonl SELF_INSTRUCT_USER.jsonl [OUT]
#
# The three files hold {"prompt": ...} lines: the training questions of grade-school-math (of which
# the first stage uses those from the 1,501st to the 3,465th) and the two instruction sets of
# self-instruct. demo_prompts.jsonl beside this file holds prompts that the target wrote itself.
# Files with prompts that are measured can be named in MEASURED: no prompt of the corpus is near one.
# The first stage begins with the target's weights, on greedy answers alone, so that its data do not
# depend on a seed. The second goes on from its head with answers to the prompts of demo_corpus.py
# (which needs reasoning-gym), half of them sampled; the third with further answers and the published
# loss, the fourth with further ones and a thousand of the third's. (Of the second stage's answers the
# third and the fourth of the shipped head saw only the first 1,751.) Then the confidences are fitted
# to prompts that none but the first stage can have seen.
# Stopped at any moment, the same command goes on. Figures of the shipped head: its config.json,
# under "graft", and docs/log.md.
set -eu
gsm8k=$1 seed_tasks=$2 user_tasks=$3 out=${4:-demo_head}
recipes=$(dirname "$0")
questions=1965
all="--base demo --lean-head --batch-size 4 --anchors 32 --markov-share 0.1 --position-decay 2
    --loss-vocabulary 500 --draft-vocabulary 4096"
on_corpus="--max-answer-tokens 320 --eval-prompts 64 --lr 1e-3"

mkdir -p "$out/first" "$out/second" "$out/third"
tail -n +1501 "$gsm8k" | head -n "$questions" > "$out/gsm8k.jsonl"
# shellcheck disable=SC2086
dspark graft --train $all --distillation 1.0 --seed 0 --out "$out/first" \
    --prompts "$recipes/demo_prompts.jsonl" \
    --prompts "$seed_tasks" --prompts "$user_tasks" --prompts "$out/gsm8k.jsonl" \
    --max-answer-tokens 220 --answer-temperature 0 \
    --mask-token 5 --block-size 4 --layers 2 --kv-heads 9 --markov-rank 24 --init target \
    --steps 6000 --lr 2e-3 --tap-memory 20
answer() {
    # shellcheck disable=SC2086
    python "$recipes/demo_corpus.py" "$out/corpus.jsonl" --questions "$gsm8k" \
        --keep-away ${MEASURED:-} --answers "$out/second/answers.jsonl" --tokens "$1"
}
if [ ! -e "$out/second/config.json" ]; then
    answer 1240000
    # shellcheck disable=SC2086
    dspark graft --train $all $on_corpus --distillation 1.0 --seed 1 --out "$out/second" \
        --init-from "$out/first" --steps 3600 --tap-cache "$out/taps2"
fi
answers="$out/second/answers.jsonl"
if [ ! -e "$out/third/config.json" ]; then
    answer 2060000
    # shellcheck disable=SC2086
    dspark graft --train $all $on_corpus --seed 2 --out "$out/third" --init-from "$out/second" \
        --data "$answers" --steps 3000 --tap-cache "$out/taps3"
fi
answer 2940000
tail -n 5184 "$answers" > "$out/last.jsonl"
# shellcheck disable=SC2086
dspark graft --train $all $on_corpus --seed 3 --out "$out" --init-from "$out/third" \
    --data "$out/last.jsonl" --steps 2400 --tap-cache "$out/taps4"
exec python "$recipes/calibrate_head.py" demo "$out" --prompts "$out/corpus.spared.jsonl"
