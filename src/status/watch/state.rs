//! What the live screen knows, and what keys and answers change of it. (pure)
//!
//! What is decided is bound when the key is pressed, and shown whole before it is confirmed: a list that moves under the
//! operator's finger changes nothing of it.

use std::time::SystemTime;

use super::keys::Key;
use crate::report::inert;
use crate::status::report::{AccessRequest, Audience, Denial, Report, RequestState};

/// What the operator decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Allow { rule: String, for_s: Option<u64> },
    Grant { id: u64, rule: String, for_s: Option<u64> },
    Refuse { id: u64 },
}

/// What the box said.
#[derive(Debug)]
pub(super) enum Answer {
    Report(Result<Box<Report>, String>),
    /// Of an action: what came of it, or why not.
    Done(Result<String, String>),
}

/// What the loop does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Stay,
    Leave,
    Do(Action),
}

/// What waits for an answer of the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    Browse,
    Help,
    /// For how long this is to be allowed.
    Period(Wish),
    /// Whether this request is to be refused.
    Refuse {
        id: u64,
        rule: String,
    },
}

/// What is about to be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) rule: String,
    /// The request that it answers; none for a refusal by the policy.
    pub(super) id: Option<u64>,
}

/// A line that can be chosen.
#[derive(Debug, Clone)]
pub(super) enum Item<'a> {
    Request(&'a AccessRequest),
    Denial(&'a Denial),
}

/// By which an item is found again in the next report.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mark {
    Request(u64),
    Denial(String, String, Option<u32>),
}

impl Item<'_> {
    fn mark(&self) -> Mark {
        match self {
            Self::Request(request) => Mark::Request(request.id),
            Self::Denial(denial) => Mark::Denial(denial.layer.clone(), denial.what.clone(), denial.uid),
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) report: Option<Box<Report>>,
    /// Why there is no newer report.
    pub(super) trouble: Option<String>,
    pub(super) paused: bool,
    pub(super) mode: Mode,
    /// What came of the last decision.
    pub(super) said: Option<Result<String, String>>,
    pub(super) now: SystemTime,
    chosen: usize,
    mark: Option<Mark>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            report: None,
            trouble: None,
            paused: false,
            mode: Mode::Browse,
            said: None,
            now: SystemTime::UNIX_EPOCH,
            chosen: 0,
            mark: None,
        }
    }
}

const HOUR: u64 = 3600;
/// Rows that a page has, whatever the terminal's size.
const PAGE: usize = 10;

impl State {
    /// Whether the box should be asked now.
    pub(super) fn asks(&self) -> bool {
        !self.paused
    }

