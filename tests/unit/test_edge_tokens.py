import json
import stat
from pathlib import Path

import jwt
import pytest
from typer import Typer
from typer.testing import CliRunner

from meshctl.edge.render import contract
from meshctl.edge.tokens import AUDIENCE, ISSUER, Claims, DevKeys, parse_duration_s
from meshctl.stack.failures import StackError
from meshctl.token import ROLES, token

CASHIER = Claims(subject="till-1", roles=("cashier",), client_id="till-1", merchant_id="10086")
CLI = Typer()
CLI.command()(token)


def verified(text: str, keys: DevKeys) -> dict[str, object]:
    known = jwt.PyJWKSet.from_json(keys.jwks())
    key = known[jwt.get_unverified_header(text)["kid"]]
    claims: dict[str, object] = jwt.decode(text, key, algorithms=["ES256"], audience=AUDIENCE, issuer=ISSUER)
    return claims


def test_a_token_says_who_it_speaks_for_and_verifies_with_the_published_key(tmp_path: Path) -> None:
    keys = DevKeys(tmp_path)
    claims = verified(keys.token(CASHIER, ttl_s=60), keys)
    assert claims["sub"] == "till-1"
    assert claims["roles"] == ["cashier"]
    assert claims["merchant_id"] == "10086"
    assert claims["client_id"] == "till-1"
    assert claims["channel"] == ""


def test_the_first_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    first = DevKeys(folder).jwks()
    assert DevKeys(folder).jwks() == first
    assert stat.S_IMODE((folder / "dev-1.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_published_keys_hold_no_private_half(tmp_path: Path) -> None:
    for key in json.loads(DevKeys(tmp_path).jwks())["keys"]:
        assert "d" not in key
        assert key["alg"] == "ES256"


def test_after_a_rotation_the_new_key_signs_and_the_one_before_still_verifies(tmp_path: Path) -> None:
    keys = DevKeys(tmp_path)
    old = keys.token(CASHIER, ttl_s=60)
    assert keys.rotate() == "dev-2"
    new = keys.token(CASHIER, ttl_s=60)
    assert jwt.get_unverified_header(new)["kid"] == "dev-2"
    assert verified(old, keys)["sub"] == verified(new, keys)["sub"] == "till-1"


def test_a_second_rotation_drops_the_oldest_key(tmp_path: Path) -> None:
    keys = DevKeys(tmp_path)
    old = keys.token(CASHIER, ttl_s=60)
    keys.rotate()
    keys.rotate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev-2.pem", "dev-3.pem"]
    with pytest.raises(KeyError):
        verified(old, keys)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604800)])
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1.5h", "1w", "1h "])
def test_any_other_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a duration looks like"):
        parse_duration_s(text)


@pytest.mark.parametrize("ttl_s", [0, -1, 366 * 24 * 3600])
def test_a_lifetime_out_of_range_is_refused(ttl_s: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a token lives"):
        DevKeys(tmp_path).token(CASHIER, ttl_s=ttl_s)


def run(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    DevKeys(tmp_path / "keys").live()
    result = CliRunner().invoke(CLI, [*arguments, "--mesh", str(tmp_path)])
    return result.exit_code, result.output


def test_the_command_prints_one_token_and_nothing_else(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--role", "cashier", "--merchant", "10086", "--client", "till-9", "--ttl", "5m")
    assert code == 0
    claims = verified(output.strip(), DevKeys(tmp_path / "keys"))
    assert (claims["client_id"], claims["merchant_id"], claims["sub"]) == ("till-9", "10086", "till-9")
    assert int(str(claims["exp"])) - int(str(claims["iat"])) == 300


def test_a_shoppers_token_has_the_user_as_its_subject(tmp_path: Path) -> None:
    _, output = run(tmp_path, "--role", "user", "--user", "42", "--client", "app", "--channel", "APP")
    claims = verified(output.strip(), DevKeys(tmp_path / "keys"))
    assert (claims["sub"], claims["client_id"], claims["channel"]) == ("42", "app", "APP")


@pytest.mark.parametrize(
    ("arguments", "client"),
    [
        (("--role", "operator"), "back-office"),
        (("--role", "cashier", "--merchant", "1"), "till-1"),
        (("--role", "user", "--user", "42"), "app"),
        (("--role", "auditor"), "audit-desk"),
        (("--role", "operator", "--client", "erp"), "erp"),
    ],
)
def test_each_role_has_a_system_that_it_calls_from(arguments: tuple[str, ...], client: str, tmp_path: Path) -> None:
    code, output = run(tmp_path, *arguments)
    assert (code, verified(output.strip(), DevKeys(tmp_path / "keys"))["client_id"]) == (0, client)


def test_the_help_lists_every_role() -> None:
    assert ", ".join(contract().roles()) == ROLES


def test_no_key_is_made_in_a_folder_without_a_stack(tmp_path: Path) -> None:
    for option in ("--mesh", "--dir"):
        result = CliRunner().invoke(CLI, ["--role", "operator", option, str(tmp_path / "none")])
        assert isinstance(result.exception, StackError)
        assert "`meshctl up`" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--role", "cashier"),
        ("--role", "user"),
        ("--role", "user", "--user", "bob"),
        ("--role", "service"),
        ("--role", "unspecified"),
        ("--role", "king"),
        ("--role", "operator", "--channel", "FAX"),
        ("--role", "operator", "--ttl", "soon"),
        (),
    ],
)
def test_a_token_that_could_not_be_used_is_not_made(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert run(tmp_path, *arguments)[0] == 2
