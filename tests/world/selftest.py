#!/usr/bin/env python3
"""Checks the fake internet itself: two network namespaces of its own, the world in one, ordinary clients in the other.

Needs root, and `ip`, `openssl`, `git`, `curl`. Touches nothing outside its namespaces and a temporary directory.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True
import nameserver  # noqa: E402  (the path has to be set first)

with open(os.path.join(HERE, "addresses.json"), encoding="utf-8") as addresses:
    CONFIG = json.load(addresses)
HOSTS, LINK = CONFIG["hosts"], CONFIG["link"]
TESTS = []


def test(function):
    TESTS.append(function)
    return function


def run(*command, check=True, **more):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **more)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}: {done.stdout}{done.stderr}")
    return done


def wait_for(condition):
    """For what the world logs on its own time: whether it came within five seconds."""
    until = time.monotonic() + 5
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


class Rig:
    """The two namespaces, the link between them, and the world."""

    def __init__(self, directory):
        self.dir = directory
        self.world_ns, self.box_ns = f"wst-w-{os.getpid()}", f"wst-b-{os.getpid()}"
        self.world = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        iface = CONFIG["interface"]
        run("ip", "netns", "add", self.world_ns)
        run("ip", "netns", "add", self.box_ns)
        run("ip", "link", "add", iface, "netns", self.world_ns, "type", "veth", "peer", "name", "eth0", "netns", self.box_ns)
        in_box = ("ip", "-n", self.box_ns)
        self.box("sh", "-c", "for f in /proc/sys/net/ipv6/conf/*/accept_dad; do echo 0 > $f; done")
        for device in ("lo", "eth0"):
            run(*in_box, "link", "set", device, "up")
        run(*in_box, "addr", "add", f"{LINK['box_v4']}/{LINK['prefix_v4']}", "dev", "eth0")
        run(*in_box, "addr", "add", f"{LINK['box_v6']}/{LINK['prefix_v6']}", "dev", "eth0", "nodad")
        self.world = subprocess.Popen(
            ["ip", "netns", "exec", self.world_ns, sys.executable, os.path.join(HERE, "world.py"), "--dir", self.dir],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.world.stdout.readline() == "ready\n", "the world did not get ready"
        run(*in_box, "route", "add", "default", "via", LINK["world_v4"])
        run(*in_box, "-6", "route", "add", "default", "via", LINK["world_v6"])

    def __exit__(self, *_):
        if self.world:
            self.world.stdin.close()
            self.world.wait(10)
            self.world.stdout.close()
        for namespace in (self.world_ns, self.box_ns):
            run("ip", "netns", "del", namespace, check=False)

    def box(self, *command, check=True, **more):
        return run("ip", "netns", "exec", self.box_ns, *command, check=check, **more)

    def curl(self, *arguments, check=True):
        return self.box("curl", "-sS", "--max-time", "10", "--cacert", self.path("ca.pem"), *arguments, check=check).stdout

    def at(self, name, host, port=443):
        """curl's way of saying which address a name has, so that DNS is left out of it."""
        return ("--resolve", f"{name}:{port}:{HOSTS[host]}")

    def git(self, *arguments, check=True):
        options = ["-c", f"http.sslCAInfo={self.path('ca.pem')}", "-c", "credential.helper=",
                   "-c", f"http.curloptResolve=github.com:443:{HOSTS['github']}",
                   "-c", f"http.curloptResolve=git.ok.test:443:{HOSTS['ok']}"]
        clean = {"PATH": os.environ["PATH"], "HOME": self.dir, "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1",
                 "GIT_AUTHOR_NAME": "T", "GIT_AUTHOR_EMAIL": "t@ok.test", "GIT_COMMITTER_NAME": "T",
                 "GIT_COMMITTER_EMAIL": "t@ok.test"}
        return self.box("git", *options, *arguments, check=check, env=clean)

    def path(self, name):
        return os.path.join(self.dir, name)

    def put(self, name, value):
        with open(self.path(name + ".new"), "w", encoding="utf-8") as file:
            json.dump(value, file)
        os.rename(self.path(name + ".new"), self.path(name))

    def log(self, kind):
        with open(self.path("net.log"), encoding="utf-8") as file:
            return [entry for entry in map(json.loads, file) if entry["kind"] == kind]

    def packets(self):
        self.world.stdin.write("mark\n")
        self.world.stdin.flush()
        assert self.world.stdout.readline() == "mark\n"
        with open(self.path("packets.jsonl"), encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def dig(self, name, kind="A", server="upstream", tcp=False, wait=2):
        """(rcode, TC bit, values) or None for silence; asked by a child inside the box's namespace."""
        done = self.box(sys.executable, __file__, "--dig", HOSTS.get(server, server), name, kind, str(int(tcp)), str(wait))
        return json.loads(done.stdout)


def dig(server, name, kind, tcp, wait):
    """The smallest DNS client that can check the server; runs inside the box's namespace."""
    question = nameserver.encode_name(name) + struct.pack("!HH", nameserver.type_number(kind), 1)
    query = struct.pack("!6H", 0x1234, 0x0100, 1, 0, 0, 0) + question
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
        sock.settimeout(wait)
        try:
            sock.connect((server, 53))
            sock.sendall(struct.pack("!H", len(query)) + query if tcp else query)
            answer = sock.recv(65535)
        except (TimeoutError, OSError):
            return None
    answer = answer[2:] if tcp else answer
    ident, flags, _, count = struct.unpack("!4H", answer[:8])
    if ident != 0x1234:
        return ["wrong id"]
    at, values = 12 + len(question), []
    for _ in range(count):
        while answer[at]:
            at += 1 + answer[at]
        number, _, _, size = struct.unpack("!HHIH", answer[at + 1 : at + 11])
        data = answer[at + 11 : at + 11 + size]
        at += 11 + size
        if number == 1:
            values.append(socket.inet_ntop(socket.AF_INET, data))
        elif number == 28:
            values.append(socket.inet_ntop(socket.AF_INET6, data))
        elif number == 16:
            values.append(data[1:].decode())
        elif number == 5:
            values.append("CNAME " + nameserver.decode_name(data, 0)[0])
    return [flags & 15, bool(flags & 0x200), values]


@test
def dns_answers_exact_names_wildcards_and_nothing_else(rig):
    assert rig.dig("ok.test") == [0, False, [HOSTS["ok"]]]
    assert rig.dig("OK.test", tcp=True) == [0, False, [HOSTS["ok"]]]
    assert rig.dig("a.b.wild.test") == [0, False, [HOSTS["ok"]]]
    assert rig.dig("wild.test") == [3, False, []]
    assert rig.dig("six.test", "AAAA") == [0, False, [HOSTS["ok_v6"]]]
    assert rig.dig("ok.test", "AAAA") == [0, False, []]
    assert rig.dig("x.evil.test", "TXT") == [0, False, ["token-txt-evil.test"]]
    names = [(entry["name"], entry["transport"]) for entry in rig.log("dns")]
    assert ("OK.test", "tcp") in names and ("a.b.wild.test", "udp") in names


@test
def every_address_is_a_resolver_and_evil_is_a_rogue_one(rig):
    assert rig.dig("nowhere.test", server="google_dns") == [3, False, []]
    assert rig.dig("ok.test", server="cloudflare_dns")[2] == [HOSTS["ok"]]
    assert rig.dig("nowhere.test", server="evil")[2] == [HOSTS["evil"]]
    assert rig.dig("nowhere.test", server="evil_v6")[2] == []
    assert rig.dig("ok.test", server="7.7.7.7")[2] == [HOSTS["ok"]]
    assert rig.log("dns")[-1]["server"] == "7.7.7.7"


@test
def the_zone_is_read_again_and_misbehaves_as_told(rig):
    with open(rig.path("zone.json"), encoding="utf-8") as file:
        before = json.load(file)
    zone = json.loads(json.dumps(before))
    zone["records"]["alias.test"] = [["CNAME", "t.evil.test", 9]]
    zone["records"]["loop.test"] = [["CNAME", "loop.test", 9]]
    zone["names"] = {"many.test": {"rotate": 1}, "slow.test": {"delay_ms": 300}, "gone.test": {"drop": True},
                     "once.test": {"drop": 1}, "bad.test": {"servfail": True}, "big.test": {"truncate": True},
                     "lie.test": {"mangle": "id"}}
    for name in ("slow.test", "gone.test", "once.test", "bad.test", "big.test", "lie.test"):
        zone["records"][name] = [["A", HOSTS["ok"], 0]]
    zone["servers"][HOSTS["upstream2"]] = {"drop": True}
    rig.put("zone.json", zone)
    assert {rig.dig("many.test")[2][0] for _ in range(3)} == {HOSTS["ok"], HOSTS["ok2"], HOSTS["ok3"]}
    began = time.monotonic()
    assert rig.dig("slow.test")[2] == [HOSTS["ok"]] and time.monotonic() - began >= 0.3
    assert rig.dig("gone.test", wait=0.2) is None
    assert rig.dig("once.test", wait=0.2) is None and rig.dig("once.test")[2] == [HOSTS["ok"]]
    assert rig.dig("bad.test")[0] == 2
    assert rig.dig("big.test") == [0, True, []] and rig.dig("big.test", tcp=True)[2] == [HOSTS["ok"]]
    assert rig.dig("lie.test") == ["wrong id"]
    assert rig.dig("alias.test")[2] == ["CNAME t.evil.test", HOSTS["evil"]]
    assert rig.dig("loop.test", tcp=True)[2][0] == "CNAME loop.test"
    assert rig.dig("ok.test", server="upstream2", wait=0.2) is None
    rig.put("zone.json", before)
    assert rig.dig("slow.test") == [3, False, []]


@test
def https_has_a_certificate_for_any_name_and_says_who_answered(rig):
    body = rig.curl(*rig.at("ok.test", "ok"), "-d", "canary-body", "https://ok.test/path?q=1")
    assert body == f"token-{HOSTS['ok']}-ok.test\n", body
    seen = rig.log("http")[-1]
    assert (seen["sni"], seen["host"], seen["target"], seen["body"]) == ("ok.test", "ok.test", "/path?q=1", "canary-body")
    assert rig.curl(f"https://{HOSTS['evil']}/") == f"token-{HOSTS['evil']}-{HOSTS['evil']}\n"
    refused = rig.box("curl", "-sS", "--cacert", rig.path("ca.pem"), "--connect-to", f"a.test:443:{HOSTS['cdn']}:443",
                      "-H", "Host: b.test", "https://a.test/")
    assert refused.stdout == f"token-{HOSTS['cdn']}-b.test\n"
    assert (rig.log("http")[-1]["sni"], rig.log("http")[-1]["host"]) == ("a.test", "b.test")
    untrusted = rig.box("curl", "-s", *rig.at("ok.test", "ok"), "https://ok.test/", check=False)
    assert untrusted.returncode == 60


@test
def the_registries_hand_out_one_package_each_and_take_none(rig):
    def get(name, path, *more):
        return rig.curl(*rig.at(name, "cdn"), *more, f"https://{name}{path}")

    packument = json.loads(get("npm.test", "/innkeeper-widget"))
    assert packument["versions"]["1.0.0"]["dist"]["tarball"].startswith("https://npm.test/innkeeper-widget/-/")
    assert "files.pypi.test" in get("pypi.test", "/simple/innkeeper-widget/")
    assert json.loads(get("index.crates.test", "/in/nk/innkeeper-widget"))["vers"] == "1.0.0"
    assert get("index.crates.test", "/in/nk/nothing", "-o", rig.path("none"), "-w", "%{http_code}") == "404"
    assert get("npm.test", "/innkeeper-widget", "-X", "PUT", "-d", "canary-publish", "-w", "%{http_code}").endswith("403")
    assert (rig.log("http")[-1]["method"], rig.log("http")[-1]["body"]) == ("PUT", "canary-publish")


@test
def a_websocket_greets_and_echoes(rig):
    client = """import socket
s = socket.create_connection(("ADDRESS", 80), 5)
s.sendall(b"GET /chat HTTP/1.1\\r\\nHost: ok.test\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n"
          b"Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n\\x81\\x85\\0\\0\\0\\0hello\\x88\\x80\\0\\0\\0\\0")
heard = b""
while more := s.recv(4096): heard += more
print(heard)""".replace("ADDRESS", HOSTS["ok"])
    heard = rig.box(sys.executable, "-c", client).stdout
    assert "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in heard and f"token-{HOSTS['ok']}-ok.test" in heard, heard
    assert heard.rstrip().endswith("\\x81\\x05hello'"), heard


@test
def http_answers_on_any_address_in_both_families(rig):
    assert rig.curl(f"http://{HOSTS['metadata']}/latest") == f"token-{HOSTS['metadata']}-{HOSTS['metadata']}\n"
    assert rig.curl("http://10.99.1.2/") == "token-10.99.1.2-10.99.1.2\n"
    assert rig.curl("-g", f"http://[{HOSTS['evil_v6']}]/").startswith(f"token-{HOSTS['evil_v6']}-")
    assert rig.curl("-g", f"http://[{HOSTS['metadata_v6']}]:8080/").startswith(f"token-{HOSTS['metadata_v6']}-")
    assert len(rig.curl(f"http://{HOSTS['ok']}/bytes/100000")) == 100000
    assert rig.curl("-o", "/dev/null", "-w", "%{http_code}", f"http://{HOSTS['ok']}/status/503") == "503"
    dead = rig.box("curl", "-s", "-m", "1", f"http://{HOSTS['dead']}/", check=False)
    assert dead.returncode == 28, dead


@test
def tcp_and_udp_sinks_keep_what_arrives(rig):
    script = ("import socket,sys; s=socket.create_connection((sys.argv[1],5432),3); s.sendall(b'canary-tcp'); "
              "print(s.recv(99).decode()); u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); u.settimeout(3); "
              "u.sendto(b'canary-udp',(sys.argv[1],9999)); print(u.recv(99).decode())")
    out = rig.box(sys.executable, "-c", script, HOSTS["evil"]).stdout
    assert f"token-{HOSTS['evil']}-tcp" in out and f"token-{HOSTS['evil']}-udp 9999: canary-udp" in out, out
    assert any(e.get("data") == "canary-tcp" for e in rig.log("tcp"))
    assert any(e["data"] == "canary-udp" and e["local"] == HOSTS["evil"] for e in rig.log("udp"))


@test
def a_request_that_never_gets_whole_is_logged_all_the_same(rig):
    script = ("import socket,sys,struct\n"
              "for data in (b'GET /canary-head HT', b'POST / HTTP/1.1\\r\\nHost: h\\r\\nContent-Length: 999\\r\\n\\r\\ncanary-cut'):\n"
              "    s=socket.create_connection((sys.argv[1],80),3); s.sendall(data)\n"
              "    if b'cut' in data: s.shutdown(socket.SHUT_WR); s.recv(99)\n"
              "    s.close()\n")
    rig.box(sys.executable, "-c", script, HOSTS["evil"])
    assert wait_for(lambda: any(e["head"] == "GET /canary-head HT" for e in rig.log("http")))
    assert any(e.get("body") == "canary-cut" for e in rig.log("http"))


@test
def the_packet_sink_sees_what_no_server_answers(rig):
    script = ("import socket,sys; u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); u.sendto(b'canary-raw',('45.33.32.99',7)); "
              "s=socket.socket(socket.AF_INET6,socket.SOCK_RAW,99); s.sendto(b'canary-99',(sys.argv[1],0))")
    rig.box(sys.executable, "-c", script, HOSTS["evil_v6"])
    found = {(p["proto"], p["dst"], bytes.fromhex(p["payload"])) for p in rig.packets()}
    assert ("udp", "45.33.32.99", b"canary-raw") in found
    assert ("99", HOSTS["evil_v6"], b"canary-99") in found
    assert all(p["src"] in (LINK["box_v4"], LINK["box_v6"]) or p["src"].startswith("fe80:") for p in rig.packets())


@test
def git_serves_the_public_repository_to_everybody(rig):
    with tempfile.TemporaryDirectory() as work:
        rig.git("clone", "-q", "https://github.com/acme/widgets.git", work)
        assert rig.git("-C", work, "rev-list", "--count", "HEAD").stdout == "2\n"
        assert "origin/topic" in rig.git("-C", work, "branch", "-r").stdout
        refused = rig.git("-C", work, "push", "origin", "HEAD:refs/heads/new", check=False)
        assert refused.returncode != 0 and rig.log("git")[-1]["status"] == 401


@test
def git_wants_the_token_for_the_private_one_and_for_pushes(rig):
    with open(rig.path("github-token"), encoding="ascii") as file:
        token = file.read().strip()
    with tempfile.TemporaryDirectory() as work:
        bare = rig.git("clone", "-q", "https://github.com/acme/private", work, check=False)
        assert bare.returncode != 0
        wrong = rig.git("clone", "-q", "https://u:wrong@github.com/acme/private", work, check=False)
        assert wrong.returncode != 0 and rig.log("git")[-1]["credential"] == "wrong"
        rig.git("clone", "-q", f"https://x:{token}@github.com/acme/private", work)
        assert rig.log("git")[-1]["credential"].startswith("sha256:")
        rig.git("-C", work, "commit", "-q", "--allow-empty", "-m", "more")
        rig.git("-C", work, "push", "-q", "origin", "HEAD:refs/heads/new")
        assert "refs/heads/new" in rig.git("ls-remote", f"https://x:{token}@github.com/acme/private").stdout
    assert token not in open(rig.path("net.log"), encoding="utf-8").read()


@test
def git_elsewhere_takes_pushes_from_anybody(rig):
    with tempfile.TemporaryDirectory() as work:
        rig.git("clone", "-q", "https://git.ok.test/octo/widgets.git", work)
        rig.git("-C", work, "push", "-q", "origin", "HEAD:refs/heads/stolen")
        assert rig.log("git")[-1]["host"] == "git.ok.test" and rig.log("git")[-1]["writes"]


@test
def the_api_of_the_forge_knows_the_user_and_the_fork(rig):
    with open(rig.path("github-token"), encoding="ascii") as file:
        token = file.read().strip()
    at = rig.at("api.github.com", "github")
    bearer = ("-H", f"Authorization: Bearer {token}")
    assert json.loads(rig.curl(*at, *bearer, "https://api.github.com/user"))["login"] == "world"
    assert json.loads(rig.curl(*at, "https://api.github.com/user"))["status"] == "401"
    fork = json.loads(rig.curl(*at, *bearer, "https://api.github.com/repos/octo/widgets"))
    assert fork["fork"] and fork["parent"]["clone_url"] == "https://github.com/acme/widgets.git"
    assert json.loads(rig.curl(*at, "https://api.github.com/repos/acme/private"))["message"] == "Not Found"


def ask(rig, messages, stream=False, tools=("Bash",)):
    body = {"model": "claude-x", "max_tokens": 9, "stream": stream, "messages": messages,
            "tools": [{"name": tool} for tool in tools]}
    return rig.curl(*rig.at("api.anthropic.com", "anthropic"), "-H", "x-api-key: sk-ant-test", "-d", json.dumps(body),
                    "https://api.anthropic.com/v1/messages?beta=true")


@test
def the_messages_api_follows_the_script(rig):
    rig.put("script.json", [{"text": "Look:", "bash": "id"}, {"text": "Bye."}])
    user = {"role": "user", "content": "go"}
    first = json.loads(ask(rig, [user]))
    assert first["stop_reason"] == "tool_use" and first["content"][1]["input"]["command"] == "id"
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "uid=1000"}]}
    later = [user, {"role": "assistant", "content": first["content"]}, result]
    events = ask(rig, later, stream=True)
    assert '"text": "Bye."' in events and events.rstrip().endswith('{"type": "message_stop"}')
    seen = rig.log("api")[-1]
    assert (seen["turn"], seen["prompt"], seen["tool_results"][0]["text"]) == (1, "go", "uid=1000")
    assert ["x-api-key", "sk-ant-test"] not in seen["headers"]
    assert json.loads(ask(rig, [user], tools=()))["content"][0]["text"] == "World"
    assert not rig.log("api")[-1]["main"]


