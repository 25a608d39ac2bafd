"""Switchgear."""
