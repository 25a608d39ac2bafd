"""The `switchgear` command; needs the extra `cli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; exits with 0 (done), 1 (the work failed), 2 (wrong usage), 130 (interrupted)."""
    try:
        import rich  # noqa: F401  # pyright: ignore[reportUnusedImport]  # its absence should show now, not midway

        from .app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        print("the switchgear command needs typer and rich: pip install 'switchgear[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    app(prog_name="switchgear")