@test
def the_messages_api_fails_as_scripted_and_picks_by_prompt(rig):
    user = {"role": "user", "content": "two please"}
    rig.put("script.json", {"conversations": [{"match": "^one", "turns": [{"text": "1"}]},
                                              {"match": "two", "turns": [{"text": "2"}]}]})
    assert json.loads(ask(rig, [user]))["content"][0]["text"] == "2"
    rig.put("script.json", [{"error": {"status": 529, "type": "overloaded_error"}, "text": "after"}])
    assert json.loads(ask(rig, [user]))["error"]["type"] == "overloaded_error"
    assert json.loads(ask(rig, [user]))["content"][0]["text"] == "after"


@test
def the_world_refuses_a_namespace_with_an_uplink(rig):
    refused = rig.box(sys.executable, os.path.join(HERE, "world.py"), "--dir", rig.path("other"), "--iface", "eth0",
                      check=False, stdin=subprocess.DEVNULL)
    assert refused.returncode == 1 and "default route" in refused.stderr, refused


def main():
    if sys.argv[1:2] == ["--dig"]:
        server, name, kind, tcp, wait = sys.argv[2:]
        print(json.dumps(dig(server, name, kind, tcp == "1", float(wait))))
        return 0
    if os.geteuid() != 0:
        print("the fake internet's self-test needs root: network namespaces were not tested")
        print(f"0 passed, 0 failed, {len(TESTS)} skipped")
        return 0
    failed = 0
    with tempfile.TemporaryDirectory() as directory, Rig(directory) as rig:
        for each in TESTS:
            try:
                each(rig)
                print(f"ok    {each.__name__}")
            except Exception as error:  # a test may fail in any way; the next ones still run
                failed += 1
                print(f"FAIL  {each.__name__}: {type(error).__name__}: {error} (line {error.__traceback__.tb_next.tb_lineno})")
    print(f"{len(TESTS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
