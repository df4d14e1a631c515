"""The driver in LLVM's text: threads take units of an operation and continue when all are done.

A program is a table of operations, OP_WORDS words each: function, units, units per row, the fewest
of them taken at once, the number of threads, then the function's own words.
`step` is the table of what changes from pass to pass, its first word the number of rows. A function
is void(own words, step, first unit, unit after the last).
A unit's result does not depend on the thread that takes it.

A thread takes its share of the units that are left: first a large piece, so that neighbours share
what they read and memory is read ahead, then smaller ones, so that all threads end together.

Nobody waits for a thread, only for units: one that the system has put aside holds up nothing unless
it has taken some. Every operation has two counters, units taken and units done, with the number of
the job above them; a thread that comes too late sees another job's number there and leaves. While a
thread may look at a job's table, its own word `inside` says so.
"""

from dspark_kernels.cpu.llvm_text import Loop, Text

OP_WORDS = 24
HEADER_WORDS = 5
MAX_OPS, MAX_THREADS = 4096, 256
LINE = 64
# the shared state: words on separate cache lines, then a line for each thread and operation
STATE = ("job", "begun", "program", "length", "step", "rows", "yield", "where", "caller")
INSIDE = LINE * len(STATE)
COUNTERS = INSIDE + LINE * MAX_THREADS
STATE_BYTES = COUNTERS + LINE * MAX_OPS
JOB_SHIFT = 32
SPINS_BEFORE_YIELD = 64
JOB_KINDS = ("ptr", "i64", "ptr")  # of the words of a job: program, operations, step
JOB_WORDS = len(JOB_KINDS)
EXPORTS = ("run_alone", "run_jobs", "serve_jobs", "nowhere")


def driver_text(is_x86: bool) -> str:
    text = Text()
    for write in (_run_one_alone, _run_job, _nowhere, _serve, _await, _join, _take_part):
        write(text)
    _run_each(text, "run_alone(ptr %jobs, i64 %count)", "run_one_alone(")
    _run_each(text, "run_jobs(ptr %state, ptr %jobs, i64 %count)", "run_job(ptr %state, ")
    pause = "@llvm.x86.sse2.pause()" if is_x86 else "@llvm.aarch64.hint(i32 1)"
    text.raw(f"declare void {pause.replace('i32 1', 'i32')}")
    text.raw("declare i64 @llvm.smin.i64(i64, i64)")
    text.raw("declare i64 @llvm.smax.i64(i64, i64)")
    return str(text).replace("@PAUSE()", pause)


def _field(text: Text, name: str) -> str:
    return text.at("%state", LINE * STATE.index(name))


def _get(text: Text, address: str, order: str = "monotonic") -> str:
    return text.set(f"load atomic i64, ptr {address} {order}, align 8")


def _put(text: Text, value: str, address: str, order: str = "monotonic") -> None:
    text.do(f"store atomic i64 {value}, ptr {address} {order}, align 8")


def _run_each(text: Text, name: str, call: str) -> None:
    """Jobs one after another, without a way back to the caller's language between them."""
    text.raw(f"define void @{name} {{")
    loop = Loop(text, "0", "%count")
    job = text.at("%jobs", text.set(f"mul i64 {loop.index}, {8 * JOB_WORDS}"))
    program, length, step = (text.argument(job, i, kind) for i, kind in enumerate(JOB_KINDS))
    text.do(f"call void @{call}ptr {program}, i64 {length}, ptr {step})")
    loop.close()
    text.do("ret void")
    text.raw("}")


def _run_one_alone(text: Text) -> None:
    """run_one_alone(program, operations, step)."""
    text.raw("define internal void @run_one_alone(ptr %program, i64 %length, ptr %step) {")
    rows = text.load("i64", "%step", 8)
    loop = Loop(text, "0", "%length")
    op = text.at("%program", text.set(f"mul i64 {loop.index}, {8 * OP_WORDS}"))
    function, own, units = _header(text, op, rows)
    text.do(f"call void {function}(ptr {own}, ptr %step, i64 0, i64 {units})")
    loop.close()
    text.do("ret void")
    text.raw("}")


def _header(text: Text, op: str, rows: str) -> tuple[str, str, str]:
    """Function, own words, units."""
    function, own = text.argument(op, 0, "ptr"), text.at(op, 8 * HEADER_WORDS)
    fixed, by_row = text.argument(op, 1), text.argument(op, 2)
    return function, own, text.set(f"add i64 {fixed}, {text.set(f'mul i64 {by_row}, {rows}')}")


