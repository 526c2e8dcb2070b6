from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

import couponmesh.type.v1.access_pb2 as access
from couponmesh.coupon.v1 import batch_service_pb2, cashier_service_pb2, coupon_service_pb2
from couponmesh.risk.v1 import risk_service_pb2
from meshkit.access import AccessRule, let_in
from meshkit.context import Principal
from meshkit.errors import MeshError

EVERY_SERVICE = [
    service
    for module in (batch_service_pb2, cashier_service_pb2, coupon_service_pb2, risk_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]


def principal(*roles: int, subject: str = "42", merchant_id: str = "10086") -> Principal:
    return Principal(client_id="c", subject=subject, roles=frozenset(roles), merchant_id=merchant_id)


def method(grants: Sequence[tuple[int, int]], fields: Sequence[str] = ()) -> MethodDescriptor:
    """An RPC of a made-up service whose request has the given fields."""
    file = FileDescriptorProto(name="made_up.proto", package="made", syntax="proto3")
    request = file.message_type.add(name="Request")
    for number, name in enumerate(fields, start=1):
        request.field.add(name=name, number=number, type="TYPE_STRING", label="LABEL_OPTIONAL")
    rpc = file.service.add(name="Up").method.add(name="Do", input_type=".made.Request", output_type=".made.Request")
    for role, ownership in grants:
        rpc.options.Extensions[access.access].grants.add(role=role, ownership=ownership)
    pool = DescriptorPool()
    pool.Add(file)
    return pool.FindMethodByName("made.Up.Do")


@pytest.mark.parametrize("service", EVERY_SERVICE, ids=lambda service: service.full_name)
def test_every_rpc_of_the_contract_says_who_may_call_it(service: object) -> None:
    rules = [AccessRule.of(rpc) for rpc in service.methods]  # type: ignore[attr-defined]
    assert rules
    assert all(rule.grants for rule in rules)


def test_an_rpc_without_access_option_is_refused() -> None:
    with pytest.raises(ValueError, match=r"/made\.Up/Do states no access option"):
        AccessRule.of(method([]))


def test_a_grant_to_nobody_in_particular_is_refused() -> None:
    with pytest.raises(ValueError, match="unspecified"):
        AccessRule.of(method([(access.ROLE_UNSPECIFIED, access.OWNERSHIP_UNSPECIFIED)]))


def test_two_grants_to_one_role_are_refused() -> None:
    grants = [(access.ROLE_USER, access.OWNERSHIP_USER), (access.ROLE_USER, access.OWNERSHIP_UNSPECIFIED)]
    with pytest.raises(ValueError, match="twice"):
        AccessRule.of(method(grants, ["user_id"]))


@pytest.mark.parametrize(
    ("ownership", "field"), [(access.OWNERSHIP_MERCHANT, "merchant_id"), (access.OWNERSHIP_USER, "user_id")]
)
def test_an_ownership_rule_on_a_field_that_the_request_lacks_is_refused(ownership: int, field: str) -> None:
    grants = [(access.ROLE_CASHIER, ownership)]
    with pytest.raises(ValueError, match=f"checks {field}"):
        AccessRule.of(method(grants, ["something_else"]))
    assert AccessRule.of(method(grants, [field])).grants == tuple(grants)


def test_a_role_without_grant_is_denied() -> None:
    rule = AccessRule.of(method([(access.ROLE_OPERATOR, access.OWNERSHIP_UNSPECIFIED)]))
    with pytest.raises(MeshError, match=r"^PERMISSION_DENIED$") as refusal:
        rule.ownerships(principal(access.ROLE_CASHIER, access.ROLE_USER))
    assert refusal.value.metadata == {"method": "/made.Up/Do"}


def test_a_cashier_acts_for_its_own_merchant_only() -> None:
    cashier = principal(access.ROLE_CASHIER)
    assert let_in([access.OWNERSHIP_MERCHANT], cashier, SimpleNamespace(merchant_id="10086")) is False
    with pytest.raises(MeshError, match=r"^MERCHANT_NOT_OWNED$") as refusal:
        let_in([access.OWNERSHIP_MERCHANT], cashier, SimpleNamespace(merchant_id="10087"))
    assert refusal.value.metadata == {"merchant_id": "10087"}


def test_a_cashier_whose_token_names_no_merchant_owns_none_not_even_the_empty_one() -> None:
    cashier = principal(access.ROLE_CASHIER, merchant_id="")
    with pytest.raises(MeshError, match=r"^MERCHANT_NOT_OWNED$"):
        let_in([access.OWNERSHIP_MERCHANT], cashier, SimpleNamespace(merchant_id=""))


@pytest.mark.parametrize("named", [43, 0, -42])
def test_a_shopper_acts_for_himself_only(named: int) -> None:
    shopper = principal(access.ROLE_USER, subject="42")
    assert let_in([access.OWNERSHIP_USER], shopper, SimpleNamespace(user_id=42)) is False
    with pytest.raises(MeshError, match=r"^USER_NOT_OWNED$"):
        let_in([access.OWNERSHIP_USER], shopper, SimpleNamespace(user_id=named))


def test_a_grant_without_limit_wins_over_one_with_a_limit() -> None:
    ownerships = [access.OWNERSHIP_MERCHANT, access.OWNERSHIP_UNSPECIFIED]
    assert let_in(ownerships, principal(), SimpleNamespace(merchant_id="10087")) is False


def test_one_grant_that_holds_is_enough() -> None:
    request = SimpleNamespace(merchant_id="10087", user_id=42)
    assert let_in([access.OWNERSHIP_MERCHANT, access.OWNERSHIP_USER], principal(), request) is False


def test_the_use_case_is_told_when_only_the_stored_owner_decides() -> None:
    assert let_in([access.OWNERSHIP_STORED], principal(), SimpleNamespace()) is True


def test_stored_ownership_is_not_asked_for_when_the_request_itself_proves_ownership() -> None:
    ownerships = [access.OWNERSHIP_STORED, access.OWNERSHIP_USER]
    assert let_in(ownerships, principal(), SimpleNamespace(user_id=42)) is False
    assert let_in(ownerships, principal(), SimpleNamespace(user_id=43)) is True
