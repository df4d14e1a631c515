"""Where kernels find what a request remembers: by the records of a pass's rows (cpu/deepseek_v4/
step.py), whose addresses are those of rings and page tables on the device."""

from dspark_kernels.backend import jit, tl
from dspark_kernels.cpu.deepseek_v4 import step
from dspark_kernels.paged_cache import PAGE as POSITIONS

ROW_WORDS = tl.constexpr(step.ROW_WORDS)
RINGS, PAGES, TOKEN, FIRST, START, END, OLDEST, SEEN = (
    tl.constexpr(step.ROW.index(name))
    for name in ("rings", "pages", "token", "first", "start", "end", "oldest", "seen")
)
PAGE = tl.constexpr(POSITIONS)
FLOAT = tl.constexpr(4)  # bytes


@jit
def floats_at(address: tl.tensor) -> tl.tensor:
    return address.to(tl.pointer_type(tl.float32))


@jit
def row_at(
    position: tl.tensor,
    record: tl.tensor,
    rows: tl.tensor,
    stride: tl.tensor,
    ring_at: tl.tensor,
    cells: tl.tensor,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """Addresses of positions' rows [WIDTH]: in this pass, `rows`, or in the request's ring, whose
    numbers begin `ring_at` behind its first."""
    first, start = tl.load(record + FIRST), tl.load(record + START)
    new = rows.to(tl.int64) + (first + position - start) * stride * FLOAT
    old = tl.load(record + RINGS) + (ring_at + position % cells * WIDTH) * FLOAT
    return tl.where(position >= start, new, old)


@jit
def entry_at(
    entry: tl.tensor,
    inside: tl.tensor,
    record: tl.tensor,
    half: tl.tensor,
    page_stride: tl.tensor,
    before: tl.tensor,
    RATIO: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """Addresses of compressed entries [WIDTH], `before` numbers behind the begin of a page; of
    those that are not `inside`, of a page that exists."""
    PER_PAGE: tl.constexpr = PAGE // RATIO
    table = tl.load(record + PAGES).to(tl.pointer_type(tl.int32))
    page = tl.load(table + entry // PER_PAGE, mask=inside, other=0).to(tl.int64)
    number = page * page_stride + before + entry % PER_PAGE * WIDTH
    return half.to(tl.int64) + number * FLOAT
