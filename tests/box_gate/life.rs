//! Where the gate stands: what passes it by, what becomes of living connections when the policy changes, and of all of
//! them when it dies.

use crate::common::{boot, denial, hellos, hellos_so_far, nothing_to, page, python, quiet, shown, token};
use crate::rig::{AGENT, PATIENCE, ROOT, Rig, RunningBox, Talking, host};
use std::time::{Duration, Instant};

/// A TLS connection that stays open: each line of standard input is a request, what comes back a line.
const FLOW: &str = r#"
import http.client, ssl, sys
name, port = sys.argv[1], int(sys.argv[2])
make = http.client.HTTPSConnection if sys.argv[3] == "tls" else http.client.HTTPConnection
c = make(name, port, timeout=10)
c.connect()
print("connected", flush=True)
for line in sys.stdin:
    try:
        c.sock is None and sys.exit(print("cut", flush=True))
        c.request("GET", "/" + line.strip())
        print(c.getresponse().read().decode().strip(), flush=True)
    except OSError as error:
        sys.exit(print("cut", error.__class__.__name__, flush=True))
"#;

fn flow(guest: &RunningBox, name: &str, port: &str, wire: &str) -> Talking {
    let mut flow = guest.spawn(AGENT, &["python3", "-c", FLOW, name, port, wire]);
    assert_eq!(flow.hear(), "connected", "{name}:{port}");
    flow
}

#[track_caller]
fn lives(flow: &mut Talking, of: &str, name: &str) {
    flow.say("still");
    assert_eq!(flow.hear(), token(of, name));
}

/// Talks until the connection is cut.
#[track_caller]
fn is_cut(mut flow: Talking, what: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        flow.say("still");
        let heard = flow.hear();
        if !heard.starts_with("token-") {
            return;
        }
        assert!(Instant::now() < until, "{what} is never cut: {heard}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn a_revoked_names_connection_is_cut_though_another_name_shares_its_address() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "cdn.test:443,80");
    let refused = guest.exec(AGENT, "curl -sS -m 10 https://npm.test/innkeeper-widget");
    assert!(!refused.ok(), "{refused:?}");
    guest.innkeeper(&["allow", "evil-cdn.test:443,80"]).expect("allow");
    let mut kept = flow(&guest, "cdn.test", "443", "tls");
    let mut kept_plain = flow(&guest, "cdn.test", "80", "http");
    let mut gone = flow(&guest, "evil-cdn.test", "443", "tls");
    let mut gone_plain = flow(&guest, "evil-cdn.test", "80", "http");
    lives(&mut gone, "cdn", "evil-cdn.test");
    lives(&mut gone_plain, "cdn", "evil-cdn.test");
    guest.innkeeper(&["revoke", "evil-cdn.test:443,80"]).expect("revoke");
    is_cut(gone, "the TLS connection");
    is_cut(gone_plain, "the plain connection");
    for flow in [&mut kept, &mut kept_plain] {
        lives(flow, "cdn", "cdn.test");
    }
    let before = hellos_so_far(&rig);
    assert_eq!(hellos(&guest, AGENT, &host("cdn"), "443", &["plain:evil-cdn.test"]), ["alert 49"]);
    assert!(shown(&rig, before, &host("cdn")).is_empty());
    // A deny rule is a removal, too.
    guest.innkeeper(&["allow", "!cdn.test"]).expect("a deny rule");
    is_cut(kept, "the denied one");
}

#[test]
fn a_name_that_is_allowed_later_passes_at_once() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "ok.test:443,80");
    for (url, rule) in [
        ("https://evil-cdn.test/", "evil-cdn.test"),
        ("http://many.test/", "many.test:80"),
        ("https://two.test:8443/", "two.test:8443 tls"),
    ] {
        assert!(!guest.exec(AGENT, &format!("curl -sS -m 10 {url}")).out.contains("token-"), "{url}");
        guest.innkeeper(&["allow", rule]).expect(rule);
        let now = guest.exec(AGENT, &format!("curl -sS -m 10 {url}"));
        assert!(now.out.contains("token-"), "{url}: {now:?}\n{}", guest.logs());
    }
    // With a lifetime, in which a connection begins also on a slow machine: its end is a removal.
    guest.innkeeper(&["allow", "npm.test", "--for", "12s"]).expect("allow --for");
    let flow = flow(&guest, "npm.test", "443", "tls");
    is_cut(flow, "what had a lifetime");
}

