//! What crosses a border into Innkeeper, as functions of bytes: nothing may panic, and what must hold is asserted.
//!
//! Each is called by a fuzz target of its name and, with the seeds of `corpus/NAME`, by `tests/fuzz_corpus.rs`.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use hickory_resolver::proto::op::{DnsResponse, Message, MessageType};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_server::net::xfer::Protocol;
use innkeeper::addresses::{AddressClass, class};
use innkeeper::allowlist::{Allowlist, Ceiling, DomainName, Origin, Rule, Verdict, parse_rule, parse_rules};
use innkeeper::channel::{announced_length, decode, encode};
use innkeeper::control::protocol::{Asker, PaneNews, Request};
use innkeeper::dns::answer::{Chain, Family, MAX_ADDRESSES, MAX_HOPS, follow};
use innkeeper::dns::cache::{Key, Known};
use innkeeper::dns::lookup::{Outcome, Rules};
use innkeeper::dns::protocol::{FromWorker, MAX_FROM_WORKER, MAX_TO_WORKER, ToWorker};
use innkeeper::dns::resolv_conf;
use innkeeper::dns::server::answer_offline;
use innkeeper::firewall::admission::{MAX_PER_NAME, decide};
use innkeeper::firewall::nftables;
use innkeeper::gate::body::{Body, Measure};
use innkeeper::gate::hello::{self, Hello};
use innkeeper::gate::{request, response};
use innkeeper::policy::LivePolicy;
use innkeeper::session::terminal::Filter;
use innkeeper::socket_table::find_owner;
use innkeeper::watch::protocol::MAX_FROM_WORKER as MAX_FROM_WATCH;
use innkeeper::watch::{nflog, packet, protocol as watched, wording};

fn origin(line: usize) -> Origin {
    Origin::File { path: "domains.conf".into(), line }
}

fn allowlist() -> &'static Allowlist {
    static ALLOWLIST: OnceLock<Allowlist> = OnceLock::new();
    ALLOWLIST.get_or_init(|| {
        let text = "ok.test\n*.wild.test:443,22\nprivate.test private\n!no.wild.test\n";
        let (rules, problems) = parse_rules(text, origin);
        assert_eq!(problems, []);
        Allowlist::new(rules)
    })
}

/// A client of the DNS server, by UDP and TCP.
pub(crate) fn client_message(data: &[u8]) {
    for (protocol, limit) in [(Protocol::Udp, 1232), (Protocol::Tcp, usize::from(u16::MAX))] {
        let mut asked = None;
        let reply = answer_offline(data, protocol, allowlist(), |key: &Key| {
            assert!(
                matches!(allowlist().verdict(&key.name), Verdict::Allowed(_)),
                "{} is looked up",
                key.name
            );
            asked = Some(key.clone());
            let addresses: Vec<IpAddr> = (0..MAX_ADDRESSES as u32)
                .map(|n| match key.family {
                    Family::V4 => IpAddr::V4((0x5db8_d700 + n).into()),
                    Family::V6 => IpAddr::V6((0x2606_4700_u128 << 96 | u128::from(n)).into()),
                })
                .collect();
            Outcome {
                known: Known::Addresses { addresses: addresses.into(), stale: data.len() % 2 == 1 },
                ttl_s: 60,
            }
        });
        let Some(reply) = reply else { continue };
        assert!(reply.len() <= limit, "{} octets", reply.len());
        assert_eq!(reply.get(..2), data.get(..2), "another id");
        // Several questions are refused and repeated as they came, whatever is in the second.
        if data.get(4..6).is_some_and(|count| count[0] > 0 || count[1] > 1) {
            assert!(asked.is_none());
            continue;
        }
        let message = Message::from_vec(&reply).expect("a reply that can't be parsed");
        assert_eq!(message.metadata.message_type, MessageType::Response);
        if let Some(key) = asked {
            let owner = Name::from_ascii(format!("{}.", key.name)).unwrap();
            assert!(message.answers.iter().all(|record| record.name == owner));
        } else {
            let localhost = |record: &hickory_resolver::proto::rr::Record| {
                record.name.to_ascii().to_ascii_lowercase().ends_with("localhost.")
            };
            assert!(
                message.answers.iter().all(localhost),
                "answers that nobody looked up: {:?}",
                message.answers
            );
        }
    }
}

