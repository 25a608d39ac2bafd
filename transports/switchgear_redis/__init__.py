"""`redis://` and `rediss://` (TLS): Redis Streams, server 6.2 or newer.

    redis://[user[:password]@]host[:port][/db][?option=value&…]

Every field of `RedisTuning` is an option of the URL; these are of the URL alone: `ca`, `cert`, `key` (PEM files, TLS),
`verify=no` (TLS without checking the server: for tests), `wait=N` (a publish waits for N replicas to have it) and
`waitaof=N` (for this server and N replicas to have it on disk).
"""

from .tuning import RedisTuning, open_transport

__all__ = ["RedisTuning", "open_transport"]
