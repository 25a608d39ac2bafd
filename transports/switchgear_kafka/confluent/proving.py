"""Whether the group still has a member of ours: librdkafka's heartbeats are answered where nobody sees it."""

from __future__ import annotations

from confluent_kafka import ConsumerGroupState, KafkaError

from .cluster import ConfluentCluster
from .failures import failure


async def belongs(cluster: ConfluentCluster, group: str, member: str, *, stepwise: bool) -> bool:
    """Whether `member` is of the group, and no rebalance is under way that may end without it. Raises TransportError.

    `stepwise` (KIP-848): nobody gets a partition before its member has given it up or is out, whatever goes on.

    Asking changes nothing; a commit of what is committed already could undo what a transaction commits meanwhile.
    """
    found = (await cluster.ask(
        lambda client, timeout: client.describe_consumer_groups([group], request_timeout=timeout), f"group {group!r}"
    ))[group]  # fmt: skip
    if isinstance(found, KafkaError):
        if found.code() == KafkaError.GROUP_ID_NOT_FOUND:
            return False
        raise failure(f"{cluster.at}: group {group!r}", found)
    settled = stepwise or found.state is ConsumerGroupState.STABLE
    return settled and any(one.member_id == member for one in found.members)