/// An upstream's answer.
pub(crate) fn upstream_message(data: &[u8]) {
    let Ok(response) = DnsResponse::from_buffer(data.to_vec()) else { return };
    let _ = response.negative_ttl();
    let records = response.into_message().answers;
    let start = Name::from_ascii("ok.test.").unwrap();
    for family in [Family::V4, Family::V6] {
        for hops in [0, MAX_HOPS] {
            match follow(&start, family, &records, hops, 300) {
                Chain::Addresses { addresses, ttl_s } => {
                    assert!(addresses.len() <= MAX_ADDRESSES && !addresses.is_empty() && ttl_s <= 300);
                    assert!(addresses.iter().all(|address| family.holds(*address)));
                    assert!(records.iter().any(|record| record.name == start), "addresses from nowhere");
                    let kind = family.record_type();
                    assert!(matches!(kind, RecordType::A | RecordType::AAAA));
                }
                Chain::Continues { hops, ttl_s, .. } => assert!(hops <= MAX_HOPS + 1 && ttl_s <= 300),
                Chain::Empty | Chain::TooLong => {}
            }
        }
    }
}

/// A frame of the worker `dns` to PID 1, header included: the worker has parsed what strangers sent.
pub(crate) fn worker_frame(data: &[u8]) {
    let Some((header, body)) = data.split_first_chunk::<4>() else { return };
    if announced_length(*header, MAX_FROM_WORKER).is_err() {
        return;
    }
    let Ok(frame) = decode::<FromWorker>(body) else { return };
    if let FromWorker::Learned(learned) = &frame {
        let Ok(decision) = decide(allowlist(), learned) else {
            assert!(matches!(allowlist().verdict(&learned.name), Verdict::Denied(_)));
            return;
        };
        assert!(matches!(allowlist().verdict(&learned.name), Verdict::Allowed(_)));
        assert!(decision.open.len() <= MAX_PER_NAME && !decision.ports.is_empty());
        for address in &decision.open {
            assert!(learned.addresses.contains(address));
            assert!(!matches!(class(*address), AddressClass::Never(_)), "{address} would be opened");
        }
    }
    if let Ok(bytes) = encode(&frame, usize::MAX) {
        assert_eq!(decode::<FromWorker>(&bytes[4..]).unwrap(), frame);
    }
}

