//! The live screen as cells: the report above, what can be decided below, keys on the last line. (pure)

use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};
use ratatui_core::terminal::Frame;

use super::state::{Item, Mode, State, Wish};
use crate::status::report::{AccessRequest, Report};
use crate::status::screen::{self, Tone, denied};
use crate::status::wording::{cut, since, span, wrap};

/// On less than this only the first line is shown.
const LEAST: (u16, u16) = (20, 6);

pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let area = frame.area();
    let mut canvas = Canvas { frame, area };
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let first = picture(state, usize::from(area.width), 2).into_iter().next();
        let rows = first.into_iter().chain([(Style::new(), "enlarge, or q".to_owned())]);
        canvas.rows(0, area.height, rows);
        return;
    }
    let body = area.height - 1;
    match &state.mode {
        Mode::Help => canvas.rows(0, body, help(usize::from(area.width))),
        Mode::Browse | Mode::Period(_) | Mode::Refuse { .. } => split(&mut canvas, state, body),
    }
    canvas.rows(body, 1, [footer(state, usize::from(area.width))]);
}

type Row = (Style, String);

struct Canvas<'a, 'b> {
    frame: &'a mut Frame<'b>,
    area: Rect,
}

impl Canvas<'_, '_> {
    /// Rows from `top` on, at most so many; each cut at the edge.
    fn rows(&mut self, top: u16, most: u16, rows: impl IntoIterator<Item = Row>) {
        let width = usize::from(self.area.width);
        for (y, (style, text)) in (top..top.saturating_add(most).min(self.area.height)).zip(rows) {
            let text = cut(&text, width);
            self.frame.buffer_mut().set_stringn(0, y, text, width, style);
        }
    }
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Title => Style::new().add_modifier(Modifier::BOLD),
        Tone::Good => Style::new().fg(Color::Green),
        Tone::Attention => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red),
    }
}

/// The report without what the list shows.
fn picture(state: &State, width: usize, height: usize) -> Vec<Row> {
    let Some(report) = &state.report else { return vec![(Style::new(), "asking the box …".to_owned())] };
    let rest = Report { requests: Vec::new(), denials: Vec::new(), ..report.as_ref().clone() };
    // The screen leaves a line to a prompt, which is not needed here.
    let lines = screen::lines(&rest, screen::Frame { width, height: height + 1 }, state.now);
    let shown = lines.into_iter().filter(|line| !line.text.starts_with("Nothing was refused"));
    shown.map(|line| (style(line.tone), line.text)).collect()
}

fn split(canvas: &mut Canvas<'_, '_>, state: &State, body: u16) {
    let width = usize::from(canvas.area.width);
    // What is decided now is read to its end; else the list has a third, and what the report leaves.
    let dialogue = dialogue(state, width);
    let wanted = u16::try_from(dialogue.len()).unwrap_or(u16::MAX);
    let least = if dialogue.is_empty() { (body / 3).max(3) } else { wanted.clamp(3, body) };
    let above = picture(state, width, usize::from(body - least));
    let top = u16::try_from(above.len()).unwrap_or(u16::MAX).min(body - least);
    canvas.rows(0, top, above);
    let room = body - top;
    if dialogue.is_empty() {
        canvas.rows(top, room, list(state, width, usize::from(room)));
    } else {
        canvas.rows(top, room, dialogue);
    }
}

/// A heading, and as many items around the chosen one as fit.
fn list(state: &State, width: usize, room: usize) -> Vec<Row> {
    let items = state.items();
    let bold = style(Tone::Title);
    if items.is_empty() {
        let text = if state.report.is_some() { "Nothing was refused, nothing is asked for" } else { "" };
        return vec![(bold, text.to_owned())];
    }
    let heading = format!("Requests and refusals ({} of {})", state.chosen() + 1, items.len());
    let mut rows = vec![(bold, heading)];
    let mut lines: Vec<(usize, Row)> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let chosen = at == state.chosen();
        for (tone, text) in shown(item, state, width) {
            let base = style(tone);
            let style = if chosen { base.add_modifier(Modifier::REVERSED) } else { base };
            lines.push((at, (style, text)));
        }
    }
    // The chosen one is whole on the screen, and stands as low as it can.
    let room = room.saturating_sub(1);
    let end = lines.iter().rposition(|(at, _)| *at == state.chosen()).map_or(0, |at| at + 1);
    let first = end.saturating_sub(room);
    rows.extend(lines.into_iter().skip(first).take(room).map(|(_, row)| row));
    rows
}

