//! The gate as a proxy and the only way out (`network.gate = "proxy"`, or a host that can redirect nothing).

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{denial, hellos_so_far, nothing_to, options, packets_to, python, quiet, shown, token};
use crate::rig::{AGENT, BoxOptions, PATIENCE, ROOT, Rig, RunningBox, host};

const ALLOWED: &str = "ok.test:443,80,22;git.ok.test;npm.test;pypi.test;files.pypi.test";

fn proxied(options: BoxOptions) -> BoxOptions {
    options.env("INNKEEPER_NETWORK_GATE", "proxy")
}

/// In the session's own environment, which names the proxy.
#[track_caller]
fn says(guest: &RunningBox, command: &str, text: &str) -> String {
    let done = guest.as_session(&format!("cd /tmp; {command}"));
    assert!(done.both().contains(text), "{command}: {done:?}\n{}", guest.logs());
    done.both()
}

/// What the proxy answers to the head of a request, and what is said in the tunnel after it.
const RAW: &str = r#"
import socket, ssl, sys
head, sni = sys.argv[1], sys.argv[2]
sock = socket.create_connection(("127.0.0.1", 3128), 10)
sock.sendall(head.encode().decode("unicode_escape").encode())
answer = sock.recv(4096).decode()
print(answer)
if sni and " 200 " in answer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        sock = context.wrap_socket(sock, server_hostname=sni)
        sock.sendall(f"GET / HTTP/1.0\r\nHost: {sni}\r\n\r\n".encode())
        print(sock.recv(4096).decode())
    except OSError as error:
        print("refused:", error)
"#;

fn raw(guest: &RunningBox, head: &str, sni: &str) -> String {
    guest.exec_program(AGENT, &["python3", "-c", RAW, head, sni]).both()
}

fn connect(target: &str) -> String {
    format!(r"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

#[test]
fn programs_pass_that_read_their_environment() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&proxied(options(ALLOWED)));
    let ok = token("ok", "ok.test");
    for versions in ["", "--tls-max 1.2", "--http1.1", "--http2"] {
        says(&guest, &format!("curl -sS -m 20 {versions} https://ok.test/"), &ok);
    }
    says(&guest, "curl -sS -m 20 http://ok.test/", &ok);
    says(&guest, "curl -sS -m 20 -d what=sent http://ok.test/echo", "what=sent");
    for url in ["https://ok.test/", "http://ok.test/"] {
        says(
            &guest,
            &format!(
                "python3 -c \"import urllib.request as u; print(u.urlopen('{url}', timeout=20).read())\""
            ),
            &ok,
        );
    }
    says(
        &guest,
        "git clone -q https://git.ok.test/acme/widgets.git w && git -C w log --oneline",
        "Commit 2 of acme/widgets",
    );
    says(
        &guest,
        "cd w && git commit -q --allow-empty -m pushed && git push -q origin HEAD:by-the-proxy && echo pushed",
        "pushed",
    );
    says(
        &guest,
        "mkdir n && cd n && npm install --registry https://npm.test --no-audit --no-fund innkeeper-widget && node -p \"require('innkeeper-widget')\"",
        "token-of-the-package",
    );
    says(
        &guest,
        "pip install --quiet --target p --no-cache-dir --index-url https://pypi.test/simple innkeeper-widget 2>&1 && PYTHONPATH=p python3 -c 'import innkeeper_widget; print(innkeeper_widget.TOKEN)'",
        "token-of-the-wheel",
    );
    // A port that the gate does not read, by the name in the CONNECT.
    let ssh = python(
        &guest,
        AGENT,
        "import socket\ns = socket.create_connection(('127.0.0.1', 3128), 10); s.sendall(b'CONNECT ok.test:22 HTTP/1.1\\r\\nHost: ok.test:22\\r\\n\\r\\n'); f = s.makefile('rb')\nfor n in range(3): print(f.readline())",
    );
    assert!(ssh.out.contains("200") && ssh.out.contains("SSH-2.0"), "{ssh:?}");
    // What does not read its environment (Node's own client, before 22.21) is refused at once, and told of.
    says(
        &guest,
        "node -e \"fetch('https://ok.test/').catch(e => console.log(e.cause.code))\"",
        "ECONNREFUSED",
    );
    // The box itself is not asked of a proxy.
    says(
        &guest,
        "python3 -m http.server -b 127.0.0.1 8765 >/dev/null 2>&1 & sleep 1; curl -sS -m 5 --retry 5 --retry-connrefused http://localhost:8765/ | head -1; kill %1",
        "<!DOCTYPE",
    );
    let status = guest.status();
    assert_eq!(status["gate"]["how"], "proxy", "{status}");
    let warned = status["warnings"].to_string();
    assert!(warned.contains("the gate is a proxy"), "{warned}");
    let gates: Vec<&Value> =
        status["denials"].as_array().unwrap().iter().filter(|d| d["layer"] == "gate").collect();
    assert!(gates.is_empty(), "its own attack is no denial: {gates:?}");
}