/// A frame of the worker `watch` to PID 1, header included.
pub(crate) fn watch_frame(data: &[u8]) {
    let Some((header, body)) = data.split_first_chunk::<4>() else { return };
    if announced_length(*header, MAX_FROM_WATCH).is_err() {
        return;
    }
    let Ok(frame) = decode::<watched::FromWorker>(body) else { return };
    if let watched::FromWorker::Refused(flow) | watched::FromWorker::Used(flow) = &frame {
        let why = wording::explain(flow.target, &[]);
        for text in [wording::what(flow.target), why.reason, why.allow] {
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
    let bytes = encode(&frame, usize::MAX).unwrap();
    assert_eq!(decode::<watched::FromWorker>(&bytes[4..]).unwrap(), frame);
}

/// A datagram of the NFLOG socket, in which the packets are the agent's.
pub(crate) fn logged_packet(data: &[u8]) {
    let mut octets = 0;
    for logged in nflog::packets(data) {
        octets += logged.payload.len();
        let packet = packet::parse(logged.payload);
        assert!(packet.destination.is_none() || logged.payload.len() >= 20);
        assert!(packet.destination_port.is_none() || !packet.fragment, "ports out of the middle of a packet");
    }
    assert!(octets <= data.len(), "more than there was");
    // Also as what the datagram would hold, so that the seeds reach it at once.
    let packet = packet::parse(data);
    assert!(packet.source.is_none() || packet.source.map(|a| a.is_ipv4()) == Some(data[0] >> 4 == 4));
}

/// A datagram of nf_tables' answers.
pub(crate) fn kernel_answer(data: &[u8]) {
    if let Ok(elements) = nftables::read_offline(data) {
        assert!(elements.len() <= data.len() / 8);
    }
}

/// A frame of PID 1 to the worker.
pub(crate) fn setup_frame(data: &[u8]) {
    let Some((header, body)) = data.split_first_chunk::<4>() else { return };
    if announced_length(*header, MAX_TO_WORKER).is_err() {
        return;
    }
    match decode::<ToWorker>(body) {
        Ok(ToWorker::Setup(setup)) => drop(Rules::new(&setup.policy)),
        Ok(ToWorker::Policy(policy)) => drop(Rules::new(&policy)),
        Ok(_) | Err(_) => {}
    }
}

/// A line on the control socket, and one from the pane.
pub(crate) fn control_request(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(request) = Request::parse(text) {
        let again = serde_json::to_string(&request).unwrap();
        assert_eq!(Request::parse(&again).unwrap(), request);
        let changes = match &request {
            Request::Reload | Request::Rules | Request::Allow { .. } | Request::Revoke { .. } => true,
            Request::Grant { .. } | Request::Refuse { .. } | Request::Lint | Request::Suggest => true,
            Request::Ask { .. } | Request::Wish { .. } | Request::Requests => false,
            Request::Seat { .. } | Request::Work { .. } => true,
            Request::Session { .. } | Request::Save | Request::Start { .. } => true,
            Request::Log { .. } | Request::Status | Request::Progress | Request::Check { .. } => false,
            Request::Refusals { .. } | Request::Name { .. } => false,
            Request::Credential { .. } | Request::Pane | Request::Hook { .. } | Request::Gauge { .. } => {
                false
            }
        };
        assert!(!changes || Asker::new(1000, 1000).may(&request).is_err());
        assert!(Asker::new(901, 1000).may(&request).is_err());
    }
    let _ = serde_json::from_str::<PaneNews>(text);
}

fn same(rule: &Rule, other: &Rule) -> bool {
    // Neither `required` nor `telemetry` changes what a rule allows, and neither is shown.
    rule.deny == other.deny
        && rule.pattern == other.pattern
        && rule.ports == other.ports
        && rule.options.private == other.options.private
        && rule.options.by == other.options.by
}

/// A file of rules: what is understood, shown and read again is the same rule.
pub(crate) fn policy_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (rules, problems) = parse_rules(text, origin);
    for problem in problems {
        assert!(problem.line >= 1 && problem.line <= text.lines().count());
        let _ = problem.error.to_string();
    }
    for rule in &rules {
        assert!(!rule.ports.is_empty());
        let shown = rule.to_string();
        let again = parse_rule(&shown, rule.origin.clone());
        assert!(again.as_ref().is_ok_and(|again| same(rule, again)), "{shown:?} is read as {again:?}");
        assert!(rule.pattern.covers(&rule.pattern));
    }
    let denied: Vec<Rule> = rules.iter().filter(|rule| rule.deny).cloned().collect();
    let allowlist = Allowlist::new(rules);
    for name in allowlist.exact_names() {
        let is_denied = denied.iter().any(|rule| rule.pattern.matches(&name));
        assert!(!(is_denied && matches!(allowlist.verdict(&name), Verdict::Allowed(_))), "{name} is denied");
    }
}

/// The operator's changes: a line is a request, `-` takes back; words are its rules. Nothing gets beyond the ceiling, and
/// what was taken back or denied is no longer allowed by that rule.
pub(crate) fn live_policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (configured, _) = parse_rules("ok.test\n*.wild.test:443,22\n!no.wild.test\n", origin);
    let (bounds, _) = parse_rules("*.test:443,22,80\nother.example\n", origin);
    let ceiling = Ceiling::new(bounds);
    let mut policy = LivePolicy::new(configured, ceiling.clone(), std::time::Duration::ZERO);
    for line in text.lines().take(50) {
        let back = line.strip_prefix('-');
        let texts: Vec<String> = back.unwrap_or(line).split(',').map(str::to_owned).collect();
        // As PID 1 does it: a copy is changed, and takes the place of the policy if all went well.
        let mut next = policy.clone();
        let done = if back.is_some() {
            next.revoke(&texts).map(|said| said.len())
        } else {
            next.allow(&texts, None).map(|said| said.len())
        };
        let Ok(said) = done else { continue };
        policy = next;
        let rules = policy.rules();
        assert_eq!(said, texts.iter().map(|text| parse_rules(text, origin).0.len()).sum::<usize>());
        assert!(rules.iter().all(|rule| rule.deny || ceiling.permits(rule)), "beyond the ceiling: {rules:?}");
        let [only] = &parse_rules(&texts.join("\n"), origin).0[..] else { continue };
        if back.is_some() {
            let left = |rule: &&Arc<Rule>| rule.deny == only.deny && rule.pattern == only.pattern;
            let ports = rules.iter().filter(left).flat_map(|rule| &rule.ports);
            assert!(!ports.clone().any(|port| only.ports.contains(port)), "{only} was taken back: {rules:?}");
        } else {
            let allowlist = Allowlist::new(rules);
            for name in allowlist.exact_names().iter().filter(|name| only.pattern.matches(name)) {
                let allowed = matches!(allowlist.verdict(name), Verdict::Allowed(_));
                assert!(allowed != only.deny || !allowed, "{name} after {only}");
            }
        }
    }
}

