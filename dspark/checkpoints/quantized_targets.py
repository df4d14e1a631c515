"""Quantized targets: 4-bit AWQ (Lin et al. 2023) and GPTQ (Frantar et al. 2022), and FP8 with
scales per block, row or tensor."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch

from dspark.checkpoints.files import one_line, shown
from dspark.checkpoints.safetensors_dir import TensorInfo
from dspark.errors import CheckpointError
from dspark_kernels.quantized_weight import QuantizedWeight, concatenated
from dspark_kernels.repacked_weight import from_awq, from_fp8, from_gptq

HINT = "dspark reads plain weights, AWQ and GPTQ of 4 bits, and fp8 (blocks of 128 x 128, or rows)."
WORD = 8  # 4-bit codes in an int32
TABLES = ("lm_head", "model.embed_tokens")  # shared with the drafter, as plain numbers
SCALES = ("F16", "BF16", "F32")
OF_BLOCKS, ONE_OR_ROWS = "weight_scale_inv", "weight_scale"  # names of FP8 scales
Parts = dict[str, torch.Tensor]
Weights = MutableMapping[str, Any]  # by name, a tensor or a QuantizedWeight


@dataclass(frozen=True, slots=True)
class QuantizedFormat:
    """How a matrix is stored: its name with each of these suffixes, in these dtypes.

    `codes` is the part of the matrix's own shape, once its sizes are multiplied by `stretch`; a
    transposed one is [in, out].
    """

    parts: Mapping[str, tuple[str, ...]]
    optional: frozenset[str]
    codes: str
    stretch: tuple[int, int]
    is_transposed: bool
    unpack: Callable[[Parts], QuantizedWeight]

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape [out, in] of the matrix whose codes are stored in `shape`."""
        full = tuple(size * by for size, by in zip(stored, self.stretch, strict=True))
        return full[::-1] if self.is_transposed else full

    def split(self, name: str) -> tuple[str, str] | None:
        """The matrix and the part of it that a tensor is."""
        matrix, _, part = name.rpartition(".")
        return (matrix, part) if part in self.parts else None


def quantized_format(quantization: Any) -> QuantizedFormat | None:
    """From a config's `quantization_config`; raises CheckpointError if it is not supported."""
    if quantization is None:
        return None
    raw = quantization if isinstance(quantization, dict) else quantization.to_dict()
    method = str(raw.get("quant_method"))
    if method == "awq":
        _require(method, raw, bits=(4,), version=("gemm", None), zero_point=(True, None))
        return _awq()
    if method == "gptq":
        _require(method, raw, bits=(4,), checkpoint_format=("gptq", "gptq_v2", None))
        return _gptq(0 if raw.get("checkpoint_format") == "gptq_v2" else 1)
    if method == "fp8":
        _require(
            *(method, raw),
            fmt=("e4m3", "float8_e4m3fn", None),
            activation_scheme=("dynamic", None),
            weight_block_size=([128, 128], (128, 128)),
            scale_fmt=("float", None),
        )
        return _fp8(OF_BLOCKS)
    if method == "compressed-tensors":
        _require(method, raw, format=("float-quantized",), sparsity_config=(None, {}))
        for group in (raw.get("config_groups") or {}).values():
            _require(method, group.get("weights") or {}, num_bits=(8,), type=("float",))
            inputs = group.get("input_activations") or {"dynamic": True}
            _require(f"{method} of inputs", inputs, dynamic=(True,))
        return _fp8(ONE_OR_ROWS)
    raise CheckpointError(
        f"the target's weights are quantized by {shown(method)!r}, which is not supported", HINT
    )


def _require(method: str, raw: Mapping[str, Any], **allowed: tuple[Any, ...]) -> None:
    for key, values in allowed.items():
        if raw.get(key) not in values:
            said = shown(str(raw.get(key)))
            raise CheckpointError(
                f"the target is quantized by {method} with {key} {said}, which is not supported",
                HINT,
            )


def _awq() -> QuantizedFormat:
    return QuantizedFormat(
        parts={"qweight": ("I32",), "qzeros": ("I32",), "scales": SCALES},
        optional=frozenset(),
        codes="qweight",
        stretch=(1, WORD),
        is_transposed=True,
        unpack=lambda parts: from_awq(parts["qweight"], parts["qzeros"], parts["scales"]),
    )


def _gptq(zero_offset: int) -> QuantizedFormat:
    def unpack(parts: Parts) -> QuantizedWeight:
        codes = (parts["qweight"], parts["qzeros"], parts["scales"])
        return from_gptq(*codes, parts.get("g_idx"), zero_offset=zero_offset)

    return QuantizedFormat(
        parts={"qweight": ("I32",), "qzeros": ("I32",), "scales": SCALES, "g_idx": ("I32", "I64")},
        optional=frozenset({"g_idx"}),
        codes="qweight",
        stretch=(WORD, 1),
        is_transposed=True,
        unpack=unpack,
    )


