"""Experts without a slot on the card: a thread of the host computes them while a pass waits.

The card asks layer by layer, through flags; what it asks with and what it is told is in memory that
both see. The bits are those of a slot: four rules of arithmetic are kept on both sides.
"""

import threading
from collections.abc import Callable, Sequence
from copy import copy
from queue import SimpleQueue

import torch

from dspark.checkpoints.deepseek_v4_target import Expert
from dspark_kernels.cpu.clamped_swiglu import clamped_swiglu
from dspark_kernels.cpu.int8_rows import round_int8
from dspark_kernels.cpu.mxfp4 import Segment, multiply_segments
from dspark_kernels.deepseek_v4.route import SEGMENT_WORDS
from dspark_kernels.stream_flags import FlagTimeout, StreamFlags

PATIENCE = 30.0  # seconds for a layer; an SSD that reads 0.1 GB/s takes less


class Question:
    """For up to so many rows: x [N, H], segments and rows of pairs as of Segments, and where the
    answers [pairs, H] go."""

    @torch.inference_mode(False)
    def __init__(self, num_rows: int, hidden: int, top: int, num_experts: int, pin: bool) -> None:
        pairs = num_rows * top
        self._top = top
        self.x = torch.empty(num_rows, hidden, pin_memory=pin)
        most = min(pairs, num_experts)
        self.words = torch.empty(most, SEGMENT_WORDS, dtype=torch.int32, pin_memory=pin)
        self.pair_rows = torch.empty(pairs, dtype=torch.int32, pin_memory=pin)
        self.answers = torch.empty(pairs, hidden, pin_memory=pin)

    def of(self, num_rows: int) -> "Question":
        """For fewer rows, in the same memory."""
        fewer, pairs = copy(self), num_rows * self._top
        fewer.x, fewer.words = self.x[:num_rows], self.words[:pairs]
        fewer.pair_rows, fewer.answers = self.pair_rows[:pairs], self.answers[:pairs]
        return fewer


Answer = Callable[[Question, Sequence[Expert]], None]


def answer_missing(question: Question, experts: Sequence[Expert], limit: float) -> None:
    """What experts without a slot say of their pairs."""
    segments = [
        (start, count, number)
        for slot, start, count, number in question.words.tolist()
        if slot < 0 and count
    ]
    if not segments:
        return
    rows, inner = question.pair_rows.long(), experts[0].gate.shape[0]
    end = max(start + count for start, count, _ in segments)
    gate_up, own = torch.zeros(end, 2 * inner), torch.arange(end)
    opening, closing = [], []
    for start, count, number in segments:
        mine, expert = slice(start, start + count), experts[number]
        opening.append(Segment(expert.gate, rows[mine], gate_up[mine, :inner]))
        opening.append(Segment(expert.up, rows[mine], gate_up[mine, inner:]))
        closing.append(Segment(expert.down, own[mine], question.answers[mine]))
    multiply_segments(round_int8(question.x), opening)
    multiply_segments(clamped_swiglu(gate_up, limit), closing)


class MissedExperts:
    """Answers the questions of one pass after the other, in the order of the layers.

    `answer` may be slow, fail or hang, and so may the card: if no layer was answered within
    `patience` seconds once all were launched, the pass is let go, and `finish` raises.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[Expert]],
        flags: StreamFlags,
        answer: Answer,
        patience: float = PATIENCE,
    ) -> None:
        self._layers, self._flags, self._answer = layers, flags, answer
        self._patience = patience
        self._failure: BaseException | None = None
        self._passes: SimpleQueue[Question | None] = SimpleQueue()
        self._progress = threading.Condition()
        self._num_answered, self._is_done = 0, True
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._thread = threading.Thread(target=self._work, daemon=True, name="missed experts")
        self._thread.start()

    def begin(self, question: Question) -> None:
        """Before the first layer of a pass. Raises FlagTimeout while an answer that was given up is
        still worked on."""
        if not self._is_idle.wait(self._patience):
            raise FlagTimeout("the host still computes experts of a pass that was given up")
        self._is_idle.clear()
        if self._flags.is_cancelled:  # otherwise every word is 0 again, or will be on the stream
            self._flags.reset()
        self._failure, self._num_answered, self._is_done = None, 0, False
        self._passes.put(question)

    def finish(self) -> None:
        """After a pass was launched and before anything that waits for the card: returns once all
        is answered. Raises what answering raised, or FlagTimeout."""
        with self._progress:
            known = -1
            while not self._is_done and known < self._num_answered:
                known = self._num_answered
                self._progress.wait(self._patience)  # every answer notifies
            if not self._is_done:
                self._fail(FlagTimeout(f"experts of layer {known} took over {self._patience:g} s"))
        if self._failure is not None:
            raise self._failure

    def cancel(self, error: BaseException) -> None:
        """A pass that failed elsewhere: nothing is waited for."""
        with self._progress:
            self._fail(error)

    def close(self) -> None:
        self._passes.put(None)

    def _work(self) -> None:
        while (question := self._passes.get()) is not None:
            try:
                self._run(question)
            except Exception as error:
                with self._progress:
                    self._fail(error)
            finally:
                self._is_idle.set()

    def _run(self, question: Question) -> None:
        for layer, experts in enumerate(self._layers):
            # kernels may be compiled first: whoever launches says when that has failed
            while not self._flags.is_asked(layer, self._patience):
                if self._flags.is_cancelled:
                    return
            self._answer(question, experts)
            with self._progress:
                if self._is_done:  # too late: the pass was let go
                    return
                self._flags.answer(layer)
                self._num_answered += 1
                self._is_done = self._num_answered == len(self._layers)
                self._progress.notify_all()

    def _fail(self, error: BaseException) -> None:
        if not self._is_done:
            self._failure, self._is_done = error, True
            self._flags.cancel()
            self._progress.notify_all()