def _share(text: Text, op: str, left: str) -> str:
    """Units to be taken, at least so many as the operation wants at once."""
    fewest, threads = text.argument(op, 3), text.argument(op, 4)
    rounded_up = text.set(f"add i64 {left}, {text.set(f'sub i64 {threads}, 1')}")
    share = text.set(f"udiv i64 {rounded_up}, {threads}")
    return text.set(f"call i64 @llvm.smax.i64(i64 {share}, i64 {fewest})")


def _run_job(text: Text) -> None:
    """run_job(state, program, operations, step): opens a job for all and takes part in it."""
    text.raw("define internal void @run_job(ptr %state, ptr %program, i64 %length, ptr %step) {")
    last = _get(text, _field(text, "job"))
    job = text.set(f"add i64 {last}, 1")
    text.do(f"atomicrmw xchg ptr {_field(text, 'begun')}, i64 {job} seq_cst")
    _put(text, _where(text), _field(text, "caller"))
    rows = text.load("i64", "%step", 8)
    program, step = (text.set(f"ptrtoint ptr {p} to i64") for p in ("%program", "%step"))
    fields = {"program": program, "length": "%length", "step": step, "rows": rows}
    for name, value in fields.items():
        _put(text, value, _field(text, name))
    start = text.set(f"shl i64 {job}, {JOB_SHIFT}")
    counters = text.at("%state", COUNTERS)
    loop = Loop(text, "0", "%length")
    taken = text.at(counters, text.set(f"mul i64 {loop.index}, {LINE}"))
    _put(text, start, text.at(taken, 8))
    _put(text, start, taken)
    loop.close()
    _put(text, job, _field(text, "job"), "seq_cst")
    text.do(
        f"call void @take_part(ptr %state, ptr %program, i64 %length, ptr %step, i64 {rows}, "
        f"i64 {job})"
    )
    text.do("ret void")
    text.raw("}")


def _spin(text: Text, address: str, is_over: str, limit: str | None) -> str:
    """Waits until the word makes `is_over` true, or for `limit` turns; the last value seen."""
    before, head, body, relax, back, after = (
        text.fresh(stem) for stem in ("enter", "spin", "wait", "relax", "back", "met")
    )
    give_way = text.load("ptr", _field(text, "yield"), 8)
    text.do(f"br label %{before}")
    text.label(before)
    text.do(f"br label %{head}")
    text.label(head)
    turn = "%" + text.fresh("turn")
    place = text.place()
    value = _get(text, address, "acquire")
    over = text.set(is_over.replace("VALUE", value))
    if limit:
        late = text.set(f"icmp sge i64 {turn}, {limit}")
        over = text.set(f"or i1 {over}, {late}")
    text.do(f"br i1 {over}, label %{after}, label %{body}")
    text.label(body)
    text.do("call void @PAUSE()")
    following = text.set(f"add i64 {turn}, 1")
    low = text.set(f"and i64 {following}, {SPINS_BEFORE_YIELD - 1}")
    is_long = text.set(f"icmp eq i64 {low}, 0")
    text.do(f"br i1 {is_long}, label %{relax}, label %{back}")
    text.label(relax)
    text.do(f"call i32 {give_way}()")
    text.do(f"br label %{back}")
    text.label(back)
    text.do(f"br label %{head}")
    text.fill(place, f"{turn} = phi i64 [0, %{before}], [{following}, %{back}]")
    text.label(after)
    return value


def _nowhere(text: Text) -> None:
    """Where a system does not say on which processor a thread runs."""
    text.raw("define i32 @nowhere() {")
    text.do("ret i32 -1")
    text.raw("}")


def _where(text: Text) -> str:
    """The processor of this thread."""
    function = text.load("ptr", _field(text, "where"), 8)
    return text.set(f"sext i32 {text.set(f'call i32 {function}()')} to i64")


def _serve(text: Text) -> None:
    """serve_jobs(state, thread, last job seen, turns): takes part in every job; the last one, once
    none came for so many turns, or once it ran on the caller's own processor. Between jobs a thread
    stays away from Python and its lock."""
    text.raw("define i64 @serve_jobs(ptr %state, i64 %thread, i64 %seen, i64 %limit) {")
    text.do("br label %wait")
    text.label("wait")
    place = text.place()
    found = text.set("call i64 @await_job(ptr %state, i64 %last, i64 %limit)")
    is_none = text.set(f"icmp eq i64 {found}, %last")
    text.do(f"br i1 {is_none}, label %none, label %join")
    text.label("none")
    text.do("ret i64 %last")
    text.label("join")
    joined = text.set("call i64 @join_job(ptr %state, i64 %thread)")
    caller = _get(text, _field(text, "caller"))
    is_known = text.set(f"icmp sge i64 {caller}, 0")
    is_same = text.set(f"icmp eq i64 {_where(text)}, {caller}")
    is_shared = text.set(f"and i1 {is_known}, {is_same}")
    text.do(f"br i1 {is_shared}, label %shared, label %wait")
    text.fill(place, f"%last = phi i64 [%seen, %0], [{joined}, %join]")
    text.label("shared")
    text.do(f"ret i64 {joined}")
    text.raw("}")


