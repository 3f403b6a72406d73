"""TLS: versions, keys with a password, several certificates, reading them again, and certificates of clients."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.inprocess import wait_until
from tests.support.processes import Frontend
from tests.support.site_process import Process
from threadbridge.settings.table import Settings, from_keywords
from threadbridge.sockets.certificates import Certificates

APPLICATION = """
import json

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({name: value for name, value in environ.items() if name.startswith(("SSL_", "HTTPS"))}).encode()]
"""
PASSWORD = "the secret of the key"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an authority, ca.pem, and certificates of it: for NAME, NAME.pem and NAME.key.

    The subjects of the clients have what must be escaped. The key locked.key has a password.
    """
    directory = tmp_path_factory.mktemp("pki")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-utf8")
    for name in ("ca", "other-ca"):
        openssl("req", "-x509", *new_key, "-days", "2", "-subj", f"/O=Tests/CN={name}",
                "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", f"{name}.key",
                "-out", f"{name}.pem")  # fmt: skip

    # As Python 3.13 and later demand.
    (directory / "extensions").write_text("authorityKeyIdentifier=keyid\n")

    def sign(name: str, subject: str, *names: str, authority: str = "ca") -> None:
        openssl("req", *new_key, "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                *(("-addext", f"subjectAltName={','.join(names)}") if names else ()))  # fmt: skip
        openssl("x509", "-req", "-days", "2", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey",
                f"{authority}.key", "-CAcreateserial", "-copy_extensions", "copy", "-extfile", "extensions",
                "-out", f"{name}.pem")  # fmt: skip

    sign("default", "/CN=default", "IP:127.0.0.1", "DNS:localhost")
    sign("renewed", "/CN=renewed", "IP:127.0.0.1", "DNS:localhost")
    sign("a", "/CN=a", "DNS:a.example")
    sign("wild", "/CN=wild", "DNS:*.shop.example")
    sign("ann", "/C=DE/O=Müller, Söhne \\+ Co/OU=A/OU=B/CN=Ann/emailAddress=ann@example.org", "email:ann@example.org",
         "DNS:ann.example", "DNS:b.example")  # fmt: skip
    sign("stranger", "/CN=Stranger", authority="other-ca")
    openssl("ec", "-in", "default.key", "-aes256", "-passout", f"pass:{PASSWORD}", "-out", "locked.key")
    (directory / "password").write_text(f"{PASSWORD}\n")
    (directory / "password").chmod(0o600)
    return directory


def trusting(pki: Path, **attributes: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    for name, value in attributes.items():
        setattr(context, name, value)
    return context


@contextmanager
def serving(directory: Path, pki: Path, *options: str, certificate: str = "default") -> Iterator[Frontend]:
    (directory / "shown.py").write_text(APPLICATION)
    files = (f"--certfile={pki / certificate}.pem", f"--keyfile={pki / certificate}.key")
    command = ("-m", "threadbridge", "shown:app", "--threads=2", "--port={port}", *files, *options)
    with Frontend(command, cwd=directory) as server:
        yield server


@contextmanager
def connected(server: Frontend, context: ssl.SSLContext, name: str = "127.0.0.1") -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", server.port), 30) as plain,
        context.wrap_socket(plain, server_hostname=name) as client,
    ):
        yield client


def subject(server: Frontend, context: ssl.SSLContext, name: str = "127.0.0.1") -> str:
    """The common name of the certificate that the server shows."""
    with connected(server, context, name) as client:
        return common_name(client)


def common_name(client: ssl.SSLSocket) -> str:
    certificate: dict[str, Any] = client.getpeercert() or {}
    [[(_, name)]] = certificate["subject"]
    return str(name)


def asked(client: ssl.SSLSocket) -> dict[str, str]:
    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
    head, _, body = b"".join(iter(lambda: client.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    found: dict[str, str] = json.loads(body)
    return found


def test_versions_ciphers_and_http_1_1_by_alpn(tmp_path: Path, pki: Path) -> None:
    suite = "ECDHE-ECDSA-CHACHA20-POLY1305"
    with serving(tmp_path, pki, f"--tls_ciphers={suite}") as server:
        context = trusting(pki, maximum_version=ssl.TLSVersion.TLSv1_2)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with connected(server, context) as client:
            assert (client.version(), client.cipher()[0]) == ("TLSv1.2", suite)  # type: ignore[index]
            assert client.selected_alpn_protocol() == "http/1.1"
            assert asked(client) == {"HTTPS": "on"}
        context.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
        with pytest.raises(ssl.SSLError):
            subject(server, context)
    with serving(tmp_path, pki, "--tls_minimum=1.3") as server:
        with pytest.raises(ssl.SSLError):
            subject(server, trusting(pki, maximum_version=ssl.TLSVersion.TLSv1_2))
        with connected(server, trusting(pki)) as client:
            assert client.version() == "TLSv1.3"


def test_a_key_with_a_password(tmp_path: Path, pki: Path) -> None:
    options = (f"--keyfile={pki / 'locked.key'}", f"--keyfile_password_file={pki / 'password'}")
    with serving(tmp_path, pki, *options) as server:
        assert subject(server, trusting(pki)) == "default"
        assert PASSWORD not in server.output()
        assert PASSWORD.encode() not in Path(f"/proc/{server.process.pid}/cmdline").read_bytes()


def test_the_name_that_clients_ask_for_chooses_the_certificate(tmp_path: Path, pki: Path) -> None:
    both = tmp_path / "wild.pem"
    both.write_text((pki / "wild.pem").read_text() + (pki / "wild.key").read_text())
    options = (f"--sni=a.example:{pki / 'a.pem'}:{pki / 'a.key'}", f"--sni=*.shop.example:{both}")
    with serving(tmp_path, pki, *options) as server:
        context = trusting(pki)
        assert subject(server, context, "a.example") == "a"
        assert subject(server, context, "A.Example") == "a"
        assert subject(server, context, "x.shop.example") == "wild"
        assert subject(server, context) == "default"
        context.check_hostname = False
        for name in ("unknown.example", "x.y.shop.example", "shop.example"):
            assert subject(server, context, name) == "default", name


def test_when_certificates_expire(tmp_path: Path, pki: Path) -> None:
    """Also after 2049, when the form of dates in certificates changes; of several in a file, the first to expire."""
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -subj /CN=late -days 20000"
    subprocess.run([*new.split(), "-keyout", "late.key", "-out", "late.pem"], cwd=tmp_path, check=True)
    chain = tmp_path / "chain.pem"
    chain.write_text((tmp_path / "late.pem").read_text() + (pki / "ca.pem").read_text())
    late, soon = (
        ssl.cert_time_to_seconds(as_openssl(path, "-enddate")) for path in (tmp_path / "late.pem", pki / "ca.pem")
    )
    settings = Settings(
        certfile=str(tmp_path / "late.pem"),
        keyfile=str(tmp_path / "late.key"),
        sni_certificates=[f"a.example:{chain}:{tmp_path / 'late.key'}"],
    )
    assert Certificates(from_keywords(settings)).expirations == {str(tmp_path / "late.pem"): late, str(chain): soon}


def test_a_certificate_in_another_form_is_served_even_if_its_end_is_not_known(
    tmp_path: Path, pki: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trusted = tmp_path / "trusted.pem"
    subprocess.run(["openssl", "x509", "-trustout", "-in", pki / "default.pem", "-out", trusted], check=True)
    settings = Settings(certfile=str(trusted), keyfile=str(pki / "default.key"))
    assert Certificates(from_keywords(settings)).expirations == {}
    assert f"certfile {trusted}: cannot tell when it expires: it has no block CERTIFICATE" in caplog.text


def test_a_failed_reload_is_known_until_one_works(tmp_path: Path, pki: Path) -> None:
    for end in ("pem", "key"):
        shutil.copy(pki / f"default.{end}", tmp_path / f"live.{end}")
    files = Settings(certfile=str(tmp_path / "live.pem"), keyfile=str(tmp_path / "live.key"))
    certificates = Certificates(from_keywords(files))
    before = certificates.expirations
    assert certificates.reloaded
    shutil.copy(pki / "renewed.pem", tmp_path / "live.pem")
    certificates.reload()
    assert (certificates.reloaded, certificates.expirations) == (False, before)
    shutil.copy(pki / "renewed.key", tmp_path / "live.key")
    certificates.reload()
    assert certificates.reloaded


def test_sighup_reads_certificates_again(tmp_path: Path, pki: Path) -> None:
    def install(name: str, key: str = "") -> None:
        for source, target in ((f"{name}.pem", "live.pem"), (f"{key or name}.key", "live.key")):
            shutil.copy(pki / source, tmp_path / target)

    install("default")
    with serving(tmp_path, tmp_path, certificate="live") as server:
        context = trusting(pki)
        with connected(server, context) as open_before:
            assert common_name(open_before) == "default"
            install("renewed", key="default")
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: "the certificates stay as they were: certfile" in server.output(), "it is refused")
            assert subject(server, context) == "default"
            install("renewed")
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: subject(server, context) == "renewed", "it is taken")
            assert asked(open_before) == {"HTTPS": "on"}


def test_all_processes_read_certificates_again(tmp_path: Path, pki: Path) -> None:
    for end in ("pem", "key"):
        shutil.copy(pki / f"default.{end}", tmp_path / f"live.{end}")
    files = (f"--certfile={tmp_path / 'live.pem'}", f"--keyfile={tmp_path / 'live.key'}")
    with Process(tmp_path, "--port={port}", "--processes=2", *files) as server:
        for end in ("pem", "key"):
            shutil.copy(pki / f"renewed.{end}", tmp_path / f"live.{end}")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.output().count("the certificates have been read again") == 2, "both have")
        assert {subject(server, trusting(pki)) for _ in range(10)} == {"renewed"}


def test_the_certificate_of_a_client(tmp_path: Path, pki: Path) -> None:
    options = (f"--client_ca_file={pki / 'ca.pem'}", "--client_certificates=optional")
    with serving(tmp_path, pki, *options) as server:
        context = trusting(pki)
        with connected(server, context) as client:
            without = asked(client)
        assert without.pop("SSL_CIPHER")
        assert without == {
            "HTTPS": "on",
            "SSL_PROTOCOL": "TLSv1.3",
            "SSL_CIPHER_USEKEYSIZE": "256",
            "SSL_CLIENT_VERIFY": "NONE",
        }
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = trusting(pki, maximum_version=version)
            context.load_cert_chain(pki / "ann.pem", pki / "ann.key")
            with connected(server, context) as client:
                shown = {name: value.encode("latin-1").decode() for name, value in asked(client).items()}
            assert shown["SSL_CLIENT_VERIFY"] == "SUCCESS"
            # As OpenSSL, and so mod_ssl, shows it.
            assert shown["SSL_CLIENT_S_DN"] == as_openssl(pki / "ann.pem", "-subject")
            assert shown["SSL_CLIENT_I_DN"] == as_openssl(pki / "ann.pem", "-issuer")
            assert shown["SSL_CLIENT_M_SERIAL"] == as_openssl(pki / "ann.pem", "-serial")
            assert shown["SSL_CLIENT_V_END"] == as_openssl(pki / "ann.pem", "-enddate")
            assert shown["SSL_CLIENT_CERT"] == (pki / "ann.pem").read_text()
            parts = {name.rpartition("_DN_")[2]: value for name, value in shown.items() if "_S_DN_" in name}
            assert parts == {
                "C": "DE",
                "O": "Müller, Söhne + Co",
                "OU": "A",
                "CN": "Ann",
                "Email": "ann@example.org",
            }
            names = {name: value for name, value in shown.items() if "_SAN_" in name}
            assert names == {
                "SSL_CLIENT_SAN_Email_0": "ann@example.org",
                "SSL_CLIENT_SAN_DNS_0": "ann.example",
                "SSL_CLIENT_SAN_DNS_1": "b.example",
            }


def as_openssl(certificate: Path, field: str) -> str:
    options = "-nameopt", "RFC2253,-esc_msb,utf8"
    command = ["openssl", "x509", "-noout", "-in", str(certificate), field, *options]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return printed.strip().partition("=")[2].strip()


@pytest.mark.parametrize(("certificate", "required"), [("", True), ("stranger", True), ("stranger", False)])
def test_clients_without_a_valid_certificate_are_not_served(
    tmp_path: Path, pki: Path, certificate: str, required: bool
) -> None:
    how = f"--client_certificates={'required' if required else 'optional'}"
    with serving(tmp_path, pki, f"--client_ca_file={pki / 'ca.pem'}", how) as server:
        context = trusting(pki)
        if certificate:
            context.load_cert_chain(pki / f"{certificate}.pem", pki / f"{certificate}.key")
        # With TLS 1.3, the client learns of it only when it reads: an alert, the end or a reset.
        with suppress(OSError), connected(server, context) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(100) == b""
        wait_until(lambda: "a TLS handshake failed" in server.output(), "the log says so")
        assert " 200 " not in server.output()
        context = trusting(pki)
        context.load_cert_chain(pki / "ann.pem", pki / "ann.key")
        with connected(server, context) as client:
            assert asked(client)["SSL_CLIENT_VERIFY"] == "SUCCESS"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--tls_ciphers=NONSENSE"], "tls_ciphers=NONSENSE: OpenSSL knows no such cipher suite"),
        (["--sni=a.example"], "sni_certificates: 'a.example': expected NAME:CERTFILE"),
        (["--sni=a.example:/nowhere.pem"], "certfile /nowhere.pem: No such file or directory"),
        (
            ["--keyfile={pki}/locked.key"],
            "expected a certificate and its key in PEM files, unencrypted or with the password in",
        ),
        (["--keyfile={pki}/locked.key", "--keyfile_password_file={pki}/ca.key"], "certfile "),
        (["--keyfile_password_file={pki}/ca.pem"], "keyfile_password_file {pki}/ca.pem: other users may read"),
        (["--client_certificates=optional"], "client_certificates and client_ca_file: give both, or neither"),
        (["--client_ca_file={pki}/ca.pem"], "client_certificates and client_ca_file: give both, or neither"),
        (["--client_ca_file=/no.pem", "--client_certificates=required"], "client_ca_file /no.pem: No such file"),
        (["--certfile=", "--sni=a:b"], "expected a path"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(tmp_path: Path, pki: Path, options: list[str], error: str) -> None:
    (pki / "ca.pem").chmod(0o644)
    (pki / "ca.key").chmod(0o600)
    files = (f"--certfile={pki / 'default.pem'}", f"--keyfile={pki / 'default.key'}")
    ended = Process(tmp_path, *files, *(option.format(pki=pki) for option in options)).run_to_its_end()
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert error.format(pki=pki) in line
    assert "Traceback" not in ended.stderr


def test_a_name_without_a_certificate_of_the_server(tmp_path: Path) -> None:
    ended = Process(tmp_path, "--sni=a:b").run_to_its_end()
    assert "sni_certificates without certfile: give the certificate too" in ended.stderr
