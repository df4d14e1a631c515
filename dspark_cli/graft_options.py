"""The options of `dspark graft`, by the panels of its help."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dspark.config import DEFAULT_PAIR, Algorithm, Dtype, GraftConfig, Loss
from dspark_cli import options

DEFAULTS = GraftConfig()
DATA, HEAD, LOSS = "Data", "Head", "Loss"
OPTIMIZER, RUNNING, OUTPUT = "Optimizer", "Running", "Output"

Base = Annotated[
    str | None,
    typer.Argument(
        metavar="TARGET",
        help="The model that gets a head: a pair, a folder, a GGUF file or a Hugging Face id.",
        show_default=DEFAULT_PAIR,
        autocompletion=options.complete_pair,
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        "--pair",
        "-p",
        metavar="TARGET",
        help="Same as the argument TARGET.",
        rich_help_panel=options.MODEL,
        autocompletion=options.complete_pair,
    ),
]
Train = Annotated[
    bool,
    typer.Option(
        "--train",
        help="Train a head even if a released one fits; implied by any training option.",
        rich_help_panel=options.MODEL,
    ),
]
Attach = Annotated[
    str | None,
    typer.Option(
        metavar="HEAD",
        help="Attach this head (folder or Hugging Face id) without training.",
        rich_help_panel=options.MODEL,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name of the resulting pair.", rich_help_panel=options.MODEL),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Keep a head even if the probe finds its files misinterpreted.",
        rich_help_panel=options.MODEL,
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SOURCE",
        help="Prompts: a .jsonl or .txt file, a folder of them, a data set "
        "hf:OWNER/NAME[:SPLIT], or self[:N] from the model itself; repeatable.",
        rich_help_panel=DATA,
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Fail on a broken line in --prompts.", rich_help_panel=DATA),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File for the model's answers; default: OUT/answers.jsonl.",
        rich_help_panel=DATA,
    ),
]
MaxAnswerTokens = Annotated[
    int, typer.Option(min=2, help="Maximum tokens per answer.", rich_help_panel=DATA)
]
AnswerTemperature = Annotated[
    float,
    typer.Option(min=0.0, help="Temperature of the answers.", rich_help_panel=DATA),
]
AnswersAtOnce = Annotated[
    int, typer.Option(min=1, help="Answers generated in parallel.", rich_help_panel=DATA)
]
EvalPrompts = Annotated[
    int, typer.Option(min=1, help="Prompts held out of training.", rich_help_panel=DATA)
]
Length = Annotated[
    int,
    typer.Option(min=8, help="Tokens per sequence, prompt plus answer.", rich_help_panel=DATA),
]
Algo = Annotated[
    Algorithm,
    typer.Option(
        help="What to train; it sets the defaults of loss and block.", rich_help_panel=HEAD
    ),
]
BlockSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"Tokens drafted per round; default: {DEFAULTS.block_size}, for mtp 1.",
        show_default=False,
        rich_help_panel=HEAD,
    ),
]
Layers = Annotated[int, typer.Option(min=1, help="Transformer layers.", rich_help_panel=HEAD)]
IntermediateSize = Annotated[
    int | None,
    typer.Option(min=1, help="Width of the MLPs; default: the model's.", rich_help_panel=HEAD),
]
KvHeads = Annotated[
    int | None,
    typer.Option(min=1, help="Key and value heads; default: the model's.", rich_help_panel=HEAD),
]
Taps = Annotated[
    str | None,
    typer.Option(
        metavar="L,L,...",
        help="Layers of the model that the head reads; default: five, evenly spaced.",
        rich_help_panel=HEAD,
    ),
]
MaskToken = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Id of the mask token; default: an id the tokenizer does not use.",
        rich_help_panel=HEAD,
    ),
]
MarkovType = Annotated[
    Literal["none", "vanilla", "gated", "rnn"] | None,
    typer.Option(
        help="Markov head of dspark; default: vanilla.",
        show_default=False,
        rich_help_panel=HEAD,
    ),
]
MarkovRank = Annotated[
    int, typer.Option(min=1, help="Rank of the tables with a row per token.", rich_help_panel=HEAD)
]
Init = Annotated[
    Literal["target", "random"],
    typer.Option(help="Source of the initial weights.", rich_help_panel=HEAD),
]
InitFrom = Annotated[
    str | None,
    typer.Option(
        metavar="HEAD",
        help="Continue from a head (folder, Hugging Face id or pair), keeping its shape except "
        "for other options in this group.",
        rich_help_panel=HEAD,
    ),
]
Distillation = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Weight of the cross-entropy against the model's distribution; default: "
        "that of --algo.",
        rich_help_panel=LOSS,
    ),
]
PositionDecay = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        help="Positions over which the weight of a draft falls to 1/e; default: that of --algo.",
        rich_help_panel=LOSS,
    ),
]
LossOption = Annotated[
    Loss,
    typer.Option(
        help="published: that of --algo; nla or lk: of the mass that both distributions share, "
        "-log a, or KL at first and 1 - a later.",
        rich_help_panel=LOSS,
    ),
]
PositionWeights = Annotated[
    Literal["decay", "dpace"],
    typer.Option(
        help="decay: a draft counts less with its position; dpace: by the drafts it leads to.",
        rich_help_panel=LOSS,
    ),
]
LossVocabulary = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="Compute the loss over the draft vocabulary and N other tokens drawn per step; "
        "0: over all.",
        rich_help_panel=LOSS,
    ),
]
DraftVocabulary = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="With --loss-vocabulary: draft from the N most frequent tokens of the data; "
        "0: from all of them.",
        rich_help_panel=LOSS,
    ),
]
Anchors = Annotated[int, typer.Option(min=1, help="Blocks per sequence.", rich_help_panel=LOSS)]
Steps = Annotated[int, typer.Option(min=1, help="Optimizer steps.", rich_help_panel=OPTIMIZER)]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Sequences per step.", rich_help_panel=OPTIMIZER)
]
Accumulate = Annotated[
    int,
    typer.Option(
        min=1,
        help="Parts in which a batch is computed, to save memory.",
        rich_help_panel=OPTIMIZER,
    ),
]
Lr = Annotated[float, typer.Option(min=0.0, help="Learning rate.", rich_help_panel=OPTIMIZER)]
MarkovShare = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Learning rate of tables with a row per token as a fraction of --lr; default: 0.1 "
        "for DSpark, whose tables begin with the model's bigrams, otherwise 1.",
        rich_help_panel=OPTIMIZER,
    ),
]
OptimizerOption = Annotated[
    Literal["adamw", "muon"],
    typer.Option(
        help="muon: for the head's matrices; tables and vectors stay with AdamW.",
        rich_help_panel=OPTIMIZER,
    ),
]
Average = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=0.99999,
        help="Decay of the moving average of the weights that is written; 0: the last weights.",
        rich_help_panel=OPTIMIZER,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the training.", rich_help_panel=OPTIMIZER)]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(
        help="Number format of matrix products; the weights stay float32. auto: bfloat16 where "
        "the processor has units for it.",
        rich_help_panel=RUNNING,
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.", rich_help_panel=RUNNING),
]
TargetDtype = Annotated[
    Dtype, typer.Option(help="Number format of the model's weights.", rich_help_panel=RUNNING)
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        help="Resume from OUT/training if it exists.",
        rich_help_panel=RUNNING,
    ),
]
CheckpointEvery = Annotated[
    int,
    typer.Option(min=1, help="Steps between two checkpoints.", rich_help_panel=RUNNING),
]
TapMemory = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="GIB",
        help="Memory for taps: if all fit, they are computed once.",
        rich_help_panel=RUNNING,
    ),
]
TapCache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Keep taps on disk too; the plan states the size.",
        rich_help_panel=RUNNING,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print plan, memory, disk and time without training.",
        rich_help_panel=RUNNING,
    ),
]
Plain = Annotated[
    bool,
    typer.Option(
        "--plain",
        help="Plain lines instead of the live view.",
        rich_help_panel=RUNNING,
    ),
]
Out = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder of the head.", rich_help_panel=OUTPUT)
]
FullHead = Annotated[
    bool,
    typer.Option(
        "--full-head/--lean-head",
        help="Also store the model's embedding and output head, as other programs expect.",
        rich_help_panel=OUTPUT,
    ),
]
Measure = Annotated[
    bool,
    typer.Option(
        "--measure/--no-measure",
        help="Measure the speed-up at the end and report whether the head is worth using.",
        rich_help_panel=OUTPUT,
    ),
]
Licence = Annotated[
    str,
    typer.Option(
        metavar="ID",
        help="Licence of the head for its model card, such as mit.",
        rich_help_panel=OUTPUT,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object on stdout: the plan, or the resulting pair.",
        rich_help_panel=OUTPUT,
    ),
]
