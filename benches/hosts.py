"""From the command to the session on a terminal, per engine and firewall backend; and what status says of it.

    sudo ./scripts/bench hosts [--rounds N]

The same binary and the same 22 names everywhere, upstream 20 ms away, `sleep` in place of Claude Code. *attached*: the
terminal of whoever typed the command shows the session (its switch to the alternate screen has come). The embedded
engine runs in a network namespace that plays the host.
"""

import argparse
import json
import os
import pty
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time

import rig

TOKEN = "sk-ant-oat01-" + "x" * 80
PROGRAMS = os.environ.get("INNKEEPER_PROGRAMS", "/var/lib/innkeeper/programs")
ATTACHED = b"\x1b[?1049h"
PODMAN = ("--pull=never", "--runtime=runc", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
LEAST = ("--cap-drop", "ALL", *(word for name in ("NET_ADMIN", "SETUID", "SETGID", "SETPCAP", "KILL", "CHOWN", "FOWNER",
                                                  "DAC_OVERRIDE") for word in ("--cap-add", name)),
         "--read-only", "--tmpfs", "/run", "--tmpfs", "/tmp:exec,mode=1777", "--tmpfs", "/workspace:exec",
         "--tmpfs", "/home/claude:exec")
MOST = ("--cap-add", "NET_ADMIN", "--cap-add", "SYS_ADMIN")


def settings(backend):
    return {"CLAUDE_CODE_OAUTH_TOKEN": TOKEN, "INNKEEPER_NETWORK_ALLOW": ";".join(rig.names()),
            "INNKEEPER_NETWORK_PROFILES": "", "INNKEEPER_SESSION_COMMAND": "/bin/sleep\ninfinity",
            "INNKEEPER_NETWORK_BACKEND": backend}


def on_terminal(command, environment, seconds=60):
    """Runs it on a terminal of its own until the session shows; its process, the terminal, and how long that took."""
    leader, follower = pty.openpty()
    began = time.monotonic()
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
                               env={**os.environ, "TERM": "xterm-256color", **environment})
    os.close(follower)
    said = b""
    while ATTACHED not in said:
        left = began + seconds - time.monotonic()
        if left <= 0 or not select.select([leader], [], [], left)[0]:
            process.kill()
            raise rig.BenchError(f"{command[0]} did not show a session: {said[-2000:].decode(errors='replace')}")
        try:
            said += os.read(leader, 65536)
        except OSError as error:
            raise rig.BenchError(f"{' '.join(command)} ended: {said[-2000:].decode(errors='replace')}") from error
    return process, leader, (time.monotonic() - began) * 1e3


def container(engine, world, options, backend):
    """One box of an engine in a namespace of the world's."""
    pause, pid = world.namespace()
    name = f"{pause}-box"
    network = f"container:{pause}" if engine == "docker" else f"ns:/proc/{pid}/ns/net"
    extra = ()
    if engine == "podman":
        resolver = os.path.join(world.dir, "resolv.conf")
        with open(resolver, "w", encoding="ascii") as file:
            file.write(f"nameserver {rig.UPSTREAM}\n")
        extra = (*PODMAN, "--volume", f"{resolver}:/etc/resolv.conf")
    given = settings(backend)
    command = [engine, "run", "--interactive", "--tty", "--name", name, "--no-healthcheck", "--network", network, *extra,
               *options, *(word for key in given for word in ("--env", key)), image(engine)]
    try:
        process, terminal, took = on_terminal(command, given)
        # Podman's own record of the container may come after the session does.
        if engine == "podman":
            rig.run(engine, "wait", "--condition=running", name)
        status = json.loads(rig.run(engine, "exec", name, "innkeeper", "status", "--json"))
        os.close(terminal)
        return figures(status, took)
    except rig.BenchError as error:
        said = rig.run(engine, "logs", "--tail", "20", name, check=False)
        raise rig.BenchError(f"{error}\n{said}") from error
    finally:
        rig.run(engine, "rm", "--force", "--volumes", name, check=False)
        world.remove(pause)


