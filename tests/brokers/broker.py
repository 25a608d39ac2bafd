"""The kit's machinery for servers, under the names that these tests use."""

from switchgear_conformance.harness import BrokerFailed, NotRun
from switchgear_conformance.server import HOST, Recipe, die_with_parent, free_ports
from switchgear_conformance.server import Server as Broker

__all__ = ["HOST", "Broker", "BrokerFailed", "NotRun", "Recipe", "die_with_parent", "free_ports"]
