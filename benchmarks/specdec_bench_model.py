"""NVIDIA's specdec_bench drives dspark: its acceptance and timing metrics, on our engine.

git clone https://github.com/NVIDIA/Model-Optimizer
PYTHONPATH=Model-Optimizer/examples/specdec_bench:benchmarks \\
    python benchmarks/specdec_bench_model.py demo --specbench question.jsonl --output_length 128

`DSparkModel` has the three methods that specdec_bench asks of an engine: `__init__`, `run`, `stop`.
The command takes over one entry of specdec_bench's table of engines and hands all other arguments
to its run.py, which wants the tokenizer as a folder of transformers (`--tokenizer`; by default the
pair's target). One request at a time: `--concurrency 1`. Written after its public interface and
tested against that; run.py itself needs its own installation and was not run.
"""

import argparse
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import dspark
from dspark.config import SamplingConfig, StopConfig
from dspark.engine.session import Session
from dspark.events import Finished, PrefillProgress, Round


class DSparkModel:
    """A `Model` of specdec_bench. `run` is a coroutine there, although nothing here waits."""

    def __init__(
        self,
        model_dir: str,
        max_concurrent_requests: int = 1,
        sampling_kwargs: dict[str, Any] | None = None,
        *,
        speculative_algorithm: str = "DSPARK",
        draft_model_dir: str | None = None,
        session: Session | None = None,
        **_: Any,
    ) -> None:
        """`model_dir` is a pair, a folder, a GGUF or a hub id; algorithm NONE decodes plainly."""
        if max_concurrent_requests > 1:
            raise SystemExit("dspark answers one request at a time here: use --concurrency 1")
        self._is_plain = speculative_algorithm == "NONE"
        self._session = session or dspark.load(model_dir, draft=draft_model_dir)
        asked = sampling_kwargs or {}
        self._sampling = SamplingConfig(
            temperature=float(asked.get("temperature", 0.0)),
            top_k=max(int(asked.get("top_k", 0)), 0),
            top_p=float(asked.get("top_p", 1.0)),
        )

    async def run(
        self,
        prompt_ids: list[int],
        max_length: int,
        end_id: int,
        request_id: Any = None,
        turn_id: Any = None,
    ) -> dict[str, Any]:
        """One list of ids for each step that yielded tokens, the prompt's first token alone; and
        the times of the start and of each of them. An end token is left out."""
        stop = StopConfig(max_tokens=max_length, ignore_stop_tokens=end_id == -1)
        chunks: list[list[int]] = []
        times = [time.perf_counter()]
        events = self._session.generate(prompt_ids, self._sampling, stop, plain=self._is_plain)
        for event in events:
            if isinstance(event, PrefillProgress | Round):
                ids = [piece.token_id for piece in event.pieces if piece.token_id != end_id]
                if ids:
                    chunks.append(ids)
                    times.append(time.perf_counter())
            elif isinstance(event, Finished):
                break
        return {"output_ids": [chunks], "output_logits": None, "token_times": times}

    def stop(self) -> None:
        self._session.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("pair")
    chosen, others = parser.parse_known_args()
    try:
        from specdec_bench import models
    except ModuleNotFoundError:
        raise SystemExit("specdec_bench is not on the path: see the head of this file") from None
    # its run.py has a table of engines, of which one entry is taken over
    models.VLLMModel = DSparkModel
    if "--tokenizer" not in others:
        from dspark.config import PairChoice
        from dspark_cli.loading import find_files

        others += ["--tokenizer", str(find_files(PairChoice(chosen.pair)).target)]
    script = Path(models.__file__).parents[2] / "run.py"
    sys.argv = [str(script), "--engine", "VLLM", "--model_dir", chosen.pair, *others]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
