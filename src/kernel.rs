//! Where the box is a virtual machine, the kernel is ours: settings that no namespace has, and the power. In a container
//! they are the host's, and stay as they are.

use std::path::Path;

use nix::sys::reboot::{RebootMode, reboot};

/// The pid namespace that the kernel booted with (include/linux/proc_ns.h, `PROC_PID_INIT_INO`).
const INITIAL_PIDS: &str = "pid:[4026531836]";

/// Settings below /proc/sys (Documentation/admin-guide/sysctl), and what for.
const SETTINGS: [(&str, &str); 6] = [
    // Keystrokes pushed into a terminal of somebody else's.
    ("dev/tty/legacy_tiocsti", "0"),
    ("kernel/dmesg_restrict", "1"),
    ("kernel/kptr_restrict", "2"),
    ("kernel/unprivileged_bpf_disabled", "1"),
    ("kernel/kexec_load_disabled", "1"),
    ("kernel/sysrq", "0"),
];

/// Whether this process runs beside the kernel's first one, or is it.
#[must_use]
pub fn initial_pids() -> bool {
    std::fs::read_link("/proc/self/ns/pid").unwrap_or_default() == Path::new(INITIAL_PIDS)
}

/// Sets what can be set; returns what is not as it should be, unless this kernel does not have it at all.
#[must_use]
pub fn harden() -> Vec<String> {
    let wrong = SETTINGS.iter().filter_map(|(name, value)| {
        let path = Path::new("/proc/sys").join(name);
        if !path.exists() {
            return None;
        }
        let written = std::fs::write(&path, value);
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        let found = found.trim();
        // bpf's switch may have been locked at a stricter value.
        let stricter = *name == "kernel/unprivileged_bpf_disabled" && found == "2";
        let why = written.err().map_or_else(String::new, |error| format!(": {error}"));
        (found != *value && !stricter).then(|| format!("{} is {found}, not {value}{why}", path.display()))
    });
    wrong.collect()
}

/// Ends the machine whose first process we are; its kernel would panic if that ended. Returns only in a container.
pub fn power_off() {
    if std::process::id() == 1 && initial_pids() {
        nix::unistd::sync();
        reboot(RebootMode::RB_POWER_OFF).ok();
    }
}
