//! What the agent leaves behind in its own directories for root, for the operator, and for the next boot.

use std::os::unix::fs::MetadataExt;

use crate::rig::{AGENT, BoxOptions, ROOT, Rig, RunningBox};

/// Names that root, or what root starts, might open, write, remove or hand over in the agent's directories.
const NAMES: &[&str] = &[
    "/home/claude/.claude.json",
    "/home/claude/.bashrc",
    "/home/claude/.profile",
    "/home/claude/.gitconfig",
    "/home/claude/.npmrc",
    "/home/claude/.config/git/config",
    "/home/claude/.config/gh/hosts.yml",
    "/home/claude/.local/bin/claude",
    "/home/claude/.local/bin/git",
    "/home/claude/.claude/settings.json",
    "/home/claude/.claude/CLAUDE.md",
    "/home/claude/.tmux.conf",
    "/home/claude/.config/tmux/tmux.conf",
    "/tmp/innkeeper",
    "/tmp/tmux-1000",
    "/tmp/start-claude.log",
    "/tmp/Corefile",
    "/tmp/codetainer-ready",
    "/tmp/git-remote-urls.txt.1",
    "/tmp/claude-1000",
    "/workspace/.git",
    "/workspace/.claude",
    "/workspace/CLAUDE.md",
    "/workspace/innkeeper.toml",
];

fn kept(rig: &Rig) -> BoxOptions {
    let (home, tmp, workspace) = (rig.volume(), rig.volume(), rig.volume());
    BoxOptions::new()
        .volume(&format!("{home}:/home/claude"))
        .volume(&format!("{tmp}:/tmp"))
        .volume(&format!("{workspace}:/workspace"))
}

fn plant(guest: &RunningBox, how: &str) {
    let plant = |path: &str| format!("mkdir -p \"$(dirname {path})\"; rm -rf {path}; {how} {path}");
    let script: Vec<String> = NAMES.iter().map(|path| plant(path)).collect();
    let planted = guest.as_session(&script.join("\n"));
    assert!(planted.ok(), "{planted:?}");
}

fn restart_session(guest: &RunningBox) {
    let server = guest.status()["workers"].clone();
    guest.tmux(&["kill-server"]);
    let pid_of = |workers: &serde_json::Value| {
        let workers = workers.as_array().unwrap();
        workers.iter().find(|one| one["name"] == "tmux").map(|one| one["pid"].clone())
    };
    guest.await_status("another session", |status| {
        let new = pid_of(&status["workers"]);
        status["session"]["state"] == "running"
            && new.is_some_and(|pid| pid.is_i64() && Some(pid) != pid_of(&server))
    });
}

#[test]
fn t74_t76_root_follows_no_link_that_the_agent_planted() {
    let Some(rig) = Rig::new() else { return };
    // Root's, and writable for root until the box is sealed.
    let target = rig.file("target", "root's own words\n");
    let options = kept(&rig).volume(&format!("{}:/etc/canary", target.display()));
    let guest = rig.boot(&options);
    plant(&guest, "ln -s /etc/canary");
    restart_session(&guest);
    guest.stop();
    let before = (std::fs::read_to_string(&target).unwrap(), owner(&target));
    let again = rig.boot(&options);
    assert_eq!((std::fs::read_to_string(&target).unwrap(), owner(&target)), before);
    assert_eq!(before.0, "root's own words\n");
    again.innkeeper(&["status"]).expect("status");
    again.innkeeper(&["reload"]).expect("reload");
    again.stop();
    assert_eq!((std::fs::read_to_string(&target).unwrap(), owner(&target)), before);
}

fn owner(path: &std::path::Path) -> (u32, u32, u32) {
    let metadata = std::fs::metadata(path).unwrap();
    (metadata.uid(), metadata.gid(), metadata.mode())
}

#[test]
fn t74_pipes_that_the_agent_planted_hold_up_nobody() {
    let Some(rig) = Rig::new() else { return };
    let options = kept(&rig);
    let guest = rig.boot(&options);
    plant(&guest, "mkfifo");
    restart_session(&guest);
    guest.innkeeper(&["status"]).expect("status");
    guest.stop();
    let again = rig.boot(&options);
    assert_eq!(again.status()["phase"], "ready");
}

