"""The short table at the end of a run."""

import statistics
from collections import defaultdict
from typing import Any

Section = dict[str, Any]


def print_tables(document: dict[str, Any]) -> None:
    sections: dict[str, Section] = document["sections"]
    bandwidth = document["settings"].get("bandwidth") or 0.0
    print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s; shares and floors are of that")
    for name, show in (
        ("gaps", show_gaps),
        ("kernels", show_checks),
        ("golden", show_golden),
        ("golden-uncaptured", show_golden),
        ("golden-torch", show_golden),
        ("engine", show_engine),
        ("tests", show_tests),
        ("checks", show_checks),
        ("persistent", show_persistent),
        ("sweep", show_sweep),
        ("profilers", show_profiles),
        ("skinny", show_skinny),
        ("attention", show_times),
        ("others", show_times),
        ("rounds", show_rounds),
        ("identity", show_identity),
        ("deepseek-v4", show_deepseek_v4),
        ("peers", show_peers),
    ):
        if name in sections:
            took = sections[name].get("seconds")
            print(f"\n{name}" + (": no time was left" if took is None else f", {took} s"))
            show(sections[name]["records"])
    errors = [r for s in sections.values() for r in s["records"] if "error" in r or "stopped" in r]
    for record in errors:
        facts = ", ".join(str(record[k]) for k in NAMES if k in record)
        print(f"! {facts}: {(record.get('error') or record.get('stopped'))[-400:]}")


NAMES = ("kernel", "program", "shape", "kind", "dtype", "context", "rows", "pair", "arm")


def show_gaps(records: list[Section]) -> None:
    for record in records:
        if record.get("us"):
            print(f"{record['node']:40}{record['us']:9.2f} µs a node")


def show_golden(records: list[Section]) -> None:
    for record in records:
        if "rounds" not in record:
            continue
        unequal = [name for name, value in record.items() if value is False and name != "ok"]
        verdict = "ok" if record["ok"] else "WRONG"
        name = f"{record['pair']} {record['dtype']} {record['rounds']}"
        print(f"{name:40}{verdict:8}{', '.join(unequal)}")


def show_engine(records: list[Section]) -> None:
    for record in records:
        if "wall_ms" in record:
            name = f"{record['shape']} at {record['context']}, {record['way']}"
            name += f", head {record['draft_weights']}"
            over = f"{record['over_floor']:6.2f} x floor" if "over_floor" in record else ""
            wall, device = record["wall_ms"], record["device_ms"]
            print(f"{name:56}{wall:8.2f} ms, on the device {device:8.2f} ms{over}")


def show_checks(records: list[Section]) -> None:
    by_kernel: dict[str, list[Section]] = defaultdict(list)
    for record in records:
        if "kernel" in record:
            kernel = f"{record['kernel']} {record.get('kind', '')} {record['dtype']}"
            by_kernel[kernel].append(record)
    for kernel, group in by_kernel.items():
        good = sum(record["ok"] for record in group)
        shares = [e["relative"] / max(e["bound"], 1e-30) for r in group
                  for e in r.get("errors", {}).values() if e["bound"]]  # fmt: skip
        worst = f"largest error {max(shares):.2f} of its bound" if shares else ""
        unequal = sorted(
            {bit for r in group for bit, same in r.get("bit_equal", {}).items() if not same}
        )
        print(f"{kernel:44}{good:4}/{len(group):<4}{worst} {' '.join(unequal)}")


def show_tests(records: list[Section]) -> None:
    for record in records:
        if "tests" in record:
            print(f"{record['tests']}: {record.get('passed', 0)} passed")
            for failure in record.get("failures", []):
                print(f"  {failure}")


def show_persistent(records: list[Section]) -> None:
    for record in records:
        name = f"{record['shape']} {record['kind']} {record['rows']} rows"
        verdict = {True: "same bits", False: "OTHER BITS"}.get(record.get("same_bits"), "")
        saved = f"{record['us_saved']:9.1f} µs a layer saved" if "us_saved" in record else ""
        print(f"{name:40}{verdict:12}{saved}{record.get('skipped', '')}")


