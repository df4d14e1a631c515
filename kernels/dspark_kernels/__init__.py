"""Tensor operations of the decoder: one file per operation, each in plain torch and in Triton."""

from dspark_kernels.accept import Acceptance, accept_chosen, accept_greedy, accept_sampled
from dspark_kernels.accept_block import AcceptedBlock, Filters, Races, accept_block
from dspark_kernels.block_filter import BlockFilter
from dspark_kernels.candidate_block import CandidateHead, candidate_block
from dspark_kernels.distribution_terms import (
    DistributionTerms,
    TermWeights,
    distribution_terms,
)
from dspark_kernels.embedded_blocks import EmbeddedBlocks
from dspark_kernels.gru_head import GruHead, gru_block
from dspark_kernels.linear import SkinnyLinear
from dspark_kernels.noise import gumbel_row
from dspark_kernels.norm import rms_norm
from dspark_kernels.norm_rope_write import HeadNorms
from dspark_kernels.paged_cache import PagedRows
from dspark_kernels.quantized_weight import QuantizedWeight
from dspark_kernels.residual_stream import ResidualStream
from dspark_kernels.rope import RotaryTable, apply_rope
from dspark_kernels.round_state import LaneState, RoundPlan, end_round, plan_round
from dspark_kernels.sampling import draw, probabilities, race
from dspark_kernels.sequential_head import DraftedBlock, SequentialHead, draft_block
from dspark_kernels.skinny_linear import skinny_linear
from dspark_kernels.swiglu import swiglu

__all__ = [
    "Acceptance",
    "AcceptedBlock",
    "BlockFilter",
    "CandidateHead",
    "DistributionTerms",
    "DraftedBlock",
    "EmbeddedBlocks",
    "Filters",
    "GruHead",
    "HeadNorms",
    "LaneState",
    "PagedRows",
    "QuantizedWeight",
    "Races",
    "ResidualStream",
    "RotaryTable",
    "RoundPlan",
    "SequentialHead",
    "SkinnyLinear",
    "TermWeights",
    "accept_block",
    "accept_chosen",
    "accept_greedy",
    "accept_sampled",
    "apply_rope",
    "candidate_block",
    "distribution_terms",
    "draft_block",
    "draw",
    "end_round",
    "gru_block",
    "gumbel_row",
    "plan_round",
    "probabilities",
    "race",
    "rms_norm",
    "skinny_linear",
    "swiglu",
]
