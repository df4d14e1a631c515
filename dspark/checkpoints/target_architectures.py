"""Supported targets, as listed in docs/models.md; tests/targets cover each row."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TargetFamily:
    """`stored`: supported file formats; `taken_back`: how rejected drafts are rolled back."""

    names: str
    stored: str
    runs_in: str
    taken_back: str


DENSE = ("llama", "mistral", "qwen2", "qwen3")  # model types of our own forward
PLAIN = "safetensors"
CROPPED = "rows are cut off"
WINDOWS = "rows are cut off; windows keep the rows that slid out until then"
COPIED = "the state is copied before a pass, and the accepted rows run again"
FAMILIES = (
    TargetFamily(
        "Llama, Mistral without a window, Qwen2, Qwen3",
        f"{PLAIN}; AWQ and GPTQ of 4 bits; FP8 by blocks of 128 x 128 or by rows; GGUF",
        "dense",
        CROPPED,
    ),
    TargetFamily(
        "Qwen3-MoE",
        f"{PLAIN}; FP8 by blocks of 128 x 128",
        "its own forward on a CPU; hf elsewhere",
        CROPPED,
    ),
    TargetFamily(
        "Mistral with a window, Mistral 3, Gemma 2, 3 and 4 (with experts and shared keys, too)",
        f"{PLAIN}; the language model of multimodal checkpoints",
        "hf",
        WINDOWS,
    ),
    TargetFamily(
        "gpt-oss",
        f"{PLAIN}; experts in MXFP4",
        "its own forward on a CPU; hf elsewhere, and for unpacked weights",
        f"rows are cut off; hf: {WINDOWS.split('; ')[1]}",
    ),
    TargetFamily(
        "Qwen3-Next, Qwen3.5 and 3.6, with and without experts",
        f"{PLAIN}; the language model of multimodal checkpoints",
        "hf",
        COPIED,
    ),
    TargetFamily(
        "DeepSeek-V4",
        f"{PLAIN}; its own FP8 and FP4",
        "its own forward on a CPU, and (not run on a GPU yet) on an NVIDIA card; hf elsewhere",
        "rows are left behind the length; hf: rebuilt from the rows that the pass added",
    ),
)
HEADER = """\
## Targets
Tiny random models of every row were written to disk, read back, and compared in float32 with
transformers: logits, taps, the state after a rollback, greedy text with a head. No published
weights were run. *dense* is dspark's own forward for many requests at once; *hf* is that of
transformers, one request at a time, and also runs other causal language models."""

FOOTER = """\
On a CPU a GGUF is run as it is stored: every weight keeps its 4 to 8 bits, and the activations
that meet it are rounded to 16 bits in groups of 32 (llama.cpp rounds them to 8). That is the
model that plain decoding runs and drafts are checked against, so the two agree to the bit. It is
nearly that of float32: on 5,000 tokens of our own text the demo's likeliest next token is the same
for all, with a mean KL divergence of 7e-8 nats, where llama.cpp's is the same for 95.9 %, with 4e-3
nats (`benchmarks/cpu_target.py --only distance`). `--dtype float32` unpacks the weights and rounds
nothing. Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K are run so, mixed or not; a file with
weights in other formats is unpacked to bfloat16 when it is converted.

gpt-oss, Qwen3-MoE and DeepSeek-V4 are read where their published shards are mapped, with nothing
converted and no second copy. Matrices in bfloat16 or FP8 meet activations in float32. Experts in
FP4 meet activations rounded to 8 bits in groups of 32, unless `--dtype float32` is given; the
result has the same bits on every processor, with any number of threads, and wherever an expert is:
where memory does not hold all of them, those used most are copied into memory of their own, and
the others are read from the files. Qwen3-MoE in AWQ or GPTQ is refused.

On a GPU the matrices of a layer in Q4_0, Q4_1, Q4_K, Q5_0 and Q8_0 stay codes, where those that are
read together (queries, keys and values; gate and up) have one format. Other formats, the embedding
and the output head become numbers. It has not run on a GPU yet; the memory that is stated counts
codes as codes.

A GGUF's header is read as in llama.cpp: ends of answers, RoPE scaling (linear, YaRN or Llama
3's), the tokenizer's splits and flags. A key that would change the text and is not supported is
refused by name."""


def targets_markdown() -> Iterator[str]:
    yield HEADER
    yield ""
    yield "| family | files | runs in | rejected drafts |"
    yield "|---|---|---|---|"
    for each in FAMILIES:
        yield f"| {each.names} | {each.stored} | {each.runs_in} | {each.taken_back} |"
    yield ""
    yield FOOTER