def _fp8(scale: str) -> QuantizedFormat:
    """Scales per block, per row, or one for the tensor."""

    def unpack(parts: Parts) -> QuantizedWeight:
        codes, scales = parts["weight"], parts[scale]
        is_for_all = scales.numel() == 1 and scale == ONE_OR_ROWS
        return from_fp8(codes, scales.flatten().expand(len(codes)) if is_for_all else scales)

    return QuantizedFormat(
        parts={"weight": ("F8_E4M3",), scale: SCALES},
        optional=frozenset(),
        codes="weight",
        stretch=(1, 1),
        is_transposed=False,
        unpack=unpack,
    )


def plain_infos(infos: Mapping[str, TensorInfo], how: QuantizedFormat) -> dict[str, TensorInfo]:
    """The headers of the same matrices unquantized; other tensors are unchanged."""
    matrices = _matrices(infos, how)
    plain = {n: i for n, i in infos.items() if _part_of(n, how, matrices) is None}
    for matrix, parts in matrices.items():
        for part, dtypes in how.parts.items():
            info = parts.get(part)
            if info is None and part not in how.optional:
                raise CheckpointError(f"the target lacks {shown(f'{matrix}.{part}')}")
            if info is not None and info.dtype not in dtypes:
                raise CheckpointError(f"{shown(f'{matrix}.{part}')} is {info.dtype}")
        stored = parts[how.codes].shape
        if len(stored) != len(how.stretch):
            raise CheckpointError(f"{shown(f'{matrix}.{how.codes}')} is {list(stored)}")
        plain[f"{matrix}.weight"] = TensorInfo("F32", how.shape(stored))
    return plain


def _matrices(
    infos: Mapping[str, TensorInfo], how: QuantizedFormat
) -> dict[str, dict[str, TensorInfo]]:
    """The quantized matrices and their parts. Plain tensors may have a `weight` too, as norms
    do."""
    matrices: dict[str, dict[str, TensorInfo]] = {}
    for name, info in infos.items():
        if split := how.split(name):
            matrices.setdefault(split[0], {})[split[1]] = info
    return {m: parts for m, parts in matrices.items() if set(parts) != {"weight"}}


def _part_of(
    name: str, how: QuantizedFormat, matrices: Mapping[str, Any]
) -> tuple[str, str] | None:
    split = how.split(name)
    return split if split and split[0] in matrices else None


class QuantizedTensors(MutableMapping[str, Any]):
    """Every matrix as `name.weight`, read and unpacked when it is asked for: a QuantizedWeight if
    `keep_quantized`, else plain numbers of that dtype. Deleting only drops the name."""

    def __init__(
        self,
        stored: Mapping[str, torch.Tensor],
        infos: Mapping[str, TensorInfo],
        how: QuantizedFormat,
        *,
        keep_quantized: bool,
        dtype: torch.dtype,
    ) -> None:
        """`stored` are the parts in the files, `infos` their headers."""
        self._stored, self._how = stored, how
        self._keeps, self._dtype = keep_quantized, dtype
        self._matrices = _matrices(infos, how)
        self._names = dict.fromkeys(plain_infos(infos, how))

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        matrix = name.removesuffix(".weight")
        if matrix not in self._matrices:
            return self._stored[name].to(self._dtype)
        parts = {part: self._stored[f"{matrix}.{part}"] for part in self._matrices[matrix]}
        weight = _unpack(matrix, parts, self._how)
        is_kept = self._keeps and matrix not in TABLES
        return weight if is_kept else weight.dequantized(self._dtype)

    def __setitem__(self, name: str, tensor: Any) -> None:
        raise TypeError("files are only read")

    def __delitem__(self, name: str) -> None:
        del self._names[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names  # asked without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _unpack(matrix: str, parts: Parts, how: QuantizedFormat) -> QuantizedWeight:
    try:
        weight = how.unpack(parts)
        rows, columns = weight.shape
        grid = (-(-rows // weight.rows_per_scale), -(-columns // weight.group))
        for table in (weight.scales, weight.zeros):
            if table is not None and table.shape != grid:
                raise ValueError(f"scales or zeros are {list(table.shape)}, not {list(grid)}")
        return weight
    except (ValueError, RuntimeError, IndexError) as error:
        raise CheckpointError(
            f"{shown(matrix)} cannot be dequantized ({one_line(error)})",
            "config.json and the weights do not belong together.",
        ) from error


def fused(weights: list[Any], dtype: torch.dtype) -> torch.Tensor | QuantizedWeight:
    """Concatenated by rows: quantized if all are, in the same format. One alone is itself."""
    packed = [each for each in weights if isinstance(each, QuantizedWeight)]
    if packed and len(packed) == len(weights):
        whole = concatenated(packed)
        if whole is not None:
            return whole
    plain = [t.dequantized(dtype) if isinstance(t, QuantizedWeight) else t for t in weights]
    return plain[0] if len(plain) == 1 else torch.cat(plain)
