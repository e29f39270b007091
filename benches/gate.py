"""`bench gate`: the egress gate beside HAProxy (SNI, mode tcp), nginx (stream, ssl_preread) and no gate at all."""

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time

import ground
import rig
from boot import inside, memory
from ground import Ground, median, processor, table
from rig import BenchError, run

PARTS = ("connections", "latency", "bulk", "slow", "memory")
ROUNDS = 5
CLIENTS = 32
IDLE = 1000
PORT = 443
PROXIES = ("Innkeeper", "HAProxy", "HAProxy, 1 thread", "nginx")
ALL = ("direct", *PROXIES)
UIDS = {"HAProxy": 941, "HAProxy, 1 thread": 941, "nginx": 942}


class Net(ground.Net):
    """The bench's internet with the gate's server at every address's port 443."""

    def start(self):
        super().start()
        # The peers are no root.
        os.chmod(self.dir, 0o755)
        self.server = subprocess.Popen(["ip", "netns", "exec", self.netns, os.path.join(self.dir, "load"), "gate-server",
                                        str(PORT)], stdout=subprocess.PIPE, text=True, preexec_fn=many_descriptors)
        if self.server.stdout.readline() != "ready\n":
            raise BenchError("the server did not start")

    def stop(self):
        if hasattr(self, "server"):
            self.server.kill()
            self.server.wait()
        super().stop()

    def versions(self):
        script = "innkeeper --version; haproxy -v | sed -n '1s/ - .*//p'; nginx -v 2>&1"
        lines = run("docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", self.image, "-c", script)
        return ", ".join(line.strip() for line in lines.splitlines())


def many_descriptors():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def addresses():
    """Name to the address that the peers send it to: the one that the clients ask for, too."""
    return {f"n{number}.list.test": f"151.101.{2 * number >> 8}.{2 * number & 255}" for number in range(ground.NAMES)}


