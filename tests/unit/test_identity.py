import base64
import json
from typing import Any

import pytest

from couponmesh.type.v1 import access_pb2
from meshkit.context import Principal
from meshkit.errors import MeshError
from meshkit.identity import Identities, edge_address


def payload(claims: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


def test_the_claims_of_a_token_become_a_principal() -> None:
    claims = {
        "sub": "pos-7",
        "roles": ["cashier", "user"],
        "channel": "APP",
        "merchant_id": "10086",
        "client_id": "till",
        "iss": "x",
        "exp": 1,
    }
    assert Identities().principal({"x-jwt-payload": payload(claims)}) == Principal(
        client_id="till",
        subject="pos-7",
        roles=frozenset({access_pb2.ROLE_CASHIER, access_pb2.ROLE_USER}),
        merchant_id="10086",
        channel="APP",
    )


def test_ids_written_as_numbers_are_read_as_text() -> None:
    principal = Identities().principal({"x-jwt-payload": payload({"sub": 42, "merchant_id": 10086})})
    assert (principal.subject, principal.merchant_id, principal.client_id) == ("42", "10086", "42")


def test_padding_does_not_matter() -> None:
    bare = payload({"sub": "ab"})
    padded = bare + "=" * (-len(bare) % 4)
    assert bare != padded
    assert Identities().principal({"x-jwt-payload": padded}) == Identities().principal({"x-jwt-payload": bare})


@pytest.mark.parametrize(
    "roles", [["service"], ["unspecified"], ["ROLE_CASHIER"], ["root"], "cashier", None, [["cashier"]], [1]]
)
def test_a_token_grants_no_role_that_is_unknown_malformed_or_kept_for_services(roles: Any) -> None:
    principal = Identities().principal({"x-jwt-payload": payload({"sub": "a", "roles": roles})})
    assert principal.roles == frozenset()


def test_a_service_on_a_direct_hop_is_a_service() -> None:
    principal = Identities().principal({"x-mesh-service": "coupon_svc"})
    assert principal.roles == frozenset({access_pb2.ROLE_SERVICE})
    assert (principal.service, principal.client_id) == ("coupon_svc", "coupon_svc")


def test_a_token_wins_over_a_claim_to_be_a_service() -> None:
    metadata = {"x-jwt-payload": payload({"sub": "a", "roles": ["user"]}), "x-mesh-service": "coupon_svc"}
    assert Identities().principal(metadata).roles == frozenset({access_pb2.ROLE_USER})


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"x-jwt-payload": ""},
        {"x-jwt-payload": "!!!"},
        {"x-jwt-payload": "a"},
        {"x-jwt-payload": payload(["sub"])},
        {"x-jwt-payload": payload({})},
        {"x-jwt-payload": payload({"sub": True})},
        {"x-jwt-payload": payload({"sub": "a"}) + "é"},
        {"x-mesh-service": ""},
        {"x-mesh-service": "Coupon Svc"},
        {"x-mesh-service": "a" * 65},
    ],
)
def test_metadata_that_names_nobody_is_unauthenticated(metadata: dict[str, str]) -> None:
    with pytest.raises(MeshError, match=r"^UNAUTHENTICATED$"):
        Identities().principal(metadata)


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [("1.1.1.1, 2.2.2.2", "2.2.2.2"), ("::1", "::1"), ("spoofed,10.0.0.1 ", "10.0.0.1"), ("", "")],
)
def test_the_edge_address_is_the_last_one_forwarded(forwarded: str, address: str) -> None:
    assert edge_address({"x-forwarded-for": forwarded}) == address


def test_a_direct_hop_has_no_edge_address() -> None:
    assert edge_address({}) == ""
