"""Our errors for those of librdkafka and of the brokers, by code."""

from __future__ import annotations

from typing import Final

from confluent_kafka import KafkaError, KafkaException

from switchgear.errors import ConfigurationError, NotFound, NotSent, Refused, SwitchgearError, Unavailable

K: Final = KafkaError
GONE: Final = frozenset({
    K.UNKNOWN_MEMBER_ID, K.ILLEGAL_GENERATION, K.REBALANCE_IN_PROGRESS, K.FENCED_INSTANCE_ID, K.STALE_MEMBER_EPOCH,
    K.FENCED_MEMBER_EPOCH, K._ASSIGNMENT_LOST, K._STATE,
})  # fmt: skip
"""The group has gone on without us."""
PASSING: Final = frozenset({
    K.LEADER_NOT_AVAILABLE, K.NOT_LEADER_FOR_PARTITION, K.COORDINATOR_NOT_AVAILABLE, K.NOT_COORDINATOR,
    K.COORDINATOR_LOAD_IN_PROGRESS, K.NOT_CONTROLLER, K._WAIT_COORD,
})  # fmt: skip
"""The cluster is up and sorts itself out."""
CERTAIN: Final = frozenset({K._AUTHENTICATION, K._SSL, K.SASL_AUTHENTICATION_FAILED, K.UNSUPPORTED_SASL_MECHANISM})
"""What keeps us from a broker, and will."""

_TABLE: Final[dict[int, tuple[type[SwitchgearError], str]]] = {
    K.TOPIC_AUTHORIZATION_FAILED: (Refused, "this user lacks the right to the topic: grant it by an ACL"),
    K.GROUP_AUTHORIZATION_FAILED: (Refused, "this user lacks the right to the group: grant READ by an ACL"),
    K.CLUSTER_AUTHORIZATION_FAILED: (
        Refused,
        "this user lacks a right on the cluster or, to publish, WRITE on any topic: grant it by an ACL",
    ),
    K.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: (Refused, "this user lacks the right to its transactional id"),
    K.UNKNOWN_TOPIC_OR_PART: (NotFound, "no such topic or partition: run `switchgear provision`"),
    K._UNKNOWN_PARTITION: (NotFound, "no such topic or partition: run `switchgear provision`"),
    K._UNKNOWN_TOPIC: (NotFound, "no such topic or partition: run `switchgear provision`"),
    K.TOPIC_EXCEPTION: (Refused, "no valid name of a topic"),
    K.MSG_SIZE_TOO_LARGE: (Refused, "larger than max.message.bytes of the topic"),
    K.RECORD_LIST_TOO_LARGE: (Refused, "the batch is larger than a segment of the topic"),
    K.INVALID_SESSION_TIMEOUT: (ConfigurationError, "lease= is beyond the broker's group.*.session.timeout.ms"),
    K.INCONSISTENT_GROUP_PROTOCOL: (Refused, "the group's members are of another kind of client"),
    K.INVALID_GROUP_ID: (Refused, "no valid name of a group"),
    K.INVALID_REPLICATION_FACTOR: (Refused, "the cluster has fewer brokers than the replication asked for"),
    K.INVALID_PARTITIONS: (Refused, "no valid number of partitions"),
    K.POLICY_VIOLATION: (Refused, "a policy of the cluster forbids it"),
    K.INVALID_CONFIG: (Refused, "no valid configuration of a topic"),
    K.INVALID_RECORD: (Refused, "the topic refuses the record: one that is compacted takes none without a key"),
    K.INVALID_TIMESTAMP: (Refused, "the topic refuses the record's time"),
    K.NON_EMPTY_GROUP: (Refused, "the group has members: stop them first"),
    K.UNSUPPORTED_VERSION: (ConfigurationError, "the broker is too old: Apache Kafka 2.1 or newer is needed"),
    K._UNSUPPORTED_FEATURE: (ConfigurationError, "the broker is too old: Apache Kafka 2.1 or newer is needed"),
    K.UNSUPPORTED_SASL_MECHANISM: (ConfigurationError, "the broker does not offer this mechanism: see ?sasl="),
    K.UNSTABLE_OFFSET_COMMIT: (Unavailable, "a transaction with the group's position is open"),
    K.INVALID_TRANSACTION_TIMEOUT: (ConfigurationError, "transaction.max.timeout.ms of the broker is below 10 s"),
    K.FENCED_LEADER_EPOCH: (Unavailable, "the partition has another leader since"),
    K.UNKNOWN_LEADER_EPOCH: (Unavailable, "the partition has another leader since"),
    K.NOT_ENOUGH_REPLICAS: (NotSent, "fewer replicas are in sync than min.insync.replicas asks for"),
    K.NOT_LEADER_FOR_PARTITION: (NotSent, "the partition has moved to another leader"),
    K.LEADER_NOT_AVAILABLE: (NotSent, "the partition has no leader at the moment"),
    K.KAFKA_STORAGE_ERROR: (NotSent, "the broker's disk fails"),
}
_NO_ANSWER: Final = frozenset({K._TIMED_OUT, K.REQUEST_TIMED_OUT, K._TIMED_OUT_QUEUE, K._MSG_TIMED_OUT})