    pub(super) fn is_operator(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.audience == Audience::Operator)
    }

    /// What can be chosen: open requests, the newest first, then refusals.
    pub(super) fn items(&self) -> Vec<Item<'_>> {
        let Some(report) = &self.report else { return Vec::new() };
        let pending = report.requests.iter().rev().filter(|request| request.state == RequestState::Pending);
        pending.map(Item::Request).chain(report.denials.iter().map(Item::Denial)).collect()
    }

    pub(super) fn chosen(&self) -> usize {
        self.chosen
    }

    pub(super) fn hear(&mut self, answer: Answer) {
        match answer {
            // The picture stays as it was, also when an answer was under way.
            Answer::Report(Ok(_)) if self.paused => {}
            Answer::Report(Ok(report)) => {
                self.report = Some(report);
                self.trouble = None;
                self.find_again();
            }
            Answer::Report(Err(why)) => self.trouble = Some(inert(&why)),
            Answer::Done(done) => {
                self.said = Some(done.map(|text| inert(&text)).map_err(|text| inert(&text)));
            }
        }
    }

    /// What was chosen stays so where it went; where it is gone its neighbour is.
    fn find_again(&mut self) {
        let items = self.items();
        let found = self.mark.as_ref().and_then(|mark| items.iter().position(|item| item.mark() == *mark));
        let chosen = found.unwrap_or(self.chosen).min(items.len().saturating_sub(1));
        let mark = items.get(chosen).map(Item::mark);
        (self.chosen, self.mark) = (chosen, mark);
    }

    fn choose(&mut self, at: usize) {
        let items = self.items();
        let chosen = at.min(items.len().saturating_sub(1));
        let mark = items.get(chosen).map(Item::mark);
        (self.chosen, self.mark) = (chosen, mark);
    }

    pub(super) fn press(&mut self, key: Key) -> Step {
        if key == Key::Interrupt {
            return Step::Leave;
        }
        match std::mem::replace(&mut self.mode, Mode::Browse) {
            Mode::Browse => self.browse(key),
            // Any key leaves it.
            Mode::Help => Step::Stay,
            Mode::Period(wish) => self.answer_period(wish, key),
            Mode::Refuse { id, rule } => match key {
                Key::Character('y') => Step::Do(Action::Refuse { id }),
                Key::Character('n' | 'q') | Key::Escape => Step::Stay,
                _ => self.stay_in(Mode::Refuse { id, rule }),
            },
        }
    }

    fn stay_in(&mut self, mode: Mode) -> Step {
        self.mode = mode;
        Step::Stay
    }

    fn browse(&mut self, key: Key) -> Step {
        self.said = None;
        match key {
            Key::Character('q') => return Step::Leave,
            Key::Character('?' | 'h') => self.mode = Mode::Help,
            Key::Character('p' | ' ') => self.paused = !self.paused,
            Key::Up | Key::Character('k') => self.choose(self.chosen.saturating_sub(1)),
            Key::Down | Key::Character('j') => self.choose(self.chosen.saturating_add(1)),
            Key::PageUp => self.choose(self.chosen.saturating_sub(PAGE)),
            Key::PageDown => self.choose(self.chosen.saturating_add(PAGE)),
            Key::Home => self.choose(0),
            Key::End => self.choose(usize::MAX),
            Key::Enter | Key::Character('a' | 'g' | 'r') if !self.is_operator() => {
                self.said = Some(Err(self.not_the_agents()));
            }
            Key::Enter | Key::Character('a' | 'g') => self.begin_to_allow(),
            Key::Character('r') => self.begin_to_refuse(),
            Key::Escape | Key::Interrupt | Key::Character(_) => {}
        }
        Step::Stay
    }

    /// Whether the box takes requests shows in what it proposes.
    fn not_the_agents(&self) -> String {
        let ask = match self.items().get(self.chosen) {
            Some(Item::Request(_)) => Some(crate::requests::proposal("NAME")),
            Some(Item::Denial(denial)) => {
                Some(inert(&denial.allow)).filter(|allow| allow.contains(crate::requests::COMMAND))
            }
            None => None,
        };
        let ask = ask.map(|ask| format!("; ask with: {ask}"));
        format!("only the operator decides{}", ask.unwrap_or_default())
    }

    fn begin_to_allow(&mut self) {
        let wish = match self.items().get(self.chosen) {
            None => Err("nothing is chosen".to_owned()),
            Some(Item::Request(request)) => Ok(Wish { rule: request.rule.clone(), id: Some(request.id) }),
            Some(Item::Denial(denial)) => match rule_of(&denial.allow) {
                Some(rule) => Ok(Wish { rule, id: None }),
                None if denial.allow.is_empty() => {
                    Err("this stands for many: see innkeeper log --denied".to_owned())
                }
                None => Err(format!("no key allows this: {}", inert(&denial.allow))),
            },
        };
        match wish {
            Ok(wish) => self.mode = Mode::Period(wish),
            Err(why) => self.said = Some(Err(why)),
        }
    }

    fn begin_to_refuse(&mut self) {
        let request = match self.items().get(self.chosen) {
            Some(Item::Request(request)) => Some((request.id, request.rule.clone())),
            Some(Item::Denial(_)) | None => None,
        };
        match request {
            Some((id, rule)) => self.mode = Mode::Refuse { id, rule },
            None => self.said = Some(Err("this is no request; it is refused already".to_owned())),
        }
    }

    fn answer_period(&mut self, wish: Wish, key: Key) -> Step {
        let for_s = match key {
            Key::Character('y' | '1') => Some(HOUR),
            Key::Character('4') => Some(4 * HOUR),
            Key::Character('d') => Some(24 * HOUR),
            Key::Character('e') => None,
            Key::Character('n' | 'q') | Key::Escape => return Step::Stay,
            // Enter too: what opens the box is a key of its own, not the one that was pressed before.
            _ => return self.stay_in(Mode::Period(wish)),
        };
        Step::Do(match wish.id {
            Some(id) => Action::Grant { id, rule: wish.rule, for_s },
            None => Action::Allow { rule: wish.rule, for_s },
        })
    }
}