class Contest(Ground):
    """One namespace for each contestant, all at once, so that they run in turns."""

    def __init__(self, world, contestants):
        super().__init__(world, world.NEAR, boxed="Innkeeper" in contestants, pinned=False)
        self._contestants = contestants
        self.sides = {}

    def _rules(self):
        path = os.path.join(self.world.dir, "gate.rules")
        with open(path, "w", encoding="ascii") as file:
            file.write("".join(f"{name}:{PORT}\n" for name in addresses()))
            file.write(f"*.evil.test:{ground.PORT}\n")
        os.chmod(path, 0o644)
        return path

    def __enter__(self):
        super().__enter__()
        try:
            if self.box:
                self._rest(self.net)
                workers = self.servers["innkeeper"][2]
                self.sides["Innkeeper"] = (self.net, workers)
                if "gate" not in workers:
                    raise BenchError(f"no worker gate among {inside(self.box.pid())}")
            for host, name in enumerate([each for each in self._contestants if each != "Innkeeper"], 3):
                network, net = self.world.namespace(self.upstream, host=host)
                self._own.append(network)
                self._rest(net)
                self.sides[name] = (net, {} if name == "direct" else self._start_peer(name, network))
            for name in self.sides:
                found = self.load(name, "first", PORT, 21)
                if found["failed"]:
                    raise BenchError(f"{name}: {found['causes']}")
                self._passes_by_the_gate(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _passes_by_the_gate(self, name):
        """Nobody wins by being left out: a name that is not listed has no answer."""
        if name == "direct":
            return
        found = self.load(name, "first", PORT, 1, "stranger")
        if found["good"]:
            raise BenchError(f"{name} lets every name through")

    @staticmethod
    def _rest(net):
        """Tens of thousands of dead connections a second would fill the kernel's one table of all namespaces."""
        run("nsenter", "--net", "--target", str(net), "sh", "-euc", """
            cd /proc/sys/net/netfilter 2>/dev/null || exit 0
            for state in time_wait close close_wait last_ack fin_wait; do
                echo 1 > nf_conntrack_tcp_timeout_$state
            done""")

    def _start_peer(self, name, network):
        stem = re.sub(r"\W+", "-", name)
        rules = f"""table ip gate {{ chain output {{ type nat hook output priority -100;
            meta skuid {UIDS[name]} accept
            oifname lo accept
            tcp dport {{ 80, 443 }} dnat to 127.0.0.53:11443
        }}
        }}"""
        run("docker", "run", "--rm", "--network", f"container:{network}", "--cap-add", "NET_ADMIN", "--no-healthcheck",
            "--entrypoint", "nft", self.world.image, rules)
        # The table of connections exists from the first rule on that wants it.
        self._rest(int(run("docker", "inspect", "--format", "{{.State.Pid}}", network)))
        text = nginx() if name == "nginx" else haproxy(1 if "1 thread" in name else 0, self._map())
        path = os.path.join(self.world.dir, f"{stem}.conf")
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(path, 0o644)
        command = (["nginx", "-c", f"/bench/{stem}.conf"] if name == "nginx"
                   else ["haproxy", "-db", "-f", f"/bench/{stem}.conf"])
        container = f"{self._name}-{stem.lower()}"
        self._own.append(container)
        self.world.containers.append(container)
        run("docker", "run", "--detach", "--name", container, "--network", f"container:{network}", "--no-healthcheck",
            "--user", str(UIDS[name]), "--volume", f"{self.world.dir}:/bench:ro",
            "--entrypoint", command[0], self.world.image, *command[1:])
        self._await_listener(container)
        pid = int(run("docker", "inspect", "--format", "{{.State.Pid}}", container))
        return {f"{command[0]} {number}": each for number, (each, _) in enumerate(inside(pid))}

    def _await_listener(self, container):
        """Until 127.0.0.53:11443 is listened on."""
        pid = run("docker", "inspect", "--format", "{{.State.Pid}}", container)
        for _ in range(100):
            with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/net/tcp", encoding="ascii") as file:
                if "3500007F:2CB3" in file.read():
                    return
            time.sleep(0.05)
        raise BenchError(f"{container} does not listen: " + run("sh", "-c", f"docker logs {container} 2>&1"))

    def _map(self):
        path = os.path.join(self.world.dir, "haproxy.map")
        with open(path, "w", encoding="ascii") as file:
            file.write("".join(f"{name} {name}\n" for name in addresses()))
        os.chmod(path, 0o644)
        return "/bench/haproxy.map"

    def command(self, name, *arguments):
        return ["nsenter", "--net", "--target", str(self.sides[name][0]), "setpriv", "--reuid", "1000", "--regid", "1000",
                "--clear-groups", os.path.join(self.world.dir, "load"), *map(str, arguments)]

    def load(self, name, *arguments):
        """The load generator as the agent's uid; pinned to nothing, like everybody here."""
        done = subprocess.run(self.command(name, *arguments), capture_output=True, text=True, check=False, timeout=120,
                              preexec_fn=many_descriptors)
        if done.returncode != 0:
            raise BenchError(f"{name}: load {arguments}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def measured(self, name, *arguments):
        """The same on a machine that rests, with the processor time of whoever stands in between."""
        self.world.quiet.append(rig.settle(0.3))
        pids = self.sides[name][1].values()
        before = processor(pids)
        found = self.load(name, *arguments)
        found["cpu_ms"] = (processor(pids) - before) / 1e6
        return found

    def rounds(self, contestants, *arguments, rounds=ROUNDS):
        """Everybody in turns, so that a busy moment of the machine hits all of them."""
        found = {name: [] for name in contestants}
        for _ in range(rounds):
            for name in contestants:
                found[name].append(self.measured(name, *arguments))
        return found

    def memory_of(self, name):
        """kB of proportional set by process."""
        return {role: memory(pid)[0] for role, pid in self.sides[name][1].items()}

    def hold(self, name, count):
        """kB of every process of it, before and while so many idle connections stand; and how many do so at the end."""
        before = self.memory_of(name)
        holder = subprocess.Popen(self.command(name, "hold", PORT, count), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  text=True, preexec_fn=many_descriptors)
        try:
            line = holder.stdout.readline()
            if not line:
                raise BenchError(f"{name} does not hold {count} connections")
            during = self.memory_of(name)
            holder.stdin.close()
            return before, during, json.loads(holder.stdout.readline())["open"]
        finally:
            holder.kill()
            holder.wait()


def haproxy(threads, names):
    backends = "".join(f"backend {name}\n    server one {address}:{PORT}\n" for name, address in addresses().items())
    return f"""global
    maxconn 8000
    {"nbthread 1" if threads else ""}
defaults
    mode tcp
    timeout connect 5s
    timeout client 300s
    timeout server 300s
frontend gate
    bind 127.0.0.53:11443 backlog 4096
    tcp-request inspect-delay 10s
    tcp-request content reject unless {{ req_ssl_hello_type 1 }}
    use_backend %[req_ssl_sni,lower,map({names})]
{backends}"""


def nginx():
    names = "".join(f"{name} {address}:{PORT};\n" for name, address in addresses().items())
    return f"""load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
pid /tmp/nginx.pid;
error_log /dev/null crit;
worker_processes auto;
events {{ worker_connections 8192; }}
stream {{
    map $ssl_preread_server_name $server {{ default ""; {names} }}
    server {{
        listen 127.0.0.53:11443 backlog=4096;
        ssl_preread on;
        preread_timeout 10s;
        proxy_connect_timeout 5s;
        proxy_timeout 300s;
        proxy_pass $server;
    }}
}}
"""


def spread(values, scale=1.0, digits=1):
    """median (least–most)"""
    values = sorted(value / scale for value in values)
    return f"{median(values):,.{digits}f} ({values[0]:,.{digits}f}–{values[-1]:,.{digits}f})"


def oddities(results):
    failed = sum(each.get("failed", 0) for each in results)
    causes = [cause for each in results for cause in each.get("causes", [])]
    return f"{failed:,} failed: {causes[0]}" if failed else ""


def ratios(value, names):
    """Innkeeper's beside each peer's."""
    if "Innkeeper" not in names:
        return ""
    return "; ".join(f"{value('Innkeeper') / value(name):.2f} × {name}" for name in names
                     if name not in ("Innkeeper",) and value(name))


def connections(contest):
    found = contest.rounds(contest.sides, "opens", PORT, CLIENTS, 2)

    def rate(name):
        return median([each["good"] / each["seconds"] for each in found[name]])

    print(f"\n**Connections a second**, {CLIENTS} clients: connect, ClientHello, answer, the server's end. *CPU*: of whoever"
          " stands in\nbetween (PID 1 and dns counted in), microseconds a connection.\n")
    rows = [["", "thousands a second", "of direct", "CPU", "p50, µs", "p99, µs", ""]]
    for name, results in found.items():
        rows.append([name, spread([each["good"] / each["seconds"] for each in results], 1e3),
                     f"{rate(name) / rate('direct'):.2f} ×",
                     f"{median([each['cpu_ms'] * 1e3 / max(each['good'], 1) for each in results]):.1f}",
                     f"{median([each['p50_us'] for each in results]):,.0f}",
                     f"{median([each['p99_us'] for each in results]):,.0f}", oddities(results)])
    table(rows)
    print(f"\nInnkeeper: {ratios(rate, found)}")


def latency(contest):
    found = contest.rounds(contest.sides, "first", PORT, 1500)

    def at(name, key):
        return median([each[key] for each in found[name]])

    print("\n**The first octet**, one client, one connection after the other: microseconds from connect to it.\n")
    rows = [["", "p50", "added", "p99", "added", ""]]
    for name, results in found.items():
        rows.append([name, spread([each["p50_us"] for each in results], 1, 0), f"{at(name, 'p50_us') - at('direct', 'p50_us'):+.0f}",
                     spread([each["p99_us"] for each in results], 1, 0), f"{at(name, 'p99_us') - at('direct', 'p99_us'):+.0f}",
                     oddities(results)])
    table(rows)


def bulk(contest):
    print("\n**Bulk** from the server, Gbit/s; *CPU*: milliseconds of whoever stands in between for a gigabit.\n")
    rows = [["connections", *contest.sides, *(f"CPU {name}" for name in contest.sides if name != "direct"), "Innkeeper"]]
    for count in (1, 64):
        found = contest.rounds(contest.sides, "bulk", PORT, count, 2)

        def rate(name, found=found):
            return median([each["octets"] * 8 / each["seconds"] for each in found[name]])

        rows.append([str(count),
                     *(spread([each["octets"] * 8 / each["seconds"] for each in each_one], 1e9) for each_one in found.values()),
                     *(f"{median([each['cpu_ms'] / (each['octets'] * 8 / 1e9) for each in found[name]]):.0f}"
                       for name in contest.sides if name != "direct"), ratios(rate, found)])
    table(rows)


def slow(contest):
    proxies = [name for name in contest.sides if name != "direct"]
    alone = contest.rounds(proxies, "slow", PORT, 0, 3, rounds=1)
    found = contest.rounds(proxies, "slow", PORT, IDLE, 8, rounds=1)
    print(f"\n**{IDLE:,} slow ones** that send an octet of their hello every five seconds (whom it cuts comes again), and one good"
          " client,\nmicroseconds to the answer's first octet.\n")
    rows = [["", "p50 alone", "p99 alone", "p50 among them", "p99 among them", "slow ones standing", "cut", "refused", ""]]
    for name in proxies:
        one, many = alone[name][0], found[name][0]
        rows.append([name, f"{one['p50_us']:,}", f"{one['p99_us']:,}", f"{many['p50_us']:,}", f"{many['p99_us']:,}",
                     f"{many['slow_before']:,}, at the end {many['slow_after']:,}", f"{many['cut']:,}",
                     f"{many['refused']:,}", oddities([one, many])])
    table(rows)


def memory_of(world, contestants):
    print(f"\n**Memory**, kB of proportional set, each alone on the ground: fresh, after a second of {CLIENTS} clients, and then with"
          f" {IDLE:,}\nconnections that were answered and say nothing. Socket buffers are the kernel's and not in it.\n")
    rows = [["", "of it", "fresh", "after the load", f"with {IDLE:,}", "a connection", "alive at the end"]]
    for name in contestants:
        # A page that two contestants share would count half for each.
        with Contest(world, [name]) as alone:
            rig.settle()
            fresh = alone.memory_of(name)
            alone.load(name, "opens", PORT, CLIENTS, 1)
            rig.settle()
            before, during, alive = alone.hold(name, IDLE)
        figures = {role: [fresh[role], before[role], during[role]] for role in before}
        if len(figures) > 1:
            figures["all"] = [sum(each.values()) for each in (fresh, before, during)]
        for role, (new, rest, held) in figures.items():
            rows.append([name, role, f"{new:,}", f"{rest:,}", f"{held:,}", f"{(held - rest) / IDLE:.2f}", f"{alive:,}"])
    table(rows)


def options(arguments):
    parser = argparse.ArgumentParser(prog="bench gate", description=__doc__)
    parser.add_argument("part", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none is given")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave one contestant out")
    parser.add_argument("--keep-image", action="store_true", help="leave the peers' image for the next run")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.part) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return chosen


def main(arguments):
    chosen = options(arguments)
    if os.geteuid() != 0:
        sys.exit("bench: run it as root: it makes network namespaces and reads other users' memory figures")
    # Ends through the cleaning up, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    image = "innkeeper-bench-gate:latest"
    world = Net(f"innkeeper-bench-{os.getpid()}", image)
    status = 0
    try:
        print(f"bench: apt installs haproxy, nginx and nftables, and cargo builds the load generator, in the image {image}",
              file=sys.stderr)
        run("docker", "build", "--quiet", "--tag", image, "--build-arg", f"IMAGE={rig.IMAGE}",
            "--file", os.path.join(rig.HERE, "gate", "Dockerfile"), rig.HERE)
        begin = time.monotonic()
        world.start()
        print(f"\n{os.cpu_count()} cores, kernel {platform.release().split('-')[0]}; {world.versions()}. Nothing is pinned;"
              f" medians of {ROUNDS} rounds (least–most).")
        wanted = chosen.part or PARTS
        parts = {"connections": connections, "latency": latency, "bulk": bulk, "slow": slow}
        with Contest(world, [name for name in ALL if name not in chosen.without]) as contest:
            for part, measure in parts.items():
                if part in wanted:
                    print(f"bench: {part}, {time.monotonic() - begin:.0f} s so far", file=sys.stderr)
                    measure(contest)
                    sys.stdout.flush()
        if "memory" in wanted:
            memory_of(world, [name for name in PROXIES if name not in chosen.without])
        print(f"\nbench: took {time.monotonic() - begin:.0f} s; {world.busy()}", file=sys.stderr)
    except (BenchError, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        status = 1
    finally:
        world.stop()
        if not chosen.keep_image:
            run("docker", "rmi", "--force", image, check=False)
    return status
