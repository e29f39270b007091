//! The agent owns the tmux server and attacks whoever comes: THREATS.md section 2, R1 to R3 and R19.

use super::rig::{BoxOptions, ROOT, Rig, RunningBox};
use super::terminal::Terminal;
use super::{SOCKET, attach, enter, until};

/// The careless way in that the relay replaces: root is the client of the agent's server.
fn careless(guest: &RunningBox) -> Terminal {
    let terminal = enter(guest, &["tmux", "-S", SOCKET, "attach"], 80, 24);
    until("a client of root's", || clients(guest).contains(" 0\n"));
    terminal
}

/// The terminal and uid of every client, as the server sees them.
fn clients(guest: &RunningBox) -> String {
    guest.tmux(&["list-clients", "-F", "#{client_tty} #{client_uid}"]).out
}

fn detach_with(guest: &RunningBox, command: &str) {
    guest.tmux(&["detach-client", "-s", "claude", "-E", command]).expect("detach-client");
}

/// A session whose program is of no interest here.
fn quiet(rig: &Rig) -> RunningBox {
    let guest = rig.boot(&BoxOptions::new());
    guest.await_status("a session", |status| status["session"]["state"] == "running");
    guest
}

#[test]
fn t87_r1_a_command_given_to_the_operators_client_runs_as_the_agent() {
    let Some(rig) = Rig::new() else { return };
    let guest = quiet(&rig);
    // The recipe works against a client of root's.
    let mut terminal = careless(&guest);
    detach_with(&guest, "id > /workspace/careless");
    terminal.ends();
    assert!(guest.exec_root("cat /workspace/careless").out.starts_with("uid=0(root)"));

    let mut terminal = attach(&guest, 80, 24);
    assert!(!clients(&guest).contains(" 0\n"), "{}", clients(&guest));
    let commands = "id; grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/1/environ; env; tty; \
                    for fd in /proc/self/fd/*; do readlink $fd; done";
    detach_with(&guest, &format!("({commands}) > /workspace/relayed 2>&1"));
    assert_eq!(terminal.ends(), 0);
    let found = guest.exec_root("cat /workspace/relayed").out;
    assert!(found.starts_with("uid=1000(claude) gid=1000(claude) groups=1000(claude)\n"), "{found}");
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(found.contains(line), "{line}: {found}");
    }
    assert!(!found.contains("sk-ant-oat") && !found.contains("ghp_"), "{found}");
    assert!(guest.running());
}

#[test]
fn t88_r2_command_aliases_read_and_write_nothing_of_roots() {
    let Some(rig) = Rig::new() else { return };
    let guest = quiet(&rig);
    let aliases = [
        "list-sessions",
        "has-session",
        "select-pane",
        "attach-session",
        "display-message",
        "new-session",
        "start-server",
        "list-clients",
        "show-options",
        "switch-client",
        "refresh-client",
    ];
    for (index, name) in aliases.iter().enumerate() {
        let meaning = format!(
            "{name}=load-buffer -b loot /etc/shadow ; set-buffer -b pay agent ; save-buffer -b pay /run/innkeeper/root-wrote ; ls"
        );
        guest.tmux(&["set", "-s", &format!("command-alias[{}]", 90 + index), &meaning]).expect("the alias");
    }
    let loot = || guest.tmux(&["show-buffer", "-b", "loot"]);
    let written = || guest.exec_root("cat /run/innkeeper/root-wrote");

    // What the operator does: attach, look, check; root's tools never become clients.
    let mut terminal = enter(&guest, &["innkeeper", "attach"], 80, 24);
    // Attaching is one of the aliases: it ends at once, or it comes in; either way as the agent.
    terminal.ends();
    guest.status();
    guest.innkeeper(&["status"]).expect("status");
    guest.innkeeper(&["status", "--check", "ready"]).expect("ready");
    guest.exec_root("bash -lic true");
    assert!(!loot().out.contains("root:"), "{:?}", loot());
    assert!(!written().ok(), "{:?}", written());

    // The recipe works against root's harmless-looking list-sessions.
    guest.exec_program(ROOT, &["tmux", "-S", SOCKET, "list-sessions"]);
    assert!(loot().out.contains("root:"), "{:?}", loot());
    assert_eq!(written().out, "agent");
}

/// Types a command into whatever terminal it runs on.
const TYPIST: &str = r#"python3 -c "
import fcntl
for c in 'id>/workspace/NAME\n': fcntl.ioctl(0, 0x5412, c.encode())
""#;

#[test]
fn t89_r3_what_the_agent_types_into_the_clients_terminal_does_not_reach_roots_shell() {
    let Some(rig) = Rig::new() else { return };
    let guest = quiet(&rig);
    let mut terminal = enter(&guest, &["bash", "--norc"], 80, 24);
    let roots_shell_answers = |terminal: &mut Terminal, word: &str| {
        terminal.keys(&format!("echo {word}-$((40+2))\r"));
        terminal.sees(&format!("{word}-42"));
    };
    // The recipe works against a client that only dropped its uid, where the kernel still has TIOCSTI.
    if std::fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti").is_ok_and(|text| text.trim() == "1") {
        let client = format!("setpriv --reuid 1000 --regid 1000 --clear-groups tmux -S {SOCKET} attach");
        terminal.keys(&format!("{client}\r"));
        until("a client", || !clients(&guest).is_empty());
        detach_with(&guest, &TYPIST.replace("NAME", "careless"));
        roots_shell_answers(&mut terminal, "careless");
        assert!(guest.exec_root("cat /workspace/careless").out.starts_with("uid=0(root)"));
    }
    terminal.forget();
    terminal.keys("innkeeper attach; echo over-$((40+2))\r");
    terminal.sees("Leave with Ctrl-b d");
    detach_with(&guest, &TYPIST.replace("NAME", "relayed"));
    terminal.sees("over-42");
    roots_shell_answers(&mut terminal, "after");
    assert!(!guest.exec_root("test -e /workspace/relayed").ok(), "{}", terminal.text());
}

