"""`kafka://` and `kafka+ssl://` (TLS): Apache Kafka, server 2.1 or newer.

    kafka://[user:password@]host[:port][,host[:port]…][?option=value&…]

Every field of `KafkaTuning` is an option of the URL; these are of the URL alone: `sasl` (PLAIN, SCRAM-SHA-256,
SCRAM-SHA-512, OAUTHBEARER), `token_file` (a file that holds an OAuth token, read at each connection), `ca`, `cert`,
`key` (PEM files, TLS), `verify=no` (TLS without checking the server: for tests) and `client=aiokafka`.
"""

from .tuning import KafkaTuning, open_transport

__all__ = ["KafkaTuning", "open_transport"]