#[test]
fn t76_a_kept_home_whose_claude_state_is_a_link_into_etc_boots_and_etc_stays() {
    let Some(rig) = Rig::new() else { return };
    let options = kept(&rig);
    let guest = rig.boot(&options);
    let resolv = guest.exec_root("cat /etc/resolv.conf; stat -c '%u %g %a' /etc/resolv.conf /etc/passwd").out;
    let planted = guest.as_session("rm -f ~/.claude.json; ln -s /etc/resolv.conf ~/.claude.json; mv ~/.config ~/.old; ln -s /etc ~/.config");
    assert!(planted.ok(), "{planted:?}");
    guest.stop();
    let again = rig.boot(&options);
    let now = again.exec_root("cat /etc/resolv.conf; stat -c '%u %g %a' /etc/resolv.conf /etc/passwd").out;
    assert_eq!(now, resolv);
}

#[test]
fn t74_a_kept_home_full_of_nonsense_does_not_stop_the_next_boot() {
    let Some(rig) = Rig::new() else { return };
    let options = kept(&rig);
    let guest = rig.boot(&options);
    let planted = guest.as_session("echo nonsense > ~/.claude.json; rm -rf ~/.claude; echo x > ~/.claude; rm -rf ~/.local; ln -s /nowhere ~/.local; rm -rf ~/.cache; mkdir -m 0 ~/.cache");
    assert!(planted.ok(), "{planted:?}");
    guest.stop();
    let again = rig.boot(&options);
    assert_eq!(again.status()["phase"], "ready");
}

#[test]
fn t75_configuration_that_the_agent_plants_is_read_by_nobody() {
    let Some(rig) = Rig::new() else { return };
    assert!(rig.outside(&["dns", "9.9.9.53", "x.evil.test"]).out.contains("NOERROR"));
    let options = kept(&rig).volume(&format!(
        "{}:/etc/innkeeper/network/domains.conf:ro",
        rig.file("domains.conf", "two.test\n").display()
    ));
    let guest = rig.boot(&options);
    let planted = guest.as_session(
        "mkdir -p /tmp/otel ~/.config/innkeeper /workspace/.innkeeper /workspace/network /workspace/etc/innkeeper/network; \
         for f in /tmp/otel/extra-domains.conf /workspace/network/domains.conf /workspace/etc/innkeeper/network/domains.conf \
            /tmp/domains.conf ~/.config/innkeeper/domains.conf; do printf 'x.evil.test\\n-f/tmp/otel/b\\n' > $f; done; \
         for f in /workspace/innkeeper.toml /workspace/.innkeeper.toml /tmp/innkeeper.toml ~/.config/innkeeper/innkeeper.toml; do \
            printf '[network]\\nallow = [\"x.evil.test\"]\\n' > $f; done; \
         printf 'INNKEEPER_NETWORK_ALLOW=x.evil.test\\n' | tee /workspace/.env ~/.env > ~/.profile",
    );
    assert!(planted.ok(), "{planted:?}");
    for path in [
        "/etc/innkeeper/innkeeper.toml",
        "/etc/innkeeper/network/domains.conf",
        "/run/secrets/X",
        "/run/innkeeper/x",
    ] {
        assert!(!guest.as_session(&format!("echo x >> {path}")).ok(), "{path}");
    }
    let denied = |guest: &RunningBox| {
        assert_eq!(guest.client(AGENT, &["dns", "127.0.0.53", "x.evil.test"]).out, "NXDOMAIN\n");
        assert!(guest.client(AGENT, &["dns", "127.0.0.53", "two.test"]).out.starts_with("NOERROR"));
    };
    // Where the operator stands when saying so makes no difference.
    let reload = format!("cd /workspace && env {} innkeeper reload", "INNKEEPER_NETWORK_ALLOW=x.evil.test");
    guest.exec_root(&reload).expect("reload");
    denied(&guest);
    guest.stop();
    denied(&rig.boot(&options));
}

/// Says with which uid it runs, and passes on.
const CANARY: &str = "#!/bin/sh\n/usr/bin/id -u >> /tmp/canary\nexit 0\n";