def show_sweep(records: list[Section]) -> None:
    """The three quickest of each, and what is in use."""
    for record in records:
        timed = [each for each in record.get("tilings", []) if each.get("us")]
        used = [each for each in timed if each["tiling"] == record.get("in_use")]
        for each in (*timed[:3], *used):
            mark = "  in use" if each in used else ""
            name = f"{record['kernel']} {record['shape']} {record.get('context', '')}"
            print(f"{name:44}{each['tiling']:36}{each['us']:9.1f} µs{mark}")


def show_profiles(records: list[Section]) -> None:
    for record in records:
        if "profiled" in record:
            facts = ", ".join(f"{name} {value}" for name, value in list(record.items())[2:])
            print(f"{record['profiled'][:40]}: {facts}")
        elif record.get("ok"):
            print(f"{record['program']}: nothing found")


def show_skinny(records: list[Section]) -> None:
    """Share of the bandwidth: the least and the median over the matrices."""
    shares: dict[tuple[str, str, int], list[tuple[float, str]]] = defaultdict(list)
    for record in records:
        if record.get("of_bandwidth"):
            key = (record["kind"], record["program"], record["rows"])
            shares[key].append((record["of_bandwidth"], record["shape"]))
    for (kind, program, rows), found in shares.items():
        least, where = min(found)
        middle = statistics.median(share for share, _ in found)
        print(
            f"{kind:5} {program:16}{rows:3} rows: median {middle:4.0%}, least {least:4.0%} {where}"
        )


def show_times(records: list[Section]) -> None:
    for record in records:
        if record.get("us"):
            name = " ".join(
                str(record[k]) for k in ("program", "kernel", "shape", "context", "rows")
                if k in record
            )  # fmt: skip
            share = f"{record['of_bandwidth']:5.0%}" if "of_bandwidth" in record else ""
            print(f"{name:64}{record['us']:9.1f} µs {share}")


def show_deepseek_v4(records: list[Section]) -> None:
    """Times of steps at a rate of hits that was given; random weights have none of their own."""
    for record in records:
        facts = ("kernel", "shape", "context", "rows", "segments", "misses")
        name = " ".join(f"{k} {record[k]}" for k in facts if k in record)
        time = f"{record['us']:9.1f} µs" if record.get("us") else ""
        share = f"{record['of_bandwidth']:5.0%}" if "of_bandwidth" in record else ""
        rates = [f"{v:.1f} GB/s {k[22:]}" for k, v in record.items() if k.startswith("gigabytes")]
        verdict = "" if record.get("ok") else "WRONG"
        print(f"{name:72}{time} {share} {' '.join(rates)} {verdict}")


def show_rounds(records: list[Section]) -> None:
    for record in records:
        name = f"{record.get('shape')} at {record.get('context')}"
        if "skipped" in record:
            print(f"{name}: {record['skipped']}")
        for part, timing in record.get("times", {}).items():
            if timing.get("us"):
                over = f"{timing['over_floor']:6.2f} x floor" if "over_floor" in timing else ""
                print(f"{name:20}{part:22}{timing['us']:9.1f} µs{over}")
            elif "error" in timing:
                print(f"{name:20}{part:22}{timing['error'][:120]}")
        for part, projected in record.get("projection", {}).items():
            words = [
                f"{kind} {each['projected_speedup']:.2f} x" for kind, each in projected.items()
            ]
            print(f"{name:20}{part}: projected from published acceptance: {', '.join(words)}")


COMPARED = (
    "requests", "tokens", "wanted_tokens", "differing_tokens", "rows_with_other_bits",
    "wrong_lengths",
)  # fmt: skip


def show_identity(records: list[Section]) -> None:
    for record in records:
        if "skipped" in record:
            print(f"{record['pair']}: skipped, {record['skipped']}")
        elif "tokens" in record:
            facts = {k: record[k] for k in COMPARED if k in record}
            facts_text = ", ".join(
                f"{key.replace('_', ' ')} {value}" for key, value in facts.items()
            )
            print(f"{record['pair']}, {record['arm']}: {facts_text}")


def show_peers(records: list[Section]) -> None:
    for record in records:
        rate = record.get("tokens_per_second")
        rate_text = f"{rate:9.1f} tokens/s" if rate else record.get("skipped", "")
        if record.get("round_us"):
            rate_text += f", {record['round_us']:.0f} µs a round"
        print(f"{record.get('program', ''):44}{rate_text}")
