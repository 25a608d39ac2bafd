"""The kit's, under the names that these tests use."""

from switchgear_conformance.harnesses.wheels import cached, wheel

__all__ = ["cached", "wheel"]
