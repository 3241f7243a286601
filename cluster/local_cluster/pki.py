"""A throw-away certificate authority for one bare control plane.

Its certificates have no key identifiers, as those of many clusters have none (Amazon's among them), so that whoever
needs them is found out: Python does from 3.13 on, unless told not to.
"""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = datetime.timedelta(days=30)
SERVER_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
SERVER_ADDRESSES = ("127.0.0.1", "10.96.0.1")


class Authority:
    """A certificate authority that exists in memory; what it signs goes to PEM files in `folder`."""

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = _name(common_name="throw-away-ca")
        self._certificate = (
            _builder(subject=name, issuer=name, key=self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate_file = folder / "ca.crt"
        self.certificate_file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def client(self, *, user: str, groups: tuple[str, ...] = ()) -> tuple[Path, Path]:
        """Issue a client certificate for `user` in `groups`; returns the files of certificate and key."""
        return self._issue(file=user.replace(":", "-"), subject=_name(common_name=user, organizations=groups))

    def server(self, *, file: str) -> tuple[Path, Path]:
        """Issue a serving certificate for the loopback address, named `file`; returns certificate and key files."""
        return self._issue(file=file, subject=_name(common_name=file), server=True)

    def _issue(self, *, file: str, subject: x509.Name, server: bool = False) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            _builder(subject=subject, issuer=self._certificate.subject, key=key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if server:
            names: list[x509.GeneralName] = [x509.DNSName(name) for name in SERVER_NAMES]
            names += [x509.IPAddress(ipaddress.ip_address(address)) for address in SERVER_ADDRESSES]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate_file, key_file = self._folder / f"{file}.crt", self._folder / f"{file}.key"
        certificate = builder.sign(self._key, hashes.SHA256())
        certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        write_key(key=key, file=key_file)
        return certificate_file, key_file


def write_key(*, key: ec.EllipticCurvePrivateKey, file: Path) -> None:
    """Write `key` to `file` as unencrypted PEM, readable by its owner only."""
    file.touch(mode=0o600)
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )


def signing_key(*, file: Path) -> None:
    """Write a fresh key for signing ServiceAccount tokens to `file`."""
    write_key(key=ec.generate_private_key(ec.SECP256R1()), file=file)


def _name(*, common_name: str, organizations: tuple[str, ...] = ()) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization) for organization in organizations]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(*, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not signs_certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
