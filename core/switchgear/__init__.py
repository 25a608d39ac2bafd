"""Switchgear: one small publish/subscribe API; the broker is a URL."""

import logging as _logging
from typing import TYPE_CHECKING as _TYPE_CHECKING

from .bus import Bus
from .errors import (
    CodecError,
    ConfigurationError,
    Lost,
    MaybeSent,
    Misuse,
    NotFound,
    NotSent,
    Refused,
    RequestFailed,
    RequestTimeout,
    SwitchgearError,
    TransportError,
    TransportNotFound,
    Unavailable,
    Unsupported,
)
from .health import Health
from .knobs import (
    Batch,
    Batches,
    Breaker,
    Chains,
    DeadLetter,
    Depends,
    Handler,
    Handles,
    Header,
    Inbox,
    Knobs,
    Middleware,
    Outcomes,
    PublishOptions,
    Rate,
    Retry,
    Tuning,
)
from .message import Message
from .observer import Observer
from .outcomes import Drop, Reject, RetryAfter
from .router import Router
from .runtime import run
from .topic import Topic
from .units import Seconds, When

if _TYPE_CHECKING:
    from .pull import Consumer
else:

    def __getattr__(name: str) -> object:
        if name == "Consumer":  # brings all of the consuming half along, which a publisher does not need
            from .pull import Consumer

            return Consumer
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_logging.getLogger("switchgear").addHandler(_logging.NullHandler())  # quiet unless the program says otherwise

__all__ = [
    "Batch",
    "Batches",
    "Breaker",
    "Bus",
    "Chains",
    "CodecError",
    "ConfigurationError",
    "Consumer",
    "DeadLetter",
    "Depends",
    "Drop",
    "Handler",
    "Handles",
    "Header",
    "Health",
    "Inbox",
    "Knobs",
    "Lost",
    "MaybeSent",
    "Message",
    "Middleware",
    "Misuse",
    "NotFound",
    "NotSent",
    "Observer",
    "Outcomes",
    "PublishOptions",
    "Rate",
    "Refused",
    "Reject",
    "RequestFailed",
    "RequestTimeout",
    "Retry",
    "RetryAfter",
    "Router",
    "Seconds",
    "SwitchgearError",
    "Topic",
    "TransportError",
    "TransportNotFound",
    "Tuning",
    "Unavailable",
    "Unsupported",
    "When",
    "run",
]
