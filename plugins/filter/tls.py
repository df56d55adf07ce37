"""Filters ``tls_problems`` and ``tls_warning``: what is wrong with a server's certificate and private key.

No message has anything of the key in it.
"""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

CERTIFICATE = "llm_tls_certificate"
PRIVATE_KEY = "llm_tls_private_key"
# The settings of the engine that are made of these variables.
SETTINGS = ("ssl_certfile", "ssl_keyfile")
# The forms of a private key that OpenSSL reads, and so the server.
KEY = re.compile(r"-----BEGIN (?P<kind>(\w+ )*PRIVATE KEY)-----.+?-----END (?P=kind)-----", re.DOTALL)
KINDS = ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY")
RSA_BITS = 2048  # OpenSSL takes no shorter key at its default security level (2, on Debian)
DAYS_LEFT = 14


def tls_problems(
    certificate: object,
    private_key: object,
    server_settings: object = None,
    now: datetime.datetime | None = None,
) -> list[str]:
    """Return every problem of certificate and private key, one line each; empty when there is none.

    Args:
        certificate: llm_tls_certificate, PEM text; empty for plain HTTP.
        private_key: llm_tls_private_key, PEM text; empty for plain HTTP.
        server_settings: llm_server_settings, of whatever type.
        now: time to compare the certificate's dates with; left out, the clock of this machine.

    Errors: none; wrong input is what it reports.
    """
    given = {CERTIFICATE: _text(certificate), PRIVATE_KEY: _text(private_key)}
    missing = [name for name, text in given.items() if not text]
    if len(missing) == 2:
        return []
    if missing:
        other = next(name for name in given if name not in missing)
        return [f"{missing[0]}: is empty, but {other} is given; give both, or neither for plain HTTP"]
    settings = server_settings if isinstance(server_settings, dict) else {}
    problems = [
        f"llm_server_settings: {name} must not be set where {CERTIFICATE} is given, which sets it; take one"
        " away"
        for name in SETTINGS
        if settings.get(name) is not None
    ]
    chain, wrong = _read_certificates(given[CERTIFICATE])
    problems += wrong
    key, wrong = _read_key(given[PRIVATE_KEY])
    problems += wrong
    if chain:
        problems += _date_problems(chain[0], now)
    if chain and key:
        problems += _pair_problems(chain, key)
    return problems


def tls_warning(certificate: object, now: datetime.datetime | None = None) -> str:
    """Return a warning when a certificate ends soon, empty when it does not.

    Args:
        certificate: llm_tls_certificate, PEM text, in which tls_problems has found nothing; or empty.
        now: as for tls_problems.
    """
    chain, _ = _read_certificates(_text(certificate))
    if not chain:
        return ""
    left = chain[0].not_valid_after_utc - (now or _now())
    if left > datetime.timedelta(days=DAYS_LEFT):
        return ""
    return f"{CERTIFICATE}: ends on {_date(chain[0].not_valid_after_utc)}, in {left.days} days; renew it"


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _date(time: datetime.datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC")


def _read_certificates(text: str) -> tuple[list[Certificate], list[str]]:
    """Return the certificates in a PEM text, and what is wrong with it."""
    # Here and not above: Ansible imports every filter for every task.
    from cryptography import x509

    if "PRIVATE KEY-----" in text:
        return [], [
            f"{CERTIFICATE}: has a private key in it, which would be shown in logs; move it to {PRIVATE_KEY}"
        ]
    if "-----BEGIN CERTIFICATE-----" not in text:
        return [], [f"{CERTIFICATE}: {_not_pem('-----BEGIN CERTIFICATE-----')}"]
    try:
        return x509.load_pem_x509_certificates(text.encode()), []
    except ValueError:
        return [], [f"{CERTIFICATE}: cannot be read, it is damaged or cut off; copy the whole file"]


def _not_pem(begin: str) -> str:
    return (
        f"is not PEM text, which has {begin} in it; give the content of the file, not its path:"
        " \"{{ lookup('ansible.builtin.file', PATH) }}\""
    )


def _read_key(text: str) -> tuple[Any, list[str]]:
    """Return the private key in a PEM text (None when it cannot be had), and what is wrong with it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    # Other blocks may stand beside it: `openssl ecparam -genkey` writes the parameters first.
    found = KEY.search(text)
    if not found:
        return None, [f"{PRIVATE_KEY}: {_not_pem('-----BEGIN PRIVATE KEY-----')}"]
    if found["kind"] not in KINDS:
        return None, [
            f"{PRIVATE_KEY}: is a {found['kind']}, which the server does not read; give one in PKCS #8"
            " (-----BEGIN PRIVATE KEY-----)"
        ]
    try:
        key = load_pem_private_key(found[0].encode(), password=None)
    except TypeError:
        return None, [
            f"{PRIVATE_KEY}: is encrypted, and the server has no passphrase for it; give the key that"
            " `openssl pkey -in FILE` prints, and keep it in the vault"
        ]
    except (ValueError, UnsupportedAlgorithm):
        return None, [f"{PRIVATE_KEY}: cannot be read, it is damaged or cut off; copy the whole file"]
    if isinstance(key, RSAPrivateKey) and key.key_size < RSA_BITS:
        return None, [
            f"{PRIVATE_KEY}: is an RSA key of {key.key_size} bits, which the server's OpenSSL refuses; make"
            f" one of {RSA_BITS} bits or more"
        ]
    return key, []


def _date_problems(certificate: Certificate, now: datetime.datetime | None) -> list[str]:
    """Return what is wrong with a certificate's dates."""
    now = now or _now()
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        return [f"{CERTIFICATE}: has expired on {_date(ends)}; renew it"]
    if now < begins:
        return [
            f"{CERTIFICATE}: is not valid before {_date(begins)}; wait, or correct the clock of this machine"
            f" ({_date(now)})"
        ]
    return []


def _pair_problems(chain: list[Certificate], key: Any) -> list[str]:  # noqa: ANN401
    """Return what is wrong when the first certificate is not that of the key."""
    fits = [certificate.public_key() == key.public_key() for certificate in chain]
    if fits[0]:
        return []
    if any(fits):
        return [
            f"{CERTIFICATE}: its certificate number {fits.index(True) + 1} is that of {PRIVATE_KEY}, but the"
            " first one must be; put the server's own before those of its authorities"
        ]
    subject = chain[0].subject.rfc4514_string() or "without a subject"
    return [
        f"{PRIVATE_KEY}: does not fit {CERTIFICATE} ({subject}); give the key that this certificate was"
        " made for"
    ]


class FilterModule:
    """Registers the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"tls_problems": tls_problems, "tls_warning": tls_warning}
