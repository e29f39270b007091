//! The operator's terminal: raw mode, and what is written to it.

use std::io;
use std::sync::OnceLock;

use ratatui_core::backend::{Backend, ClearType, WindowSize};
use ratatui_core::buffer::Cell;
use ratatui_core::layout::{Position, Size};
use ratatui_core::style::{Color, Modifier};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::WatchError;
use crate::session::tty;

/// What was before; also for who restores it after a panic.
static BEFORE: OnceLock<Termios> = OnceLock::new();

/// The alternate screen, without a cursor and without wrapping; and all of that taken back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J\x1b[H";
const LEAVE: &str = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Raw mode and the alternate screen; both end with it, however that comes.
#[derive(Debug)]
pub(super) struct RawMode(());

impl RawMode {
    pub(super) fn enter() -> Result<Self, WatchError> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin).map_err(|_| WatchError::NoTerminal)?;
        tcgetattr(rustix::stdio::stdout()).map_err(|_| WatchError::NoTerminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Entered once in the life of this process.
        drop(BEFORE.set(before));
        tty::restore_after_panic(restore);
        tcsetattr(stdin, OptionalActions::Now, &raw).map_err(WatchError::Mode)?;
        let entered = Self(());
        // A terminal that does not read shows nothing yet, and signals end us all the same.
        tty::write(ENTER);
        Ok(entered)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    // A terminal that is gone has nothing to be restored.
    tty::write(LEAVE);
    if let Some(before) = BEFORE.get() {
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before).ok();
    }
}

/// Draws cells by the sequences that every terminal knows (ECMA-48).
#[derive(Debug, Default)]
pub(super) struct Output {
    pending: String,
    /// The terminal did not take all of a picture: the next one is drawn whole.
    pub(super) lost: bool,
}

impl Output {
    fn style(&mut self, cell: &Cell) {
        self.pending.push_str("\x1b[0");
        for (modifier, code) in [(Modifier::BOLD, ";1"), (Modifier::DIM, ";2"), (Modifier::REVERSED, ";7")] {
            if cell.modifier.contains(modifier) {
                self.pending.push_str(code);
            }
        }
        match cell.fg {
            Color::Red => self.pending.push_str(";31"),
            Color::Green => self.pending.push_str(";32"),
            Color::Yellow => self.pending.push_str(";33"),
            // No other is used.
            _ => {}
        }
        self.pending.push('m');
    }
}

impl Backend for Output {
    type Error = io::Error;

    fn draw<'a, I: Iterator<Item = (u16, u16, &'a Cell)>>(&mut self, content: I) -> io::Result<()> {
        let mut at = None;
        let mut last: Option<&Cell> = None;
        for (x, y, cell) in content {
            if at != Some((x, y)) {
                self.pending.push_str(&format!("\x1b[{};{}H", u32::from(y) + 1, u32::from(x) + 1));
            }
            if last.is_none_or(|last| (last.fg, last.modifier) != (cell.fg, cell.modifier)) {
                self.style(cell);
            }
            let plain = cell.symbol().chars().map(|c| if c.is_control() { '?' } else { c });
            self.pending.extend(plain);
            // A symbol may be two columns wide: only what follows a plain one is known to be next to it.
            at = cell.symbol().is_ascii().then_some((x.saturating_add(1), y));
            last = Some(cell);
        }
        Ok(())
    }

    fn hide_cursor(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn show_cursor(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn get_cursor_position(&mut self) -> io::Result<Position> {
        // Asking the terminal would make it type; nothing here needs to know.
        Ok(Position::ORIGIN)
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, _: P) -> io::Result<()> {
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.pending.push_str("\x1b[0m\x1b[2J");
        Ok(())
    }

    fn clear_region(&mut self, _: ClearType) -> io::Result<()> {
        self.clear()
    }

    /// A terminal without a size gets what everybody has; a large one is drawn up to a bound.
    fn size(&self) -> io::Result<Size> {
        let size = tcgetwinsize(rustix::stdio::stdout())?;
        let or = |given: u16, standard: u16| if given == 0 { standard } else { given.min(MOST) };
        Ok(Size::new(or(size.ws_col, 80), or(size.ws_row, 24)))
    }

    fn window_size(&mut self) -> io::Result<WindowSize> {
        Ok(WindowSize { columns_rows: self.size()?, pixels: Size::ZERO })
    }

    fn flush(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        // Bounded, so that a terminal that does not read keeps no signal waiting; one that is gone is told by its keys.
        self.lost |= !tty::write(&pending);
        Ok(())
    }
}

/// Columns or rows: two buffers of cells are kept.
const MOST: u16 = 500;
