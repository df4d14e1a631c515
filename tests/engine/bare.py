"""Run as a program: decodes a golden pair in a process that has PyTorch, Triton and transformers,
and nothing else that dspark asks for."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

MISSING = (
    *("accelerate", "certifi", "gguf", "httpx", "llvmlite", "matplotlib", "platformdirs", "psutil"),
    *("pytest", "rich", "textual", "typer"),
)


class Bare:
    """What is on the path, without those packages."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] in MISSING else PathFinder.find_spec(name, path, target)


def main(pair: Path) -> None:
    sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
    from dspark.config import EngineConfig, RuntimeConfig, StopConfig
    from dspark.engine.session import open_session
    from dspark.hub import PairFiles
    from dspark.progress import follow

    files = PairFiles("bare", pair / "target", pair / "draft")
    session = follow(open_session(files, RuntimeConfig("cpu", "float32"), EngineConfig()))
    print(*list(session.generate((12, 21, 34), stop=StopConfig(max_tokens=24)))[-1].token_ids)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