#[test]
fn f22_a_killed_gate_costs_its_connections_and_opens_nothing() {
    let Some(rig) = Rig::new() else { return };
    let (ok, cdn) = (host("ok"), host("cdn"));
    let guest = boot(&rig, "ok.test:443,80,9999;cdn.test");
    let mut beside = guest.flow(AGENT, &ok, "9999");
    assert_eq!(beside.hear(), "connected");
    let through = flow(&guest, "ok.test", "443", "tls");
    let gate = |guest: &RunningBox| {
        let status = guest.status();
        let workers = status["workers"].as_array().unwrap().clone();
        workers.into_iter().find(|worker| worker["name"] == "gate").unwrap()
    };
    let first = gate(&guest);
    // What is tried while it is away is tried the whole time: names that are not allowed, and raw octets.
    let mark = rig.world.sync();
    let trying = "import socket, time\nend = time.time() + 4\nwhile time.time() < end:\n  for payload in (b'GET /leak HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n', b'leak'):\n    for port in (80, 443):\n      for address in ('ADDRESS', '45.33.32.66'):\n        try:\n          s = socket.create_connection((address, port), 1)\n          s.settimeout(0.2)\n          s.sendall(payload)\n          s.recv(100)\n        except OSError: pass\nprint('done')".replace("ADDRESS", &cdn);
    let mut trier = guest.spawn(AGENT, &["python3", "-c", &trying]);
    for _ in 0..3 {
        let pid = gate(&guest)["pid"].as_i64().unwrap_or(0);
        if pid > 0 {
            guest.exec_root(&format!("kill -KILL {pid}"));
        }
        guest.await_status("another gate", |status| {
            let workers = status["workers"].as_array().cloned().unwrap_or_default();
            workers.iter().any(|one| {
                one["name"] == "gate" && one["pid"].as_i64().is_some_and(|new| new != pid && new > 0)
            })
        });
    }
    assert_eq!(trier.hear(), "done");
    nothing_to(&rig, mark, &cdn);
    nothing_to(&rig, mark, &host("evil"));
    is_cut(through, "the connection of the gate that died");
    beside.say("still");
    assert_eq!(beside.hear(), "still", "another port's connection goes on");
    page(&guest, "https://ok.test/", "ok", "ok.test");
    page(&guest, "https://cdn.test/", "cdn", "cdn.test");
    let last = gate(&guest);
    assert!(last["restarts"].as_u64() >= Some(3) && last["pid"] != first["pid"], "{last}");
}

/// Two sockets on one port, to two places: conntrack has to give the second another port on its way to the gate.
const TWO_ON_ONE_PORT: &str = r#"
import socket, ssl, sys
def bound(to):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("0.0.0.0", 20123))  # nobody is given it who asks for any
    s.settimeout(10)
    s.connect((to, 443))
    return s
first = bound(sys.argv[1])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
try:
    context.wrap_socket(bound(sys.argv[2]), server_hostname="two-on-one-port.test")
except OSError as error:
    print(error)
"#;

