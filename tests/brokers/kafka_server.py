"""The kit's, under the names that these tests use."""

from switchgear_conformance.harnesses.kafka_server import kafka

__all__ = ["kafka"]