def embedded(world, binary, backend):
    """One box without any engine; a namespace of the world's plays the host, with a /run and a resolv.conf of its own."""
    pause, pid = world.namespace()
    resolver = os.path.join(world.dir, "host.resolv.conf")
    with open(resolver, "w", encoding="ascii") as file:
        file.write(f"nameserver {rig.UPSTREAM}\n")
    script = (f"mount --make-rprivate / && mount -t tmpfs tmpfs /run && mount --bind {resolver} /etc/resolv.conf && "
              f"exec {binary} run --engine embedded --name bench --programs {PROGRAMS}")
    process = None
    try:
        command = ["nsenter", "--net", "--target", pid, "unshare", "--mount", "sh", "-euc", script]
        process, terminal, took = on_terminal(command, settings(backend))
        inside = ("nsenter", "--net", "--mount", "--target", str(process.pid))
        status = json.loads(rig.run(*inside, binary, "in", "bench", "status", "--json"))
        process.terminate()
        drain(terminal)
        process.wait(20)
        os.close(terminal)
        return figures(status, took)
    finally:
        if process and process.poll() is None:
            process.kill()
        world.remove(pause)


def drain(terminal):
    """A terminal that nobody reads would hold the box up."""
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:
        pass


def image(engine):
    if engine == "docker":
        return rig.IMAGE
    found = rig.run("docker", "image", "inspect", "--format", "{{.Id}}", rig.IMAGE).split(":")[-1]
    if subprocess.run(["podman", "image", "exists", found], check=False).returncode:
        with subprocess.Popen(["docker", "save", rig.IMAGE], stdout=subprocess.PIPE) as save:
            rig.run("podman", "load", "--quiet", stdin=save.stdout)
    return found


def figures(status, took):
    held = all(each["held"] for each in status["protections"])
    return {"attached": took, "lockdown": status["boot"]["lockdown_ms"], "ready": status["boot"]["ready_ms"],
            "backend": status["firewall"]["backend"], "held": held}


def cases(world):
    """Name, and what makes one box of it."""
    def made(engine, options, backend):
        return lambda: container(engine, world, options, backend)
    found = []
    for engine in ("docker", "podman"):
        if shutil.which(engine):
            found.append((engine, made(engine, MOST, "nftables")))
            found.append((f"{engine}, read-only, no SYS_ADMIN", made(engine, LEAST, "nftables")))
            found.append((engine, made(engine, MOST, "iptables")))
        else:
            print(f"{engine} is not installed: left out", file=sys.stderr)
    if os.path.isdir(PROGRAMS):
        binary = os.path.join(world.dir, "innkeeper")
        source = rig.run("docker", "create", rig.IMAGE)
        rig.run("docker", "cp", f"{source}:/usr/local/bin/innkeeper", binary)
        rig.run("docker", "rm", source)
        for backend in ("nftables", "iptables"):
            found.append(("embedded engine", lambda backend=backend: embedded(world, binary, backend)))
    else:
        print(f"no {PROGRAMS} (./scripts/programs): the embedded engine is left out", file=sys.stderr)
    return found


def report(rows):
    print("| host | firewall | closed after exec, ms | ready, ms | command to session, ms | target |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, rounds in rows:
        def median(key):
            return statistics.median(each[key] for each in rounds)
        met = "met" if median("attached") <= 2000 else "missed"
        held = "" if all(each["held"] for each in rounds) else " (not all protections held)"
        print(f"| {name}{held} | {rounds[0]['backend']} | {median('lockdown'):.1f} | {median('ready'):.0f} | "
              f"{median('attached'):,.0f} | ≤ 2,000: {met} |")


def main(arguments):
    parser = argparse.ArgumentParser(prog="scripts/bench hosts")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(arguments).rounds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    world = rig.World(f"bench{os.getpid()}")
    try:
        world.start()
        rows = []
        for name, make in cases(world):
            # The first warms the caches; it does not count.
            make()
            rows.append((name, [make() for _ in range(rounds) if rig.settle() or True]))
        report(rows)
        return 0
    finally:
        world.stop()
