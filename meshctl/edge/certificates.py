"""Makes and renews the development certificate of the edge's HTTPS listener."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_DAYS = 90
RENEW_BEFORE_DAYS = 7
DNS_NAMES = ("localhost",)
ADDRESSES = (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))


@dataclass(frozen=True, slots=True)
class EdgeCertificate:
    """Where the files of a development certificate are.

    Attributes:
        authority: PEM certificate that clients must trust (curl's `--cacert`).
        chain: PEM certificate that the listener shows.
        private_key: PEM private key of the listener, readable by its owner only.
    """

    authority: Path
    chain: Path
    private_key: Path

    @classmethod
    def under(cls, folder: Path) -> EdgeCertificate:
        """Names the three files inside `folder`; makes nothing."""
        return cls(authority=folder / "ca.pem", chain=folder / "edge.pem", private_key=folder / "edge.key")


def write_private(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Writes a file that only its owner may read, in one step: a reader sees the old content or the new.

    Args:
        path: the file; its folder is made with mode 0700 when missing.
        content: what it will hold.
        replace: False keeps a file that is there already, also when two processes write it at once.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    if replace:
        temporary.replace(path)
        return
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(temporary)
    temporary.unlink()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Clocks of one machine and its containers may differ a little.
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def make_certificate(folder: Path, *, now: dt.datetime) -> EdgeCertificate:
    """Makes a new authority and a listener certificate signed by it.

    The authority's private key is never written: nobody can sign another certificate with an authority that a
    developer may have told a browser to trust.

    Args:
        folder: where the files go; made with mode 0700 when missing.
        now: the time the certificate is valid from, with a time zone.

    Returns:
        The paths of the files.
    """
    files = EdgeCertificate.under(folder)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "couponmesh development authority")])
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in DNS_NAMES]
    names += [x509.IPAddress(address) for address in ADDRESSES]
    listener_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    listener = (
        _builder(listener_name, authority_name, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    write_private(
        files.private_key,
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    write_private(files.chain, listener.public_bytes(serialization.Encoding.PEM))
    write_private(files.authority, authority.public_bytes(serialization.Encoding.PEM))
    return files


def is_usable(files: EdgeCertificate, *, now: dt.datetime) -> bool:
    """True when the three files exist, belong together, name every SAN and stay valid for a while."""
    try:
        authority = x509.load_pem_x509_certificate(files.authority.read_bytes())
        chain = x509.load_pem_x509_certificate(files.chain.read_bytes())
        key = serialization.load_pem_private_key(files.private_key.read_bytes(), password=None)
        chain.verify_directly_issued_by(authority)
        names = chain.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return (
        chain.public_key() == key.public_key()
        and set(names.get_values_for_type(x509.DNSName)) >= set(DNS_NAMES)
        and set(names.get_values_for_type(x509.IPAddress)) >= set(ADDRESSES)
        and chain.not_valid_after_utc - now > dt.timedelta(days=RENEW_BEFORE_DAYS)
    )


def ensure_certificate(folder: Path, *, now: dt.datetime | None = None) -> EdgeCertificate:
    """Gives the certificate in `folder`, making it at the first start and again shortly before it expires."""
    moment = now or dt.datetime.now(dt.UTC)
    files = EdgeCertificate.under(folder)
    return files if is_usable(files, now=moment) else make_certificate(folder, now=moment)
