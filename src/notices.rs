//! Notices: a program of the operator's and a webhook are told when the agent waits for a person, has finished, was denied
//! something new, or crash-loops.
//!
//! They are read off the audit log, on a thread of their own: nothing that decides ever waits for a notice. Several of a
//! kind within [`PAUSE`] are one. What a notice says of the agent is hearsay.

pub mod post;
mod reader;
mod send;
pub mod webhook;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::report::event;
use crate::seats::Seats;
use crate::status::Board;
use crate::status::report::SCHEMA;
use crate::supervisor::thread;
use reader::Reader;
pub use send::Ways;

/// What an operator can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Waiting,
    Finished,
    Denied,
    CrashLoop,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Finished, Self::Denied, Self::CrashLoop];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Finished => "finished",
            Self::Denied => "denied",
            Self::CrashLoop => "crash-loop",
        }
    }
}

/// What the program reads on its standard input, and the webhook as the body of a POST.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notice {
    pub schema: u8,
    pub notice: Kind,
    /// RFC 3339.
    pub time: String,
    pub box_id: String,
    pub box_name: String,
    /// All of it in words; chat services show this field.
    pub text: String,
    /// What Claude said last, where it has finished a turn: the agent's words.
    pub last_message: Option<String>,
    /// How many events this one stands for.
    pub count: u64,
}

/// How often the audit log is looked at; what happens meanwhile is one notice.
const TICK: Duration = Duration::from_secs(1);
/// Between two notices of a kind.
const PAUSE: Duration = Duration::from_secs(30);
/// Between two bells.
const BELL_PAUSE: Duration = Duration::from_secs(5);
/// Events of a notice that are told in words.
const TOLD: usize = 8;

/// The way to the thread.
#[derive(Debug, Clone)]
pub struct Notices {
    finished: Sender<Finished>,
}

/// The session is over, in words; and who waits until that is told, where the box ends with it.
type Finished = (String, Option<Sender<()>>);

/// What is not told yet.
#[derive(Debug, Default)]
struct Pending {
    words: Vec<String>,
    count: u64,
    told: Option<Instant>,
}

struct Teller {
    on: Vec<Kind>,
    ways: Ways,
    board: Arc<Board>,
    seats: Arc<Seats>,
    reader: Reader,
    pending: [Pending; 4],
    rang: Option<Instant>,
}

impl Notices {
    /// From now on: what the boot did is no news.
    pub fn start(on: Vec<Kind>, ways: Ways, board: Arc<Board>, seats: Arc<Seats>) -> std::io::Result<Self> {
        let (finished, farewell) = mpsc::channel();
        let teller = Teller {
            on,
            ways,
            board,
            seats,
            reader: Reader::from_now(),
            pending: Default::default(),
            rang: None,
        };
        thread("notices", move || teller.run(&farewell))?;
        Ok(Self { finished })
    }

    /// The session is over and the box ends with it: the last notice, which the end waits for, at most so long.
    pub fn last(&self, words: &str, limit: Duration) {
        let (done, told) = mpsc::channel();
        if self.finished.send((words.to_owned(), Some(done))).is_ok() {
            told.recv_timeout(limit).ok();
        }
    }

    /// The session is over and the box goes on.
    pub fn finished(&self, words: &str) {
        // Without the thread there are no notices.
        self.finished.send((words.to_owned(), None)).ok();
    }
}

