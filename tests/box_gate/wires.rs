//! What is spoken on a gated port: TLS or HTTP/1, each where its rule says, and nothing else anywhere.

use crate::common::{
    boot, denial, hellos, hellos_outside, hellos_so_far, nothing_to, page, quiet, shown, token,
};
use crate::rig::{AGENT, ROOT, Rig, host};

#[test]
fn t62_what_is_neither_tls_nor_http_is_relayed_by_no_octet() {
    let Some(rig) = Rig::new() else { return };
    let ok = host("ok");
    let raw = [
        r"raw:SSH-2.0-OpenSSH_9.9\r\n",
        r"raw:canary-raw-octets\n",
        r"raw:\x00\x01\x02canary",
        r"raw:\x05\x01\x00",
        r"raw:\x04\x01\x01\xbb\x2d\x21\x20\x42\x00",
        r"raw:\x13BitTorrent protocol",
        r"raw:PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        r"raw:QUIT\r\n",
    ];
    for port in ["443", "80"] {
        let answers = hellos_outside(&rig, &ok, port, &raw);
        assert!(
            answers.iter().filter(|answer| answer.contains("token-")).count() >= 6,
            "{port}: {answers:?}"
        );
    }
    let guest = boot(&rig, "ok.test:443,80");
    page(&guest, "https://ok.test/", "ok", "ok.test");
    page(&guest, "http://ok.test/", "ok", "ok.test");
    let mark = quiet(&rig, &[&ok]);
    for user in [AGENT, ROOT] {
        for port in ["443", "80"] {
            for (case, answer) in raw.iter().zip(hellos(&guest, user, &ok, port, &raw)) {
                assert!(
                    !answer.contains("token-") && answer != "server-hello",
                    "{user} {port} {case}: {answer}"
                );
            }
        }
    }
    nothing_to(&rig, mark, &ok);
    // A real client of another protocol: it is told, in words of HTTP, and so is the operator.
    let refusals = || -> u64 {
        let status = guest.status();
        let of_ours = |one: &&serde_json::Value| {
            one["layer"] == "gate" && one["what"] == format!("{ok}:443") && one["uid"] == 1000
        };
        status["denials"]
            .as_array()
            .unwrap()
            .iter()
            .filter(of_ours)
            .filter_map(|one| one["count"].as_u64())
            .sum()
    };
    let before = refusals();
    let ssh = guest.exec(
        AGENT,
        "timeout 40 ssh -v -o BatchMode=yes -o StrictHostKeyChecking=no -o ConnectTimeout=30 -p 443 ok.test true",
    );
    assert!(
        ssh.err.contains("innkeeper: the request is refused") && ssh.err.contains("next: speak TLS"),
        "{ssh:?}"
    );
    guest.await_status("ssh's refusal", |_| refusals() > before);
    page(&guest, "https://ok.test/", "ok", "ok.test");
}

#[test]
fn t62_http_on_443_and_tls_on_80_are_refused() {
    let Some(rig) = Rig::new() else { return };
    let ok = host("ok");
    let get = r"raw:GET /wrong-port HTTP/1.1\r\nHost: ok.test\r\n\r\n";
    assert_eq!(hellos_outside(&rig, &ok, "443", &[get]), ["http HTTP/1.1 200 OK"]);
    assert_eq!(hellos_outside(&rig, &ok, "80", &["plain:ok.test"]), ["server-hello"]);
    let guest = boot(&rig, "ok.test:443,80,7999,8080");
    assert_eq!(hellos(&guest, AGENT, &ok, "80", &[get]), ["http HTTP/1.1 200 OK"]);
    assert_eq!(hellos(&guest, AGENT, &ok, "443", &["plain:ok.test"]), ["server-hello"]);
    let (mark, before) = (quiet(&rig, &[&ok]), hellos_so_far(&rig));
    let on_443 = hellos(&guest, AGENT, &ok, "443", &[get]).remove(0);
    assert!(on_443.starts_with("http HTTP/1.1 4"), "told in its own language: {on_443}");
    let on_80 = hellos(&guest, AGENT, &ok, "80", &["plain:ok.test"]).remove(0);
    assert!(on_80.starts_with("alert "), "told in its own language: {on_80}");
    nothing_to(&rig, mark, &ok);
    assert!(shown(&rig, before, &ok).is_empty());
}