#[test]
fn t89_what_is_typed_at_a_false_prompt_is_never_run_by_root() {
    let Some(rig) = Rig::new() else { return };
    let guest = quiet(&rig);
    let mut terminal = enter(&guest, &["bash", "--norc"], 80, 24);
    terminal.keys("innkeeper attach\r");
    terminal.sees("Leave with Ctrl-b d");
    detach_with(
        &guest,
        "printf 'root@box:/# '; read -r line; echo \"$line\" >/workspace/typed; sh -c \"$line\"",
    );
    terminal.sees("root@box:/# ");
    terminal.keys("id > /workspace/ran\r");
    // The end of the relay is said by the relay, below the false prompt.
    terminal.sees("the box keeps running]");
    terminal.keys("echo real-$((40+2))\r");
    terminal.sees("real-42");
    assert_eq!(guest.exec_root("cat /workspace/typed").out, "id > /workspace/ran\n");
    assert!(guest.exec_root("cat /workspace/ran").out.starts_with("uid=1000(claude)"));
}

/// Sequences that an operator's terminal must never get, by a part that shows them.
const HOSTILE: &[(&str, &str)] = &[
    ("clipboard", "\\033]52;c;ZXZpbA==\\007"),
    ("clipboard read", "\\033]52;c;?\\033\\\\"),
    ("title", "\\033]0;evil-title\\007"),
    ("title by ESC k", "\\033kevil-title\\033\\\\"),
    ("title report", "\\033[21t"),
    ("resize", "\\033[8;10;10t"),
    ("device attributes", "\\033[c"),
    ("secondary attributes", "\\033[>c"),
    ("cursor report", "\\033[6n"),
    ("identify", "\\033Z"),
    ("answerback", "\\005"),
    ("DECRQSS", "\\033P$qm\\033\\\\"),
    ("XTGETTCAP", "\\033P+q544e\\033\\\\"),
    ("passthrough", "\\033Ptmux;\\033\\033]52;c;ZXZpbA==\\007\\033\\\\"),
    ("APC", "\\033_Gi=1;AAAA\\033\\\\"),
    ("print", "\\033[5i"),
    ("version", "\\033[>q"),
    ("notification", "\\033]777;notify;evil-title\\007"),
];

/// What of the hostile came through, by its raw bytes.
fn came_through(bytes: &[u8]) -> Vec<&'static str> {
    let raw = |text: &str| {
        let text = text.replace("\\033", "\x1b").replace("\\007", "\x07").replace("\\005", "\x05");
        text.replace("\\\\", "\\").into_bytes()
    };
    let is_in = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    HOSTILE.iter().filter(|(_, text)| is_in(&raw(text))).map(|(name, _)| *name).collect()
}

#[test]
fn t91_r19_what_would_write_the_clipboard_or_make_the_terminal_answer_stays_in_the_box() {
    let Some(rig) = Rig::new() else { return };
    let guest = quiet(&rig);
    let all: String = HOSTILE.iter().map(|(_, text)| *text).collect();
    let print = format!("printf 'shown-before{all}\\033[31mshown-after\\033[0m'");
    // Without the relay every one of them arrives.
    let mut terminal = careless(&guest);
    terminal.forget();
    detach_with(&guest, &print);
    terminal.sees("shown-after");
    assert_eq!(came_through(terminal.bytes()).len(), HOSTILE.len());
    terminal.ends();

    let mut terminal = attach(&guest, 80, 24);
    terminal.forget();
    detach_with(&guest, &print);
    terminal.sees("shown-after");
    terminal.ends();
    assert_eq!(came_through(terminal.bytes()), Vec::<&str>::new(), "{}", terminal.text());
    assert!(terminal.saw("\x1b[31mshown-after"), "colour passes: {:?}", terminal.text());
    assert!(!terminal.saw("evil-title") && !terminal.saw("ZXZpbA"), "{:?}", terminal.text());
}

#[test]
fn t91_r19_what_a_pane_prints_reaches_no_clipboard_even_if_the_agent_turns_tmuxs_options() {
    let Some(rig) = Rig::new() else { return };
    let guest = quiet(&rig);
    let options = "set -g allow-passthrough all; set -s set-clipboard on; set -g set-titles on; \
                   set -g set-titles-string evil-title; set -as terminal-features '*:clipboard:title'";
    let print = "printf '\\033]52;c;ZXZpbA==\\007\\033]2;evil-title\\007\\033Ptmux;\\033\\033]52;c;ZXZpbA==\\007\\033\\\\shown-%s' after";
    for command in options.split(';') {
        let words: Vec<&str> = command.split_whitespace().map(|word| word.trim_matches('\'')).collect();
        guest.tmux(&words).expect(command);
    }
    let mut terminal = careless(&guest);
    terminal.forget();
    guest.type_into_pane("1", print);
    terminal.sees("shown-after");
    // The title comes when tmux next looks at it, perhaps before the text: the clipboard is the control.
    assert!(terminal.saw("\x1b]52;"), "without the relay: {:?}", terminal.text());
    guest.tmux(&["detach-client", "-s", "claude"]).expect("detach");
    terminal.ends();

    let mut terminal = attach(&guest, 80, 24);
    guest.type_into_pane("1", "clear");
    terminal.forget();
    guest.type_into_pane("1", print);
    terminal.sees("shown-after");
    terminal.keys("\x02d");
    terminal.ends();
    assert!(!terminal.saw("\x1b]"), "{:?}", terminal.text());
}
