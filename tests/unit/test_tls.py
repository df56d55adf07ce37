"""Certificates and private keys: every message about wrong ones, word for word."""

from __future__ import annotations

import pytest
from certificates import NOW, certify, make_key, text_of
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from tls import tls_problems, tls_warning

TRADITIONAL = serialization.PrivateFormat.TraditionalOpenSSL
OPENSSH = serialization.PrivateFormat.OpenSSH
SECRET = serialization.BestAvailableEncryption(b"passphrase")

KEY, OTHER = make_key(), make_key()
GOOD, GOOD_KEY = certify(KEY), text_of(KEY)
AUTHORITY = certify(OTHER, "Example authority", ends=-1)  # its own dates do not matter: clients know it
LOOKUP = """give the content of the file, not its path: "{{ lookup('ansible.builtin.file', PATH) }}\""""


def problems(certificate=GOOD, key=GOOD_KEY, settings=None):
    return tls_problems(certificate, key, settings, NOW)


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=lambda key: type(key).__name__,
)
def test_a_pair_of_each_kind_has_no_problem(key):
    assert problems(certify(key), text_of(key)) == []
    assert problems(certify(key) + "\n" + AUTHORITY, text_of(key) + "\n") == []


def test_a_key_may_be_in_its_traditional_form_with_its_parameters_before_it():
    parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    assert problems(key=parameters + text_of(KEY, TRADITIONAL)) == []
    assert problems(key=text_of(KEY, TRADITIONAL).replace("\n", "\r\n")) == []


@pytest.mark.parametrize("nothing", ["", None, "\n"])
def test_without_both_there_is_no_tls_and_no_problem(nothing):
    assert problems(nothing, nothing, {"ssl_certfile": "/llamacpp/model/own.pem"}) == []
    assert tls_warning(nothing, NOW) == ""


WRONG = {
    "no key": (
        {"key": ""},
        "llm_tls_private_key: is empty, but llm_tls_certificate is given; give both, or neither for plain"
        " HTTP",
    ),
    "no certificate": (
        {"certificate": None},
        "llm_tls_certificate: is empty, but llm_tls_private_key is given; give both, or neither for plain"
        " HTTP",
    ),
    "path of a certificate": (
        {"certificate": "/etc/ssl/llm.crt"},
        f"llm_tls_certificate: is not PEM text, which has -----BEGIN CERTIFICATE----- in it; {LOOKUP}",
    ),
    "path of a key": (
        {"key": "/etc/ssl/llm.key"},
        f"llm_tls_private_key: is not PEM text, which has -----BEGIN PRIVATE KEY----- in it; {LOOKUP}",
    ),
    "half a certificate": (
        {"certificate": GOOD[:200]},
        "llm_tls_certificate: cannot be read, it is damaged or cut off; copy the whole file",
    ),
    "damaged second certificate": (
        {"certificate": GOOD + "\n" + AUTHORITY.replace("M", "N", 3)},
        "llm_tls_certificate: cannot be read, it is damaged or cut off; copy the whole file",
    ),
    "half a key": (
        {"key": GOOD_KEY[:100]},
        f"llm_tls_private_key: is not PEM text, which has -----BEGIN PRIVATE KEY----- in it; {LOOKUP}",
    ),
    "damaged key": (
        {"key": GOOD_KEY.replace("MIG", "AAA")},
        "llm_tls_private_key: cannot be read, it is damaged or cut off; copy the whole file",
    ),
    "key in the certificate": (
        {"certificate": GOOD + "\n" + GOOD_KEY},
        "llm_tls_certificate: has a private key in it, which would be shown in logs; move it to"
        " llm_tls_private_key",
    ),
    "encrypted key": (
        {"key": text_of(KEY, encryption=SECRET)},
        "llm_tls_private_key: is encrypted, and the server has no passphrase for it; give the key that"
        " `openssl pkey -in FILE` prints, and keep it in the vault",
    ),
    "encrypted key in its traditional form": (
        {"key": text_of(KEY, TRADITIONAL, SECRET)},
        "llm_tls_private_key: is encrypted, and the server has no passphrase for it; give the key that"
        " `openssl pkey -in FILE` prints, and keep it in the vault",
    ),
    "key of ssh": (
        {"key": text_of(KEY, OPENSSH)},
        "llm_tls_private_key: is a OPENSSH PRIVATE KEY, which the server does not read; give one in PKCS #8"
        " (-----BEGIN PRIVATE KEY-----)",
    ),
    "short key": (
        {"key": text_of(rsa.generate_private_key(65537, 1024))},
        "llm_tls_private_key: is an RSA key of 1024 bits, which the server's OpenSSL refuses; make one of"
        " 2048 bits or more",
    ),
    "key of another certificate": (
        {"key": text_of(OTHER)},
        "llm_tls_private_key: does not fit llm_tls_certificate (CN=llm.example.com); give the key that this"
        " certificate was made for",
    ),
    "chain before the certificate": (
        {"certificate": AUTHORITY + "\n" + GOOD},
        "llm_tls_certificate: its certificate number 2 is that of llm_tls_private_key, but the first one must"
        " be; put the server's own before those of its authorities",
    ),
    "expired": (
        {"certificate": certify(KEY, ends=-1)},
        "llm_tls_certificate: has expired on 2026-11-22 12:00 UTC; renew it",
    ),
    "not yet valid": (
        {"certificate": certify(KEY, begins=1)},
        "llm_tls_certificate: is not valid before 2026-11-24 12:00 UTC; wait, or correct the clock of this"
        " machine (2026-11-23 12:00 UTC)",
    ),
    "setting of one's own": (
        {"settings": {"ssl_certfile": "/llamacpp/model/own.pem", "interrupt_requests": False}},
        "llm_server_settings: ssl_certfile must not be set where llm_tls_certificate is given, which sets it;"
        " take one away",
    ),
}