def _await(text: Text) -> None:
    """await_job(state, last job seen, turns): the next job, or the same if none came."""
    text.raw("define internal i64 @await_job(ptr %state, i64 %seen, i64 %limit) {")
    value = _spin(text, _field(text, "job"), "icmp ne i64 VALUE, %seen", "%limit")
    text.do(f"ret i64 {value}")
    text.raw("}")


def _join(text: Text) -> None:
    """join_job(state, thread): takes part in the job there is; its number."""
    text.raw("define internal i64 @join_job(ptr %state, i64 %thread) {")
    lines = text.set(f"mul i64 %thread, {LINE}")
    inside = text.at(text.at("%state", INSIDE), lines)
    begun = _field(text, "begun")
    text.do("br label %look")
    text.label("look")
    job = _get(text, _field(text, "job"), "acquire")
    text.do(f"atomicrmw xchg ptr {inside}, i64 {job} seq_cst")
    names = ("program", "length", "step", "rows")
    values = [_get(text, _field(text, name), "acquire") for name in names]
    now = _get(text, begun, "seq_cst")
    is_same = text.set(f"icmp eq i64 {now}, {job}")
    text.do(f"br i1 {is_same}, label %join, label %again")
    text.label("again")  # the next job is being opened
    _put(text, "0", inside, "release")
    text.do("call void @PAUSE()")
    text.do("br label %look")
    text.label("join")
    program, step = (text.set(f"inttoptr i64 {values[i]} to ptr") for i in (0, 2))
    text.do(
        f"call void @take_part(ptr %state, ptr {program}, i64 {values[1]}, ptr {step}, "
        f"i64 {values[3]}, i64 {job})"
    )
    _put(text, "0", inside, "release")
    text.do(f"ret i64 {job}")
    text.raw("}")


def _take_part(text: Text) -> None:
    text.raw(
        "define internal void @take_part"
        "(ptr %state, ptr %program, i64 %length, ptr %step, i64 %rows, i64 %job) {"
    )
    counters = text.at("%state", COUNTERS)
    base = text.set(f"shl i64 %job, {JOB_SHIFT}")
    loop = Loop(text, "0", "%length")
    op = text.at("%program", text.set(f"mul i64 {loop.index}, {8 * OP_WORDS}"))
    function, own, units = _header(text, op, "%rows")
    taken = text.at(counters, text.set(f"mul i64 {loop.index}, {LINE}"))
    done = text.at(taken, 8)
    text.do("br label %take")
    text.label("take")
    value = _get(text, taken)
    of_job = text.set(f"lshr i64 {value}, {JOB_SHIFT}")
    is_ours = text.set(f"icmp eq i64 {of_job}, %job")
    text.do(f"br i1 {is_ours}, label %ours, label %leave")
    text.label("ours")
    first = text.set(f"sub i64 {value}, {base}")
    is_some = text.set(f"icmp slt i64 {first}, {units}")
    text.do(f"br i1 {is_some}, label %try, label %over")
    text.label("try")
    share = _share(text, op, text.set(f"sub i64 {units}, {first}"))
    wanted = text.set(f"add i64 {first}, {share}")
    last = text.set(f"call i64 @llvm.smin.i64(i64 {wanted}, i64 {units})")
    new = text.set(f"add i64 {base}, {last}")
    pair = text.set(f"cmpxchg ptr {taken}, i64 {value}, i64 {new} acq_rel monotonic")
    is_taken = text.set(f"extractvalue {{ i64, i1 }} {pair}, 1")
    text.do(f"br i1 {is_taken}, label %work, label %take")
    text.label("work")
    text.do(f"call void {function}(ptr {own}, ptr %step, i64 {first}, i64 {last})")
    count = text.set(f"sub i64 {last}, {first}")
    text.do(f"atomicrmw add ptr {done}, i64 {count} release")
    text.do("br label %take")
    text.label("over")
    all_done = text.set(f"add i64 {base}, {units}")
    _spin(text, done, f"icmp sge i64 VALUE, {all_done}", None)
    loop.close()
    text.do("br label %leave")
    text.label("leave")
    text.do("ret void")
    text.raw("}")
