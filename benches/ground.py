"""The ground of `bench net`: an upstream and servers in a namespace of their own, one box, and the peers beside it."""

import contextlib
import json
import os
import re
import statistics
import subprocess
import tempfile
import threading
import time

import rig
from boot import CAPABILITIES, PLAIN, TOKEN, inside, memory
from rig import BenchError, Watched, run

PORT = 7999
# The names of the time-compressed refresh, and the smallest allowlist.
NAMES = 22
PATTERNS = ("pool", "own", "turn", "none")
# Where each peer listens, in one namespace.
PEERS = {"echo": "127.0.0.61", "dnsmasq": "127.0.0.62", "unbound": "127.0.0.63", "dnsmasq --ipset": "127.0.0.64",
         "dnsmasq --nftset": "127.0.0.65"}
SERVER_CORE, CLIENT_CORE = 0, os.cpu_count() - 1
SESSION = ["--env", "INNKEEPER_SESSION_COMMAND=/bin/sleep\ninfinity"]


def median(values):
    return statistics.median(values)


def table(rows):
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + " --- |" * len(rows[0]))
    for row in rows[1:]:
        print("| " + " | ".join(row) + " |")


def pin(pid, core):
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task), {core})


def processor(pids):
    """Nanoseconds that these processes' threads have run so far."""
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
    return total


