"""TLS: a certificate makes https of http, its renewal is a restart, and its private key shows up nowhere."""

from __future__ import annotations

import ssl
import subprocess

import pytest
from conftest import PORT
from openai import DefaultHttpxClient, OpenAI
from testing import answers, ask

HOME = "/home/llm/llamacpp"
# What an operator writes: the play reads the files, whose content is thereby on no command line.
FROM_FILE = "{{{{ lookup('ansible.builtin.file', '{}') }}}}"


class Pair:
    """A self-signed certificate for 127.0.0.1, and its private key.

    Args:
        directory: where its two files are made.
    """

    def __init__(self, directory) -> None:
        self.certificate, self.key = directory / "tls.crt", directory / "tls.key"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=llm.example.com"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-addext", "subjectAltName=IP:127.0.0.1"),
                *("-out", self.certificate, "-keyout", self.key),
            ],
            check=True,
            capture_output=True,
        )
        self.secrets = [line for line in self.key.read_text().splitlines() if not line.startswith("-----")]

    def variables(self, key=None) -> dict:
        """What the operator's inventory says: this certificate, with its own or another private key."""
        files = {"llm_tls_certificate": self.certificate, "llm_tls_private_key": key or self.key}
        return {name: FROM_FILE.format(path) for name, path in files.items()}

    def client(self) -> OpenAI:
        """A client that believes this certificate and no other."""
        trusting = DefaultHttpxClient(verify=ssl.create_default_context(cafile=self.certificate))
        return OpenAI(
            base_url=f"https://127.0.0.1:{PORT}/v1",
            api_key="none",
            timeout=60,
            max_retries=0,
            http_client=trusting,
        )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A certificate with its key, and those that come after it."""
    return [Pair(tmp_path_factory.mktemp("pair")) for _ in range(2)]


@pytest.fixture(scope="module")
def plain_release(host):
    """The release that the tests find, and leave: without TLS."""
    return host.check_output("basename $(readlink /var/lib/llamacpp/llamacpp/good)")


def test_a_certificate_makes_https_of_http_and_its_key_is_in_no_log(host, play, client, pairs, plain_release):
    run = play("site.yml", "--tags", "server", "-vvv", "--diff", **pairs[0].variables())
    assert run.rc == 0, run.output
    assert ask(pairs[0].client(), "smollm2").choices[0].message.content
    assert not answers(client), "plain http is answered"
    assert not answers(pairs[1].client()), "a client is content with a certificate that it does not know"

    told = {
        "the play": run.output,
        "the journal": host.check_output("journalctl --no-pager --output=cat"),
        "the container": host.check_output("docker inspect llamacpp")
        + host.check_output("docker logs llamacpp"),
        "the unit and config.json": host.check_output(
            f"cat /etc/systemd/system/*.service {HOME}/config.json"
        ),
        "command lines": host.run("cat /proc/[0-9]*/cmdline").stdout,
    }
    leaks = [place for place, text in told.items() if any(line in text for line in pairs[0].secrets)]
    assert not leaks

    key = host.file(f"{HOME}/tls.key")
    assert (key.user, key.group, key.mode) == ("root", "llm", 0o640)
    assert key.content_string == pairs[0].key.read_text()


def test_the_smoke_test_takes_the_deployed_certificate_and_no_other(play, pairs):
    kept = play("smoke.yml", **pairs[0].variables())
    assert kept.rc == 0, kept.output
    refused = play("smoke.yml", **pairs[1].variables())
    assert refused.rc != 0
    assert "has another certificate than the deployed one" in refused.output


def test_a_key_of_another_certificate_is_refused_and_nothing_is_touched(play, untouched, pairs):
    run = play(**pairs[0].variables(key=pairs[1].key))
    assert run.rc != 0
    assert run.count("changed") == 0
    assert "llm_tls_private_key: does not fit llm_tls_certificate (CN=llm.example.com)" in run.error
    assert not any(line in run.output for line in pairs[1].secrets)
    assert answers(pairs[0].client())


def test_a_renewed_certificate_restarts_the_server_which_then_shows_it(play, container, pairs):
    before = container()["State"]["StartedAt"]
    run = play("site.yml", "--tags", "server", **pairs[1].variables())
    assert run.rc == 0, run.output
    assert container()["State"]["StartedAt"] > before
    assert ask(pairs[1].client(), "smollm2").choices[0].message.content
    assert not answers(pairs[0].client()), "the old certificate is still shown"


def test_back_to_the_release_without_tls_its_files_are_gone(host, play, client, plain_release):
    run = play("rollback.yml", "-e", f"to={plain_release}")
    assert run.rc == 0, run.output
    assert answers(client)
    assert not host.file(f"{HOME}/tls.crt").exists
    assert not host.file(f"{HOME}/tls.key").exists
