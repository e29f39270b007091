"""The test CA, a certificate for whatever name a client asks for, and what its ClientHello says."""

import ipaddress
import os
import ssl
import subprocess
import threading

CONFIG = """[req]
distinguished_name = dn
prompt = no
[dn]
CN = {subject}
[ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
subjectAltName = {san}
"""


class Authority:
    """A CA in DIR (ca.pem, tls/ca.key), kept over restarts of the world, that signs on demand."""

    def __init__(self, directory):
        self._tls = os.path.join(directory, "tls")
        self._ca = os.path.join(directory, "ca.pem")
        self._lock = threading.Lock()
        self._contexts = {}
        os.makedirs(self._tls, exist_ok=True)
        if not os.path.exists(self._ca) or not os.path.exists(self._path("ca.key")):
            self._openssl("world.ca", "Innkeeper test CA", "DNS:world.ca", "ca", self._ca, "ca.key", ["-days", "30"])

    def _path(self, name):
        return os.path.join(self._tls, name)

    def _openssl(self, stem, subject, san, section, certificate, key, more):
        config = self._path(stem + ".cnf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(subject=subject, san=san))
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-sha256",
             "-config", config, "-extensions", section, "-keyout", self._path(key), "-out", certificate + ".new", *more],
            check=True, capture_output=True)
        os.rename(certificate + ".new", certificate)

    def context(self, name):
        """A server context whose certificate is for `name` (a host name or an address)."""
        with self._lock:
            if name not in self._contexts:
                self._contexts[name] = self._make_context(name)
            return self._contexts[name]

    def _make_context(self, name):
        stem = "".join(c if c.isalnum() or c in ".-_" else "_" for c in name)[:100]
        certificate, key = self._path(stem + ".pem"), stem + ".key"
        try:
            san = f"IP:{ipaddress.ip_address(name)}"
        except ValueError:
            safe = "".join(c for c in name if c.isalnum() or c in ".-_*")[:200]
            san = f"DNS:{safe or 'invalid.test'}"
        if not os.path.exists(certificate):
            # X.509 bounds a common name to 64 characters.
            self._openssl(stem, stem[:60] or "world", san, "leaf", certificate, key,
                          ["-days", "20", "-CA", self._ca, "-CAkey", self._path("ca.key")])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, self._path(key))
        context.set_alpn_protocols(["http/1.1"])
        return context


def client_hello(record):
    """{sni, alpn, ech} of a ClientHello, None where it isn't a whole one. Only for the log: OpenSSL decides."""
    try:
        if record[0] != 0x16 or record[5] != 1:
            return None
        body = record[9 : 9 + int.from_bytes(record[6:9], "big")]
        at = 34
        at += 1 + body[at]
        at += 2 + int.from_bytes(body[at : at + 2], "big")
        at += 1 + body[at]
        end = at + 2 + int.from_bytes(body[at : at + 2], "big")
        at += 2
        found = {"sni": None, "alpn": [], "ech": False}
        while at + 4 <= min(end, len(body)):
            kind, size = int.from_bytes(body[at : at + 2], "big"), int.from_bytes(body[at + 2 : at + 4], "big")
            value = body[at + 4 : at + 4 + size]
            at += 4 + size
            if kind == 0 and len(value) > 5:
                found["sni"] = value[5 : 5 + int.from_bytes(value[3:5], "big")].decode("utf-8", "backslashreplace")
            elif kind == 16:
                found["alpn"] = protocols(value[2:])
            elif kind == 0xFE0D:
                found["ech"] = True
        return found
    except IndexError:
        return None


def protocols(value):
    names, at = [], 0
    while at < len(value):
        names.append(value[at + 1 : at + 1 + value[at]].decode("ascii", "backslashreplace"))
        at += 1 + value[at]
    return names
