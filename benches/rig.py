"""The bench's ground: the fake internet behind a bridge, and a fresh network namespace for every box."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
WORLD = os.path.join(os.path.dirname(HERE), "tests", "world")
UPSTREAM = "9.9.9.53"
# The peer's and Innkeeper's resolver both meet the same distance.
DELAY_MS = 20


class BenchError(Exception):
    pass


def run(*command, check=True, **more):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    if check and done.returncode != 0:
        raise BenchError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout.strip()


def names():
    with open(os.path.join(HERE, "names"), encoding="utf-8") as file:
        return file.read().split()


def zone():
    """Two IPv4 addresses and one IPv6 address a name, as many as the public ones have on average."""
    records = {}
    for index, name in enumerate(names()):
        records[name] = [["A", f"104.16.{index}.10", 300], ["A", f"104.16.{index}.11", 300],
                         ["AAAA", f"2606:4700::{index + 1:x}:10", 300]]
    return {"records": records, "servers": {"*": {"delay_ms": DELAY_MS}}, "names": {}}


def idle():
    """The machine's idle and whole processor time so far, in ticks."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(each) for each in file.readline().split()[1:]]
    return ticks[3] + ticks[4], sum(ticks)


def settle(seconds=1.5):
    """Waits, within reason, for a tenth of a second in which the machine does little else; says whether it came."""
    deadline = time.monotonic() + seconds
    while True:
        before = idle()
        time.sleep(0.1)
        after = idle()
        if after[0] - before[0] > 0.8 * (after[1] - before[1]):
            return True
        if time.monotonic() > deadline:
            return False


class World:
    """tests/world in a namespace of its own; its interface is a bridge, so that boxes may come and go."""

    def __init__(self, tag):
        self.tag = tag
        self.netns = f"{tag}-world"
        self.dir = tempfile.mkdtemp(prefix=f"{tag}-")
        self.count = 0
        self.containers = []
        self._process = None

    def start(self):
        with open(os.path.join(self.dir, "zone.json"), "w", encoding="utf-8") as file:
            json.dump(zone(), file)
        run("ip", "netns", "add", self.netns)
        inside = ("ip", "-n", self.netns)
        run(*inside, "link", "add", "world0", "type", "bridge", "forward_delay", "0", "stp_state", "0")
        run(*inside, "link", "set", "world0", "address", "02:00:00:00:77:01", "up")
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", self.netns, sys.executable, os.path.join(WORLD, "world.py"), "--dir", self.dir],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self._process.stdout.readline()
        if line.strip() != "ready":
            raise BenchError(f"the fake internet did not start: {line}{self._process.stderr.read()}")
        threading.Thread(target=self._process.stderr.read, daemon=True).start()

    def namespace(self, upstream=UPSTREAM, host=2):
        """A network namespace as an engine would hand it over, held by a container that sleeps. `host` is the last
        part of its addresses: two with the same one must not live at a time."""
        self.count += 1
        name = f"{self.tag}-net{self.count}"
        self.containers.append(name)
        run("docker", "run", "--detach", "--name", name, "--network", "none", "--dns", upstream, "--no-healthcheck",
            "--entrypoint", "/bin/sleep", IMAGE, "infinity")
        pid = run("docker", "inspect", "--format", "{{.State.Pid}}", name)
        port = f"port{self.count}"
        run("ip", "-n", self.netns, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", pid)
        run("ip", "-n", self.netns, "link", "set", port, "master", "world0", "up")
        # What is sent to sink0 disappears: the prober's packets shall cost nobody anything.
        run("nsenter", "--net", "--target", pid, "sh", "-euc", f"""
            cd /proc/sys/net/ipv6/conf
            for each in all eth0 lo; do echo 0 > $each/disable_ipv6; done
            echo 0 > eth0/accept_dad
            ip link set eth0 address 02:00:00:00:77:0{host}
            ip addr add 172.31.77.{host}/29 dev eth0
            ip -6 addr add fd77::{host}/64 dev eth0 nodad
            ip link set eth0 up
            ip route add default via 172.31.77.1
            ip -6 route add default via fd77::1
            ip link add sink0 type veth peer name sink1
            ip link set sink0 arp off up
            ip link set sink1 arp off up
            ip route add 198.18.0.0/15 dev sink0""")
        return name, pid

    def remove(self, *containers):
        if containers:
            run("docker", "rm", "--force", "--volumes", *containers, check=False)
            self.containers = [name for name in self.containers if name not in containers]

    def stop(self):
        self.remove(*self.containers)
        if self._process:
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        run("ip", "netns", "del", self.netns, check=False)
        shutil.rmtree(self.dir, ignore_errors=True)


IMAGE = os.environ.get("INNKEEPER_IMAGE", "innkeeper:dev")


class Watched:
    """A container in the foreground, whose lines are read until one says what was waited for."""

    def __init__(self, world, name, arguments):
        world.containers.append(name)
        self.name = name
        self._lines = []
        self._new = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(["docker", "run", "--name", name, "--no-healthcheck", *arguments],
                                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._process.stdout:
            with self._new:
                self._lines.append(line.rstrip())
                self._new.notify_all()
        with self._new:
            self._ended = True
            self._new.notify_all()

    def until(self, found, seconds=30):
        """The first line for which `found` holds."""
        deadline = time.monotonic() + seconds
        with self._new:
            while True:
                line = next((line for line in self._lines if found(line)), None)
                if line is not None:
                    return line
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise BenchError(f"{self.name} did not say it:\n" + "\n".join(self._lines[-20:]))
                self._new.wait(left)

    def lines(self):
        with self._new:
            return list(self._lines)

    def pid(self):
        return int(run("docker", "inspect", "--format", "{{.State.Pid}}", self.name))
