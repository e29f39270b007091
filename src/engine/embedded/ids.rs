//! Which of the host's ids a box gets: a block that nobody has, by any of the files that give ids away. (pure)

use super::plan::IDS;

/// systemd leaves these unassigned between its containers' range and what some programs take for negative (systemd's
/// "Users, Groups, UIDs and GIDs"); LXD, Podman and `useradd` stay far below.
const FIRST: u32 = 0x7000_0000;
const BLOCKS: u32 = 4094;

/// The base of block `number`.
fn base(number: u32) -> u32 {
    FIRST + number * IDS
}

/// Ids that are given away: (first, how many).
pub type Range = (u32, u32);

/// From the text of passwd(5) or group(5).
#[must_use]
pub fn of_accounts(text: &str) -> Vec<Range> {
    text.lines().filter_map(|line| line.split(':').nth(2)?.parse().ok()).map(|id| (id, 1)).collect()
}

/// From the text of subuid(5) or subgid(5).
#[must_use]
pub fn of_subordinates(text: &str) -> Vec<Range> {
    let range = |line: &str| {
        let mut fields = line.split(':').skip(1);
        Some((fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?))
    };
    text.lines().filter_map(range).collect()
}

/// The first block that overlaps none of these.
#[must_use]
pub fn free(taken: &[Range]) -> Option<u32> {
    let overlaps = |base: u32, (first, count): Range| {
        first < base.saturating_add(IDS) && base < first.saturating_add(count)
    };
    (0..BLOCKS).map(base).find(|base| !taken.iter().any(|range| overlaps(*base, *range)))
}

#[cfg(test)]
mod tests {
    use super::{FIRST, free, of_accounts, of_subordinates};

    #[test]
    fn a_block_that_somebody_has_is_left_to_him() {
        assert_eq!(free(&[]), Some(FIRST));
        let passwd = of_accounts("root:x:0:0:root:/root:/bin/sh\nodd:x:1879048200:1::/:/bin/sh\nbroken\n");
        assert_eq!(passwd, [(0, 1), (1_879_048_200, 1)]);
        assert_eq!(free(&passwd), Some(FIRST + 65_536));
        let sub = of_subordinates("containers:1879000000:200000\nx:y\n");
        assert_eq!(sub, [(1_879_000_000, 200_000)]);
        assert_eq!(free(&sub), Some(FIRST + 3 * 65_536));
        assert_eq!(free(&[(0, u32::MAX)]), None);
    }
}