#[test]
fn a_refusal_names_its_user_also_where_the_port_was_changed_on_the_way() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "ok.test:443");
    // Somebody else was refused the same.
    let of_root = "curl -skS -m 10 --resolve two-on-one-port.test:443:ADDRESS https://two-on-one-port.test/";
    guest.exec(ROOT, &of_root.replace("ADDRESS", &host("evil")));
    assert_eq!(denial(&guest, "two-on-one-port.test")["uid"], 0);
    let said = guest.exec_program(AGENT, &["python3", "-c", TWO_ON_ONE_PORT, &host("ok"), &host("cdn")]);
    assert!(said.out.to_uppercase().contains("ALERT"), "{said:?}");
    guest.await_status("the agent's refusal", |status| {
        let all = status["denials"].as_array().cloned().unwrap_or_default();
        let ours = |uid: u32| {
            let same =
                |one: &&serde_json::Value| one["what"] == "two-on-one-port.test:443" && one["uid"] == uid;
            all.iter().filter(same).filter_map(|one| one["count"].as_u64()).sum::<u64>()
        };
        (ours(0), ours(1000)) == (1, 1)
    });
}

#[test]
fn while_the_gate_is_stopped_the_ports_are_closed() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "ok.test:443,80,9999");
    page(&guest, "https://ok.test/", "ok", "ok.test");
    let mark = quiet(&rig, &[&host("ok")]);
    // In one go: one that hangs is replaced after fifteen seconds.
    let closed = "pid=$(pgrep -u innkeeper-gate) && kill -STOP $pid && echo $pid; for user in 1000 0; do for url in https://ok.test/ http://ok.test/; do \
        (setpriv --reuid $user --clear-groups curl -s -m 1 $url; echo \"curl $?\") & done; done; wait";
    let closed = guest.exec_root(closed);
    let (pid, ends) = closed.out.split_once('\n').unwrap_or_default();
    assert!(pid.parse::<u32>().is_ok(), "the gate was there: {closed:?}");
    // Each has timed out, and heard nothing.
    assert_eq!(ends, "curl 28\n".repeat(4), "{closed:?}");
    nothing_to(&rig, mark, &host("ok"));
    assert!(
        guest.client(AGENT, &["tcp", &host("ok"), "9999", "x"]).both().contains("token-"),
        "another port"
    );
    guest.exec_root(&format!("kill -CONT {pid}"));
    page(&guest, "https://ok.test/", "ok", "ok.test");
}

#[test]
fn the_gates_own_port_is_no_way_around() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "ok.test:443,80");
    let listening = guest.exec_root("cat /proc/net/tcp /proc/net/tcp6");
    assert!(listening.out.contains("3500007F:2CB3"), "127.0.0.53:11443 listens: {listening:?}");
    let mark = rig.world.sync();
    let get = r"raw:GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n";
    for user in [AGENT, ROOT] {
        for address in ["127.0.0.53", "::1", "127.0.0.1", "172.31.77.2"] {
            for (case, answer) in ["plain:ok.test", get, "plain:evil.test"].iter().zip(hellos(
                &guest,
                user,
                address,
                "11443",
                &["plain:ok.test", get, "plain:evil.test"],
            )) {
                assert!(
                    answer != "server-hello" && !answer.contains("200"),
                    "{user} {address} {case}: {answer}"
                );
            }
        }
    }
    nothing_to(&rig, mark, &host("ok"));
    // Through a name that is given the gate's own address: no loop.
    let looped =
        guest.exec(AGENT, "curl -skS -m 10 --resolve ok.test:11443:127.0.0.53 https://ok.test:11443/");
    assert!(!looped.out.contains("token-"), "{looped:?}");
    page(&guest, "https://ok.test/", "ok", "ok.test");
}

#[test]
fn servers_of_the_agents_own_on_gated_ports_still_answer_inside() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "ok.test:443,80");
    let program = r#"
import socket, threading
def serve(s):
    while True:
        c, _ = s.accept()
        c.sendall(b"own-" + c.recv(100)); c.close()
for family, any in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    for port in (80, 443):
        s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind((any, port)); s.listen(); threading.Thread(target=serve, args=(s,), daemon=True).start()