/// The engine's resolv.conf, and ours after a restart.
pub(crate) fn resolv_conf(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let found = resolv_conf::parse(text);
    let own = resolv_conf::render([127, 0, 0, 53].into(), &found);
    assert_eq!(resolv_conf::parse(&own), found, "a restart would ask others:\n{own}");
}

/// A table of /proc/net, whose lines hold what others chose.
pub(crate) fn socket_table(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for client in ["127.0.0.1:41394", "[::1]:1024", "[::ffff:127.0.0.1]:1024", "0.0.0.0:0"] {
        let client: SocketAddr = client.parse().unwrap();
        if let Some(owner) = find_owner(text, client) {
            assert!(owner.inode != Some(0));
            assert!(text.contains(&owner.uid.to_string()) || text.contains('+') || text.contains('0'));
        }
    }
}

/// What the session writes to the operator's terminal: however it is cut, the same passes; and nothing that writes the
/// clipboard unasked, sets a title, or makes a terminal answer, in the eyes of a parser that shares nothing with the filter.
pub(crate) fn terminal(data: &[u8]) {
    for clipboard in [false, true] {
        let whole = passed([data], clipboard);
        assert_eq!(passed(data.chunks(1), clipboard), whole, "octet by octet");
        assert_eq!(passed(data.chunks(7), clipboard), whole, "seven by seven");
        assert!(whole.len() <= data.len());
        assert_eq!(passed([whole.as_slice()], clipboard), whole, "what passed is not clean");
        let text = std::str::from_utf8(&whole);
        assert!(text.is_ok(), "no UTF-8 passed: {}", whole.escape_ascii());
        for command in commands(text.unwrap_or_default()) {
            assert!(!answers(&command, clipboard), "{} passed", command.escape_default());
        }
    }
}

/// The commands in a text as a terminal reads it (the states of vt100.net's parser), controls and sequences without
/// their ends.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\x1b' => found.push(escape(&mut chars)),
            '\0'..='\x1f' | '\x7f'..='\u{9f}' => found.push(format!("C0 {char}")),
            _ => {}
        }
    }
    found
}

fn escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    let mut sequence = match chars.next() {
        Some('[') => "CSI ".to_owned(),
        Some(']') => "OSC ".to_owned(),
        Some('P' | 'X' | '^' | '_' | 'k') => return "STRING".to_owned(),
        Some(intermediate @ ' '..='/') => format!("ESC {intermediate}"),
        Some(last) => return format!("ESC {last}"),
        None => return "CUT".to_owned(),
    };
    let is_osc = sequence == "OSC ";
    loop {
        match chars.next() {
            Some('\x07') if is_osc => return sequence,
            Some('\x1b') if is_osc && chars.next_if_eq(&'\\').is_some() => return sequence,
            Some(last @ '@'..='~') if sequence.starts_with("CSI ") => return sequence + &last.to_string(),
            Some(last @ '0'..='~') if sequence.starts_with("ESC ") => return sequence + &last.to_string(),
            Some(char) if char.is_control() => return "BROKEN".to_owned(),
            Some(char) => sequence.push(char),
            None => return "CUT".to_owned(),
        }
    }
}

