"""Private keys, and certificates that are signed with them, as an operator has them: PEM text."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

NOW = datetime.datetime(2026, 11, 23, 12, 0, tzinfo=datetime.UTC)
PLAIN = serialization.NoEncryption()


def make_key():
    """A new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def text_of(key, form=serialization.PrivateFormat.PKCS8, encryption=PLAIN):
    """The text of a private key, by default neither in an old form nor encrypted."""
    return key.private_bytes(serialization.Encoding.PEM, form, encryption).decode().strip()


def certify(key, name="llm.example.com", begins=-10, ends=80):
    """The text of a self-signed certificate, whose days of validity are counted from NOW."""
    names = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    one = x509.CertificateBuilder().subject_name(names).issuer_name(names).public_key(key.public_key())
    one = one.serial_number(x509.random_serial_number())
    one = one.not_valid_before(NOW + datetime.timedelta(days=begins))
    one = one.not_valid_after(NOW + datetime.timedelta(days=ends))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return one.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode().strip()
