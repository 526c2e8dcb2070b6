"""How a spend cap is cut into slices: arithmetic of leases."""

from __future__ import annotations

# A cap is leased in this many slices per database. More make the end of the cap more exact, fewer lease less often.
SLICES_PER_DATABASE = 32


def slice_minor(cap_minor: int, databases: int) -> int:
    """The size of one slice, in fen, at least one."""
    return max(1, cap_minor // (SLICES_PER_DATABASE * databases))


def lease_minor(*, wanted_minor: int, slice_minor: int, ungranted_minor: int) -> int:
    """What a database that lacks `wanted_minor` leases: a slice, or what it lacks when that is more, if it is there.

    What is leased and not spent is therefore less than a slice per database; that much may be refused too early when
    the cap runs out.
    """
    return min(max(wanted_minor, slice_minor), ungranted_minor)
