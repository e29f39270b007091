//! What may pass from the session to an operator's terminal. (pure)
//!
//! The bytes are the agent's. Colour, cursor, mouse modes, hyperlinks and text pass; whatever writes the clipboard,
//! sets a title, passes through to another program or makes the terminal *answer* (the answer would be typed into
//! whatever reads the operator's keyboard next) does not. Works on bytes that are split anywhere: a sequence is held
//! back until it is known whole. See ECMA-48 and xterm's "Control Sequences" (ctlseqs).

/// Takes back what a program that was killed left set: alternate screen, mouse reports, focus reports, bracketed paste,
/// key modes, hidden cursor, colours.
pub const RESET: &str =
    "\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2004l\x1b[>4;0m\x1b[?25h\x1b[0m";

/// The longest sequence that is held; a longer one is dropped to its end.
const MAX_SEQUENCE: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ground,
    /// After 0xC2, which may begin a C1 control in UTF-8 (U+0080 to U+009F).
    Utf8C2,
    Escape,
    /// ESC with intermediates: character sets and the like.
    EscapeIntermediate,
    Csi,
    Osc,
    OscEscape,
    /// DCS, SOS, PM, APC: dropped as a whole.
    String,
    StringEscape,
}

/// The filter of one attached terminal.
#[derive(Debug)]
pub struct Filter {
    state: State,
    held: Vec<u8>,
    overlong: bool,
    removed: u64,
}

impl Default for Filter {
    fn default() -> Self {
        Self { state: State::Ground, held: Vec::new(), overlong: false, removed: 0 }
    }
}

const ESC: u8 = 0x1b;
const BEL: u8 = 0x07;
const ENQ: u8 = 0x05;
const CAN: u8 = 0x18;
const SUB: u8 = 0x1a;

impl Filter {
    /// Appends to `out` what of `bytes` may pass.
    pub fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for byte in bytes {
            self.step(*byte, out);
        }
    }

    /// How many sequences were removed.
    #[must_use]
    pub fn removed(&self) -> u64 {
        self.removed
    }

    fn step(&mut self, byte: u8, out: &mut Vec<u8>) {
        match (self.state, byte) {
            (State::Ground, ESC) => self.begin(State::Escape, byte),
            (State::Ground, 0xc2) => self.begin(State::Utf8C2, byte),
            // ENQ asks for the answerback string.
            (State::Ground, ENQ) => self.removed += 1,
            (State::Ground, byte) => out.push(byte),
            (State::Utf8C2, 0x80..=0x9f) => self.drop_held(),
            (State::Utf8C2, 0xa0..=0xbf) => {
                self.release(out);
                out.push(byte);
            }
            // No UTF-8, and let through it could make a C1 control of an octet further on.
            (State::Utf8C2, byte) => {
                self.drop_held();
                self.step(byte, out);
            }
            // CAN and SUB end any sequence without effect; a new ESC begins another.
            (State::Escape | State::EscapeIntermediate | State::Csi, CAN | SUB) => self.drop_held(),
            (State::Osc | State::String | State::OscEscape | State::StringEscape, CAN | SUB) => {
                self.drop_held();
            }
            (State::Escape | State::EscapeIntermediate | State::Csi, ESC) => {
                self.drop_held();
                self.begin(State::Escape, byte);
            }
            (State::Escape, _) => self.escape(byte, out),
            (State::EscapeIntermediate, 0x20..=0x2f) => self.hold(byte),
            (State::EscapeIntermediate, _) => self.finish(byte, (0x30..=0x7e).contains(&byte), out),
            (State::Csi, 0x40..=0x7e) => {
                let passes = csi_passes(self.held.get(2..).unwrap_or_default(), byte);
                self.finish(byte, passes, out);
            }
            (State::Csi, 0x20..=0x3f) => self.hold(byte),
            // A control inside a sequence acts at once in a terminal; here it breaks the sequence off.
            (State::Csi, _) => self.drop_held(),
            (State::Osc, BEL) => self.end_osc(byte, out),
            (State::Osc, ESC) => {
                self.hold(byte);
                self.state = State::OscEscape;
            }
            (State::Osc, _) => self.hold(byte),
            (State::OscEscape, b'\\') => self.end_osc(byte, out),
            (State::String, ESC) => self.state = State::StringEscape,
            (State::String, _) | (State::StringEscape, ESC) => {}
            (State::StringEscape, b'\\') => self.drop_held(),
            // ESC ends the string whatever follows (xterm): what follows is a sequence of its own.
            (State::OscEscape | State::StringEscape, byte) => {
                self.drop_held();
                self.begin(State::Escape, ESC);
                self.step(byte, out);
            }
        }
    }

    fn begin(&mut self, state: State, byte: u8) {
        self.state = state;
        self.overlong = false;
        self.held.clear();
        self.held.push(byte);
    }

    fn hold(&mut self, byte: u8) {
        if self.held.len() < MAX_SEQUENCE {
            self.held.push(byte);
        } else {
            self.overlong = true;
        }
    }

    fn release(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.state = State::Ground;
    }

    fn drop_held(&mut self) {
        self.held.clear();
        self.removed += 1;
        self.state = State::Ground;
    }

    fn finish(&mut self, byte: u8, passes: bool, out: &mut Vec<u8>) {
        self.hold(byte);
        if passes && !self.overlong { self.release(out) } else { self.drop_held() }
    }

    fn escape(&mut self, byte: u8, out: &mut Vec<u8>) {
        match byte {
            b'[' => {
                self.hold(byte);
                self.state = State::Csi;
            }
            b']' => {
                self.hold(byte);
                self.state = State::Osc;
            }
            // DCS, SOS, PM, APC, and tmux's and screen's title (ESC k).
            b'P' | b'X' | b'^' | b'_' | b'k' => self.state = State::String,
            0x20..=0x2f => {
                self.hold(byte);
                self.state = State::EscapeIntermediate;
            }
            // Save and restore the cursor, index, tab stop, keypad modes, full reset.
            b'7' | b'8' | b'D' | b'E' | b'H' | b'M' | b'=' | b'>' | b'c' => self.finish(byte, true, out),
            // The rest is unknown, or DECID (ESC Z), which makes the terminal answer.
            _ => self.drop_held(),
        }
    }

    fn end_osc(&mut self, byte: u8, out: &mut Vec<u8>) {
        let text = self.held.get(2..).unwrap_or_default();
        let text = text.strip_suffix(&[ESC]).unwrap_or(text);
        let passes = osc_passes(text);
        self.finish(byte, passes, out);
    }
}

