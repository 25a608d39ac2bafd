"""Ports for servers under test."""

from __future__ import annotations

import secrets
import socket


def free_port() -> int:
    """A port of the loopback interface that is free, and that nobody is given by chance until it is used.

    Systems take the ports of outgoing connections, and those of servers that ask for any, from 32768 upwards.
    """
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
