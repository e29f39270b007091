//! What is missing has its own message, the documented status, and leaves the host as it was.

use crate::bare_host::{BareHost, INNKEEPER, Options};

#[track_caller]
fn refused(host: &BareHost, options: &Options, status: i32, words: &[&str]) {
    let before = host.snapshot();
    let (ended, said) = host.start("one", options).end();
    assert_eq!(ended, Some(status), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
    assert_eq!(host.snapshot(), before, "{said}");
}

#[test]
fn a_missing_program_is_named() {
    let Some(host) = BareHost::new() else { return };
    let claude = Options::new().without("INNKEEPER_SESSION_COMMAND");
    refused(&host, &claude, 78, &["Claude Code is missing", "next: ", "./scripts/programs"]);
    host.shell("mount --bind /dev/null /usr/bin/tmux").expect("a host without tmux");
    refused(&host, &Options::new(), 78, &["tmux is missing", "next: ", "3.6"]);
}

#[test]
fn somebody_elses_program_is_not_executed() {
    let Some(host) = BareHost::new() else { return };
    let programs = host.dir.join("programs");
    std::fs::create_dir_all(programs.join("claude")).unwrap();
    std::fs::write(programs.join("claude/claude"), "#!/bin/sh\n").unwrap();
    std::os::unix::fs::chown(programs.join("claude/claude"), Some(1000), Some(1000)).unwrap();
    let options = Options::new().env("INNKEEPER_PROGRAMS", programs.to_str().unwrap());
    refused(&host, &options, 78, &["claude/claude is not root's alone"]);
}

#[test]
fn resolvers_that_no_box_can_reach_are_named() {
    let Some(host) = BareHost::new() else { return };
    let resolv = host.dir.join("resolv.conf");
    std::fs::write(&resolv, "nameserver 127.0.0.53\n").unwrap();
    refused(&host, &Options::new(), 78, &["127.0.0.53", "INNKEEPER_NETWORK_UPSTREAMS"]);
    // The ones behind the stub, and what the operator says.
    host.shell("mkdir -p /run/systemd/resolve; echo nameserver 9.9.9.53 > /run/systemd/resolve/resolv.conf")
        .expect("a stub");
    let guest = host.boot("one", &Options::new());
    assert!(guest.agent("curl -sS -m 10 http://ok.test/").out.contains("token-"));
    host.shell("rm -r /run/systemd").expect("no stub");
    let told = host.boot("two", &Options::new().env("INNKEEPER_NETWORK_UPSTREAMS", "9.9.9.53"));
    assert!(told.agent("curl -sS -m 10 http://ok.test/").out.contains("token-"));
}

#[test]
fn a_typing_error_is_known_before_anything_is_made() {
    let Some(host) = BareHost::new() else { return };
    let wrong = Options::new()
        .env("INNKEEPER_NETWORK_ALLOW", "not a name!")
        .env("INNKEEPER_SESSION_ON_EXIT", "dance");
    refused(&host, &wrong, 78, &["INNKEEPER_NETWORK_ALLOW", "INNKEEPER_SESSION_ON_EXIT"]);
    refused(&host, &Options::new().without("CLAUDE_CODE_OAUTH_TOKEN"), 78, &["CLAUDE_CODE_OAUTH_TOKEN"]);
    refused(
        &host,
        &Options::new().args(&["--config", "/nonexistent/innkeeper.toml"]),
        78,
        &["/nonexistent/innkeeper.toml"],
    );
    refused(&host, &Options::new().args(&["--network", "/nonexistent"]), 78, &["/nonexistent/domains.conf"]);
    for name in ["Upper", "../../etc", "a b", "-x"] {
        let done = host.innkeeper(&["run", "--engine", "embedded", &format!("--name={name}")]);
        assert_eq!(done.code, Some(64), "{name}: {done:?}");
    }
}

#[test]
fn without_root_it_says_so() {
    let Some(host) = BareHost::new() else { return };
    // Where everybody may execute it.
    let copy = host.dir.join("innkeeper");
    std::fs::copy(INNKEEPER, &copy).unwrap();
    let words = ["--reuid", "65534", "--regid", "65534", "--clear-groups", copy.to_str().unwrap()];
    let done = host.run("setpriv", &[&words[..], &["run", "--engine", "embedded"]].concat());
    assert_eq!(done.code, Some(78), "{done:?}");
    assert!(done.err.contains("needs root") && done.err.contains("sudo -E"), "{done:?}");
}

#[test]
fn a_kernel_without_user_namespaces_is_refused_with_the_switch() {
    let Some(host) = BareHost::new() else { return };
    // Of a user namespace of the test's own, so that nothing of the machine's changes.
    let before = host.snapshot();
    let script = format!(
        "unshare --user --map-root-user --mount --net sh -c 'mount -t tmpfs tmpfs /run && \
         echo 0 > /proc/sys/user/max_user_namespaces && exec {INNKEEPER} run --engine embedded'"
    );
    let done = host.shell(&script);
    assert_eq!(done.code, Some(78), "{done:?}");
    assert!(done.err.contains("max_user_namespaces") && done.err.contains("next: "), "{done:?}");
    assert_eq!(host.snapshot(), before);
}
