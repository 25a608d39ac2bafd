"""Kafka. Its settings can be declared already; `kafka://` itself is planned and answers so."""

from .tuning import KafkaTuning

__all__ = ["KafkaTuning"]
