"""The operator's seat: the filter alone, the relay between two pseudo-terminals, and the way in.

    sudo ./scripts/bench attach [--rounds N]

*first frame*: from the start of `innkeeper attach` in a box until its terminal is told to show the session (the switch to
the alternate screen), beside a tmux client of the agent's own. *relay*: what a program writes to the client's terminal,
counted at the operator's, who reads as fast as he can; beside the same with no relay between.
"""

import argparse
import json
import os
import subprocess

import rig

# In the box, as root. argv: rounds.
INSIDE = r"""
import json, os, pty, select, statistics, subprocess, sys, time
SOCKET = "/run/user/1000/tmux.sock"
AGENT = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"]
TMUX = ["tmux", "-u", "-S", SOCKET]
PART = ("\x1b[38;2;215;119;87m\u25cf\x1b[39m Update(\x1b[1msrc/main.rs\x1b[22m) fn main() { }\x1b[K\r\n").encode()
SIZE = 64 << 20

def begin(argv):
    pid, fd = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execvp(argv[0], argv)
    return pid, fd

def until(fd, text):
    tail, count = b"", 0
    while text not in tail:
        data = os.read(fd, 1 << 16)
        count += len(data)
        tail = (tail + data)[-len(data) - 64:]
    return count

def first_frame(argv):
    began = time.monotonic()
    pid, fd = begin(argv)
    until(fd, b"\x1b[?1049h")
    took = (time.monotonic() - began) * 1e3
    os.write(fd, b"\x02d")
    try:
        while os.read(fd, 1 << 16): pass
    except OSError: pass
    os.waitpid(pid, 0); os.close(fd)
    return took

def flow(argv):
    pid, fd = begin(argv)
    until(fd, b"\x1b[?1049h")
    subprocess.run([*AGENT, *TMUX, "detach-client", "-s", "claude", "-E", "stty raw; cat /tmp/bench-screen; printf END-OF-IT"], check=True)
    began = time.monotonic()
    count = until(fd, b"END-OF-IT")
    took = time.monotonic() - began
    try:
        while os.read(fd, 1 << 16): pass
    except OSError: pass
    os.waitpid(pid, 0); os.close(fd)
    return count / 1e6 / took

with open("/tmp/bench-screen", "wb") as file:
    file.write(PART * (SIZE // len(PART)))
rounds = int(sys.argv[1])
ways = {"innkeeper attach": ["innkeeper", "attach"], "tmux attach": [*AGENT, *TMUX, "attach"]}
out = {}
for name, argv in ways.items():
    frames = [first_frame(argv) for _ in range(rounds + 1)][1:]
    out[name] = {"first_frame_ms": statistics.median(frames), "slowest_ms": max(frames),
                 "mb_s": statistics.median(flow(argv) for _ in range(3))}
print(json.dumps(out))
"""


def the_filter():
    crate = os.path.join(rig.HERE, "filter")
    rig.run("cargo", "build", "--release", "--quiet", "--manifest-path", os.path.join(crate, "Cargo.toml"))
    rig.settle()
    lines = rig.run(os.path.join(crate, "target", "release", "filter")).splitlines()
    return [line.split("\t") for line in lines]


def the_box(rounds):
    image = os.environ.get("INNKEEPER_IMAGE", "innkeeper:dev")
    name = f"bench-attach-{os.getpid()}"
    given = {"CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-" + "x" * 80, "INNKEEPER_NETWORK_PROFILES": "",
             "INNKEEPER_SESSION_COMMAND": "/bin/sleep\ninfinity"}
    try:
        rig.run("docker", "run", "--detach", "--name", name, "--network", "none", "--cap-add", "NET_ADMIN", "--cap-add",
                "SYS_ADMIN", *(word for key in given for word in ("--env", key)), image, env={**os.environ, **given})
        state = ""
        while state not in ("running", "waiting"):
            said = rig.run("docker", "exec", name, "innkeeper", "status", "--json", check=False)
            state = json.loads(said)["session"]["state"] if said.startswith("{") else ""
        rig.settle()
        return json.loads(rig.run("docker", "exec", name, "python3", "-c", INSIDE, str(rounds)))
    except rig.BenchError as error:
        said = rig.run("docker", "logs", "--tail", "20", name, check=False)
        raise rig.BenchError(f"{error}\n{said}") from error
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], capture_output=True, check=False)


def main(arguments):
    parser = argparse.ArgumentParser(prog="scripts/bench attach")
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args(arguments).rounds
    print("the filter alone, MB/s")
    for name, speed in the_filter():
        print(f"  {name:<20} {speed:>6}")
    print("in a box              first frame, ms (slowest)   through it, MB/s")
    for name, one in the_box(rounds).items():
        print(f"  {name:<20} {one['first_frame_ms']:>8.1f} ({one['slowest_ms']:.1f}) {one['mb_s']:>20.0f}")
    return 0
