//! Root's shell beside the session: nothing of the agent's is in it, and nothing of it reaches the agent.

use super::rig::{BoxOptions, Rig};
use super::terminal::Terminal;
use super::{enter, log};

/// Writes down who runs it.
const CANARY: &str = "#!/bin/sh\n/usr/bin/id -u >> /tmp/canary\nexit 0\n";

#[test]
fn t78_roots_shell_runs_nothing_of_the_agents() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    guest.write_as_agent("/tmp/canary.sh", CANARY);
    let planted = guest.as_session(
        "chmod +x /tmp/canary.sh; for d in ~/.local/bin /workspace /tmp; do mkdir -p $d; for p in tmux git ps id ll ls \
            bash stty env innkeeper python3; do cp /tmp/canary.sh $d/$p; done; done; \
         for f in ~/.bashrc ~/.inputrc /workspace/.bashrc /workspace/.env /workspace/.inputrc /tmp/.bashrc; do \
            echo '/bin/sh /tmp/canary.sh' > $f; done; /bin/ls /tmp /workspace ~ -a",
    );
    assert!(planted.out.contains(".inputrc"), "{planted:?}");
    let hostile = [
        "-w",
        "/workspace",
        "-e",
        "PATH=/workspace:/home/claude/.local/bin:/tmp:/usr/bin:/bin",
        "-e",
        "LD_LIBRARY_PATH=/workspace",
        "-e",
        "BASH_ENV=/workspace/.env",
        "-e",
        "ENV=/workspace/.env",
        "-e",
        "INPUTRC=/workspace/.inputrc",
        "-e",
        "HOME=/workspace",
        "-e",
        "PROMPT_COMMAND=/tmp/canary.sh",
        "-e",
        "PS1=$(/tmp/canary.sh)",
    ];
    // The trap works on a root who is careless.
    let careless = [&["docker", "exec"], &hostile[..], &[&guest.name, "bash", "-c", "id"]].concat();
    super::rig::run(careless[0], &careless[1..]);
    let uids = || guest.exec_agent("/usr/bin/sort -u /tmp/canary 2>/dev/null").out;
    assert!(uids().lines().any(|uid| uid == "0"), "{}", uids());
    guest.exec_agent("/bin/rm -f /tmp/canary");
    guest.exec_root("rm -f /tmp/canary");

    for way in
        [&["/usr/local/bin/innkeeper", "shell"][..], &["/usr/local/bin/innkeeper", "attach", "--no-attach"]]
    {
        let argv = [&["docker", "exec", "-it"], &hostile[..], &[guest.name.as_str()], way].concat();
        let mut terminal = Terminal::run(&argv, 80, 24);
        terminal.keys("ls; git --version; id; ps; echo $PATH:$HOME:$PWD-$((40+2))\r");
        terminal.sees("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/root:/-42");
        terminal.forget();
        terminal.keys("env | sort | tr '\\n' ' '; tty; echo end-$((40+2))\r");
        terminal.sees("end-42");
        let shown = terminal.text();
        for word in ["workspace", "LD_", "BASH_ENV", "/tmp", "PROMPT_COMMAND", "ghp_", "sk-ant"] {
            assert!(!shown.contains(word), "{word}: {shown}");
        }
        assert!(shown.contains("/dev/pts/"), "a terminal of its own: {shown}");
        terminal.keys("exit\r");
        assert_eq!(terminal.ends(), 0);
        assert!(terminal.is_restored());
    }
    assert!(!uids().lines().any(|uid| uid == "0"), "{}", uids());
    assert_eq!(log(&guest, "operator").iter().filter(|entry| entry["place"] == "shell").count(), 4);
}

#[test]
fn t91_a_file_of_the_agents_that_root_looks_at_types_nothing() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    guest.await_session();
    guest.write_as_agent(
        "/workspace/evil",
        "\x1b]52;c;ZXZpbA==\x07\x1b]2;touch /tmp/pwned\x07\x1b[21t\x1b[6n\x05\x1bP$qm\x1b\\\x1b[31mshown\n",
    );
    let mut plain = enter(&guest, &["bash", "--norc"], 80, 24);
    plain.keys("cat /workspace/evil\r");
    plain.sees("shown");
    assert!(plain.saw("\x1b]52;") && plain.saw("\x1b[21t"), "the file is what it should be");
    let mut terminal = enter(&guest, &["innkeeper", "shell"], 80, 24);
    terminal.keys("cat /workspace/evil\r");
    terminal.sees("\x1b[31mshown");
    for bad in ["\x1b]", "\x1b[21t", "\x1b[6n", "\x05", "\x1bP"] {
        assert!(!terminal.saw(bad), "{bad:?}: {:?}", terminal.text());
    }
}

#[test]
fn commands_without_a_terminal_stay_as_they_are_and_the_shell_is_roots_alone() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    assert_eq!(guest.exec_program("0", &["sh", "-c", "echo plain; id -u"]).out, "plain\n0\n");
    let without = guest.innkeeper(&["shell"]);
    assert!(!without.ok() && without.err.contains("standard input is not a terminal"), "{without:?}");
    assert!(guest.exec_agent("innkeeper shell").err.contains("only root"));
    // By hand, the way of root's login.
    let mut terminal = enter(&guest, &["env", "INNKEEPER_NO_ATTACH=1", "bash"], 80, 24);
    terminal.keys("echo $INNKEEPER_SHELL-$((40+2)); bash\r");
    terminal.sees("1-42");
    terminal.keys("echo nested-$((40+2)); exit\r");
    terminal.sees("nested-42");
    terminal.keys("exit\r");
    assert_eq!(terminal.ends(), 0);
    assert_eq!(log(&guest, "operator").len(), 2);
}

/// A program that writes much and ends: all of it is there, to the last line.
#[test]
fn what_a_program_writes_last_is_shown() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    for _ in 0..5 {
        let mut terminal = enter(&guest, &["innkeeper", "shell"], 80, 24);
        terminal.keys("exec python3 -c 'print(\"x\" * 300000 + \"the-\" + \"end\")'\r");
        terminal.sees("the-end");
    }
}
