"""docs/chat.svg: the chat with the demo pair after one answer.

python recipes/chat_picture.py [PROMPT]
"""

import asyncio
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Never

from dspark import hub
from dspark.chat.backend import ChatSettings, EngineBackend
from dspark_tui.app import DSparkApp
from dspark_tui.themes import DARK

PICTURE = Path(__file__).parents[1] / "docs" / "chat.svg"
PROMPT = "Tom reads 15 pages a day. How many pages does he read in 10 days?"
SIZE = (88, 22)


def _at_once(files: hub.PairFiles) -> Generator[Never, None, hub.PairFiles]:
    """As a download, without any."""
    yield from ()
    return files


async def draw(prompt: str) -> None:
    files = hub.locate("demo")
    assert files is not None, "dspark pull demo fetches it"
    backend = EngineBackend("demo", lambda: _at_once(files))
    app = DSparkApp(backend, ChatSettings(first_prompt=prompt))
    async with app.run_test(size=SIZE) as pilot:
        app.theme = DARK.name
        while not app.chat.conversation.turns:
            await pilot.pause(0.2)
        await pilot.pause(0.2)
        print(app.chat.status.stats)
        PICTURE.write_text(app.export_screenshot(title="dspark chat"), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(draw(sys.argv[1] if sys.argv[1:] else PROMPT))
