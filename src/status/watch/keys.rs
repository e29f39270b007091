//! Keys, out of the octets that a terminal sends. (pure)

/// A key that means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    /// Ctrl-C, Ctrl-D.
    Interrupt,
    Character(char),
}

/// The longest sequence of a key; what is longer is none.
const MAX_SEQUENCE: usize = 16;

/// Collects octets: a sequence may come in pieces.
#[derive(Debug, Default)]
pub(super) struct Keys {
    held: Vec<u8>,
}

impl Keys {
    /// Whether a sequence has begun and may go on.
    pub(super) fn is_open(&self) -> bool {
        !self.held.is_empty()
    }

    pub(super) fn press(&mut self, bytes: &[u8]) -> Vec<Key> {
        bytes.iter().filter_map(|byte| self.take(*byte)).collect()
    }

    /// Nothing more came: an escape character alone is the key.
    pub(super) fn rest(&mut self) -> Vec<Key> {
        let alone = self.held == [ESC];
        self.held.clear();
        if alone { vec![Key::Escape] } else { Vec::new() }
    }

    fn take(&mut self, byte: u8) -> Option<Key> {
        match (self.held.as_slice(), byte) {
            ([], ESC) => {
                self.held.push(byte);
                None
            }
            ([], _) => plain(byte),
            ([ESC], b'[' | b'O') => {
                self.held.push(byte);
                None
            }
            // Escape, and then another key.
            ([ESC], _) => {
                self.held.clear();
                self.take(byte)
            }
            (_, 0x40..=0x7e) => {
                let sequence = std::mem::take(&mut self.held);
                named(sequence.get(2..).unwrap_or_default(), byte)
            }
            (held, _) => {
                if held.len() < MAX_SEQUENCE {
                    self.held.push(byte);
                }
                None
            }
        }
    }
}

const ESC: u8 = 0x1b;

fn plain(byte: u8) -> Option<Key> {
    match byte {
        b'\r' | b'\n' => Some(Key::Enter),
        0x03 | 0x04 => Some(Key::Interrupt),
        0x20..=0x7e => Some(Key::Character(char::from(byte))),
        _ => None,
    }
}

/// xterm's and VT220's, without and with the numbers of modifiers.
fn named(parameters: &[u8], last: u8) -> Option<Key> {
    match (parameters.first(), last) {
        (_, b'A') => Some(Key::Up),
        (_, b'B') => Some(Key::Down),
        (_, b'H') | (Some(b'1' | b'7'), b'~') => Some(Key::Home),
        (_, b'F') | (Some(b'4' | b'8'), b'~') => Some(Key::End),
        (Some(b'5'), b'~') => Some(Key::PageUp),
        (Some(b'6'), b'~') => Some(Key::PageDown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, Keys};

    #[test]
    fn keys_are_known_however_their_octets_are_split() {
        let typed = b"a\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[1;5H\x1b[4~\r\x03q";
        let expected = [
            Key::Character('a'),
            Key::Up,
            Key::Down,
            Key::PageUp,
            Key::PageDown,
            Key::Home,
            Key::End,
            Key::Enter,
            Key::Interrupt,
            Key::Character('q'),
        ];
        for size in 1..typed.len() {
            let mut keys = Keys::default();
            let pressed: Vec<Key> = typed.chunks(size).flat_map(|piece| keys.press(piece)).collect();
            assert_eq!(pressed, expected, "{size}");
        }
    }

    #[test]
    fn escape_alone_is_a_key_once_nothing_follows() {
        let mut keys = Keys::default();
        assert!(keys.press(b"\x1b").is_empty() && keys.is_open());
        assert_eq!(keys.rest(), [Key::Escape]);
        assert!(!keys.is_open() && keys.rest().is_empty());
        assert_eq!(keys.press(b"\x1bx"), [Key::Character('x')]);
    }

    #[test]
    fn answers_and_garbage_are_no_keys() {
        let mut keys = Keys::default();
        assert!(keys.press(b"\x1b[?62;c\x1b[200~\x1b[12;40R\xff\xfe\x00").is_empty());
        let long = [b"\x1b[".as_slice(), &[b'1'; 5000], b"q"].concat();
        assert!(keys.press(&long).is_empty(), "the rest of a long sequence is none either");
        assert_eq!(keys.press(b"q"), [Key::Character('q')]);
    }
}
