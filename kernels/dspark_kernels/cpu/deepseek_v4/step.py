"""The words that a pass of DeepSeek-V4 hands to its operations.

`step` is int64: STEP's words, the first the number of rows. `rows` points to int64 [N, ROW_WORDS]:
of each row its position, the addresses of its request's rings and of its table of pages, its token,
its request's stretch (the row at which it begins, its first position, the one after its last), and
the positions whose keys it attends to: the first, and the one after the last.
"""

STEP = (
    "rows",
    "table",  # of rows
    "half0",  # pages of entries, as the cache has them
    "half1",
    "page_bytes",
    "window_cos",  # float32 [positions, pairs]
    "window_sin",
    "compressed_cos",
    "compressed_sin",
    "scores",  # of the indexer, float32 [N, entries]
    "scores_bytes",  # from row to row
)
ROW = ("position", "rings", "pages", "token", "first", "start", "end", "oldest", "seen")
ROW_WORDS = len(ROW)
