#!/bin/sh
# Trains two heads for the demo pair on one GPU, of two and of five layers, from the same answers.
#
#   recipes/demo_heads_gpu.sh TARGET PROMPTS OUT [SECONDS]
#
# TARGET is the demo pair's GGUF or the name `demo`, PROMPTS a folder or file of prompts; the target
# writes as many again itself (SELF, 100000). It ends by itself after SECONDS (480); the same command
# goes on where it ended, on another machine too if OUT is taken along. ARGUMENTS are added to both
# trainings, so that they can be tried small: ARGUMENTS='--steps 4' SELF=8.
set -eu
target=$1 prompts=$2 out=$3 seconds=${4:-480}
end=$(($(date +%s) + seconds))
mkdir -p "$out"

train() { # name, layers, learning rate
    left=$((end - $(date +%s)))
    [ "$left" -gt 0 ] || exit 0
    # an interrupted training resumes; 124 is timeout's own code
    timeout --signal=INT "$left" dspark graft --train --base "$target" --seed 0 --lean-head --plain \
        --out "$out/$1" --data "$out/answers.jsonl" --prompts "$prompts" --prompts "self:${SELF:-100000}" \
        --max-answer-tokens 220 --answer-temperature 0 --answers-at-once 64 \
        --mask-token 5 --block-size 4 --layers "$2" --kv-heads 9 --markov-rank 24 --init target \
        --steps 20000 --batch-size 16 --anchors 64 --lr "$3" --markov-share 0.1 --position-decay 2 \
        --distillation 1.0 --precision bfloat16 --tap-memory 0 ${ARGUMENTS:-} || {
        code=$?
        [ "$code" = 124 ] || [ "$code" = 130 ] || exit "$code"
        echo "the time is up; the same command goes on"
        exit 0
    }
}

train two-layers 2 2e-3
train five-layers 5 1e-3
