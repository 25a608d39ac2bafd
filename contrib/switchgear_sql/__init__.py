"""Effects that happen once, in an SQL database: the mark commits together with what the handler wrote."""

from .inbox import first_time

__all__ = ["first_time"]