impl Teller {
    fn run(mut self, farewell: &Receiver<Finished>) {
        loop {
            match farewell.recv_timeout(TICK) {
                Ok((words, done)) => {
                    self.note(Kind::Finished, words);
                    if let Some(done) = done {
                        self.tell(true);
                        done.send(()).ok();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Who could say the last word is gone; the log still speaks.
                Err(RecvTimeoutError::Disconnected) => crate::supervisor::backoff::pause(TICK),
            }
            for (kind, words) in self.reader.read() {
                self.note(kind, words);
            }
            self.tell(false);
        }
    }

    fn note(&mut self, kind: Kind, words: String) {
        // Whoever wants to know of waiting only is told of a finished turn too: then the agent waits.
        let kind = match kind {
            Kind::Finished if !self.on.contains(&kind) => Kind::Waiting,
            Kind::Waiting | Kind::Finished | Kind::Denied | Kind::CrashLoop => kind,
        };
        if !self.on.contains(&kind) {
            return;
        }
        if matches!(kind, Kind::Waiting | Kind::Finished)
            && self.rang.is_none_or(|rang| rang.elapsed() >= BELL_PAUSE)
        {
            self.rang = Some(Instant::now());
            self.seats.ring(&words);
        }
        if let Some(pending) = self.pending.get_mut(kind as usize) {
            pending.count += 1;
            if pending.words.len() < TOLD && !pending.words.contains(&words) {
                pending.words.push(words);
            }
        }
    }

    fn tell(&mut self, at_once: bool) {
        if self.ways.is_none() {
            // Nobody but the bell: nothing is kept.
            return self.pending = Default::default();
        }
        for (kind, pending) in Kind::ALL.into_iter().zip(&mut self.pending) {
            let is_due = at_once || pending.told.is_none_or(|told| told.elapsed() >= PAUSE);
            if pending.count == 0 || !is_due {
                continue;
            }
            let (words, count) = (std::mem::take(&mut pending.words), std::mem::take(&mut pending.count));
            pending.told = Some(Instant::now());
            let notice = compose(&self.board, kind, &words, count);
            for problem in self.ways.send(&notice) {
                event("notices", &problem);
            }
        }
    }
}

/// Chat services read mark-up in `text` (`<!channel>`, `<address|words>`, `@name`): none of it is left to the agent.
fn plain(text: &str) -> String {
    let look_alike = |c| match c {
        '<' => '\u{2039}',
        '>' => '\u{203a}',
        '&' => '\u{ff06}',
        '@' => '\u{ff20}',
        c => c,
    };
    text.chars().map(look_alike).collect()
}

fn compose(board: &Board, kind: Kind, words: &[String], count: u64) -> Notice {
    let told = u64::try_from(words.len()).unwrap_or(u64::MAX);
    let more = match count.saturating_sub(told) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let text = format!("{}{more}", words.join("; "));
    let (box_id, box_name, last_message) = board.update(|report| {
        let said = report.session.last_message.clone().filter(|_| kind == Kind::Finished);
        (report.box_.id.clone(), report.box_.name.clone(), said)
    });
    Notice {
        schema: SCHEMA,
        notice: kind,
        time: crate::report::now(),
        text: plain(&format!("{box_name}: {text}")),
        box_id,
        box_name,
        last_message,
        count,
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, compose};
    use crate::status::Board;
    use crate::status::report::BoxIdentity;

    #[test]
    fn a_notice_stands_for_many_and_says_so() {
        let board = Board::new(BoxIdentity { id: "1f".into(), name: "box".into(), ..BoxIdentity::default() });
        board.update(|report| report.session.last_message = Some("All done.".into()));
        let notice = compose(&board, Kind::Denied, &["a was denied".into(), "b was denied".into()], 9);
        assert_eq!(notice.text, "box: a was denied; b was denied; and 7 more");
        assert_eq!((notice.count, notice.last_message), (9, None));
        let text = serde_json::to_string(&compose(&board, Kind::Finished, &["done".into()], 1)).unwrap();
        for part in
            [r#""notice":"finished""#, r#""last_message":"All done.""#, r#""schema":1"#, r#""box_id":"1f""#]
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn the_text_calls_nobody_and_links_nowhere() {
        let board = Board::new(BoxIdentity { name: "box".into(), ..BoxIdentity::default() });
        let words = "it asks: <!channel> <https://evil.test|here> @all &lt;!here&gt;";
        let text = compose(&board, Kind::Waiting, &[words.into()], 1).text;
        assert!(text.contains("!channel") && !text.contains(['<', '>', '&', '@']), "{text}");
    }

    #[test]
    fn kinds_are_in_the_order_of_their_numbers() {
        assert!(Kind::ALL.iter().enumerate().all(|(at, kind)| *kind as usize == at));
        assert!(
            Kind::ALL
                .iter()
                .all(|kind| { serde_json::to_string(kind).unwrap() == format!("\"{}\"", kind.as_str()) })
        );
    }
}
