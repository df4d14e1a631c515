"""Slots of a pool whose rollback is leaving rows uncommitted, as targets hand them out."""

from collections.abc import Collection, Sequence

from dspark.kvcache.row_pool import KVSlot, SlotPool


class PoolSlots:
    """The part of the Target protocol that needs no more than the pool."""

    @property
    def slots(self) -> SlotPool:
        raise NotImplementedError

    def open(self) -> KVSlot:
        return self.slots.open()

    def fork(self, slot: KVSlot, length: int) -> KVSlot | None:
        return self.slots.fork(slot, length)

    def held_bytes(self, slots: Collection[KVSlot]) -> int:
        return self.slots.held_bytes(slots)

    def close(self, slot: KVSlot) -> None:
        slot.close()

    def length(self, slot: KVSlot) -> int:
        return slot.length

    def commit(self, slots: Sequence[KVSlot], num_kept: Sequence[int]) -> None:
        for slot, kept in zip(slots, num_kept, strict=True):
            slot.length += kept

    def truncate(self, slot: KVSlot, length: int, total: int | None = None) -> bool:
        slot.length = min(slot.length, length)
        return True
