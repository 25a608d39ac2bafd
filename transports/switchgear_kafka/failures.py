"""Our errors for those of Kafka, its client and the system."""

from __future__ import annotations

import ssl
from typing import Final

from aiokafka import errors as kafka

from switchgear.errors import ConfigurationError, NotFound, NotSent, Refused, SwitchgearError, Unavailable

from . import tls

CONNECT: Final = (kafka.KafkaError, OSError, TimeoutError)
"""What a request may fail with; anything else is a bug."""


class InvalidRecordError(kafka.BrokerResponseError):
    """The broker looked into a batch and refuses a record; the client does not know this code."""

    errno = 87
    message = "INVALID_RECORD"
    description = "This record has failed the validation on the broker and hence been rejected."


def for_code(code: int) -> type[kafka.KafkaError]:
    """The client's class for an error code of the broker, or ours."""
    return InvalidRecordError if code == InvalidRecordError.errno else kafka.for_code(code)


_TABLE: Final[tuple[tuple[type[kafka.KafkaError], type[SwitchgearError], str], ...]] = (
    (kafka.SaslAuthenticationFailed, Refused, "wrong user, password or token: check the URL"),
    (kafka.AuthenticationFailedError, Refused, "wrong user, password or token: check the URL"),
    (kafka.UnsupportedSaslMechanismError, ConfigurationError, "the broker does not offer this mechanism: see ?sasl="),
    (kafka.IllegalSaslStateError, ConfigurationError, "that port takes no SASL: leave user and password out"),
    (kafka.TopicAuthorizationFailedError, Refused, "this user lacks the right to the topic: grant it by an ACL"),
    (kafka.GroupAuthorizationFailedError, Refused, "this user lacks the right to the group: grant READ by an ACL"),
    (kafka.ClusterAuthorizationFailedError, Refused,
     "this user lacks a right on the cluster or, to publish, WRITE on any topic: grant it by an ACL"),
    (kafka.UnknownTopicOrPartitionError, NotFound, "no such topic or partition: run `switchgear provision`"),
    (kafka.InvalidTopicError, Refused, "no valid name of a topic"),
    (kafka.MessageSizeTooLargeError, Refused, "larger than max.message.bytes of the topic"),
    (kafka.RecordListTooLargeError, Refused, "the batch is larger than a segment of the topic"),
    (kafka.InvalidSessionTimeoutError, ConfigurationError, "lease= is beyond the broker's group.*.session.timeout.ms"),
    (kafka.InconsistentGroupProtocolError, Refused, "the group's members are of another kind of client"),
    (kafka.InvalidGroupIdError, Refused, "no valid name of a group"),
    (kafka.InvalidReplicationFactorError, Refused, "the cluster has fewer brokers than the replication asked for"),
    (kafka.InvalidPartitionsError, Refused, "no valid number of partitions"),
    (kafka.PolicyViolationError, Refused, "a policy of the cluster forbids it"),
    (kafka.InvalidConfigurationError, Refused, "no valid configuration of a topic"),
    (InvalidRecordError, Refused, "the topic refuses the record: one that is compacted takes none without a key"),
    (kafka.InvalidTimestampError, Refused, "the topic refuses the record's time"),
    (kafka.NonEmptyGroup, Refused, "the group has members: stop them first"),
    (kafka.IncompatibleBrokerVersion, ConfigurationError, "the broker is too old: Apache Kafka 2.1 or newer is needed"),
    (kafka.UnsupportedVersionError, ConfigurationError, "the broker is too old: Apache Kafka 2.1 or newer is needed"),
    (kafka.UnsupportedCodecError, Refused,
     "compressed by a codec that is not installed here: pip install 'switchgear[kafka]'"),
    (kafka.NotEnoughReplicasError, NotSent, "fewer replicas are in sync than min.insync.replicas asks for"),
    (kafka.NotLeaderForPartitionError, NotSent, "the partition has moved to another leader"),
    (kafka.LeaderNotAvailableError, NotSent, "the partition has no leader at the moment"),
    (kafka.KafkaStorageError, NotSent, "the broker's disk fails"),
)  # fmt: skip


def failure(at: str, error: BaseException) -> SwitchgearError:
    """Our error for what a request failed with; `at` says where, and of what."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return tls.failure(at, seen)
        seen = seen.__cause__ or seen.__context__
    for kind, ours, meaning in _TABLE:
        if isinstance(error, kind):
            return ours(f"{at}: {meaning} ({error})")
    if isinstance(error, kafka.BrokerResponseError) and not error.retriable:
        return Refused(f"{at}: {error}")
    if isinstance(error, TimeoutError | kafka.RequestTimedOutError | kafka.KafkaTimeoutError):
        return Unavailable(f"{at}: no answer in time")
    if isinstance(error, ConnectionRefusedError):
        return Unavailable(f"{at}: connection refused: is the broker running, and the port right?")
    if isinstance(error, ConnectionResetError) or (
        isinstance(error, kafka.KafkaConnectionError) and "closed" in str(error)
    ):
        return Unavailable(
            f"{at}: the broker closed the connection; is it TLS that this port speaks (kafka+ssl://) or does not "
            "(kafka://), or does it want a user and password?"
        )
    return Unavailable(f"{at}: {str(error) or type(error).__name__}")