@pytest.mark.parametrize("case", [case for case in WRONG if case != "chain before the certificate"])
def test_what_is_wrong_is_said_in_one_line(case):
    arguments, message = WRONG[case]
    assert problems(**arguments) == [message]


def test_a_certificate_that_is_not_the_first_is_named():
    arguments, message = WRONG["chain before the certificate"]
    assert message in problems(**arguments)


@pytest.mark.parametrize("case", WRONG)
def test_no_message_has_anything_of_the_key(case):
    arguments, _ = WRONG[case]
    key = arguments.get("key") or GOOD_KEY
    body = [line for line in key.splitlines() if not line.startswith(("-----", "/etc"))]
    said = " ".join(problems(**arguments))
    assert not [line for line in body for at in range(len(line) - 16) if line[at : at + 16] in said]


def test_a_setting_that_is_null_is_not_set():
    assert problems(settings={"ssl_certfile": None}) == []
    assert problems(settings="no dictionary") == []


def test_all_problems_are_told_at_once():
    found = problems(certify(OTHER, ends=-1), settings={"ssl_keyfile": "/x", "ssl_certfile": "/y"})
    assert [line.partition(":")[0] for line in found] == [
        "llm_server_settings",
        "llm_server_settings",
        "llm_tls_certificate",
        "llm_tls_private_key",
    ]


@pytest.mark.parametrize(
    ("days", "warning"),
    [
        (80, ""),
        (14.1, ""),
        (13.5, "llm_tls_certificate: ends on 2026-12-07 00:00 UTC, in 13 days; renew it"),
        (0.5, "llm_tls_certificate: ends on 2026-11-24 00:00 UTC, in 0 days; renew it"),
    ],
)
def test_a_certificate_that_ends_within_14_days_is_warned_of_and_no_problem(days, warning):
    certificate = certify(KEY, ends=days)
    assert problems(certificate) == []
    assert tls_warning(certificate, NOW) == warning