for address in ("127.0.0.1", "127.0.0.9", "172.31.77.2", "::1", "fd77::2"):
    for port in (80, 443):
        try:
            c = socket.create_connection((address, port), 3); c.sendall(b"raw"); print(address, port, c.recv(100).decode()); c.close()
        except OSError as error: print(address, port, error)
"#;
    let done = python(&guest, AGENT, program);
    assert_eq!(done.out.matches("own-raw").count(), 10, "{done:?}");
    page(&guest, "https://ok.test/", "ok", "ok.test");
}

#[test]
fn a_name_that_resolves_to_the_box_itself_is_no_loop() {
    let Some(rig) = Rig::with_zone(|zone| {
        zone["records"]["self.test"] = serde_json::json!([["A", "127.0.0.53", 60]]);
        zone["records"]["me.test"] = serde_json::json!([["A", "172.31.77.2", 60]]);
    }) else {
        return;
    };
    let rules = "ok.test:443,80;self.test:443,80 private;me.test:443,80 private";
    let guest = boot(&rig, rules);
    for name in ["self.test", "me.test"] {
        for user in [AGENT, ROOT] {
            let ok = host("ok");
            hellos(&guest, user, &ok, "443", &[&format!("plain:{name}")]);
            hellos(&guest, user, &ok, "80", &[&format!("raw:GET / HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n")]);
        }
    }
    page(&guest, "https://ok.test/", "ok", "ok.test");
    let connections = guest.status()["gate"]["connections"].as_u64().unwrap_or(0);
    assert!(connections < 100, "it called itself: {connections}");
}

#[test]
fn a_refusal_names_the_process_and_the_way_out() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "cdn.test:443,80");
    let cdn = host("cdn");
    let curl = format!("curl -skS -m 10 --resolve evil-cdn.test:443:{cdn} https://evil-cdn.test/");
    // Whoever looks for a process does not look long: on a busy machine not every refusal has one.
    let until = Instant::now() + PATIENCE;
    let seen = loop {
        let by_session = guest.as_session(&curl);
        assert!(!by_session.ok(), "{by_session:?}");
        let seen = denial(&guest, "evil-cdn.test");
        if !seen["process"].is_null() || Instant::now() > until {
            break seen;
        }
    };
    assert_eq!(seen["uid"], 1000, "{seen}");
    assert!(seen["process"].as_str().is_some_and(|process| process.starts_with("curl")), "{seen}");
    assert!(
        seen["allow"].as_str().is_some_and(|allow| allow.contains("innkeeper allow evil-cdn.test")),
        "{seen}"
    );
    let log = guest.innkeeper(&["log", "--denied"]).expect("log");
    assert!(log.contains("evil-cdn.test") && log.contains("gate"), "{log}");
    let check = guest.exec_program(AGENT, &["innkeeper", "check", "https://evil-cdn.test/x"]);
    assert!(check.code == Some(1) && check.out.contains("evil-cdn.test"), "{check:?}");
    let check = guest.exec_program(AGENT, &["innkeeper", "check", "https://cdn.test/x"]);
    assert!(check.ok(), "{check:?}");
    let check = guest.exec_program(AGENT, &["innkeeper", "check", "http://cdn.test:443/x"]);
    assert_eq!(check.code, Some(1), "HTTP on 443: {check:?}");
    // The command that it names works.
    guest.exec_root(seen["allow"].as_str().unwrap()).expect("the command");
    page(&guest, "https://evil-cdn.test/", "cdn", "evil-cdn.test");
    // What a process calls itself, and what it asks for, is shown as inert text.
    let hostile = "raw:GET / HTTP/1.1\\r\\nHost: a\\x1b[31mb.evil.test\\r\\n\\r\\n";
    hellos(&guest, AGENT, &cdn, "80", &[hostile]);
    for text in [guest.innkeeper(&["status"]).out, guest.innkeeper(&["log"]).out, guest.logs()] {
        assert!(!text.contains("\u{1b}[31mb"), "{text:?}");
    }
}
