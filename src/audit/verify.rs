//! `innkeeper log --verify`: whether the lines of a stream still hang together, and with what they end.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::chain::{self, BEGINNING};

/// Longer than any line of ours.
const MAX_LINE: u64 = 1 << 20;

/// What a stream that holds together is.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verified {
    pub lines: u64,
    pub boxes: BTreeSet<String>,
    /// Whether it begins with the first line that there ever was.
    pub is_whole: bool,
    /// Lines that a box which ended in mid-line left; the line after each vouches for it.
    pub torn: u64,
    pub head: String,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{path}, line {line}: it does not follow the line before it: one of the two was changed, or lines are missing, \
         were put in or changed places"
    )]
    Broken { path: PathBuf, line: u64 },
    #[error("{path}, line {line}: no line of an audit log")]
    Foreign { path: PathBuf, line: u64 },
    #[error("{0} holds no line")]
    Empty(PathBuf),
    #[error("the last line's hash is {found}, not {wanted}: lines are missing at the end, or it was changed")]
    Head { found: String, wanted: String },
}

#[derive(serde::Deserialize)]
struct Link {
    #[serde(rename = "box")]
    box_: String,
    prev: String,
}

/// Reads files, the oldest first, as one stream.
pub fn files(paths: &[PathBuf], head: Option<&str>) -> Result<Verified, VerifyError> {
    let mut stream = Stream::default();
    for path in paths {
        let file =
            std::fs::File::open(path).map_err(|source| VerifyError::Read { path: path.clone(), source })?;
        stream.read(path, BufReader::new(file))?;
    }
    stream.end(paths, head)
}

#[derive(Default)]
struct Stream {
    verified: Verified,
    /// The last line was none of ours: the next one must name its hash.
    torn: Option<(PathBuf, u64)>,
}

impl Stream {
    fn read(&mut self, path: &Path, mut reader: impl BufRead) -> Result<(), VerifyError> {
        for number in 1.. {
            let mut line = Vec::new();
            let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
            read.map_err(|source| VerifyError::Read { path: path.to_owned(), source })?;
            if line.is_empty() {
                break;
            }
            self.line(path, number, line.strip_suffix(b"\n").unwrap_or(&line))?;
        }
        Ok(())
    }

    fn line(&mut self, path: &Path, line: u64, octets: &[u8]) -> Result<(), VerifyError> {
        let foreign = |(path, line)| VerifyError::Foreign { path, line };
        match serde_json::from_slice::<Link>(octets) {
            Ok(link) => {
                if self.verified.lines == 0 {
                    self.verified.is_whole = link.prev == BEGINNING;
                } else if link.prev != self.verified.head {
                    return Err(VerifyError::Broken { path: path.to_owned(), line });
                }
                self.torn = None;
                self.verified.boxes.insert(link.box_);
            }
            Err(_) => {
                if let Some(before) = self.torn.replace((path.to_owned(), line)) {
                    return Err(foreign(before));
                }
                // The first line has nobody before it to be torn from.
                if self.verified.lines == 0 {
                    return Err(foreign((path.to_owned(), line)));
                }
                self.verified.torn += 1;
            }
        }
        self.verified.lines += 1;
        self.verified.head = chain::hash(octets);
        Ok(())
    }

    fn end(self, paths: &[PathBuf], head: Option<&str>) -> Result<Verified, VerifyError> {
        if let Some((path, line)) = self.torn {
            return Err(VerifyError::Foreign { path, line });
        }
        if self.verified.lines == 0 {
            return Err(VerifyError::Empty(paths.first().cloned().unwrap_or_default()));
        }
        match head {
            Some(wanted) if wanted != self.verified.head => {
                let (found, wanted) = (self.verified.head, wanted.to_owned());
                Err(VerifyError::Head { found, wanted })
            }
            Some(_) | None => Ok(self.verified),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Stream, Verified, VerifyError};
    use crate::audit::chain::Chain;
    use std::path::Path;

    fn lines(count: usize) -> Vec<String> {
        let mut chain = Chain::default();
        let mut lines = Vec::new();
        for seq in 0..count {
            let line = chain.link(&format!(r#"{{"schema":1,"seq":{seq}}}"#), "ab");
            chain.advance(&line);
            lines.push(line);
        }
        lines
    }

    fn check(lines: &[String], head: Option<&str>) -> Result<Verified, VerifyError> {
        let mut stream = Stream::default();
        stream.read(Path::new("log"), (lines.join("\n") + "\n").as_bytes())?;
        stream.end(&[], head)
    }

    #[test]
    fn every_change_is_noticed_and_a_cut_by_who_knows_the_head() {
        let whole = lines(10);
        let good = check(&whole, None).unwrap();
        assert_eq!((good.lines, good.is_whole, good.torn), (10, true, 0));
        assert_eq!(good.boxes.iter().collect::<Vec<_>>(), ["ab"]);
        assert!(check(&whole, Some(&good.head)).is_ok());
        for at in 0..10 {
            let mut changed = whole.clone();
            changed[at] = changed[at].replace("\"schema\":1", "\"schema\":2");
            // The last one has no successor: that is what the head is for.
            assert!(check(&changed, Some(&good.head)).is_err(), "{at}");
            assert_eq!(check(&changed, None).is_err(), at < 9, "{at}");
            let mut missing = whole.clone();
            missing.remove(at);
            assert!(check(&missing, Some(&good.head)).is_err() || at == 0, "{at}");
            assert!(!check(&missing, None).is_ok_and(|verified| verified.is_whole) || at == 9, "{at}");
        }
        let mut swapped = whole.clone();
        swapped.swap(3, 4);
        assert!(matches!(check(&swapped, None), Err(VerifyError::Broken { line: 4, .. })));
        let mut more = whole.clone();
        more.insert(5, whole[5].clone());
        assert!(check(&more, None).is_err());
        let mut hidden = whole;
        hidden.insert(5, "nothing".into());
        assert!(check(&hidden, None).is_err(), "a line that nobody vouches for");
    }

    #[test]
    fn a_line_that_was_torn_is_vouched_for_by_the_next_one() {
        let mut torn = lines(3);
        let half = torn[2][..20].to_owned();
        torn[2].clone_from(&half);
        let mut chain = Chain::after(half.as_bytes());
        let next = chain.link(r#"{"schema":1,"seq":1}"#, "cd");
        chain.advance(&next);
        torn.push(next);
        let verified = check(&torn, Some(chain.head())).unwrap();
        assert_eq!((verified.lines, verified.torn, verified.boxes.len()), (4, 1, 2));
        torn.pop();
        assert!(check(&torn, None).is_err());
    }
}