class Net(rig.World):
    """The fake internet of this bench: `load world` twice, near and 20 ms away. tests/world is too slow for it."""

    NEAR, FAR = "9.9.9.53", "149.112.112.53"

    def __init__(self, tag, image):
        super().__init__(tag)
        self.image = image
        self.worlds = {}
        self.quiet = []
        self.numbers = 0

    def start(self):
        holder = f"{self.tag}-files"
        self.containers.append(holder)
        run("docker", "create", "--name", holder, "--entrypoint", "/bin/true", self.image)
        run("docker", "cp", f"{holder}:/usr/local/bin/load", os.path.join(self.dir, "load"))
        run("ip", "netns", "add", self.netns)
        run("ip", "netns", "exec", self.netns, "sh", "-euc", f"""
            sysctl -q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.icmp_ratelimit=0
            ip link set lo up
            ip link add world0 type bridge forward_delay 0 stp_state 0
            ip link set world0 address 02:00:00:00:77:01 up
            ip addr add 172.31.77.1/29 dev world0
            ip -6 addr add fd77::1/64 dev world0 nodad
            for each in {self.NEAR} {self.FAR}; do ip addr add $each/32 dev world0; done
            # AnyIP: every other address is this namespace's too; the link itself is not.
            ip route add 172.31.77.0/29 dev world0 table local
            ip route add local default dev lo table local""")
        for address, delay, port in ((self.NEAR, 0, PORT), (self.FAR, rig.DELAY_MS, PORT - 99)):
            self.worlds[address] = subprocess.Popen(
                ["ip", "netns", "exec", self.netns, "taskset", "--cpu-list", str(CLIENT_CORE),
                 os.path.join(self.dir, "load"), "world", address, str(delay), str(port)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if self.worlds[address].stdout.readline() != "ready\n":
                raise BenchError("the bench's internet did not start")

    def counters(self, far=False):
        """What the internet saw since the last time."""
        world = self.worlds[self.FAR if far else self.NEAR]
        world.stdin.write("\n")
        world.stdin.flush()
        return json.loads(world.stdout.readline())

    def stop(self):
        for world in self.worlds.values():
            world.stdin.close()
            world.wait(5)
        super().stop()

    def versions(self):
        script = """innkeeper --version; dnsmasq --version | sed -n '1s/ *Copy.*//p'; unbound -V | sed -n 's/Version/unbound/p';
                    nft --version; ipset --version 2>/dev/null | sed 's/,.*//'; dig -v"""
        lines = run("docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", self.image, "-c", script + " 2>&1")
        return ", ".join(line.strip() for line in lines.splitlines() if line.strip())

    def busy(self):
        return f"{self.quiet.count(False)} of {len(self.quiet)} measurements began on a machine busy with other things"


class Ground:
    """One box and the peers beside it, each with a network namespace on the same bridge."""

    def __init__(self, world, upstream, boxed=False, peers=(), exact=NAMES, rotating=0, pinned=True):
        self._pinned = pinned
        self.world, self.upstream, self.exact, self.rotating = world, upstream, exact, rotating
        self._boxed, self._peers = boxed, peers
        self._own, self._bare = [], None
        self.servers, self.reachable, self.box = {}, None, None
        world.numbers += 1
        self._name = f"{world.tag}-{world.numbers}"

    def __enter__(self):
        try:
            if self._boxed:
                self._start_box()
            if self._peers:
                self._start_peers()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.world.remove(*reversed(self._own))

    def _rules(self):
        """The policy, as the names of the bench: wildcards, the rotating ones, and `exact` names."""
        lines = [f"*.{zone}.test:{PORT},{PORT + 1}" for zone in PATTERNS]
        lines += [f"n{number}.slot.test:{PORT}" for number in range(self.rotating)]
        lines += [f"n{number}.list.test:{PORT}" for number in range(self.exact)]
        handle, path = tempfile.mkstemp(dir=self.world.dir, text=True)
        with open(handle, "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")
        os.chmod(path, 0o644)
        return path

    def _start_box(self):
        network, self.net = self.world.namespace(self.upstream, host=2)
        self._own.append(network)
        self.reachable = {"asked": 100, **self._load(self.net, "reach", PORT, 100)}
        self.world.counters(far=self.upstream == self.world.FAR)
        name = f"{self._name}-box"
        self._own.append(name)
        self.box = Watched(self.world, name, [
            "--network", f"container:{network}", *CAPABILITIES, "--env", f"CLAUDE_CODE_OAUTH_TOKEN={TOKEN}",
            "--env", "INNKEEPER_NETWORK_PROFILES=", "--volume", f"{self._rules()}:/etc/innkeeper/network/domains.conf:ro",
            *SESSION, *PLAIN, self.world.image])
        self.box.until(lambda line: "ready after" in line, 60)
        self.seen = self.world.counters(far=self.upstream == self.world.FAR)
        pids = {}
        for pid, command in inside(self.box.pid()):
            role = next((role for role in ("dns", "watch", "gate") if re.search(rf"innkeeper\S*.*\s{role}(\s|$)|^{role}\b",
                                                                                command)), None)
            if pid == self.box.pid():
                role = "PID 1"
            if role:
                pids[role] = pid
                if self._pinned:
                    pin(pid, SERVER_CORE)
        if "dns" not in pids:
            raise BenchError(f"no worker dns among {inside(self.box.pid())}")
        self.servers["innkeeper"] = ("127.0.0.53", self.net, pids)

    def _start_peers(self):
        network, net = self.world.namespace(self.upstream, host=3)
        self._own.append(network)
        self._network, self._peer_net = network, net
        for peer in self._peers:
            self.servers[peer] = (PEERS[peer], net, {peer: self._start_peer(peer, network)})

    def _start_peer(self, peer, network):
        if peer == "dnsmasq --ipset":
            self._exec(network, "ipset", "create", "bench", "hash:ip", "maxelem", "262144")
        if peer == "dnsmasq --nftset":
            self._exec(network, "nft", "add table inet bench; add set inet bench open { type ipv4_addr; }")
        command = {"echo": ["load", "echo", PEERS["echo"]], "unbound": self._unbound}.get(peer, self._dnsmasq)
        arguments = command if isinstance(command, list) else command(peer)
        name = f"{self._name}-{peer.replace(' --', '-')}"
        self._own.append(name)
        self.world.containers.append(name)
        run("docker", "run", "--detach", "--name", name, "--network", f"container:{network}", "--no-healthcheck",
            "--cap-add", "NET_ADMIN", "--volume", f"{self.world.dir}:/bench:ro", "--entrypoint", arguments[0],
            self.world.image, *arguments[1:])
        pid = int(run("docker", "inspect", "--format", "{{.State.Pid}}", name))
        pin(pid, SERVER_CORE)
        self._await(peer)
        return pid

    def _await(self, peer):
        """Until it answers; what it answers does not matter."""
        for _ in range(50):
            with contextlib.suppress(BenchError):  # nobody listens yet
                done = self._load(self._peer_net, "flood", PEERS[peer], "none:1", 1, 1, 0, 0)
                if done["good"] + done["wrong"]:
                    return
            time.sleep(0.1)
        raise BenchError(f"{peer} does not answer")

    def _exec(self, network, program, *arguments):
        """Once, in the namespace of the peers."""
        run("docker", "run", "--rm", "--network", f"container:{network}", "--cap-add", "NET_ADMIN", "--no-healthcheck",
            "--entrypoint", program, self.world.image, *arguments)

    def _zones(self):
        zones = [f"{zone}.test" for zone in (*PATTERNS, "slot")]
        return zones + [f"n{number}.list.test" for number in range(self.exact)]

    def _dnsmasq(self, peer):
        path = os.path.join(self.world.dir, f"dnsmasq-{self._name}-{peer.rpartition('-')[2]}.conf")
        with open(path, "w", encoding="ascii") as file:
            print("\n".join([f"listen-address={PEERS[peer]}", "bind-interfaces", "no-resolv", "no-hosts", "user=root",
                             "cache-size=10000", "dns-forward-max=4000", "address=/#/"]), file=file)
            for zone in self._zones():
                print(f"server=/{zone}/{self.upstream}", file=file)
            if peer == "dnsmasq --ipset":
                print("ipset=/own.test/bench", file=file)
            if peer == "dnsmasq --nftset":
                print("nftset=/own.test/4#inet#bench#open", file=file)
        os.chmod(path, 0o644)
        return ["dnsmasq", "--keep-in-foreground", f"--conf-file=/bench/{os.path.basename(path)}"]

    def _unbound(self, peer):
        path = os.path.join(self.world.dir, f"unbound-{self._name}.conf")
        with open(path, "w", encoding="ascii") as file:
            print(f"""server:
                interface: {PEERS[peer]}
                do-daemonize: no
                username: ""
                chroot: ""
                pidfile: ""
                use-syslog: no
                num-threads: 1
                outgoing-range: 8192
                num-queries-per-thread: 4096
                module-config: "iterator"
                do-not-query-localhost: no
                local-zone: "." always_nxdomain""", file=file)
            for zone in self._zones():
                print(f'local-zone: "{zone}" transparent', file=file)
            print(f'forward-zone:\n name: "."\n forward-addr: {self.upstream}', file=file)
        os.chmod(path, 0o644)
        return ["unbound", "-d", "-c", f"/bench/{os.path.basename(path)}"]

    def _load(self, net, *arguments, root=False, core=CLIENT_CORE):
        """The load generator, in a namespace, as the agent's uid."""
        user = [] if root else ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"]
        done = subprocess.run(
            ["nsenter", "--net", "--target", str(net), "taskset", "--cpu-list", str(core), *user,
             os.path.join(self.world.dir, "load"), *map(str, arguments)],
            capture_output=True, text=True, check=False, timeout=90)
        if done.returncode != 0:
            raise BenchError(f"load {arguments}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def flood(self, server, kind, window, seconds, pace=0):
        address, net, pids = self.servers[server]
        self.world.quiet.append(rig.settle(0.3))
        self.world.numbers += 1
        before = processor(pids.values())
        done = self._load(net, "flood", address, kind, window, seconds, pace, self.world.numbers)
        done["cpu_us"] = (processor(pids.values()) - before) / 1e3 / max(done["good"] + done["wrong"], 1)
        return done

    def connect(self, server, what, count):
        address, net, _ = self.servers[server]
        return self._load(net, what, address, PORT, count)

    def start_scheme(self):
        name = f"{self._name}-scheme"
        self._own.append(name)
        scheme = Watched(self.world, name, ["--network", f"container:{self._network}", "--cap-add", "NET_ADMIN",
                                            "--entrypoint", "bash", self.world.image,
                                            "/usr/local/bin/scheme", str(NAMES), "10", PEERS["dnsmasq"]])
        scheme.until(lambda line: line == "refreshed")

    def rotate(self, seconds):
        """Both at once, from the agent's side of each."""
        found = {}

        def one(server):
            address, net, _ = self.servers[server]
            found[server] = self._load(net, "rotate", address, PORT, NAMES, seconds)

        both = [threading.Thread(target=one, args=(server,)) for server in ("innkeeper", "dnsmasq")]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        return found["innkeeper"], found["dnsmasq"]

    def step(self, name):
        status = json.loads(run("docker", "exec", self.box.name, "innkeeper", "status", "--json"))
        names = {address["name"] for address in status["firewall"]["addresses"] if ".list." in address["name"]}
        if len(names) != self.exact:
            raise BenchError(f"{len(names)} of {self.exact} names are open")
        return next(step["ms"] for step in status["boot"]["steps"] if step["name"] == name)

    def dig(self, count):
        """Milliseconds for all names, one after the other."""
        script = f"""b=$(date +%s%N); i=0
            while [ $i -lt {count} ]; do dig +short @{self.upstream} n$i.list.test >/dev/null; i=$((i + 1)); done
            e=$(date +%s%N); echo $(((e - b) / 1000))"""
        return int(run("docker", "run", "--rm", "--network", f"container:{self._network}", "--no-healthcheck",
                       "--entrypoint", "sh", self.world.image, "-c", script)) / 1e3

    def memory(self, server):
        """kB of proportional set by process."""
        _, _, pids = self.servers[server]
        return {role: memory(pid)[0] for role, pid in pids.items()}

    def packets(self, count):
        return syn_and_established(self, self.net, count)

    @contextlib.contextmanager
    def bare(self):
        network, net = self.world.namespace(self.upstream, host=4)
        self._own.append(network)
        yield Bare(self, network, net)


def syn_and_established(ground, net, count):
    """Packets into a device that swallows: a bridge without ports."""
    run("nsenter", "--net", "--target", str(net), "sh", "-euc", """
        ip link show void0 >/dev/null 2>&1 || { ip link add void0 type bridge; ip link set void0 arp off up; }
        # By a gateway: a neighbour for each address would overflow the kernel's table of 1,024.
        ip route replace 104.32.0.0/11 via 172.31.77.6 dev void0 onlink""")
    syn = ground._load(net, "syn", count, max(6, 60_000 // count), root=True, core=SERVER_CORE)
    run("nsenter", "--net", "--target", str(net), "sh", "-euc", """
        ip route del 104.32.0.0/11
        # The packets are not the connection's own, so their numbers are not in its window.
        liberal=/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal
        [ ! -e $liberal ] || echo 1 > $liberal""")
    return syn, ground._load(net, "established", PORT + 1, 60_000, root=True, core=SERVER_CORE)


class Bare:
    """A namespace with no table, or with one of a single set."""

    def __init__(self, ground, network, net):
        self._ground, self._network, self._net = ground, network, net
        self._rules = None

    def packets(self, rules, count):
        elements = ", ".join(f"104.{32 + (n >> 16)}.{n >> 8 & 255}.{n & 255} . {port}"
                             for n in range(count) for port in (PORT, PORT + 1))
        first = "ct state established,related accept" if "conntrack" in rules else ""
        text = "flush ruleset\n"
        if rules != "no table":
            text += f"""table inet bare {{
                set open {{ type ipv4_addr . inet_service; elements = {{ {elements} }} }}
                chain output {{ type filter hook output priority 0; policy drop; {first}
                    ip daddr . tcp dport @open accept
                }}
            }}"""
        path = os.path.join(self._ground.world.dir, "bare.nft")
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        run("docker", "run", "--rm", "--network", f"container:{self._network}", "--cap-add", "NET_ADMIN",
            "--no-healthcheck", "--volume", f"{self._ground.world.dir}:/bench:ro", "--entrypoint", "nft",
            self._ground.world.image, "-f", "/bench/bare.nft")
        return syn_and_established(self._ground, self._net, count)
