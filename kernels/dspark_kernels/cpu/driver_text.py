"""The driver in LLVM's text: threads take units of an operation, meet, and go on to the next.

A program is a table of operations, OP_WORDS words each: function, units, units per row, units taken
at once, then the function's own words. `step` is the table of what changes from pass to pass, its
first word the number of rows. A function is void(own words, step, first unit, unit after the last).
What a unit computes does not depend on who takes it.
"""

from dspark_kernels.cpu.llvm_text import Text

OP_WORDS = 24
HEADER_WORDS = 4
# words of the shared state, each on a cache line of its own
LINE = 64
STATE = ("arrived", "next", "meeting", "job", "program", "length", "step", "yield")
STATE_WORDS = LINE * len(STATE) // 8
SPINS_BEFORE_YIELD = 64
EXPORTS = ("run_program", "publish", "await_job", "join_job")


def driver_text(is_x86: bool) -> str:
    text = Text()
    _publish(text)
    _await(text)
    _join(text)
    _meet(text)
    _run(text)
    text.raw(
        "declare void @llvm.x86.sse2.pause()" if is_x86 else "declare void @llvm.aarch64.hint(i32)"
    )
    pause = "@llvm.x86.sse2.pause()" if is_x86 else "@llvm.aarch64.hint(i32 1)"
    return str(text).replace("@PAUSE()", pause)


def _field(text: Text, name: str) -> str:
    return text.at("%state", LINE * STATE.index(name))


def _atomic_load(text: Text, address: str, order: str) -> str:
    return text.set(f"load atomic i64, ptr {address} {order}, align 8")


def _publish(text: Text) -> None:
    text.raw("define void @publish(ptr %state, ptr %program, i64 %length, ptr %step) {")
    text.store("ptr", "%program", _field(text, "program"), 8)
    text.store("i64", "%length", _field(text, "length"), 8)
    text.store("ptr", "%step", _field(text, "step"), 8)
    text.do(f"%old = atomicrmw add ptr {_field(text, 'job')}, i64 1 release")
    text.do("ret void")
    text.raw("}")


def _spin(text: Text, name: str, is_over: str, limit: str | None) -> str:
    """Waits until the word `name` makes `is_over` true (or `limit` turns); the last value seen."""
    head, body, relax, after = (text.fresh(s) for s in ("spin", "wait", "relax", "met"))
    before, back = text.fresh("enter"), text.fresh("back")
    address = _field(text, name)
    give_way = text.load("ptr", _field(text, "yield"), 8)
    text.do(f"br label %{before}")
    text.label(before)
    text.do(f"br label %{head}")
    text.label(head)
    turn = "%" + text.fresh("turn")
    place = text.place()
    value = _atomic_load(text, address, "acquire")
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


def _await(text: Text) -> None:
    text.raw("define i64 @await_job(ptr %state, i64 %seen, i64 %limit) {")
    value = _spin(text, "job", "icmp ne i64 VALUE, %seen", "%limit")
    text.do(f"ret i64 {value}")
    text.raw("}")


def _join(text: Text) -> None:
    text.raw("define void @join_job(ptr %state, i64 %threads) {")
    program = text.load("ptr", _field(text, "program"), 8)
    length = text.load("i64", _field(text, "length"), 8)
    step = text.load("ptr", _field(text, "step"), 8)
    text.do(
        f"call void @run_program(ptr %state, ptr {program}, i64 {length}, ptr {step}, i64 %threads)"
    )
    text.do("ret void")
    text.raw("}")


def _meet(text: Text) -> None:
    """Whoever comes last opens the next operation for all."""
    text.raw("define internal void @meet(ptr %state, i64 %threads) {")
    arrived, units, meeting = (_field(text, name) for name in ("arrived", "next", "meeting"))
    seen = _atomic_load(text, meeting, "monotonic")
    before = text.set(f"atomicrmw add ptr {arrived}, i64 1 acq_rel")
    here = text.set(f"add i64 {before}, 1")
    is_last = text.set(f"icmp eq i64 {here}, %threads")
    text.do(f"br i1 {is_last}, label %open, label %stay")
    text.label("open")
    text.do(f"store atomic i64 0, ptr {arrived} monotonic, align 8")
    text.do(f"store atomic i64 0, ptr {units} monotonic, align 8")
    following = text.set(f"add i64 {seen}, 1")
    text.do(f"store atomic i64 {following}, ptr {meeting} release, align 8")
    text.do("ret void")
    text.label("stay")
    _spin(text, "meeting", f"icmp ne i64 VALUE, {seen}", None)
    text.do("ret void")
    text.raw("}")


def _run(text: Text) -> None:
    text.raw(
        "define void @run_program(ptr %state, ptr %program, i64 %length, ptr %step, i64 %threads) {"
    )
    units_taken = _field(text, "next")
    rows = text.load("i64", "%step", 8)
    alone = text.set("icmp eq i64 %threads, 1")
    text.do("br label %enter")
    text.label("enter")
    text.do("br label %head")
    text.label("head")
    text.raw("  %n = phi i64 [0, %enter], [%following, %done]")
    more = text.set("icmp slt i64 %n, %length")
    text.do(f"br i1 {more}, label %body, label %end")
    text.label("body")
    op = text.at("%program", text.set(f"mul i64 %n, {8 * OP_WORDS}"))
    function, own = text.argument(op, 0, "ptr"), text.at(op, 8 * HEADER_WORDS)
    fixed, by_row, at_once = (text.argument(op, index) for index in (1, 2, 3))
    units = text.set(f"add i64 {fixed}, {text.set(f'mul i64 {by_row}, {rows}')}")
    text.do(f"br i1 {alone}, label %whole, label %take")
    text.label("whole")
    text.do(f"call void {function}(ptr {own}, ptr %step, i64 0, i64 {units})")
    text.do("br label %done")
    text.label("take")
    first = text.set(f"atomicrmw add ptr {units_taken}, i64 {at_once} monotonic")
    some = text.set(f"icmp slt i64 {first}, {units}")
    text.do(f"br i1 {some}, label %work, label %over")
    text.label("work")
    wanted = text.set(f"add i64 {first}, {at_once}")
    last = text.set(f"call i64 @llvm.smin.i64(i64 {wanted}, i64 {units})")
    text.do(f"call void {function}(ptr {own}, ptr %step, i64 {first}, i64 {last})")
    text.do("br label %take")
    text.label("over")
    text.do("call void @meet(ptr %state, i64 %threads)")
    text.do("br label %done")
    text.label("done")
    text.do("%following = add i64 %n, 1")
    text.do("br label %head")
    text.label("end")
    text.do("ret void")
    text.raw("}")
    text.raw("declare i64 @llvm.smin.i64(i64, i64)")