#[test]
fn t47_the_proxy_judges_the_name_of_the_tunnel_and_the_name_in_it() {
    let Some(rig) = Rig::new() else { return };
    let (cdn, evil) = (host("cdn"), host("evil"));
    let theirs = token("cdn", "evil-cdn.test");
    let curl = format!("curl -skS -m 10 --resolve evil-cdn.test:443:{cdn} https://evil-cdn.test/");
    assert!(rig.inside(&curl).out.contains(&theirs), "the attacker's site is there");

    let guest = rig.boot(&proxied(options("cdn.test:443,80;npm.test")));
    let ours = token("cdn", "cdn.test");
    assert!(raw(&guest, &connect("cdn.test:443"), "cdn.test").contains(&ours), "{}", guest.logs());
    let (mark, before) = (quiet(&rig, &[&cdn]), hellos_so_far(&rig));

    // Another name than the tunnel's is refused, be it allowed or not.
    for name in ["evil-cdn.test", "npm.test"] {
        let said = raw(&guest, &connect("cdn.test:443"), name);
        assert!(said.contains(" 200 ") && said.contains("ACCESS_DENIED"), "{name}: {said}");
    }
    for target in ["evil-cdn.test:443", "evil.test:443", "cdn.test:22", "cdn.test:9999"] {
        let said = raw(&guest, &connect(target), "cdn.test");
        assert!(said.starts_with("HTTP/1.1 403 ") && said.contains("\ninnkeeper: "), "{target}: {said}");
        assert!(said.contains("\nnext: operator: innkeeper allow "), "{target}: {said}");
    }
    for target in
        [format!("{cdn}:443"), format!("{evil}:443"), "[2606:4700::66]:443".into(), "127.0.0.1:22".into()]
    {
        let said = raw(&guest, &connect(&target), "cdn.test");
        assert!(said.starts_with("HTTP/1.1 4") && said.contains("\nnext: "), "{target}: {said}");
        assert!(!said.contains("token-"), "{target}: {said}");
    }
    for head in [
        r"GET http://evil-cdn.test/ HTTP/1.1\r\nHost: evil-cdn.test\r\n\r\n",
        r"GET http://cdn.test/ HTTP/1.1\r\nHost: evil-cdn.test\r\n\r\n",
        r"GET http://evil-cdn.test/ HTTP/1.1\r\nHost: cdn.test\r\n\r\n",
        r"GET / HTTP/1.1\r\nHost: evil-cdn.test\r\n\r\n",
        r"GET https://cdn.test/ HTTP/1.1\r\nHost: cdn.test\r\n\r\n",
    ] {
        let said = raw(&guest, head, "");
        assert!(said.starts_with("HTTP/1.1 4") && !said.contains("token-"), "{head}: {said}");
    }
    says(&guest, "curl -sS -m 10 https://evil-cdn.test/", "403");
    let said =
        says(&guest, "curl -sS -m 10 http://evil-cdn.test/", "innkeeper: evil-cdn.test:80 is refused: ");
    assert!(said.contains("next: operator: innkeeper allow evil-cdn.test:80"), "{said}");

    assert_eq!(denial(&guest, "evil-cdn.test:443")["uid"], 1000);
    let by_address = denial(&guest, "127.0.0.1:3128");
    assert_eq!(by_address["uid"], 1000, "{by_address}");
    let denied = denial(&guest, "evil.test:443");
    assert_eq!((&denied["uid"], &denied["allow"]), (&json!(1000), &json!("innkeeper allow evil.test")));
    nothing_to(&rig, mark, &evil);
    nothing_to(&rig, mark, &cdn);
    assert_eq!(shown(&rig, before, &cdn), Vec::<String>::new());
}

