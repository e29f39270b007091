"""The package registries of the world: npm, a simple index of PyPI's kind, and a sparse index of cargo's. One package each."""

import base64
import gzip
import hashlib
import io
import json
import tarfile
import zipfile

import netlog
import web

NPM, PYPI, FILES, INDEX, CRATES = "npm.test", "pypi.test", "files.pypi.test", "index.crates.test", "static.crates.test"
NAME = "innkeeper-widget"
WHEEL = "innkeeper_widget-1.0.0-py3-none-any.whl"


def archive(files):
    """A tar.gz that is the same at every start."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return gzip.compress(raw.getvalue(), mtime=0)


def wheel():
    info = "innkeeper_widget-1.0.0.dist-info"
    files = {"innkeeper_widget.py": "TOKEN = 'token-of-the-wheel'\n",
             f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0.0\n",
             f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: world\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archived:
        for path, text in files.items():
            archived.writestr(zipfile.ZipInfo(path), text)
    return raw.getvalue()


class Registries:
    def __init__(self, log):
        self._log = log
        self._npm = archive({"package/package.json": json.dumps({"name": NAME, "version": "1.0.0", "main": "index.js"}),
                             "package/index.js": "module.exports = 'token-of-the-package'\n"})
        self._wheel = wheel()
        root = f"{NAME}-1.0.0"
        self._crate = archive({
            f"{root}/Cargo.toml": f'[package]\nname = "{NAME}"\nversion = "1.0.0"\nedition = "2021"\n',
            f"{root}/src/lib.rs": 'pub const TOKEN: &str = "token-of-the-crate";\n'})

    def hosts(self):
        """Who answers for which name."""
        return {name: lambda request, answer=answer: self._logged(request, answer)
                for name, answer in ((NPM, self._npm_answer), (PYPI, self._pypi_answer), (FILES, self._files_answer),
                                     (INDEX, self._index_answer), (CRATES, self._crates_answer))}

    def _logged(self, request, answer):
        reads = request.method in ("GET", "HEAD")
        response = (answer(request) if reads else None) or web.Response(404 if reads else 403, "no\n")
        hello = request.connection.hello
        self._log.write("http", **request.connection.ends, tls=hello is not None, sni=hello and hello["sni"],
                        host=request.raw_host, method=request.method, target=request.target, headers=request.headers,
                        head="", body=netlog.text(request.body, web.BODY_LOG), body_size=len(request.body),
                        status=response.status)
        return response

    def _npm_answer(self, request):
        if request.path == f"/{NAME}/-/{NAME}-1.0.0.tgz":
            return web.Response(200, self._npm, kind="application/octet-stream")
        if request.path != f"/{NAME}":
            return None
        integrity = base64.b64encode(hashlib.sha512(self._npm).digest()).decode()
        version = {"name": NAME, "version": "1.0.0", "dist": {
            "tarball": f"https://{NPM}/{NAME}/-/{NAME}-1.0.0.tgz", "integrity": f"sha512-{integrity}",
            "shasum": hashlib.sha1(self._npm).hexdigest()}}
        return web.Response.json(200, {"name": NAME, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}})

    def _pypi_answer(self, request):
        if request.path != f"/simple/{NAME}/":
            return None
        digest = hashlib.sha256(self._wheel).hexdigest()
        return web.Response(200, f'<!DOCTYPE html><a href="https://{FILES}/{WHEEL}#sha256={digest}">{WHEEL}</a>\n',
                            kind="text/html")

    def _files_answer(self, request):
        return web.Response(200, self._wheel, kind="application/zip") if request.path == f"/{WHEEL}" else None

    def _index_answer(self, request):
        if request.path == "/config.json":
            return web.Response.json(200, {"dl": f"https://{CRATES}/{{crate}}-{{version}}.crate"})
        if request.path != f"/{NAME[:2]}/{NAME[2:4]}/{NAME}":
            return None
        entry = {"name": NAME, "vers": "1.0.0", "deps": [], "cksum": hashlib.sha256(self._crate).hexdigest(),
                 "features": {}, "yanked": False}
        return web.Response(200, json.dumps(entry) + "\n")

    def _crates_answer(self, request):
        return web.Response(200, self._crate) if request.path == f"/{NAME}-1.0.0.crate" else None
