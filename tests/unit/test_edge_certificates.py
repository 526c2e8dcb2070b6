import datetime as dt
import ipaddress
import json
import stat
from pathlib import Path

import pytest
from cryptography import x509
from typer import Typer
from typer.testing import CliRunner

from meshctl.certs import certs
from meshctl.edge.certificates import EdgeCertificate, ensure_certificate, make_certificate

NOW = dt.datetime(2025, 8, 11, 12, 0, tzinfo=dt.UTC)


def test_the_certificate_names_localhost_and_both_loopback_addresses(tmp_path: Path) -> None:
    files = ensure_certificate(tmp_path, now=NOW)
    certificate = x509.load_pem_x509_certificate(files.chain.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    addresses = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(files.authority.read_bytes()))


def test_the_authoritys_private_key_is_never_written(tmp_path: Path) -> None:
    files = ensure_certificate(tmp_path, now=NOW)
    assert {path.name for path in tmp_path.iterdir()} == {"ca.pem", "edge.pem", "edge.key"}
    assert stat.S_IMODE(files.private_key.stat().st_mode) == 0o600


def test_a_certificate_is_kept_until_shortly_before_it_expires(tmp_path: Path) -> None:
    first = ensure_certificate(tmp_path, now=NOW).chain.read_bytes()
    assert ensure_certificate(tmp_path, now=NOW + dt.timedelta(days=82)).chain.read_bytes() == first
    assert ensure_certificate(tmp_path, now=NOW + dt.timedelta(days=84)).chain.read_bytes() != first


@pytest.mark.parametrize("damaged", ["authority", "chain", "private_key"])
def test_a_damaged_file_leads_to_a_new_certificate(damaged: str, tmp_path: Path) -> None:
    files = ensure_certificate(tmp_path, now=NOW)
    first = files.chain.read_bytes()
    Path(getattr(files, damaged)).write_text("not PEM")
    assert ensure_certificate(tmp_path, now=NOW).chain.read_bytes() != first


def test_an_authority_that_signed_something_else_leads_to_a_new_certificate(tmp_path: Path) -> None:
    files = ensure_certificate(tmp_path / "a", now=NOW)
    other = make_certificate(tmp_path / "b", now=NOW)
    files.authority.write_bytes(other.authority.read_bytes())
    first = files.chain.read_bytes()
    assert ensure_certificate(tmp_path / "a", now=NOW).chain.read_bytes() != first


def test_the_command_says_where_the_files_are(tmp_path: Path) -> None:
    cli = Typer()
    cli.command()(certs)
    result = CliRunner().invoke(cli, ["--mesh", str(tmp_path), "--json"])
    assert result.exit_code == 0
    files = EdgeCertificate.under(tmp_path / "certs")
    assert json.loads(result.output)["authority"] == str(files.authority)
    first = files.chain.read_bytes()
    assert "authority" in CliRunner().invoke(cli, ["--mesh", str(tmp_path)]).output
    assert files.chain.read_bytes() == first
    CliRunner().invoke(cli, ["--mesh", str(tmp_path), "--renew"])
    assert files.chain.read_bytes() != first
