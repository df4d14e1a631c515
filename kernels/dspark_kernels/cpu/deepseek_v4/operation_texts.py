"""The text of the library that runs DeepSeek-V4's layers."""

from dspark_kernels.cpu.deepseek_v4.attention_text import write_latent_attend
from dspark_kernels.cpu.deepseek_v4.compressor_text import write_close_windows
from dspark_kernels.cpu.deepseek_v4.indexer_text import write_index_choose, write_index_scores
from dspark_kernels.cpu.deepseek_v4.routing_text import (
    write_add_experts,
    write_gated,
    write_route_rows,
)
from dspark_kernels.cpu.deepseek_v4.rows_text import (
    write_add_by_position,
    write_keep_rows,
    write_rotate_rows,
    write_round_e4m3,
)
from dspark_kernels.cpu.deepseek_v4.streams_text import (
    write_close_streams,
    write_mean_streams,
    write_open_streams,
    write_write_back_streams,
)
from dspark_kernels.cpu.deepseek_v4.text import write_addresses
from dspark_kernels.cpu.float_text import FLOATS, write_declarations
from dspark_kernels.cpu.llvm_text import Text

WRITERS = {
    "rotate_rows": write_rotate_rows,
    "round_e4m3": write_round_e4m3,
    "add_by_position": write_add_by_position,
    "keep_rows": write_keep_rows,
    "open_streams": write_open_streams,
    "close_streams": write_close_streams,
    "write_back_streams": write_write_back_streams,
    "mean_streams": write_mean_streams,
    "close_windows": write_close_windows,
    "index_scores": write_index_scores,
    "index_choose": write_index_choose,
    "latent_attend": write_latent_attend,
    "route_rows": write_route_rows,
    "gated": write_gated,
    "add_experts": write_add_experts,
}


def deepseek_v4_text() -> str:
    text = Text()
    write_addresses(text)
    for write in WRITERS.values():
        write(text)
    write_declarations(text)
    text.raw(f"declare {FLOATS} @llvm.sqrt.v16f32({FLOATS})")
    text.raw(f"declare {FLOATS} @llvm.fabs.v16f32({FLOATS})")
    text.raw("declare i64 @llvm.smin.i64(i64, i64)")
    text.raw("declare i64 @llvm.smax.i64(i64, i64)")
    return str(text)
