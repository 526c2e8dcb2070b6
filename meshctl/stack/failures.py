"""What a person is told when the stack cannot do what was asked."""

from __future__ import annotations


class StackError(Exception):
    """A fault that the message explains completely; the command line shows it without a traceback."""


class NotReady(Exception):
    """A component does not serve yet; the message says what it answered instead."""


class StartAborted(StackError):
    """The start was called off by a signal."""
