"""`python -m switchgear`: the command line."""

from .cli import main

main()
