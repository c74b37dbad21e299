"""TLS of the listener: what it speaks, whom it asks for certificates, how they change, and what is wrong."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from contextlib import contextmanager

import httpx2
import pytest
import trustme
from pydantic import ValidationError

from loadtest.server import free_port
from service import tls
from service.contract.errors import SettingsError
from service.settings import Settings
from tests.service.conftest import Publisher
from tests.service.waiting import eventually

LONG = 40.0


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    """A certificate, its key, and who signed it."""
    folder = tmp_path_factory.mktemp("tls")
    made = authority.issue_cert("localhost", "127.0.0.1")
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return folder


@contextmanager
def serving(bundle, store, folder, **settings):
    """A service over TLS on a free port; what it logs is in the folder."""
    port = free_port()
    environment = {
        **os.environ,
        "MDCTR_BUNDLE": str(bundle.path),
        "MDCTR_STORE": store,
        "MDCTR_PORT": str(port),
        "MDCTR_DRAIN_SECONDS": "0",
        **settings,
    }
    with (folder / "log").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "run"], env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            yield port, process
        finally:
            process.terminate()
            process.wait(LONG)


@pytest.fixture(scope="module")
def store(bundle, tmp_path_factory):
    publisher = Publisher(f"directory:{tmp_path_factory.mktemp('store')}")
    publisher.raw(dict(bundle.packs()))
    return publisher.url


@pytest.fixture(scope="module")
def ground(bundle, store):
    return bundle, store


def trusting(authority, *, client=None):
    made = ssl.create_default_context()
    authority.configure_trust(made)
    if client is not None:
        client.configure_cert(made)
    return made


def get(port, context, path="/readyz"):
    try:
        return httpx2.get(f"https://127.0.0.1:{port}{path}", verify=context, timeout=5).status_code
    except httpx2.TransportError:
        return None


def speaks(port, authority, version):
    """Whether a connection of just this version of TLS comes about."""
    context = trusting(authority)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as plain:
            context.wrap_socket(plain, server_hostname="localhost").close()
    except (ssl.SSLError, OSError):
        return False
    return True


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_answers_over_tls_of_1_2_and_later_alone(ground, files, authority, tmp_path, workers):
    settings = {"MDCTR_TLS_CERT": str(files / "cert.pem"), "MDCTR_TLS_KEY": str(files / "key.pem")}
    context = trusting(authority)
    bundle, store = ground
    with serving(bundle, store, tmp_path, MDCTR_WORKERS=workers, **settings) as (port, _):
        eventually(lambda: get(port, context) == 200, LONG)
        with httpx2.Client(verify=context, base_url=f"https://localhost:{port}") as client:
            answer = client.post("/v1/domains/books/rank", json={"ids": [10, 11]})
            again = client.post("/v1/domains/books/rank", json={"ids": [10, 11]})
        assert answer.status_code == 200
        assert answer.json()["probabilities"] == again.json()["probabilities"]
        assert speaks(port, authority, ssl.TLSVersion.TLSv1_2)
        assert speaks(port, authority, ssl.TLSVersion.TLSv1_3)
        assert not speaks(port, authority, ssl.TLSVersion.TLSv1_1)
        assert get(port, ssl.create_default_context()) is None  # who does not know the authority
        with socket.create_connection(("127.0.0.1", port), 5) as plain:
            plain.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/1.1 200" not in plain.recv(1000)
        assert get(port, context) == 200


def test_callers_show_certificates_where_they_must(bundle, store, files, authority, tmp_path):
    settings = {
        "MDCTR_TLS_CERT": str(files / "cert.pem"),
        "MDCTR_TLS_KEY": str(files / "key.pem"),
        "MDCTR_TLS_CLIENT_CA": str(files / "ca.pem"),
    }
    known = trusting(authority, client=authority.issue_cert("caller"))
    stranger = trusting(authority, client=trustme.CA().issue_cert("caller"))
    with serving(bundle, store, tmp_path, **settings) as (port, _):
        eventually(lambda: get(port, known) == 200, LONG)
        assert get(port, trusting(authority)) is None
        assert get(port, stranger) is None


def test_a_certificate_is_taken_over_when_its_file_changes_and_a_bad_one_is_not(
    bundle, store, authority, tmp_path
):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def write(name):
        made = authority.issue_cert("localhost", "127.0.0.1", common_name=name)
        made.private_key_pem.write_to_path(key)
        made.cert_chain_pems[0].write_to_path(cert)

    def served():
        """The name in the certificate that a new connection is shown."""
        context = trusting(authority)
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as opened,
        ):
            subject = opened.getpeercert()["subject"]
        return next(value for part in subject for name, value in part if name == "commonName")

    write("first")
    with serving(bundle, store, tmp_path, MDCTR_TLS_CERT=str(cert), MDCTR_TLS_KEY=str(key)) as (port, _):
        eventually(lambda: get(port, trusting(authority)) == 200, LONG)
        assert served() == "first"
        write("second")
        eventually(lambda: served() == "second", LONG)
        cert.write_text("broken")
        eventually(lambda: "not taken over" in (tmp_path / "log").read_text(), LONG)
        assert served() == "second"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("missing.pem", "key.pem", None), "No such file"),
        (("cert.pem", "missing.pem", None), "No such file"),
        (("cert.pem", "other.pem", None), "KEY_VALUES_MISMATCH"),
        (("key.pem", "key.pem", None), "not a certificate and its key in PEM"),
        (("empty.pem", "key.pem", None), "not a certificate and its key in PEM"),
        (("cert.pem", "locked.pem", None), "the key has a password"),
        (("cert.pem", "key.pem", "empty.pem"), "MDCTR_TLS_CLIENT_CA"),
        (("cert.pem", "key.pem", "missing.pem"), "MDCTR_TLS_CLIENT_CA"),
    ],
)
def test_what_cannot_be_used_is_a_settings_error(files, authority, tmp_path, names, says):
    cert, key, ca = names
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    authority.issue_cert("other").private_key_pem.write_to_path(tmp_path / "other.pem")
    (tmp_path / "empty.pem").touch()
    openssl = [
        "openssl",
        "pkey",
        "-in",
        "key.pem",
        "-aes256",
        "-passout",
        "pass:hunter22",
        "-out",
        "locked.pem",
    ]
    subprocess.run(openssl, cwd=tmp_path, check=True, capture_output=True)
    settings = Settings(
        tls_cert=tmp_path / cert, tls_key=tmp_path / key, tls_client_ca=None if ca is None else tmp_path / ca
    )
    with pytest.raises(SettingsError) as refused:
        tls.context(settings)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_bad_certificate_is_one_line_and_exit_code_2(ground, files, tmp_path, workers, command):
    bundle, store = ground
    environment = {
        **os.environ,
        "MDCTR_BUNDLE": str(bundle.path),
        "MDCTR_STORE": store,
        "MDCTR_WORKERS": workers,
        "MDCTR_TLS_CERT": str(files / "cert.pem"),
        "MDCTR_TLS_KEY": str(files / "ca.pem"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "service", command],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert done.returncode == 2
    assert re.fullmatch(r".*MDCTR_TLS_CERT, MDCTR_TLS_KEY: [^\n]+\n", done.stderr)


def test_a_key_or_an_authority_needs_a_certificate(tmp_path):
    for wrong in ({"tls_key": tmp_path / "k"}, {"tls_client_ca": tmp_path / "c"}):
        with pytest.raises(ValidationError, match="need MDCTR_TLS_CERT"):
            Settings(**wrong)
    assert tls.context(Settings()) is None
