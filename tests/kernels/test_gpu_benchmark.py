"""Slices of benchmarks/gpu.py, in the interpreter: about half a minute."""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks.gpu import ROOT  # which also makes gpu_parts known
from benchmarks.gpu_parts.sections import TOTAL_SECONDS, UNASKED, fair_share
from dspark.engine.session import open_session
from dspark.hub import PairFiles
from dspark.progress import follow

SCRIPT = ROOT / "benchmarks" / "gpu.py"


def run(*arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    paths = os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_floors_need_no_gpu():
    (row,) = [line for line in run("--floors").stdout.splitlines() if "Qwen3-4B" in line]
    assert "| 7.3 | 4.9 | 23.2 | 11.6 | 46.9 |" in row and "1.87 ms | 0.56 ms | 2.43 ms" in row


def test_a_slice_in_the_interpreter(tmp_path):
    pytest.importorskip("triton")
    path = tmp_path / "gpu.json"
    sections = "card,gaps,attention,persistent,sweep,profilers"
    done = run("--interpret", "--only", sections, "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(path.read_text("utf-8"))
    records = document["sections"]["attention"]["records"]
    assert document["interpreted"] and {record["rows"] for record in records} == {1, 8}
    assert not any("error" in record or record["us"] for record in records)
    (layers,) = document["sections"]["persistent"]["records"]
    assert layers["same_bits"] and layers["ok"]
    tilings = [tried for r in document["sections"]["sweep"]["records"] for tried in r["tilings"]]
    assert len(tilings) > 10 and not any("error" in tried for tried in tilings)


def test_sections_share_the_time_and_what_one_leaves():
    names, left = UNASKED, float(TOTAL_SECONDS)
    shares = []
    for name in names:
        shares.append(fair_share(name, names, left))
        left -= shares[-1]
    assert min(shares) > 10 and left == pytest.approx(0.0, abs=1e-9)
    # a first section that ends at once leaves all of its time
    assert fair_share(names[1], names, float(TOTAL_SECONDS)) > shares[1]
    assert fair_share("peers", ["peers"], 455.0) == 455.0


BREAKS_AT_CASE_2 = """
import json, sys
first, file = int(sys.argv[-2]), sys.argv[-1]
for case in range(first, 4):
    with open(file, "a") as lines:
        lines.write(json.dumps({"process": 0, "case": case, "error": ""}) + "\\n")
    if case == 2:
        sys.exit(75)
"""


def test_what_breaks_the_device_costs_one_case(tmp_path):
    from gpu_parts.processes import BROKEN, GRACE_SECONDS, Worker, lines_from

    assert BROKEN == 75
    file, command = tmp_path / "records.jsonl", [sys.executable, "-c", BREAKS_AT_CASE_2]
    file.write_text('{"process": 0, "case": 9}\n', "utf-8")  # of a section before
    begin = file.stat().st_size
    worker = Worker("checks", 0, 1, file, command)
    while worker.is_running(time.time() + GRACE_SECONDS + 60):
        time.sleep(0.01)
    assert [line["case"] for line in lines_from(file, begin)] == [0, 1, 2, 3]
    assert not worker.error


def test_golden_pairs_and_the_engine_and_each_record_as_it_is_made(tmp_path):
    pytest.importorskip("triton")
    path = tmp_path / "gpu.json"
    done = run(
        "--interpret", "--only", "golden-torch,gaps", "--processes", "1", "--json", str(path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    (golden,) = [line for line in lines if line["section"] == "golden-torch"]
    assert golden["DSPARK_KERNELS"] == "torch" and golden["as_reference"] and golden["accepted"]
    assert [line["node"] for line in lines if line["section"] == "gaps"]


def test_without_triton_and_transformers(tmp_path):
    for name in ("triton", "transformers"):
        missing = f"raise ModuleNotFoundError('no {name}', name='{name}')"
        (tmp_path / f"{name}.py").write_text(missing, "utf-8")
    path = tmp_path / "gpu.json"
    sections = "card,attention,peers"
    done = run("--interpret", "--only", sections, "--json", str(path), path=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text("utf-8"))["sections"]
    assert found["card"]["records"][0]["reason"] == "Triton is not installed"
    ours, theirs = found["peers"]["records"]
    assert ours["program"] == "dspark" and "error" not in ours and "skipped" not in ours
    assert theirs["skipped"] == "transformers is not installed"


def test_blocks_write_what_plain_decoding_writes(tmp_path):
    pytest.importorskip("triton")
    path = tmp_path / "gpu.json"
    done = run("--interpret", "--only", "identity,rounds", "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    sections = json.loads(path.read_text("utf-8"))["sections"]
    (rounds,) = sections["rounds"]["records"]
    assert rounds["ok"] and set(rounds["times"]) == {"plain", "round"}
    records = sections["identity"]["records"]
    (total,) = [record for record in records if record.get("arm") == "all"]
    compared = [record for record in records if "differing_tokens" in record]
    assert total["ok"] and total["tokens"] == sum(record["tokens"] for record in compared)
    assert len(compared) == 4 and not total["reached"]


def test_the_engine_in_every_arm(tiny_chat_dir, make_tiny_head, monkeypatch):
    from gpu_parts.identity_demo import engine_arms
    from gpu_parts.setting import summed

    monkeypatch.setattr("gpu_parts.identity_demo.DEMO_TOKENS", 20)
    session = follow(open_session(PairFiles("tiny", tiny_chat_dir, make_tiny_head(tiny_chat_dir))))
    prompts = [session.encode(text) for text in ("a b", "Hello", "12 + 12")]
    records = list(engine_arms(session, prompts, time.time() + 60))
    assert [(record["arm"], record["requests"]) for record in records] == [
        ("plain", 8), ("scheduler", 8), ("fixed blocks", 8), ("plain", 1), ("scheduler", 1),
        ("fixed blocks", 1),
    ]  # fmt: skip
    assert {record["tokens"] for record in records[1:]} == {records[0]["written"]}
    assert summed(records)["ok"]