#[test]
fn t77_a_hostile_repository_runs_nothing_as_root() {
    let Some(rig) = Rig::new() else { return };
    let options = BoxOptions::new().env("REPO_URL", "https://github.com/acme/widgets");
    let guest = rig.boot(&options);
    guest.await_status("the repository", |status| status["repositories"][0]["state"] == "cloned");
    guest.write_as_agent("/tmp/canary.sh", CANARY);
    let hostile = guest.as_session(
        "chmod +x /tmp/canary.sh; cd /workspace/repo && for k in core.fsmonitor core.sshCommand core.pager core.editor \
            diff.external credential.helper gpg.program core.askPass uploadpack.packObjectsHook; do \
            git config $k /tmp/canary.sh; done; git config core.hooksPath /tmp/hooks; git config alias.status '!/tmp/canary.sh'; \
         mkdir -p /tmp/hooks; for h in post-checkout pre-commit post-index-change reference-transaction; do \
            cp /tmp/canary.sh /tmp/hooks/$h; done; cp -r .git /workspace/.git; rm -f /tmp/canary; git status >/dev/null; cat /tmp/canary",
    );
    assert!(hostile.out.contains("1000"), "the trap works on whoever runs git there: {hostile:?}");
    operator_looks_around(&guest, "/workspace/repo");
    let uids = guest.exec_agent("sort -u /tmp/canary").out;
    assert_eq!(uids, "1000\n");
    // What the operator ran went well all the same.
    assert_eq!(guest.status()["phase"], "ready");
}

/// Every subcommand of an operator's, from a directory of the agent's.
fn operator_looks_around(guest: &RunningBox, from: &str) {
    for command in [
        "innkeeper status",
        "innkeeper status --json",
        "innkeeper status --check ready",
        "status",
        "innkeeper check ok.test",
        "innkeeper rules",
        "innkeeper settings",
        "innkeeper reload",
        "innkeeper --help",
        "gh --version",
    ] {
        let done = guest.exec(ROOT, &format!("cd {from} && {command} >/dev/null"));
        assert!(done.code.is_some_and(|code| code < 126), "{command}: {done:?}");
    }
    guest.attach_and_leave(from);
}

#[test]
fn t78_programs_and_startup_files_of_the_agent_are_not_roots() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    guest.write_as_agent("/tmp/canary.sh", CANARY);
    let planted = guest.as_session(
        "chmod +x /tmp/canary.sh; for d in ~/.local/bin ~/bin ~/go/bin ~/.cargo/bin ~/.npm-global/bin /workspace /workspace/bin \
            /workspace/node_modules/.bin /tmp; do mkdir -p $d; for p in tmux git ps id ll ls bash sh nft ip iptables innkeeper status \
            attach python3 env stty tput claude gh; do cp /tmp/canary.sh $d/$p; done; done; \
         for f in ~/.bashrc ~/.profile ~/.bash_profile ~/.bash_login ~/.inputrc /workspace/.bashrc /workspace/.env /workspace/.envrc \
            /workspace/.inputrc /tmp/.bashrc; do echo '/bin/sh /tmp/canary.sh' > $f; done; /bin/rm -f /tmp/canary; PATH=/tmp ls; cat /tmp/canary",
    );
    assert!(planted.out.contains("1000"), "the trap works on whoever has such a PATH: {planted:?}");
    let path = guest.exec_root("echo $PATH").out;
    for directory in path.trim().split(':') {
        let writable = guest.exec_agent(&format!("test -w {directory}"));
        assert!(directory.starts_with('/') && !writable.ok(), "{directory} in root's PATH");
    }
    for from in ["/workspace", "/tmp", "/home/claude", "/home/claude/.local/bin"] {
        operator_looks_around(&guest, from);
        guest.exec_root(&format!("cd {from} && bash -lc true && INNKEEPER_NO_ATTACH=1 bash -ic 'ls >/dev/null; git --version >/dev/null'"));
    }
    let uids = guest.exec_agent("/usr/bin/sort -u /tmp/canary").out;
    assert!(!uids.lines().any(|uid| uid == "0"), "{uids}");
}