/// Hyperlinks and colours that are set, not asked for. Titles, clipboard (52), notifications and the rest stay here.
fn osc_passes(text: &[u8]) -> bool {
    let number: Vec<u8> = text.iter().copied().take_while(u8::is_ascii_digit).collect();
    // A terminal may end the string at a C1 control, and take what follows for its own.
    let c1 = text.windows(2).any(|pair| matches!(pair, [0xc2, 0x80..=0x9f]));
    let control = c1 || text.iter().any(|byte| byte.is_ascii_control());
    match number.as_slice() {
        _ if control => false,
        b"8" => true,
        b"4" | b"10" | b"11" | b"12" | b"104" | b"110" | b"111" | b"112" => !text.contains(&b'?'),
        _ => false,
    }
}

/// Everything but what asks, reports, moves windows or prints. `body` is what stands between CSI and the final byte.
fn csi_passes(body: &[u8], last: u8) -> bool {
    let intermediate = body.iter().copied().find(|byte| (0x20..=0x2f).contains(byte));
    let private = body.first().copied().filter(|byte| (0x3c..=0x3f).contains(byte));
    match (private, intermediate, last) {
        // Cursor style, soft reset, and scrolling rectangles by DECCARA and others are not needed beyond these two.
        (None, Some(b' '), b'q') | (None, Some(b'!'), b'p') => true,
        (_, Some(_), _) => false,
        // Device attributes, status and position reports, parameters, window operations, media copy, checksums.
        (_, None, b'c' | b'n' | b'x' | b't' | b'i' | b'y') => false,
        // Kitty's keyboard: setting passes, asking (CSI ? u) does not; without a prefix it restores the cursor.
        (Some(b'?'), None, b'u') => false,
        // XTVERSION (CSI > q) and XTSMGRAPHICS (CSI ? S) answer.
        (Some(b'>'), None, b'q') | (Some(b'?'), None, b'S') => false,
        // Key modes: setting passes, asking (CSI ? m) does not.
        (Some(b'?'), None, b'm') => false,
        (_, None, _) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::Filter;

    fn filtered(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Filter::default().pass(bytes, &mut out);
        out
    }

    /// Fed byte by byte and in every two parts, the result must be the same.
    fn check(input: &[u8], wanted: &[u8]) {
        assert_eq!(filtered(input), wanted, "{:?}", String::from_utf8_lossy(input));
        for split in 0..=input.len() {
            let (mut filter, mut out) = (Filter::default(), Vec::new());
            filter.pass(&input[..split], &mut out);
            filter.pass(&input[split..], &mut out);
            assert_eq!(out, wanted, "split at {split}: {:?}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn text_colour_cursor_mouse_links_and_synchronized_output_pass() {
        for sequence in [
            "plain ünïcode \u{1f980}\r\n\t",
            "\x1b[38;2;1;2;3m\x1b[4:3mred\x1b[0m",
            "\x1b[2J\x1b[H\x1b[10;20H\x1b[?25l\x1b[?25h",
            "\x1b[?1000h\x1b[?1006h\x1b[?2004h\x1b[?2026h\x1b[?2026l\x1b[?1049h",
            "\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\",
            "\x1b]10;rgb:ff/ff/ff\x07",
            "\x1b(B\x1b)0\x1b7\x1b8\x1b=\x1b>",
            "\x1b[2 q\x1b[>1u\x1b[<1u\x1b[>4;2m",
        ] {
            check(sequence.as_bytes(), sequence.as_bytes());
        }
    }

    #[test]
    fn t91_clipboard_titles_passthrough_and_questions_are_removed() {
        for sequence in [
            "\x1b]52;c;ZXZpbA==\x07",
            "\x1b]52;c;?\x1b\\",
            "\x1b]0;title\x07",
            "\x1b]2;title\x1b\\",
            "\x1bktitle\x1b\\",
            "\x1b]777;notify;x\x07",
            "\x1b]1337;File=:AAAA\x07",
            "\x1b]10;?\x07",
            "\x1b]4;1;?\x07",
            "\x1bPtmux;\x1b\x1b]52;c;ZXZpbA==\x07\x1b\\",
            "\x1bP+q544e\x1b\\",
            "\x1bP$qm\x1b\\",
            "\x1b_Gi=1;AAAA\x1b\\",
            "\x1b^pm\x1b\\",
            "\x1bXsos\x1b\\",
            "\x1b[c",
            "\x1b[>c",
            "\x1b[=c",
            "\x1b[5n",
            "\x1b[6n",
            "\x1b[?6n",
            "\x1b[21t",
            "\x1b[8;1;1t",
            "\x1b[x",
            "\x1b[>q",
            "\x1b[?u",
            "\x1b[?2026$p",
            "\x1b[?1;1;0S",
            "\x1b[1;1;1;1;1;1*y",
            "\x1b[0i",
            "\x1bZ",
            "\x05",
        ] {
            let input = format!("a{sequence}b");
            let out = String::from_utf8(filtered(input.as_bytes())).unwrap();
            // tmux's doubled ESC inside a passthrough ends early here; what is left must be inert all the same.
            assert!(!out.contains('\x1b') && !out.contains('\x05'), "{sequence:?} left {out:?}");
            assert!(out.starts_with('a'), "{sequence:?}");
        }
    }

    #[test]
    fn t91_eight_bit_controls_in_utf_8_are_removed() {
        check(b"a\xc2\x9b6nb", b"a6nb");
        check("a\u{9d}52;c;eA==\u{9c}b".as_bytes(), b"a52;c;eA==b");
        check("\u{a0}\u{e9}".as_bytes(), "\u{a0}\u{e9}".as_bytes());
    }

    #[test]
    fn a_sequence_without_end_is_never_shown_and_never_grows() {
        let mut filter = Filter::default();
        let mut out = Vec::new();
        filter.pass(b"\x1b]8;;", &mut out);
        for _ in 0..100_000 {
            filter.pass(b"A", &mut out);
        }
        assert!(out.is_empty() && filter.held.len() <= super::MAX_SEQUENCE);
        filter.pass(b"\x1b\\after", &mut out);
        assert_eq!(out, b"after");
        assert_eq!(filter.removed(), 1);
    }

    #[test]
    fn a_broken_sequence_does_not_hide_the_next_one() {
        check(b"\x1b[31\x1b[6nX", b"X");
        check(b"\x1b]8;;x\x1b[6nX", b"X");
        check(b"\x1b[3\x18Y", b"Y");
        check(b"\x1b\x1b[31mZ", b"\x1b[31mZ");
    }
}
