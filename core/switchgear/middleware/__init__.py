"""Policies around a handler, one file each."""
