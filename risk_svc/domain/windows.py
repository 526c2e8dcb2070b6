"""Owns the vocabulary of sliding windows: how long, how coarse, what one operation does to them."""

from dataclasses import dataclass
from enum import IntEnum


@dataclass(frozen=True, slots=True)
class WindowLimit:
    """How much one window holds.

    A window is kept as buckets of `bucket_ms`. An event counts from its bucket's first to its last live moment: for
    `window_ms` at least and for less than `window_ms + bucket_ms`. So no interval of `window_ms` ever holds more than
    `limit`, and the price of buckets is a refusal that may last up to one bucket longer than with an exact log.

    Attributes:
        rule: The rule that refuses when the window is full.
        limit: Events that a window may hold, at least 1.
        window_ms: Length of the window.
        bucket_ms: Length of a bucket, at most `window_ms`.
    """

    rule: str
    limit: int
    window_ms: int
    bucket_ms: int

    def __post_init__(self) -> None:
        if not (self.limit >= 1 and 1 <= self.bucket_ms <= self.window_ms):
            raise ValueError(f"not a window: {self}")

    @property
    def ttl_ms(self) -> int:
        """How long after its last event a window still matters."""
        return self.window_ms + self.bucket_ms

    def bucket_start_ms(self, now_ms: int) -> int:
        """First moment of the bucket that `now_ms` falls in."""
        return now_ms - now_ms % self.bucket_ms

    def is_live(self, bucket_start_ms: int, now_ms: int) -> bool:
        """Whether a bucket still counts: its last millisecond lies within the window that ends now."""
        return bucket_start_ms + self.bucket_ms - 1 > now_ms - self.window_ms


class Effect(IntEnum):
    """What an operation does to a window. The numbers are what the Lua script knows them by."""

    SPEND = 1
    """Refused when the window is full; counted only if nothing refuses the operation."""
    MARK = 2
    """Always counted. The event that overfills the window trips it, and is refused."""
    WATCH = 3
    """Refused while the window is tripped, which it stays until it has emptied; never counted."""


@dataclass(frozen=True, slots=True)
class Step:
    """One window that an operation touches.

    Attributes:
        limit: The window's size.
        subject: Whose window it is, for example (user, merchant). May hold personal values: adapters never store it
            in clear.
        effect: What happens to it.
    """

    limit: WindowLimit
    subject: tuple[str, ...]
    effect: Effect


@dataclass(frozen=True, slots=True)
class Check:
    """Everything that the windows need to decide on one operation.

    Attributes:
        identity: What makes it the same operation when it comes again.
        steps: The windows it touches, in the order of the rules.
    """

    identity: tuple[str, ...]
    steps: tuple[Step, ...]
