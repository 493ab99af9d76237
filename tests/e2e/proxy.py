"""nginx as a proxy of an installation under test: its frame around a file of ``deploy/nginx``, and a certificate."""

from __future__ import annotations

import datetime
import ipaddress
import shutil
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
NO_NGINX = "no nginx: apt install nginx-light"
NAME = "penstock.example.org"
_FRAME = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  include {folder}/penstock.conf;
}}
"""


def command(folder: Path, text: str) -> list[str]:
    """Write ``text``, a file of ``deploy/nginx``, and what it stands in into ``folder``. Returns what runs it."""
    (folder / "penstock.conf").write_text(text)
    (folder / "main.conf").write_text(_FRAME.format(folder=folder))
    assert NGINX is not None
    return [NGINX, "-p", str(folder), "-c", str(folder / "main.conf"), "-e", str(folder / "e.log")]


def replaced(text: str, places: dict[str, str]) -> str:
    """``text`` with the places of one machine instead of those that it names; each has to be there."""
    for old, new in places.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def certify(folder: Path) -> None:
    """A certificate of its own for the name and for this machine's address: ``penstock.crt``, ``penstock.key``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "penstock.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "penstock.key").write_bytes(private)


def trust(folder: Path) -> ssl.SSLContext:
    """Of a client that believes the certificate in ``folder``."""
    return ssl.create_default_context(cafile=str(folder / "penstock.crt"))