/// The rule of a proposed command, if it is a whole one: a name and its ports, no word more and nothing quoted.
fn rule_of(proposal: &str) -> Option<String> {
    let rule = proposal.strip_prefix("innkeeper allow ")?;
    let (name, ports) = rule.split_once(':').unwrap_or((rule, "443"));
    let is_name = crate::allowlist::DomainName::parse(name).is_ok();
    let is_ports = ports.split(',').all(|port| port.parse::<u16>().is_ok());
    (is_name && is_ports && name != "NAME").then(|| rule.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Action, Answer, Item, Mode, State, Step, rule_of};
    use crate::status::audience::for_agent;
    use crate::status::audience::tests::{denial, full};
    use crate::status::report::Report;
    use crate::status::watch::keys::Key;

    fn press(state: &mut State, keys: &str) -> Vec<Step> {
        keys.chars().map(|key| state.press(Key::Character(key))).collect()
    }

    fn state_of(report: Report) -> State {
        let mut state = State::default();
        state.hear(Answer::Report(Ok(Box::new(report))));
        state
    }

    fn chosen(state: &State) -> String {
        match &state.items()[state.chosen()] {
            Item::Request(request) => request.rule.clone(),
            Item::Denial(denial) => denial.what.clone(),
        }
    }

    #[test]
    fn a_refusal_is_allowed_for_an_hour_once_that_is_confirmed() {
        let mut state = state_of(full());
        press(&mut state, "jj");
        assert_eq!(chosen(&state), "shown-unknown.test");
        assert_eq!(press(&mut state, "a"), [Step::Stay]);
        assert!(matches!(&state.mode, Mode::Period(wish) if wish.rule == "shown-unknown.test"));
        assert_eq!(state.press(Key::Enter), Step::Stay, "not by the key that was pressed before");
        let action = Action::Allow { rule: "shown-unknown.test".into(), for_s: Some(3600) };
        assert_eq!(press(&mut state, "y"), [Step::Do(action)]);
        assert_eq!(state.mode, Mode::Browse);
        for key in [Key::Escape, Key::Character('n'), Key::Character('q')] {
            press(&mut state, "a");
            assert_eq!((state.press(key), &state.mode), (Step::Stay, &Mode::Browse), "{key:?}");
        }
    }

    #[test]
    fn requests_come_first_and_are_granted_with_a_time_or_refused() {
        let mut state = state_of(full());
        assert_eq!(chosen(&state), "shown-request.test");
        let grant = |for_s| Step::Do(Action::Grant { id: 3, rule: "shown-request.test".into(), for_s });
        for (keys, for_s) in [("g1", Some(3600)), ("g4", Some(14_400)), ("gd", Some(86_400)), ("ge", None)] {
            assert_eq!(press(&mut state, keys)[1], grant(for_s), "{keys}");
        }
        assert_eq!(press(&mut state, "rxy"), [Step::Stay, Step::Stay, Step::Do(Action::Refuse { id: 3 })]);
        assert_eq!(press(&mut state, "rn"), [Step::Stay, Step::Stay]);
        press(&mut state, "jr");
        assert!(state.said.as_ref().unwrap().is_err(), "a refusal is no request");
    }

    #[test]
    fn what_was_chosen_stays_so_while_the_list_moves_and_a_decision_is_bound_to_it() {
        let mut state = state_of(full());
        press(&mut state, "j");
        let before = chosen(&state);
        let mut report = full();
        for i in 0..30 {
            report.denials.insert(0, denial(&format!("n{i}.test"), Some(1000)));
        }
        press(&mut state, "a");
        state.hear(Answer::Report(Ok(Box::new(report.clone()))));
        assert_eq!(chosen(&state), before);
        report.denials.retain(|denial| denial.what != before);
        state.hear(Answer::Report(Ok(Box::new(report))));
        assert_ne!(chosen(&state), before, "it is gone, its neighbour is chosen");
        assert_eq!(press(&mut state, "y"), [Step::Do(Action::Allow { rule: before, for_s: Some(3600) })]);
        state.hear(Answer::Report(Ok(Box::new(for_agent(full(), 7)))));
        assert!(state.chosen() < state.items().len());
    }

    #[test]
    fn the_list_has_two_ends() {
        let mut state = state_of(full());
        for (key, expected) in [
            (Key::Up, 0),
            (Key::End, 3),
            (Key::Down, 3),
            (Key::PageUp, 0),
            (Key::PageDown, 3),
            (Key::Home, 0),
        ] {
            state.press(key);
            assert_eq!(state.chosen(), expected, "{key:?}");
        }
        let mut empty = State::default();
        for key in [Key::End, Key::Down, Key::Enter, Key::Character('a'), Key::Character('r')] {
            assert_eq!(empty.press(key), Step::Stay);
        }
    }

    #[test]
    fn the_agent_decides_nothing() {
        let mut state = state_of(for_agent(full(), 1000));
        for key in [Key::Enter, Key::Character('a'), Key::Character('g'), Key::Character('r')] {
            assert_eq!((state.press(key), &state.mode), (Step::Stay, &Mode::Browse));
            assert!(state.said.clone().unwrap().unwrap_err().contains("innkeeper request NAME --reason WHY"));
        }
        state.press(Key::End);
        state.press(Key::Enter);
        let said = state.said.clone().unwrap().unwrap_err();
        assert!(said.contains("innkeeper request shown-") && said.ends_with("--reason WHY"), "{said}");
        let mut report = full();
        crate::status::audience::takes_no_requests(&mut report);
        let mut state = state_of(for_agent(report, 1000));
        state.press(Key::End);
        state.press(Key::Enter);
        assert_eq!(state.said, Some(Err("only the operator decides".to_owned())));
    }

    #[test]
    fn a_paused_picture_stays_and_a_box_that_is_gone_is_said() {
        let mut state = state_of(full());
        press(&mut state, "p");
        assert!(!state.asks());
        let mut other = full();
        other.denials.clear();
        state.hear(Answer::Report(Ok(Box::new(other))));
        assert_eq!(state.items().len(), 4);
        press(&mut state, "p");
        assert!(state.asks());
        state.hear(Answer::Report(Err("no box answers \x1b[2J".into())));
        assert_eq!(state.trouble.as_deref(), Some("no box answers \\u{1b}[2J"));
        assert_eq!(state.items().len(), 4, "the last picture stays");
        state.hear(Answer::Report(Ok(Box::new(full()))));
        assert_eq!(state.trouble, None);
    }

    #[test]
    fn leaving_and_help() {
        let mut state = state_of(full());
        assert_eq!(press(&mut state, "?x"), [Step::Stay, Step::Stay]);
        assert_eq!(state.mode, Mode::Browse);
        press(&mut state, "a");
        assert_eq!(state.press(Key::Interrupt), Step::Leave, "from everywhere");
        assert_eq!(press(&mut state_of(full()), "q"), [Step::Leave]);
    }

    #[test]
    fn only_a_whole_command_has_a_rule() {
        for (proposal, rule) in [
            ("innkeeper allow a.test", Some("a.test")),
            ("innkeeper allow a.test:22,80", Some("a.test:22,80")),
            ("innkeeper allow NAME", None),
            ("innkeeper allow 'a.test private'", None),
            ("allow a name, not an address: innkeeper allow NAME:22", None),
            ("innkeeper allow a.test;id", None),
            ("innkeeper allow *.test", None),
            ("innkeeper allow a.test:x", None),
            ("use TCP", None),
            ("", None),
        ] {
            assert_eq!(rule_of(proposal).as_deref(), rule, "{proposal}");
        }
    }
}