/// What ctlseqs says that a terminal answers, prints, resizes, locks or remembers.
fn answers(command: &str, clipboard: bool) -> bool {
    let (kind, body) = command.split_once(' ').unwrap_or((command, ""));
    let last = body.chars().last().unwrap_or(' ');
    let has = |marks: &str| body.contains(|char| marks.contains(char));
    match kind {
        "C0" => has("\0\x05\x18\x1a\x7f") || last >= '\u{7f}',
        "ESC" => has("ZcHNO%#&VWlmno|}~6FGLMN@") && body != "M",
        "CSI" => {
            let mode = |bad: &[&str]| {
                body.trim_matches(|c: char| !c.is_ascii_digit()).split(';').any(|one| bad.contains(&one))
            };
            has("$*#\"'!&,-./)(+%")
                || "cnxtiypvwz{|}~WRNOQUVYg".contains(last)
                || (last == 'q' && !body.ends_with(" q"))
                || (has("?<=>") && "qusSmrJKW".contains(last) && !body.starts_with(">4"))
                || ("hl".contains(last)
                    && mode(&["2", "9", "20", "67", "1001", "1015", "1016", "2031", "2048", "5522"]))
        }
        "OSC" => match body.split(';').next() {
            Some("8") => false,
            Some("52") => !clipboard || has("?"),
            Some("4" | "10" | "11" | "12" | "104" | "110" | "111" | "112") => has("?"),
            _ => true,
        },
        _ => true,
    }
}

fn passed<'a>(parts: impl IntoIterator<Item = &'a [u8]>, clipboard: bool) -> Vec<u8> {
    let mut filter = Filter::new(clipboard);
    let mut out = Vec::new();
    for part in parts {
        filter.pass(part, &mut out);
    }
    out
}

/// The first octets of a TLS connection: however they are cut the same is read, and a name that is read is one that is
/// there, and the one that a server reads which shares nothing with us.
pub(crate) fn client_hello(data: &[u8]) {
    let whole = hello::parse(data);
    for size in [1, 7] {
        let mut reader = hello::Reader::default();
        let mut ends = (0..=data.len()).step_by(size).chain([data.len()]);
        let first =
            ends.find_map(|end| Some(reader.read(&data[..end])).filter(|read| *read != Hello::Incomplete));
        assert_eq!(first.unwrap_or(Hello::Incomplete), whole, "{size} at a time");
    }
    let Hello::Client(client) = whole else { return };
    if let Ok(name) = &client.name {
        let (shown, octets) = (data.to_ascii_lowercase(), name.as_str().as_bytes());
        // In several records it may be parted.
        let is_there = shown.windows(octets.len()).any(|part| part == octets);
        assert!(is_there || has_more_records(data), "{name} is nowhere");
    }
    let mut acceptor = rustls::server::Acceptor::default();
    if acceptor.read_tls(&mut &data[..]).is_ok()
        && let Ok(Some(accepted)) = acceptor.accept()
        && let Some(other) = accepted.client_hello().server_name()
    {
        // What is a name to a server and none to us is refused: a final dot, of which servers think differently.
        let other = DomainName::parse(other).ok().filter(|_| !other.ends_with('.'));
        assert_eq!(client.name.ok(), other, "a server reads another name");
    }
}

fn has_more_records(data: &[u8]) -> bool {
    let length = data.get(3..5).map_or(0, |length| usize::from(u16::from_be_bytes([length[0], length[1]])));
    data.len() > 5 + length
}