fn shown(item: &Item<'_>, state: &State, width: usize) -> Vec<(Tone, String)> {
    match item {
        Item::Denial(denial) => {
            let audience = state.report.as_ref().map(|report| report.audience).unwrap_or_default();
            denied(denial, width, audience).into_iter().map(|line| (line.tone, line.text)).collect()
        }
        Item::Request(request) => vec![(Tone::Attention, request_line(request, state))],
    }
}

fn request_line(request: &AccessRequest, state: &State) -> String {
    let age = since(&request.time, state.now).map_or_else(String::new, span);
    format!("  request {}: {}, {age} ago: {}", request.id, request.rule, request.reason)
}

/// The question that is open, with all of what it is about.
fn dialogue(state: &State, width: usize) -> Vec<Row> {
    let (question, keys) = match &state.mode {
        Mode::Browse | Mode::Help => return Vec::new(),
        Mode::Period(Wish { rule, id }) => {
            let what = id.map_or_else(String::new, |id| format!(" (request {id})"));
            (
                format!("Allow {rule}{what}?"),
                "y or 1: for an hour   4: four hours   d: a day   e: until the box ends   n: no",
            )
        }
        Mode::Refuse { id, rule } => (format!("Refuse request {id} for {rule}?"), "y: yes   n: no"),
    };
    let asked = wrap(&question, width, "").into_iter().map(|line| (style(Tone::Title), line));
    let answers = wrap(keys, width, "  ").into_iter().map(|line| (style(Tone::Attention), line));
    asked.chain(answers).collect()
}

fn footer(state: &State, width: usize) -> Row {
    if let Some(trouble) = &state.trouble {
        return (style(Tone::Bad), format!("the box does not answer: {trouble}"));
    }
    match &state.said {
        Some(Ok(said)) => return (style(Tone::Good), said.clone()),
        Some(Err(said)) => return (style(Tone::Bad), said.clone()),
        None => {}
    }
    let paused = if state.paused { "PAUSED  " } else { "" };
    let decide = if state.is_operator() { "a allow  g grant  r refuse  " } else { "" };
    let keys = format!("{paused}↑↓ choose  {decide}p pause  ? help  q quit");
    let tone = if state.paused { Tone::Attention } else { Tone::Plain };
    (style(tone).add_modifier(Modifier::DIM), cut(&keys, width))
}

fn help(width: usize) -> Vec<Row> {
    let text = [
        "Keys",
        "  ↑ ↓ k j, PgUp PgDn, Home End   choose a request or a refusal",
        "  a, Enter   allow what is chosen; it asks for how long",
        "  g          grant the chosen request, r refuses it",
        "  p, space   pause: the picture stays, and the box is not asked",
        "  q, Ctrl-C  leave; the box goes on",
        "",
        "What is allowed here is shown with its end, is in the audit log, and is taken back by `innkeeper revoke NAME`.",
        "Only the operator can decide anything. Any key leaves this page.",
    ];
    let mut rows: Vec<Row> = text
        .iter()
        .flat_map(|line| {
            let indent = if line.starts_with(' ') { "  " } else { "" };
            let lines = wrap(line, width, indent);
            if lines.is_empty() { vec![String::new()] } else { lines }
        })
        .map(|line| (Style::new(), line))
        .collect();
    if let Some((first, _)) = rows.first_mut() {
        *first = style(Tone::Title);
    }
    rows
}

#[cfg(test)]
mod tests {
    use ratatui_core::backend::TestBackend;
    use ratatui_core::style::Modifier;
    use ratatui_core::terminal::Terminal;

    use super::draw;
    use crate::status::audience::for_agent;
    use crate::status::audience::tests::{denial, full};
    use crate::status::report::Report;
    use crate::status::watch::keys::Key;
    use crate::status::watch::state::{Answer, State};

