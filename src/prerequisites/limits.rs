//! How much the box may use: memory and processes, of the cgroup or of the machine.

/// Both versions of cgroups, where the runtime shows them.
const MEMORY: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
const PIDS: [&str; 2] = ["/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"];
const THREADS: &str = "/proc/sys/kernel/threads-max";
/// Without a limit of the cgroup the agent gets at most this: many more than a build starts.
const MOST_PROCESSES: u64 = 32_768;

/// The number that a file of the kernel holds; none where it says `max`, or is not there.
fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What the machine has.
#[must_use]
pub fn machine_memory() -> u64 {
    <procfs::Meminfo as procfs::Current>::current().map_or(u64::MAX, |info| info.mem_total)
}

/// The cgroup's limit of memory, if it has one that is below what the machine has.
#[must_use]
pub fn memory_limit() -> Option<u64> {
    MEMORY.iter().find_map(|path| number(path)).filter(|limit| *limit < machine_memory())
}

/// The memory that the box may use: the cgroup's limit, else the machine's.
#[must_use]
pub fn memory() -> u64 {
    memory_limit().unwrap_or_else(machine_memory)
}

/// The cgroup's limit of processes.
#[must_use]
pub fn process_limit() -> Option<u64> {
    PIDS.iter().find_map(|path| number(path))
}

/// The threads that the whole machine may have.
#[must_use]
pub fn threads_max() -> u64 {
    number(THREADS).unwrap_or(MOST_PROCESSES)
}

/// How many processes the box may have: the cgroup's limit, else a share of the machine's.
#[must_use]
pub fn processes() -> u64 {
    process_limit().unwrap_or_else(|| (threads_max() / 2).min(MOST_PROCESSES))
}
