"""Owns the decision whether a principal may make a call, by the access option beside each RPC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor

from couponmesh.type.v1 import access_pb2
from meshkit.context import Principal
from meshkit.errors import MeshError

_OWNED_FIELDS = {access_pb2.OWNERSHIP_MERCHANT: "merchant_id", access_pb2.OWNERSHIP_USER: "user_id"}


@dataclass(frozen=True, slots=True)
class AccessRule:
    """One row of the role-and-ownership table.

    Attributes:
        rpc: "/package.Service/Method".
        grants: (role, ownership) pairs as the contract states them.
    """

    rpc: str
    grants: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, method: MethodDescriptor) -> AccessRule:
        """The rule that stands in the contract.

        Raises:
            ValueError: The RPC states no access, a role twice, or an owned field that its request lacks.
        """
        rpc = f"/{method.containing_service.full_name}/{method.name}"
        access = method.GetOptions().Extensions[access_pb2.access]
        grants = tuple((grant.role, grant.ownership) for grant in access.grants)
        if not grants:
            raise ValueError(f"{rpc} states no access option, so nobody could say who may call it")
        roles = [role for role, _ in grants]
        if access_pb2.ROLE_UNSPECIFIED in roles or len(set(roles)) != len(roles):
            raise ValueError(f"{rpc} grants a role that is unspecified or stated twice")
        for _, ownership in grants:
            field = _OWNED_FIELDS.get(ownership)
            if field is not None and field not in method.input_type.fields_by_name:
                raise ValueError(f"{rpc} checks {field}, which {method.input_type.full_name} lacks")
        return cls(rpc, grants)

    def ownerships(self, principal: Principal) -> list[int]:
        """The ownership rules under which the principal's roles may call, at least one.

        Raises:
            MeshError: PERMISSION_DENIED, when none of the roles may call.
        """
        found = [ownership for role, ownership in self.grants if role in principal.roles]
        if not found:
            raise MeshError("PERMISSION_DENIED", method=self.rpc)
        return found


def let_in(ownerships: Sequence[int], principal: Principal, request: Any) -> bool:
    """Checks ownership; gives True when only the stored owner, which the use case compares, can decide.

    Args:
        ownerships: What `AccessRule.ownerships` gave for the principal.
        principal: Who calls.
        request: The request message.

    Raises:
        MeshError: MERCHANT_NOT_OWNED or USER_NOT_OWNED.
    """
    if access_pb2.OWNERSHIP_UNSPECIFIED in ownerships:
        return False
    refusal: MeshError | None = None
    if access_pb2.OWNERSHIP_MERCHANT in ownerships:
        if principal.merchant_id and request.merchant_id == principal.merchant_id:
            return False
        refusal = MeshError("MERCHANT_NOT_OWNED", merchant_id=request.merchant_id)
    if access_pb2.OWNERSHIP_USER in ownerships:
        if str(request.user_id) == principal.subject:
            return False
        refusal = refusal or MeshError("USER_NOT_OWNED", user_id=str(request.user_id))
    if access_pb2.OWNERSHIP_STORED in ownerships:
        return True
    raise refusal or MeshError("PERMISSION_DENIED")
