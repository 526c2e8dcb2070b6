"""The program `meshctl`: until its commands are loaded, a Ctrl-C ends it without a word."""

from __future__ import annotations

import signal


def main() -> None:
    """Loads the commands and runs the one that the arguments name."""
    usual = signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Takes most of a second, in which a KeyboardInterrupt would show where some library stood.
    from meshctl.commands import run  # noqa: PLC0415

    signal.signal(signal.SIGINT, usual)
    run()


if __name__ == "__main__":
    main()
