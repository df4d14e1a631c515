"""When Python looks through all objects for garbage: for a tenth of a second or more, in which the
screen stands still. Not while an answer is written, and what is there by then is not looked through
again; `collect_all` is for when something large is given up."""

import gc

NEVER = 1 << 30


class Garbage:
    """Off, it leaves Python as it is."""

    def __init__(self, is_on: bool = False) -> None:
        self.is_on = is_on
        self._usual = gc.get_threshold()

    def follow(self, is_answering: bool) -> None:
        """Young objects are looked through at all times, the old ones between answers."""
        if not self.is_on:
            return
        young, middle, old = self._usual
        gc.set_threshold(young, middle, NEVER if is_answering else old)
        gc.freeze()

    def collect_all(self) -> None:
        if self.is_on:
            gc.unfreeze()
            gc.collect()
