"""The kit's, under the names that these tests use."""

from switchgear_conformance.harnesses.wheels import cache, wheel

__all__ = ["cache", "wheel"]
