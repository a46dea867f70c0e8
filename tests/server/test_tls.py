"""HTTPS by a certificate of the operator's."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx2
import pytest

from kea.errors import InvalidRequest
from kea.server.config import ServerConfig, WebConfig
from kea.server.run import check_certificate
from tests.server.support import serving

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of this machine's address: `a` and `b`, and a's key behind a password."""
    folder = tmp_path_factory.mktemp("tls")
    for name in "ab":
        settings = ["-subj", "/CN=kea", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        subprocess.run(["openssl", "req", *kind, *settings, *files], cwd=folder, check=True, capture_output=True)
    encrypt = ["openssl", "ec", "-in", "a.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key"]
    subprocess.run(encrypt, cwd=folder, check=True, capture_output=True)
    (folder / "both.pem").write_text((folder / "a.key").read_text() + (folder / "a.pem").read_text())
    return folder


@pytest.mark.parametrize(("certificate", "key"), [("a.pem", "a.key"), ("both.pem", None)])
async def test_the_server_speaks_https(folder: Path, certificate: str, key: str | None) -> None:
    web = WebConfig(ssl_certfile=str(folder / certificate), ssl_keyfile=None if key is None else str(folder / key))
    async with serving(config=ServerConfig(port=0, web=web)) as running:
        assert running.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(folder / "a.pem"))
        async with httpx2.AsyncClient(verify=context, base_url=running.url) as http:
            headers = {"origin": running.url}
            answer = await http.post("/v1/completions", json={"prompt": "x"}, headers=headers)
            assert answer.status_code == 200


@pytest.mark.parametrize(
    ("certificate", "key", "told"),
    [
        ("none.pem", "a.key", "No such file"),
        ("a.pem", "b.key", "MISMATCH"),
        ("a.pem", None, "cannot be used"),
        ("a.pem", "locked.key", "encrypted"),
    ],
)
def test_what_cannot_be_used_is_told(folder: Path, certificate: str, key: str | None, told: str) -> None:
    web = WebConfig(ssl_certfile=str(folder / certificate), ssl_keyfile=None if key is None else str(folder / key))
    with pytest.raises(InvalidRequest, match=told):
        check_certificate(web)


def test_a_key_needs_its_certificate() -> None:
    with pytest.raises(InvalidRequest, match=r"ssl_keyfile is 'a\.key' without ssl_certfile"):
        WebConfig(ssl_keyfile="a.key")