    fn state_of(report: Report) -> State {
        let mut state = State::default();
        state.now = std::time::SystemTime::now();
        state.hear(Answer::Report(Ok(Box::new(report))));
        state
    }

    fn screen(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let cells = terminal.backend().buffer().content();
        assert!(cells.iter().all(|cell| !cell.symbol().chars().any(char::is_control)));
        let row =
            |row: &[ratatui_core::buffer::Cell]| row.iter().map(|cell| cell.symbol()).collect::<String>();
        cells.chunks(usize::from(width)).map(|cells| row(cells).trim_end().to_owned() + "\n").collect()
    }

    #[test]
    fn everything_has_its_place() {
        let mut report = full();
        report.denials.push(denial("\u{1b}]0;x\u{7}.test", Some(1000)));
        let mut state = state_of(report);
        let text = screen(&state, 80, 24);
        for word in [
            "Protections: 1 held",
            "Requests and refusals (1 of 5)",
            "request 3: shown-request.test",
            "innkeeper allow shown-denied.test",
            "a allow  g grant  r refuse  p pause",
        ] {
            assert!(text.contains(word), "{word}:\n{text}");
        }
        state.press(Key::End);
        let text = screen(&state, 80, 24);
        assert!(text.contains("\\u{1b}]0;x\\u{7}.test") && text.contains("(5 of 5)"), "{text}");
    }

    #[test]
    fn any_size_is_drawn_and_any_state() {
        let mut report = full();
        for i in 0..200 {
            report.denials.push(denial(&format!("{}{i}.test", "long".repeat(15)), None));
        }
        for (width, height) in [(1, 1), (1, 50), (19, 24), (20, 6), (40, 7), (80, 24), (300, 100), (500, 2)] {
            let mut state = State::default();
            screen(&state, width, height);
            state.hear(Answer::Report(Err("no box".into())));
            screen(&state, width, height);
            state.hear(Answer::Report(Ok(Box::new(report.clone()))));
            for keys in ["", "?", "x", "a", "n", "r", "n", "p", "jjjjj", "a", "n"] {
                keys.chars().for_each(|key| drop(state.press(Key::Character(key))));
                screen(&state, width, height);
            }
            state.press(Key::End);
            screen(&state, width, height);
        }
    }

    #[test]
    fn what_is_chosen_is_on_the_screen() {
        let mut report = full();
        for i in 0..200 {
            report.denials.push(denial(&format!("n{i}.test"), Some(1000)));
        }
        let mut state = state_of(report);
        for _ in 0..150 {
            state.press(Key::Down);
            let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
            terminal.draw(|frame| draw(frame, &state)).unwrap();
            let reversed = terminal.backend().buffer().content().iter();
            let reversed = reversed.filter(|cell| cell.modifier.contains(Modifier::REVERSED)).count();
            assert!(reversed > 0, "{}", state.chosen());
        }
    }

    #[test]
    fn what_is_to_be_allowed_is_read_to_its_end_before_it_is() {
        let long = format!("{}.{}.{}.evil.test", "a".repeat(60), "b".repeat(60), "c".repeat(60));
        let mut report = full();
        report.requests.clear();
        report.denials = vec![denial(&long, Some(1000))];
        let mut state = state_of(report);
        state.press(Key::Character('a'));
        for (width, height) in [(80, 24), (40, 12), (30, 12)] {
            let text = screen(&state, width, height);
            assert!(text.replace('\n', "").contains(&long), "{text}");
            assert!(text.contains("for an hour"), "{text}");
        }
    }

    #[test]
    fn a_box_that_is_gone_is_said_and_the_agent_has_no_keys() {
        let mut state = state_of(full());
        state.hear(Answer::Report(Err("no box answers".into())));
        assert!(screen(&state, 80, 24).contains("the box does not answer: no box answers"));
        let agents = screen(&state_of(for_agent(full(), 1000)), 80, 24);
        assert!(!agents.contains("a allow") && !agents.contains("hidden"), "{agents}");
        assert!(agents.contains("innkeeper request shown-denied.test"), "{agents}");
    }
}