#[test]
fn a_port_that_is_marked_is_gated_and_one_that_is_not_is_the_firewalls() {
    let Some(rig) = Rig::new() else { return };
    let (ok, cdn) = (host("ok"), host("cdn"));
    assert!(rig.outside(&["tcp", &ok, "7999", "anything"]).both().contains("token-"));
    let rules = "ok.test:443,9999,22;cdn.test:8443 tls;two.test:8080 http;many.test:7999";
    let guest = boot(&rig, rules);
    // A client whose server would have the first word: nobody says anything.
    let waits = format!(
        "import socket; s = socket.create_connection(('{cdn}', 8443)); print('heard', s.recv(9), flush=True)"
    );
    let mut waiting = guest.spawn(AGENT, &["python3", "-c", &waits]);
    // Not marked: raw octets as ever, on the address of the name.
    for (address, port) in [(&ok, "9999"), (&ok, "7999")] {
        let done = guest.client(AGENT, &["tcp", address, port, "anything"]);
        assert!(done.both().contains("token-"), "{port}: {done:?}");
    }
    assert!(guest.client(AGENT, &["tcp", &ok, "22", "x"]).both().contains("SSH-2.0-world"));
    // Marked `tls`: that, under that name, and nothing else.
    assert_eq!(hellos(&guest, AGENT, &cdn, "8443", &["plain:cdn.test"]), ["server-hello"]);
    let mark = quiet(&rig, &[&cdn]);
    let get = r"raw:GET / HTTP/1.1\r\nHost: cdn.test\r\n\r\n";
    for (case, answer) in [get, "plain:evil-cdn.test", "none:", "raw:octets"].iter().zip(hellos(
        &guest,
        AGENT,
        &cdn,
        "8443",
        &[get, "plain:evil-cdn.test", "none:", "raw:octets"],
    )) {
        assert!(
            answer != "server-hello" && !answer.contains("200") && !answer.contains("token-"),
            "{case}: {answer}"
        );
    }
    nothing_to(&rig, mark, &cdn);
    // Marked `http`.
    page(&guest, "http://two.test:8080/", "ok", "two.test");
    let mark = quiet(&rig, &[&ok]);
    let other = guest
        .exec(AGENT, &format!("curl -sS -m 10 --resolve evil-cdn.test:8080:{ok} http://evil-cdn.test:8080/"));
    assert!(!other.out.contains("token-"), "{other:?}");
    assert_ne!(hellos(&guest, AGENT, &ok, "8080", &["plain:two.test"]), ["server-hello"]);
    nothing_to(&rig, mark, &ok);
    denial(&guest, "evil-cdn.test");
    assert_eq!(waiting.hear().trim(), "heard b''");
    let said = |status: &serde_json::Value| {
        let all = status["denials"].as_array().cloned().unwrap_or_default();
        all.iter().any(|one| {
            one["reason"].as_str().is_some_and(|why| why.contains("STARTTLS")) && one["uid"] == 1000
        })
    };
    guest.await_status("who was silent", said);
}

#[test]
fn ipv6_is_gated_as_ipv4() {
    let Some(rig) = Rig::new() else { return };
    let (ok, evil) = (host("ok_v6"), host("evil_v6"));
    assert_eq!(
        hellos_outside(&rig, &ok, "443", &["plain:onlysix.test", "plain:evil.test"]),
        ["server-hello"; 2]
    );
    let guest = boot(&rig, "onlysix.test:443,80");
    page(&guest, "https://onlysix.test/", "ok_v6", "onlysix.test");
    page(&guest, "http://onlysix.test/", "ok_v6", "onlysix.test");
    let (mark, before) = (quiet(&rig, &[&ok]), hellos_so_far(&rig));
    assert_eq!(hellos(&guest, AGENT, &ok, "443", &["plain:evil.test", "none:"]), ["alert 49", "alert 112"]);
    hellos(&guest, AGENT, &evil, "443", &["plain:evil.test", "none:", "raw:leak"]);
    let mapped = format!("::ffff:{}", host("evil"));
    hellos(&guest, AGENT, &mapped, "443", &["plain:evil.test", "none:"]);
    hellos(&guest, AGENT, &mapped, "80", &[r"raw:GET /leak HTTP/1.1\r\nHost: evil.test\r\n\r\n"]);
    for address in [&ok, &evil, &host("evil")] {
        nothing_to(&rig, mark, address);
        assert!(shown(&rig, before, address).is_empty());
    }
    let seen = denial(&guest, "evil.test");
    assert_eq!(seen["uid"], 1000, "{seen}");
    // An allowed name at an address of the other family is still that name's own.
    let crossed = guest.exec(
        AGENT,
        &format!("curl -sS -m 10 --resolve onlysix.test:443:{} https://onlysix.test/", host("evil")),
    );
    assert!(crossed.out.contains(&token("ok_v6", "onlysix.test")), "{crossed:?}");
}
