"""Owns the two rules of risk control and which windows each of them looks at."""

from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address

from risk_svc.domain.operations import Kind, Operation
from risk_svc.domain.windows import Check, Effect, Step, WindowLimit

USER_MERCHANT_VELOCITY = "user-merchant-velocity"
GUESSED_CODES = "guessed-codes"

_IPV6_SITE_BITS = 64


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules in force.

    Attributes:
        velocity: Consumes per user and merchant.
        guesses: Bad codes per caller and address.
        guesses_without_ip: Bad codes per caller, of operations whose address is unknown. Those of many shoppers fall
            together here, so its limit is the higher one.
    """

    velocity: WindowLimit
    guesses: WindowLimit
    guesses_without_ip: WindowLimit

    def check(self, operation: Operation) -> Check:
        """Says which windows one operation touches.

        Returns:
            The operation's identity (its id together with what it is about, so that an id used again for something else
            is something else) and its steps; no steps when no rule applies.
        """
        steps = (*self._velocity_steps(operation), *self._guess_steps(operation))
        return Check(identity=_identity(operation), steps=steps)

    def _velocity_steps(self, operation: Operation) -> tuple[Step, ...]:
        # A window shared by everybody who is unknown would refuse strangers for each other's deeds.
        if operation.kind is not Kind.CONSUME or not operation.user_id or not operation.merchant_id:
            return ()
        return (Step(self.velocity, (str(operation.user_id), operation.merchant_id), Effect.SPEND),)

    def _guess_steps(self, operation: Operation) -> tuple[Step, ...]:
        if operation.kind is Kind.BAD_CODE:
            effect = Effect.MARK
        elif operation.by_code or operation.kind is Kind.LOOKUP:
            effect = Effect.WATCH
        else:
            return ()
        site = address_site(operation.ip)
        if site:
            return (Step(self.guesses, (operation.caller, site), effect),)
        return (Step(self.guesses_without_ip, (operation.caller,), effect),)


def address_site(ip: str) -> str:
    """Reduces an address to what one subscriber has: an IPv4 address, or an IPv6 /64 (RFC 6177 gives a site no less).

    Args:
        ip: An address in text; an IPv4-mapped IPv6 address counts as the IPv4 address in it.

    Returns:
        The address or network in canonical text; empty when `ip` is empty or no address.
    """
    try:
        address = ip_address(ip)
    except ValueError:
        return ""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(IPv6Network((int(address), _IPV6_SITE_BITS), strict=False))
        address = address.ipv4_mapped
    return str(address)


def _identity(operation: Operation) -> tuple[str, ...]:
    # The address is left out: a phone that changes its network between two tries is still the same try.
    return (
        operation.operation_id,
        operation.kind.value,
        operation.caller,
        str(operation.user_id),
        operation.merchant_id,
        operation.coupon_id,
        str(operation.by_code),
    )
