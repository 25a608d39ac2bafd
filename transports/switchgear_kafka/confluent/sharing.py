"""Of what was read, handing out as much of each partition: one with a backlog is not to hold up the others."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from confluent_kafka import Message

from switchgear_kafka.cluster import TopicPartition


def place(message: Message) -> TopicPartition:
    """Where a message is from."""
    return TopicPartition(message.topic() or "", message.partition() or 0)


def share(
    spare: Sequence[Message], limit: int, held: Collection[TopicPartition]
) -> tuple[list[Message], list[Message]]:  # fmt: skip
    """At most `limit` messages, none of partitions that are held, and the rest; each partition in its order."""
    if len(spare) <= limit and not held:
        return list(spare), []
    queues: dict[TopicPartition, list[Message]] = {}
    for message in spare:
        queues.setdefault(place(message), []).append(message)
    open_: list[TopicPartition] = [tp for tp in queues if tp not in held]
    taken: list[Message] = []
    while open_ and len(taken) < limit:
        each = max(1, (limit - len(taken)) // len(open_))
        for tp in open_[: limit - len(taken)]:
            taken += queues[tp][:each]
            del queues[tp][:each]
        open_ = [tp for tp in open_ if queues[tp]]
    return taken, [message for queue in queues.values() for message in queue]
