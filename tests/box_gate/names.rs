//! The name in the connection decides: on a shared address, and whatever the client dials.

use crate::common::{
    boot, denial, hellos, hellos_outside, hellos_so_far, nothing_to, page, quiet, shown, token,
};
use crate::rig::{AGENT, ROOT, Rig, host};

#[test]
fn t47_an_attackers_site_behind_an_allowed_address_gets_no_octet() {
    let Some(rig) = Rig::new() else { return };
    let (cdn, evil_page) = (host("cdn"), token("cdn", "evil-cdn.test"));
    let curl = format!("curl -skS -m 10 --resolve evil-cdn.test:443:{cdn} https://evil-cdn.test/x");
    assert!(rig.inside(&curl).out.contains(&evil_page), "the attacker's site is there");
    assert_eq!(hellos_outside(&rig, &cdn, "443", &["plain:evil-cdn.test"]), ["server-hello"]);

    let guest = boot(&rig, "cdn.test:443,80");
    page(&guest, "https://cdn.test/", "cdn", "cdn.test");
    let (mark, before) = (quiet(&rig, &[&cdn]), hellos_so_far(&rig));
    for user in [AGENT, ROOT] {
        let done = guest.exec(user, &curl);
        assert!(!done.ok() && !done.out.contains("token-"), "{user}: {done:?}");
        let plain = format!("curl -sS -m 10 --resolve evil-cdn.test:80:{cdn} http://evil-cdn.test/x");
        let done = guest.exec(user, &plain);
        assert!(!done.out.contains("token-") && done.out.contains("evil-cdn.test"), "{user}: {done:?}");
    }
    assert!(!guest.as_session(&curl).ok(), "the session");
    // Not even a connection: the gate judges before it dials.
    nothing_to(&rig, mark, &cdn);
    assert!(shown(&rig, before, &cdn).is_empty());
    assert!(!rig.world.asked().contains(&"evil-cdn.test".to_owned()), "its name never went upstream");
    let seen = denial(&guest, "evil-cdn.test");
    assert_eq!((&seen["uid"], seen["layer"].as_str()), (&1000.into(), Some("gate")), "{seen}");
    // The allowed one at the same address still is.
    page(&guest, "https://cdn.test/", "cdn", "cdn.test");
    page(&guest, "http://cdn.test/", "cdn", "cdn.test");
}

/// What nobody can see without ending TLS: the box says so instead of pretending.
#[test]
fn t48_classic_fronting_passes_and_status_says_so() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "cdn.test");
    let fronted = guest.exec(AGENT, "curl -sS -m 10 -H 'Host: evil-cdn.test' https://cdn.test/");
    assert!(fronted.out.contains(&token("cdn", "evil-cdn.test")), "{fronted:?}");
    let unseen = guest.status()["gate"]["unseen"].to_string();
    assert!(unseen.contains("domain fronting"), "the accepted risk is stated: {unseen}");
    assert!(
        guest.innkeeper(&["status"]).out.contains("not seen: what is asked inside TLS"),
        "for people too"
    );
    let check = guest.exec_program(AGENT, &["innkeeper", "check", "https://cdn.test/"]);
    assert!(check.ok() && check.out.contains("inside TLS"), "and of each name: {check:?}");
}

/// The same name in order, however the hello is sent.
const GOOD: [&str; 6] = [
    "plain:cdn.test",
    "upper:cdn.test",
    "grease:cdn.test",
    "octets:cdn.test",
    "records:cdn.test",
    "large:cdn.test",
];

/// Not exactly one valid host name, or one that is not allowed.
const NAMELESS: [&str; 23] = [
    "none:",
    "empty:",
    "nolist:",
    "emptylist:",
    "othertype:cdn.test",
    "long:wild.test",
    "plain:104.16.0.10",
    "plain:[2606:4700::20]",
    "plain:2606:4700::20",
    "plain:1746534410",
    "plain:0x68.0x10.0.10",
    "two:cdn.test,evil-cdn.test",
    "two:evil-cdn.test,cdn.test",
    "two:cdn.test,cdn.test",
    "twice:cdn.test,evil-cdn.test",
    "twice:cdn.test,cdn.test",
    "nul:evil-cdn.test,cdn.test",
    "nul:cdn.test,evil-cdn.test",
    "space:cdn.test",
    "wild:cdn.test",
    "plain:-.cdn.test",
    "plain:a..cdn.test",
    "plain:.cdn.test",
];

/// Not a whole, sound hello that shows all there is.
const UNSOUND: [&str; 6] = [
    "inner:cdn.test",
    "ech:cdn.test",
    "damaged:cdn.test",
    "huge:cdn.test",
    "half:cdn.test",
    "other:cdn.test",
];

#[test]
fn t49_a_hello_without_exactly_one_valid_name_goes_nowhere() {
    let Some(rig) = Rig::new() else { return };
    let cdn = host("cdn");
    assert_eq!(hellos_outside(&rig, &cdn, "443", &["none:", "plain:cdn.test"]), ["server-hello"; 2]);
    let guest = boot(&rig, "cdn.test;*.wild.test;*.cdn.test");
    assert_eq!(hellos(&guest, AGENT, &cdn, "443", &GOOD), ["server-hello"; 6]);

    let (mark, before) = (quiet(&rig, &[&cdn]), hellos_so_far(&rig));
    for user in [AGENT, ROOT] {
        for (case, answer) in NAMELESS.iter().zip(hellos(&guest, user, &cdn, "443", &NAMELESS)) {
            assert!(answer.starts_with("alert ") || answer == "closed", "{user} {case}: {answer}");
        }
    }
    let no_name = hellos(&guest, AGENT, &cdn, "443", &["none:"]);
    assert_eq!(no_name, ["alert 112"], "unrecognized_name");
    for (case, answer) in UNSOUND.iter().zip(hellos(&guest, AGENT, &cdn, "443", &UNSOUND)) {
        assert!(answer != "server-hello" && !answer.contains("token-"), "{case}: {answer}");
    }
    let real = format!("openssl s_client -noservername -connect {cdn}:443 </dev/null 2>&1");
    let real = guest.exec(AGENT, &real);
    assert!(!real.out.contains("BEGIN CERTIFICATE"), "{real:?}");
    nothing_to(&rig, mark, &cdn);
    assert!(shown(&rig, before, &cdn).is_empty());
    let all = guest.status()["denials"].to_string();
    assert!(all.contains("\"gate\""), "{all}");
    assert_eq!(
        hellos(&guest, AGENT, &cdn, "443", &GOOD),
        ["server-hello"; 6],
        "and the good ones still pass"
    );
}

