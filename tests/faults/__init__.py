"""Crashes, pauses and load on real processes, judged by an oracle that reads what they wrote down."""