#[test]
fn there_is_no_way_around_the_proxy() {
    let Some(rig) = Rig::new() else { return };
    let (ok, evil) = (host("ok"), host("evil"));
    let mut attempts: Vec<Vec<String>> = Vec::new();
    for address in [&ok, &evil, &host("ok_v6"), &host("evil_v6")] {
        for (transport, port) in
            [("tcp", "443"), ("tcp", "80"), ("tcp", "22"), ("tcp", "9999"), ("udp", "443"), ("udp", "9999")]
        {
            attempts.push([transport, address, port].map(str::to_owned).to_vec());
        }
    }
    for server in ["evil", "google_dns", "upstream"] {
        attempts.push(["dns".into(), host(server), "ok.test".into()].to_vec());
        attempts.push(["dns".into(), host(server), "ok.test".into(), "A".into(), "tcp".into()].to_vec());
    }
    let all: Value = json!(attempts);
    let outside = rig.outside(&["each", &all.to_string()]);
    let through = |text: &str| text.lines().filter(|line| line.starts_with("[0,")).count();
    assert_eq!(through(&outside.out), attempts.len(), "all get through before there is a box: {outside:?}");

    let guest = rig.boot(&proxied(options("ok.test:443,80,22;six.test:443,80,22;onlysix.test:443,80,22")));
    assert!(raw(&guest, &connect("ok.test:443"), "ok.test").contains(&token("ok", "ok.test")));
    assert!(raw(&guest, &connect("onlysix.test:443"), "onlysix.test").contains("token-"));
    let asked = guest.client(AGENT, &["dns", "127.0.0.53", "ok.test"]);
    assert!(asked.out.contains(&ok), "{asked:?}");
    assert!(guest.exec(AGENT, "getent ahostsv4 ok.test").out.contains(&ok), "by resolv.conf");
    let refused = guest.client(AGENT, &["dns", "127.0.0.53", "evil.test"]);
    assert!(refused.both().contains("NXDOMAIN"), "{refused:?}");
    let mark = quiet(&rig, &[&ok, &host("ok_v6")]);
    for user in [AGENT, ROOT] {
        let done = guest.client(user, &["each", &all.to_string()]);
        assert_eq!(done.out.lines().count(), attempts.len(), "{done:?}");
        assert_eq!(through(&done.out), 0, "{user}: {done:?}");
    }
    let session = guest.client_as_session(&["each", &all.to_string()]);
    assert_eq!(through(&session.out), 0, "{session:?}");
    for address in [&ok, &evil, &host("ok_v6"), &host("evil_v6"), &host("google_dns")] {
        assert!(
            packets_to(&rig, mark, address).is_empty(),
            "{address}: {:?}",
            packets_to(&rig, mark, address)
        );
    }
    // Nothing else waits where redirected connections would have come.
    let done = guest.client(AGENT, &["tcp", "127.0.0.53", "11443"]);
    assert!(!done.ok(), "{done:?}");
}

#[test]
fn the_repository_and_claude_come_through_it() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([
        { "bash": "git rev-list --count HEAD; git fetch -q && echo fetched", "description": "count" },
        { "text": "There are 2 commits." },
    ]));
    let headless = BoxOptions::new()
        .claude()
        .env("INNKEEPER_SESSION_MODE", "headless")
        .env("REPO_URL", "https://github.com/acme/widgets")
        .env("CLAUDE_PROMPT", "Say how many commits there are");
    let guest = rig.start(&proxied(headless));
    assert_eq!(guest.exit_code(), 0, "{}", guest.logs());
    let api = rig.world.log("api");
    assert!(api.iter().any(|line| line.to_string().contains("fetched")), "{}", guest.logs());
}

#[test]
fn notices_go_through_it() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([{ "text": "Done." }]));
    let options = BoxOptions::new()
        .claude()
        .env("CLAUDE_PROMPT", "Do nothing")
        .env("NOTICES_WEBHOOK", "https://ok.test/services/notices");
    let guest = rig.boot(&proxied(options));
    let told = || {
        let log = rig.world.log("http");
        log.into_iter().find(|line| line["target"] == "/services/notices")
    };
    let until = Instant::now() + PATIENCE;
    while told().is_none() {
        assert!(Instant::now() < until, "no notice came\n{}", guest.logs());
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert_eq!(told().unwrap()["sni"], "ok.test");
}

#[test]
fn a_box_whose_resolver_can_not_be_set_says_so() {
    let Some(rig) = Rig::new() else { return };
    let file = rig.file("resolv.conf", "nameserver 9.9.9.53\n");
    let mount = format!("{}:/etc/resolv.conf:ro", file.display());
    let guest = rig.start(&proxied(options("ok.test")).volume(&mount));
    assert_eq!(guest.exit_code(), 78, "{}", guest.logs());
    let named = "firewall: /etc/resolv.conf does not name the box's resolver and can't be written";
    assert!(guest.logs().contains(named), "{}", guest.logs());
    // Where questions are redirected it does not matter.
    rig.boot(&options("ok.test").volume(&mount));
}
