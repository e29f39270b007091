"""The fake GitHub: git over smart HTTP with two accounts' repositories, and as much of its API as tools ask for."""

import base64
import gzip
import hashlib
import json
import os
import re
import subprocess
import tempfile

import netlog
import web

GIT_PATH = re.compile(r"^/([\w.-]+)/([\w.-]+?)(?:\.git)?/(info/refs|git-upload-pack|git-receive-pack)$")
PRIVATE = {"acme/private"}
# octo/widgets is a fork, so that the `upstream` remote has something to point at.
FORKS = {"octo/widgets": "acme/widgets"}
DEFAULT_TOKEN = "ghp_" + "TestTokenOfTheFakeInternet0123456789"
AUTHOR = ["-c", "user.name=World", "-c", "user.email=world@ok.test", "-c", "init.defaultBranch=main",
          "-c", "commit.gpgsign=false"]


class Forge:
    def __init__(self, directory, log):
        self._root = os.path.join(directory, "git")
        self._token_path = os.path.join(directory, "github-token")
        self._log = log
        if not os.path.exists(self._token_path):
            with open(self._token_path, "w", encoding="ascii") as file:
                file.write(DEFAULT_TOKEN)
        self._environment = {"PATH": os.environ.get("PATH", ""), "HOME": directory, "GIT_CONFIG_NOSYSTEM": "1",
                             "GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
                             "GIT_CONFIG_KEY_1": "http.receivepack", "GIT_CONFIG_VALUE_1": "true",
                             # Older than any box, and the same hashes each time.
                             "GIT_AUTHOR_DATE": "2026-01-01T12:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T12:00:00Z"}
        for name in ("acme/widgets", "acme/private", "octo/widgets"):
            if not os.path.exists(self._bare(name)):
                self._make(name)

    def _bare(self, name):
        return os.path.join(self._root, name + ".git")

    def _git(self, *arguments):
        subprocess.run(["git", *AUTHOR, *arguments], check=True, capture_output=True, env=self._environment)

    def _make(self, name):
        """Two commits on main and a branch `topic`."""
        with tempfile.TemporaryDirectory() as work:
            self._git("init", "-q", work)
            for count, (file, content) in enumerate((("README.md", f"# {name}\n"), ("data.txt", "one\ntwo\n"))):
                with open(os.path.join(work, file), "w", encoding="utf-8") as out:
                    out.write(content)
                self._git("-C", work, "add", ".")
                self._git("-C", work, "commit", "-q", "-m", f"Commit {count + 1} of {name}")
            self._git("-C", work, "branch", "topic")
            os.makedirs(os.path.dirname(self._bare(name)), exist_ok=True)
            self._git("clone", "-q", "--bare", work, self._bare(name))

    def token(self):
        with open(self._token_path, encoding="ascii") as file:
            return file.read().strip()

    def credential(self, request):
        """(password or bearer token that the client sent, whether it is the right one)"""
        scheme, _, value = (request.header("authorization") or "").partition(" ")
        if not scheme:
            return None, False
        if scheme.lower() == "basic":
            try:
                value = base64.b64decode(value).decode().partition(":")[2]
            except ValueError:
                pass
        return value, value == self.token()

    def log(self, kind, request, status, **more):
        """A right credential is logged as its hash; a wrong one as it came, since that is what a test looks for."""
        value, right = self.credential(request)
        shown = "sha256:" + hashlib.sha256(value.encode()).hexdigest() if right else value
        hello = request.connection.hello
        headers = [(k, "…" if k.lower() == "authorization" else v) for k, v in request.headers]
        self._log.write(kind, **request.connection.ends, tls=hello is not None, sni=hello and hello["sni"],
                        host=request.raw_host, method=request.method, target=request.target, credential=shown,
                        authorized=right, headers=headers, status=status, **more)

    @staticmethod
    def is_git(request):
        return GIT_PATH.match(request.path) is not None

    def github(self, request):
        if self.is_git(request):
            return self._serve_git(request, guarded=True)
        self.log("git", request, 404)
        return web.Response(404, "Not Found\n")

    def anywhere(self, request):
        """git on any other host: everybody may read and push, as an attacker's server would have it."""
        return self._serve_git(request, guarded=False)

    def _serve_git(self, request, guarded):
        owner, repository, action = GIT_PATH.match(request.path).groups()
        name = f"{owner}/{repository}"
        value, right = self.credential(request)
        writes = "git-receive-pack" in (action, *request.query.get("service", []))
        needed = guarded and (writes or name in PRIVATE or not os.path.exists(self._bare(name)))
        status = 200
        if guarded and not right and (needed or value is not None):
            status = 401
        elif not os.path.exists(self._bare(name)):
            status = 404
        self.log("git", request, status, repository=name, action=action, writes=writes, body_size=len(request.body))
        if status == 401:
            return web.Response(401, "Authentication required\n", [("WWW-Authenticate", 'Basic realm="GitHub"')])
        if status == 404:
            return web.Response(404, "Repository not found.\n")
        return self._backend(request, name, action)

    def _backend(self, request, name, action):
        body = request.body
        if (request.header("content-encoding") or "") == "gzip":
            body = gzip.decompress(body)
        environment = {**self._environment, "GIT_PROJECT_ROOT": self._root, "GIT_HTTP_EXPORT_ALL": "1",
                       "PATH_INFO": f"/{name}.git/{action}", "REQUEST_METHOD": request.method,
                       "QUERY_STRING": request.query_string, "CONTENT_TYPE": request.header("content-type") or "",
                       "CONTENT_LENGTH": str(len(body)), "REMOTE_USER": "world", "REMOTE_ADDR": "0.0.0.0"}
        if request.header("git-protocol"):
            environment["GIT_PROTOCOL"] = request.header("git-protocol")
        done = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=environment, check=False)
        head, _, payload = done.stdout.partition(b"\r\n\r\n")
        if not head:
            self._log.write("git", error=netlog.text(done.stderr))
            return web.Response(500, "git http-backend failed\n")
        status, kind, headers = 200, "text/plain", []
        for line in head.decode().split("\r\n"):
            key, _, value = line.partition(": ")
            if key.lower() == "status":
                status = int(value.split()[0])
            elif key.lower() == "content-type":
                kind = value
            elif key.lower() != "content-length":
                headers.append((key, value))
        return web.Response(status, payload, headers, kind)

    def api(self, request):
        status, value = self._api(request)
        self.log("api", request, status, service="github", body=netlog.text(request.body))
        headers = [("X-OAuth-Scopes", "repo, read:org, workflow"), ("X-GitHub-Request-Id", "WORLD")]
        return web.Response.json(status, value, headers)

    def _api(self, request):
        value, right = self.credential(request)
        if value is not None and not right:
            return 401, {"message": "Bad credentials", "documentation_url": "https://docs.github.com/rest", "status": "401"}
        user = {"login": "world", "id": 1, "name": "World", "email": "world@ok.test", "type": "User"}
        parts = request.path.strip("/").split("/")
        if parts == [""]:
            return 200, {"current_user_url": "https://api.github.com/user"}
        if parts == ["user"]:
            return (200, user) if right else (401, {"message": "Requires authentication", "status": "401"})
        if parts == ["rate_limit"]:
            return 200, {"resources": {"core": {"limit": 5000, "remaining": 4999, "reset": 0, "used": 1}}}
        if parts == ["graphql"] and right:
            return 200, {"data": {"viewer": {"login": "world"}}}
        if parts[0] == "repos" and len(parts) == 3:
            name = "/".join(parts[1:])
            if os.path.exists(self._bare(name)) and (right or name not in PRIVATE):
                return 200, repository(name, right)
        if parts[0] == "repos" and parts[3:] == ["merge-upstream"] and request.method == "POST":
            return self._merge_upstream("/".join(parts[1:3]), json.loads(request.body or b"{}"), right)
        return 404, {"message": "Not Found", "documentation_url": "https://docs.github.com/rest", "status": "404"}

    def _merge_upstream(self, name, asked, right):
        """A fork's branch is moved to its parent's, forward only, as GitHub does it."""
        if name not in FORKS or not right:
            return 404, {"message": "Not Found", "status": "404"}
        branch = asked.get("branch", "main")
        done = subprocess.run(["git", "-C", self._bare(name), "fetch", "-q", self._bare(FORKS[name]),
                               f"refs/heads/{branch}:refs/heads/{branch}"], capture_output=True, check=False)
        if done.returncode:
            return 409, {"message": "There are merge conflicts", "status": "409"}
        return 200, {"message": "Successfully fetched and fast-forwarded", "merge_type": "fast-forward",
                     "base_branch": f"{FORKS[name].split('/')[0]}:{branch}"}


def repository(name, writable):
    """What the API says of a repository; a fork names its parent."""
    owner, short = name.split("/")
    value = {"id": 1, "name": short, "full_name": name, "private": name in PRIVATE, "owner": {"login": owner},
             "html_url": f"https://github.com/{name}", "clone_url": f"https://github.com/{name}.git",
             "default_branch": "main", "fork": name in FORKS,
             "permissions": {"admin": False, "push": writable, "pull": True}}
    if name in FORKS:
        value["parent"] = value["source"] = repository(FORKS[name], writable)
    return json.loads(json.dumps(value))
