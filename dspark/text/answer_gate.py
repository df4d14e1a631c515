"""Where an answer begins behind thinking that its prompt has opened."""

import copy
from collections.abc import Sequence

from dspark.text.characters import Characters
from dspark.text.marks import Marks
from dspark.text.thinking import ThinkSplitter


class AnswerGate:
    """Reads one request's tokens until its thinking is closed."""

    def __init__(self, characters: Characters, marks: Marks, splitter: ThinkSplitter) -> None:
        self._characters, self._marks, self._splitter = characters, marks, splitter
        self._num_read = 0

    def num_before(self, written: Sequence[int], drafts: Sequence[int]) -> int | None:
        """Number of these tokens before the answer; None while it has not begun. Once it has
        begun with a written token, this is not asked again."""
        for token_id in written[self._num_read :]:
            self._num_read += 1
            if self._closes(token_id):
                return self._num_read
        ahead = copy.copy(self)
        ahead._characters, ahead._splitter = self._characters.copy(), copy.copy(self._splitter)
        for num_drafts, token_id in enumerate(drafts, start=1):
            if ahead._closes(token_id):
                return len(written) + num_drafts
        return None

    def _closes(self, token_id: int) -> bool:
        self._splitter.push(self._marks.replace(token_id, self._characters.push(token_id)))
        return not self._splitter.is_thinking