/// The octets of a body: however they are cut, it ends at the same place.
fn body_end(body: Body, data: &[u8]) -> Option<usize> {
    let whole = Measure::new(body).take(data);
    let (mut slow, mut octets, mut result) = (Measure::new(body), 0, None);
    for octet in data {
        match slow.take(&[*octet]) {
            Ok(taken) => octets += taken.octets,
            Err(why) => result = Some(Err(why)),
        }
        if result.is_some() {
            break;
        }
    }
    match (result, &whole) {
        (Some(slowly), Err(at_once)) => assert_eq!(slowly, Err::<usize, _>(*at_once)),
        (slowly, whole) => assert_eq!((slowly, whole.as_ref().map(|taken| taken.octets)), (None, Ok(octets))),
    }
    whole.ok().filter(|taken| taken.is_over).map(|taken| taken.octets)
}

/// The requests of a plain connection. What is accepted is for one host in the eyes of the most lenient reader too.
pub(crate) fn http_request(data: &[u8]) {
    let whole = request::parse(data);
    let mut reader = request::Reader::default();
    let mut reads = (0..=data.len()).map(|end| reader.read(&data[..end]));
    let first = reads.find(|read| *read != request::Read::Incomplete);
    assert_eq!(first.unwrap_or(request::Read::Incomplete), whole);
    let request = match whole {
        request::Read::Incomplete => return,
        request::Read::Refused(refused) => {
            let said = String::from_utf8(refused.render(request::manner(data))).expect("a refusal is text");
            assert!(matches!(refused.status, 400 | 403) && said.starts_with("HTTP/1.1 4"));
            assert_eq!(said.split("\r\n\r\n").count(), 2, "{said:?}");
            return;
        }
        request::Read::Head(request) => request,
    };
    let (head, rest) = data.split_at(request.length);
    let lenient = String::from_utf8_lossy(head).to_ascii_lowercase();
    // As a whole: methods are tokens, and CONNECTED would be another one.
    assert!(!lenient.contains('\0') && lenient.split([' ', '\t']).next() != Some("connect"));
    // Whatever may end a line, and whatever may stand before a colon.
    let fields = |name: &str| {
        let lines = lenient.split(['\r', '\n', '\x0b', '\x0c']);
        let fields = lines.filter_map(|line| line.split_once(':'));
        let named =
            fields.filter(|(field, _)| field.trim() == name).map(|(_, value)| value.trim().to_owned());
        named.collect::<Vec<_>>()
    };
    let port = request.port.map_or(String::new(), |port| format!(":{port}"));
    assert_eq!(fields("host"), [format!("{}{port}", request.host)]);
    assert!(fields("upgrade").iter().all(|upgrade| !upgrade.contains("h2c")));
    let (lengths, codings) = (fields("content-length"), fields("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1);
    match request.body {
        Body::Length(length) => assert_eq!(lengths.first().map_or("0", |text| text).parse(), Ok(length)),
        Body::Chunked => assert_eq!(codings, ["chunked"]),
        Body::UntilClose => unreachable!("a request has an end"),
    }
    if let Some((_, target)) = lenient.split_once("://").filter(|(method, _)| !method.contains('/')) {
        let authority = target.split(['/', '?', ' ']).next().unwrap_or_default();
        assert_eq!(
            authority.trim_end_matches(":80"),
            format!("{}{port}", request.host).trim_end_matches(":80")
        );
    }
    body_end(request.body, rest);
}

/// What servers answer.
pub(crate) fn http_response(data: &[u8]) {
    for to_head in [false, true] {
        let whole = response::Reader::default().read(data, to_head);
        let mut reader = response::Reader::default();
        let mut reads = (0..=data.len()).map(|end| reader.read(&data[..end], to_head));
        let first = reads.find(|read| *read != response::Read::Incomplete);
        assert_eq!(first.unwrap_or(response::Read::Incomplete), whole);
        let response::Read::Head(response) = whole else { return };
        assert!(data[..response.length].ends_with(b"\r\n\r\n"));
        assert!(!response.is_persistent || response.body != Body::UntilClose);
        body_end(response.body, &data[response.length..]);
    }
}
