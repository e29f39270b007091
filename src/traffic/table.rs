//! What was carried, by name and port; bounded. (pure)

use std::collections::HashMap;

use super::message::Connection;
use crate::status::report::Traffic;

/// Rows beside the one for all others. Names below a wildcard are the agent's to make up.
const MAX_ROWS: usize = 1024;
/// What stands for names that are too many to list. No name of a host has a bracket.
pub const OTHERS: &str = "(others)";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    connections: u64,
    sent: u64,
    received: u64,
}

impl Sum {
    fn add(&mut self, more: Self) {
        self.connections = self.connections.saturating_add(more.connections);
        self.sent = self.sent.saturating_add(more.sent);
        self.received = self.received.saturating_add(more.received);
    }

    fn octets(self) -> u64 {
        self.sent.saturating_add(self.received)
    }
}

/// The sums.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: HashMap<(String, u16), Sum>,
    others: Sum,
}

impl Table {
    /// Adds a connection. Where there are too many rows, the one that carried least joins the others: whoever carries
    /// much stays visible, however many small ones there are.
    pub fn add(&mut self, name: &str, port: u16, connection: &Connection) {
        self.carried(name, port, 1, connection.sent, connection.received);
    }

    /// Adds what was counted elsewhere.
    pub fn carried(&mut self, name: &str, port: u16, connections: u64, sent: u64, received: u64) {
        let sum = Sum { connections, sent, received };
        self.rows.entry((name.to_owned(), port)).or_default().add(sum);
        if self.rows.len() > MAX_ROWS {
            let least =
                self.rows.iter().min_by_key(|(key, sum)| (sum.octets(), *key)).map(|(key, _)| key.clone());
            if let Some(sum) = least.and_then(|key| self.rows.remove(&key)) {
                self.others.add(sum);
            }
        }
    }

    /// What went out most comes first, the others last.
    #[must_use]
    pub fn rows(&self) -> Vec<Traffic> {
        let row = |name: &str, port: u16, sum: &Sum| Traffic {
            name: name.to_owned(),
            port,
            connections: sum.connections,
            bytes_out: sum.sent,
            bytes_in: sum.received,
        };
        let mut rows: Vec<Traffic> =
            self.rows.iter().map(|((name, port), sum)| row(name, *port, sum)).collect();
        rows.sort_by(|a, b| {
            (b.bytes_out, b.bytes_in, &a.name, a.port).cmp(&(a.bytes_out, a.bytes_in, &b.name, b.port))
        });
        if self.others.connections > 0 {
            rows.push(row(OTHERS, 0, &self.others));
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_ROWS, OTHERS, Table};
    use crate::traffic::message::Connection;

    fn carried(sent: u64) -> Connection {
        let end = ("192.0.2.1".parse().unwrap(), 1);
        Connection { cookie: 1, local: end, remote: end, sent, received: 1 }
    }

    #[test]
    fn the_most_comes_first_and_ports_are_apart() {
        let mut table = Table::default();
        for (name, port, sent) in
            [("a.test", 443, 5), ("b.test", 443, 50), ("a.test", 443, 6), ("a.test", 22, 1)]
        {
            table.add(name, port, &carried(sent));
        }
        let rows: Vec<_> = table
            .rows()
            .into_iter()
            .map(|row| (row.name, row.port, row.connections, row.bytes_out))
            .collect();
        assert_eq!(
            rows,
            [("b.test".into(), 443, 1, 50), ("a.test".into(), 443, 2, 11), ("a.test".into(), 22, 1, 1)]
        );
    }

    #[test]
    fn a_flood_of_names_hides_nobody_who_carries_much_and_loses_nothing() {
        let mut table = Table::default();
        table.add("thief.test", 443, &carried(1 << 30));
        for i in 0..5_000 {
            table.add(&format!("n{i}.test"), 443, &carried(1));
        }
        let rows = table.rows();
        assert_eq!(rows.len(), MAX_ROWS + 1);
        assert_eq!(rows[0].name, "thief.test");
        assert_eq!(rows[MAX_ROWS].name, OTHERS);
        let total: u64 = rows.iter().map(|row| row.bytes_out).sum();
        assert_eq!(total, (1 << 30) + 5_000);
        assert_eq!(rows.iter().map(|row| row.connections).sum::<u64>(), 5_001);
    }
}