def error_of(error: KafkaError | BaseException) -> KafkaError:
    """What an exception of the client says."""
    if isinstance(error, KafkaException):
        return error_of(error.args[0])
    assert isinstance(error, KafkaError), error
    return error


def failure(at: str, raised: KafkaError | BaseException) -> SwitchgearError:
    """Our error for what a request failed with; `at` says where, and of what."""
    if isinstance(raised, TimeoutError):
        return Unavailable(f"{at}: no answer in time")
    error = error_of(raised)
    code, text = error.code(), error.str()
    if code in _TABLE:
        kind, meaning = _TABLE[code]
        return kind(f"{at}: {meaning} ({text})")
    if code in (K._AUTHENTICATION, K.SASL_AUTHENTICATION_FAILED):
        if "nsupported SASL mechanism" in text:
            return ConfigurationError(f"{at}: the broker does not offer this mechanism: see ?sasl= ({_own(text)})")
        if "invalid_token" in text:
            return Refused(f"{at} does not take the token: check its issuer, audience and expiry, and the clocks")
        return Refused(f"{at}: wrong user, password or token: check the URL ({_own(text)})")
    if code == K._SSL:
        return _tls(at, text)
    if code == K._INVALID_ARG:
        return ConfigurationError(f"{at}: the client takes no such setting: {text}")
    if code in _NO_ANSWER:
        return Unavailable(f"{at}: no answer in time")
    if "onnection refused" in text:
        return Unavailable(f"{at}: connection refused: is the broker running, and the port right?")
    if "isconnected" in text:
        return Unavailable(
            f"{at}: the broker closed the connection; is it TLS that this port speaks (kafka+ssl://) or does not "
            "(kafka://), or does it want a user and password?"
        )
    if code > 0 and not error.retriable() and code not in PASSING:
        return Refused(f"{at}: {text}")
    return Unavailable(f"{at}: {text or error.name()}")


def _own(text: str) -> str:
    """The broker's words, without the client's list of addresses and times."""
    return text.rpartition(": ")[2][:200] if ": " in text else text


def _tls(at: str, text: str) -> SwitchgearError:
    if "certificate verify failed" in text:
        return ConfigurationError(f"{at}: its certificate is not trusted: name its authority with ?ca=/path/to/ca.pem")
    if "certificate required" in text or "bad certificate" in text:
        return ConfigurationError(f"{at}: the broker wants a client certificate: give ?cert= and ?key=")
    if "isconnected" in text or "wrong version" in text or "packet length" in text:
        return ConfigurationError(f"{at}: the broker speaks no TLS there: write kafka://, or its TLS port")
    return Unavailable(f"{at}: TLS failed: {_own(text)}")
