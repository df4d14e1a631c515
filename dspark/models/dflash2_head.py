"""DFlash 2 (z-lab 2026): a DFlash head with two small modules, both of which begin as no-ops.

A convolution of two rows along the block around attention and MLP, and a selector that scores the
likeliest tokens of each position by the token chosen before. Names of parameters are the authors'.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dspark.checkpoints.dflash2_config import DFlash2Config
from dspark.models.candidate_selector import CandidateSelector
from dspark.models.draft_layer import DraftLayer
from dspark.models.dspark_head import DSparkHead


class BlockConvolution(nn.Module):
    """y[i] = Σ_t (base[t] + δ[i, t]) · x[i - t] within a block, before and after a sublayer.

    The coefficients of both sides come from the sublayer's normed input; δ is shared by a group of
    channels.
    """

    def __init__(self, config: DFlash2Config) -> None:
        super().__init__()
        hidden, taps = config.hidden_size, config.conv_kernel_size
        self.rows, self.group = config.block_rows, config.conv_group_size
        self.base_kernel = nn.Parameter(torch.zeros(2, taps, hidden))
        width = 2 * taps * hidden // self.group
        self.kernel_projection = nn.Linear(hidden, width, bias=False)

    @torch.no_grad()
    def begin(self) -> None:
        """As the identity."""
        self.kernel_projection.weight.zero_()
        self.base_kernel.zero_()
        self.base_kernel[:, 0] = 1.0

    def coefficients(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, H] -> δ [2, N, taps, H / group, 1]."""
        shape = (2, self.base_kernel.shape[1], -1, 1)
        delta: torch.Tensor = self.kernel_projection(x).unflatten(-1, shape)
        return delta.movedim(1, 0)

    def filtered(self, x: torch.Tensor, delta: torch.Tensor, side: int) -> torch.Tensor:
        """x [N, H] of whole blocks -> [N, H]; `delta` as coefficients() has it."""
        blocks = x.unflatten(0, (-1, self.rows))
        out = torch.zeros_like(x)
        for tap in range(self.base_kernel.shape[1]):
            shifted = F.pad(blocks, (0, 0, tap, 0))[:, : self.rows].flatten(0, 1)
            base = self.base_kernel[side, tap].to(x.dtype).unflatten(0, (-1, self.group))
            out = out + ((base + delta[side][:, tap]) * shifted.unflatten(1, base.shape)).flatten(1)
        return out


class DFlash2Layer(DraftLayer):
    """Convolutions around attention and MLP."""

    def __init__(self, config: DFlash2Config) -> None:
        super().__init__(config)
        self.attention_conv = BlockConvolution(config)
        self.mlp_conv = BlockConvolution(config)

    def forward(
        self, hidden: torch.Tensor, attend: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """As DraftLayer.forward, of whole blocks."""
        attended = self._around(
            self.attention_conv,
            self.input_layernorm(hidden),
            lambda x: self.self_attn.o_proj(attend(x)),
        )
        hidden = hidden + attended
        return hidden + self._around(self.mlp_conv, self.post_attention_layernorm(hidden), self.mlp)

    @staticmethod
    def _around(
        convolution: BlockConvolution,
        x: torch.Tensor,
        sublayer: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        delta = convolution.coefficients(x)
        return convolution.filtered(sublayer(convolution.filtered(x, delta, 0)), delta, 1)


class DFlash2Head(DSparkHead):
    """Layers with convolutions, then the selector."""

    config: DFlash2Config
    candidate_selector: CandidateSelector

    def __init__(self, config: DFlash2Config) -> None:
        super().__init__(config)
        self.candidate_selector = CandidateSelector(config)

    @staticmethod
    def _layer(config: Any) -> DraftLayer:
        return DFlash2Layer(config)

    def begin(self, generator: torch.Generator) -> None:
        """As HeadModule.begin."""
        self.candidate_selector.begin(generator)
        for module in self.modules():
            if isinstance(module, BlockConvolution):
                module.begin()

    @property
    def tables(self) -> list[torch.Tensor]:
        """As HeadModule.tables."""
        selector = self.candidate_selector
        return [selector.predecessor_codebook, selector.successor_codebook]