#[test]
fn an_encrypted_hello_passes_where_its_rule_says_so() {
    let Some(rig) = Rig::new() else { return };
    let cdn = host("cdn");
    assert_eq!(hellos_outside(&rig, &cdn, "443", &["ech:cdn.test", "ech:npm.test"]), ["server-hello"; 2]);
    let guest = boot(&rig, "cdn.test;npm.test ech");
    let mark = rig.world.sync();
    assert_eq!(hellos(&guest, AGENT, &cdn, "443", &["ech:cdn.test"]), ["alert 49"]);
    nothing_to(&rig, mark, &cdn);
    assert_eq!(hellos(&guest, AGENT, &cdn, "443", &["ech:npm.test", "plain:cdn.test"]), ["server-hello"; 2]);
    denial(&guest, "cdn.test");
}

#[test]
fn t52_a_forged_name_towards_an_attackers_address_reaches_the_real_one_or_nobody() {
    let Some(rig) = Rig::new() else { return };
    let (evil, evil_v6, ok) = (host("evil"), host("evil_v6"), host("ok"));
    for (address, port) in [(&evil, 443), (&evil_v6, 443), (&evil, 80)] {
        let scheme = if port == 443 { "https" } else { "http" };
        let curl =
            format!("curl -skS -m 10 --resolve 'ok.test:{port}:[{address}]' {scheme}://ok.test/forged");
        let done = rig.inside(&curl.replace(&format!("[{evil}]"), &evil));
        assert!(done.out.contains(&format!("token-{address}-ok.test")), "{done:?}");
    }
    let guest = boot(&rig, "ok.test:443,80");
    page(&guest, "https://ok.test/", "ok", "ok.test");
    let (mark, before) = (rig.world.sync(), hellos_so_far(&rig));
    for user in [AGENT, ROOT] {
        for (address, literal) in [(&evil, evil.clone()), (&evil_v6, format!("[{evil_v6}]"))] {
            for (scheme, port) in [("https", 443), ("http", 80)] {
                let curl =
                    format!("curl -skS -m 10 --resolve 'ok.test:{port}:{literal}' {scheme}://ok.test/forged");
                let done = guest.exec(user, &curl);
                assert!(!done.out.contains(&format!("token-{address}")), "{user} {scheme}: {done:?}");
                let real = done.out.contains(&token("ok", "ok.test"));
                assert!(real, "the name's own address answers: {user} {scheme}: {done:?}");
            }
        }
        hellos(&guest, user, &evil, "443", &["plain:ok.test", "octets:ok.test", "none:", "plain:evil.test"]);
    }
    nothing_to(&rig, mark, &evil);
    nothing_to(&rig, mark, &evil_v6);
    // If anybody was spoken to, it was the name's own address.
    assert!(shown(&rig, before, &ok).iter().all(|name| name == "ok.test"));
    let strangers: Vec<_> =
        rig.world.log("tls").into_iter().skip(before).filter(|line| line["local"] != ok.as_str()).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

/// The same address, another port of the rule: each port is the name's own.
#[test]
fn a_name_is_judged_with_the_port_that_the_client_dialled() {
    let Some(rig) = Rig::new() else { return };
    let cdn = host("cdn");
    let guest = boot(&rig, "cdn.test:443;two.test:80;npm.test:8443 tls");
    let mark = rig.world.sync();
    // cdn.test may do 443 and not 8443, npm.test the reverse, though both live at the same address.
    assert_eq!(hellos(&guest, AGENT, &cdn, "443", &["plain:npm.test"]), ["alert 49"]);
    assert_eq!(hellos(&guest, AGENT, &cdn, "8443", &["plain:cdn.test"]), ["alert 49"]);
    nothing_to(&rig, mark, &cdn);
    assert_eq!(hellos(&guest, AGENT, &cdn, "443", &["plain:cdn.test"]), ["server-hello"]);
    assert_eq!(hellos(&guest, AGENT, &cdn, "8443", &["plain:npm.test"]), ["server-hello"]);
}

/// A server may ask for the hello again, in the clear, and some follow the name of the second one.
#[test]
fn the_second_hello_of_a_connection_may_not_show_another_name() {
    let Some(rig) = Rig::new() else { return };
    let cdn = host("cdn");
    let good = ["retry:cdn.test,cdn.test", "plain:cdn.test"];
    assert_eq!(hellos_outside(&rig, &cdn, "443", &good), ["server-hello"; 2]);
    let guest = boot(&rig, "cdn.test");
    assert_eq!(hellos(&guest, AGENT, &cdn, "443", &good), ["server-hello"; 2]);
    let before = hellos_so_far(&rig);
    let told = hellos(&guest, AGENT, &cdn, "443", &["retry:cdn.test,evil-cdn.test"]).remove(0);
    assert!(told.starts_with("alert 49"), "{told}");
    assert_eq!(shown(&rig, before, &cdn), ["cdn.test"]);
}
