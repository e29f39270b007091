//! How many processes a uid already has: RLIMIT_NPROC counts it over the whole host, other containers included, so a
//! limit for the agent can only be set relative to that.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Beyond this nobody counts: /proc/sys/kernel/pid_max on 64-bit machines.
const MOST: u64 = 1 << 22;

/// Counts the tasks of this process's uid, in the way that the kernel does: by the limit at which a thread can still be
/// started (fork(2), EAGAIN). Must run as that uid and without capabilities, which the limit does not hold for.
#[must_use]
pub fn in_use() -> Option<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NPROC).ok()?;
    let (mut refused, mut granted) = (0, hard.min(MOST));
    while granted - refused > 1 {
        let middle = refused + (granted - refused) / 2;
        setrlimit(Resource::RLIMIT_NPROC, middle, hard).ok()?;
        match std::thread::Builder::new().spawn(|| ()) {
            Ok(thread) => {
                thread.join().ok()?;
                granted = middle;
            }
            Err(_) => refused = middle,
        }
    }
    Some(granted)
}

/// Processes that stay free for PID 1, its workers and the operator's commands.
const RESERVE: u64 = 64;

/// The agent's limit: what its uid has elsewhere, and of the box's own bound all but a reserve.
#[must_use]
pub fn limit(in_use: u64, bound: u64) -> u64 {
    in_use.saturating_add(bound.saturating_sub(RESERVE.min(bound / 4)))
}

#[cfg(test)]
mod tests {
    use super::limit;

    #[test]
    fn t85_a_reserve_stays_whatever_the_bound() {
        assert_eq!(limit(0, 200), 150);
        assert_eq!(limit(1500, 4096), 1500 + 4096 - 64);
        assert_eq!(limit(10, 4), 13);
    }
}
