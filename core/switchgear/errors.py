"""Every error that Switchgear raises, one tree; an error of a client library is the `__cause__` of ours.

SwitchgearError
├── Misuse                      closed bus, another event loop
├── ConfigurationError          wrong URL, option or name
│   ├── Unsupported             a guarantee the transport cannot give and the core cannot emulate
│   └── TransportNotFound       no plugin for the scheme, or its extra is missing
├── TransportError
│   ├── Unavailable             the broker cannot be reached
│   ├── NotSent                 certainly not stored
│   ├── MaybeSent               no answer: it may be stored, sending again may duplicate
│   ├── Refused                 the broker said no (size, rights, name); never retried
│   │   └── NotFound            no such topic or group, and we may not create it
│   └── Lost                    no longer ours: it is or will be redelivered; never retried
├── CodecError                  bytes that are not what was declared
└── RequestFailed               the responder rejected
    └── RequestTimeout          no answer in time; also a TimeoutError
"""


class SwitchgearError(Exception):
    """The root: `except SwitchgearError` catches all that Switchgear raises by design."""


class Misuse(SwitchgearError):
    """The program uses the library wrongly: a closed bus, a bus of another event loop."""


class ConfigurationError(SwitchgearError):
    """A URL, an option, a name or a declaration is wrong; nothing was started or sent."""


class Unsupported(ConfigurationError):
    """A guarantee was asked for that the transport cannot give and the core cannot emulate."""


class TransportNotFound(ConfigurationError):
    """No plugin serves the URL's scheme, or the extra that brings its client is missing."""


class TransportError(SwitchgearError):
    """The broker, or the way to it, failed."""


class Unavailable(TransportError):
    """The broker cannot be reached. Nothing was stored by the call that raised it."""


class NotSent(TransportError):
    """The message is certainly not stored: it never left, or the broker undid it."""


class MaybeSent(TransportError):
    """No answer came: the message may be stored, and sending it again may duplicate it."""


class Refused(TransportError):
    """The broker answered no (size, rights, name). Sending the same again would be refused again."""


class NotFound(Refused):
    """The topic or group does not exist and may not be created here."""


class Lost(TransportError):
    """The delivery is no longer ours: it is, or will be, delivered again. Its settlement had no effect."""


class CodecError(SwitchgearError):
    """Bytes are not what was declared, or a value cannot be written as what was declared."""


class RequestFailed(SwitchgearError):
    """The responder of a request rejected it; the text is the responder's reason."""


class RequestTimeout(RequestFailed, TimeoutError):
    """No answer to a request came in time."""
