//! A reply to a client: which records and codes, and how they become octets. (pure)
//!
//! hickory parses and encodes. What a reply says was decided in `policy.rs` and `lookup.rs`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::OnceLock;

use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::rdata::opt::EdnsOption;
use hickory_server::proto::rr::rdata::{A, AAAA, SOA};
use hickory_server::proto::rr::{Name, RData, Record};
use hickory_server::proto::serialize::binary::BinEncoder;
use hickory_server::server::Request;
use hickory_server::zone_handler::MessageResponseBuilder;

use super::cache::Known;
use super::lookup::Outcome;
use super::policy::{EDE_BLOCKED, Local, Why};
use crate::policy::remedy::Remedies;

/// RFC 1035 §4.1.1.
const HEADER: usize = 12;
/// RFC 1035 §4.1.4: longer lengths are pointers, or were never given a meaning.
const MAX_LABEL: u8 = 63;
/// What fits everywhere without fragments (DNS flag day 2020).
const MAX_UDP_PAYLOAD: u16 = 1232;
/// RFC 1035 §4.2.1: for a client that says nothing of its buffer.
const MIN_UDP_PAYLOAD: u16 = 512;
/// How long clients believe a "no": short, since the operator may allow the name any moment.
const NEGATIVE_TTL_S: u32 = 5;
const LOCALHOST_TTL_S: u32 = 300;
/// The IPv4 dummy address (RFC 7600 §4.8): nobody has it, and no router forwards it.
const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// The name may be known here soon.
const DUMMY_TTL_S: u32 = 30;
/// Longer explanations would not fit beside a long name into the smallest reply.
pub(super) const MAX_EXPLANATION: usize = 200;
/// RFC 8914: 3 Stale Answer.
const EDE_STALE: u16 = 3;
/// RFC 8914 §2: the EDNS option.
const EDE_OPTION: u16 = 15;

/// What goes back, without the client's own question.
#[derive(Debug)]
pub struct Reply {
    code: ResponseCode,
    answers: Vec<Record>,
    authority: Option<Record>,
    /// Code and text of the Extended DNS Error.
    error: Option<(u16, String)>,
}

/// What came from a client.
#[derive(Debug)]
pub enum Parsed {
    Question(Box<Request>),
    /// No question, but something that is to hear so.
    Broken(Vec<u8>),
    /// Answers are nobody's question; to answer them would be the way to a loop.
    Ignored,
}

/// Parses a client's message.
#[must_use]
pub fn parse(message: Vec<u8>, client: SocketAddr, protocol: Protocol) -> Parsed {
    // RFC 1035 §4.1.1: QR. Looked at by hand, since a message that can't be parsed may be an answer too.
    let is_answer = message.get(2).is_none_or(|octet| octet & 0x80 != 0);
    let refusal = if is_answer { None } else { message.first_chunk().copied().map(u16::from_be_bytes) };
    let header = message.len() >= HEADER;
    let compressed = is_compressed(&message);
    match Request::from_bytes(message, client, protocol) {
        Ok(request) if request.metadata.message_type == MessageType::Query && !compressed => {
            Parsed::Question(Box::new(request))
        }
        Ok(_) | Err(_) => refusal
            .filter(|_| header)
            .and_then(|id| Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok())
            .map_or(Parsed::Ignored, Parsed::Broken),
    }
}

/// Whether the first question's name has a pointer in it. Only the header lies before it, and the reply, which repeats
/// the question's octets, has another one: its name would mean something else or nothing.
fn is_compressed(message: &[u8]) -> bool {
    let mut at = HEADER;
    while let Some(length) = message.get(at).copied().filter(|length| *length != 0) {
        if length > MAX_LABEL {
            return true;
        }
        at += 1 + usize::from(length);
    }
    false
}

impl Reply {
    #[must_use]
    pub fn new(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authority: None, error: None }
    }

    /// A "no" that may be remembered: with the SOA that RFC 2308 wants for it.
    fn negative(owner: &Name, code: ResponseCode) -> Self {
        let remembered = matches!(code, ResponseCode::NXDomain | ResponseCode::NoError);
        Self { authority: remembered.then(|| authority(owner)).flatten(), ..Self::new(code) }
    }

    fn addresses(owner: &Name, addresses: &[IpAddr], ttl_s: u32) -> Self {
        let record = |address: &IpAddr| {
            let data = match address {
                IpAddr::V4(address) => RData::A(A(*address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
            };
            Record::from_rdata(owner.clone(), ttl_s, data)
        };
        Self { answers: addresses.iter().map(record).collect(), ..Self::new(ResponseCode::NoError) }
    }

    #[must_use]
    pub fn local(owner: &Name, local: Local) -> Self {
        match local {
            Local::Localhost(address) => Self::addresses(owner, &[address], LOCALHOST_TTL_S),
            Local::Gate => Self::addresses(owner, &[IpAddr::V4(DUMMY)], DUMMY_TTL_S),
            Local::Empty => Self::negative(owner, ResponseCode::NoError),
        }
    }

    #[must_use]
    pub fn refused(owner: &Name, why: &Why<'_>, remedies: &Remedies) -> Self {
        let error = why.explanation(remedies).map(|text| (EDE_BLOCKED, text));
        Self { error, ..Self::negative(owner, why.response_code()) }
    }

    #[must_use]
    pub fn resolved(owner: &Name, outcome: &Outcome) -> Self {
        match &outcome.known {
            Known::Addresses { addresses, stale } => {
                let note = || (EDE_STALE, "upstreams fail; this is the last good answer".to_owned());
                Self { error: stale.then(note), ..Self::addresses(owner, addresses, outcome.ttl_s) }
            }
            Known::Empty => Self::negative(owner, ResponseCode::NoError),
            Known::NxDomain => Self::negative(owner, ResponseCode::NXDomain),
            Known::NoneAdmitted => {
                let name = owner.to_ascii().to_ascii_lowercase();
                let name = name.trim_end_matches('.');
                let text = format!(
                    "the address policy admits no address of {name}; operator: innkeeper log --denied"
                );
                Self { error: Some((EDE_BLOCKED, text)), ..Self::negative(owner, ResponseCode::NXDomain) }
            }
            Known::Failed(failure) => {
                let error = Some((failure.code, failure.text.clone()));
                Self { error, ..Self::new(ResponseCode::ServFail) }
            }
        }
    }

    /// The reply as it goes to the client, into `bytes`, which is empty before and stays so if it can't be encoded.
    pub fn encode(self, request: &Request, bytes: &mut Vec<u8>) {
        let edns = self.edns(request);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = true;
        metadata.response_code = self.code;
        let mut encoder = BinEncoder::new(bytes);
        encoder.set_max_size(if request.protocol() == Protocol::Udp {
            edns.as_ref().map_or(MIN_UDP_PAYLOAD, Edns::max_payload)
        } else {
            u16::MAX
        });
        let builder = MessageResponseBuilder::new(&request.queries, edns.as_ref());
        let response = builder.build(metadata, &self.answers, &self.authority, [], []);
        if response.destructive_emit(&mut encoder).is_err() {
            bytes.clear();
        }
    }

    /// RFC 6891 §6.1.1: an OPT record if, and only if, the client sent one.
    fn edns(&self, request: &Request) -> Option<Edns> {
        let asked = request.edns.as_ref()?;
        let mut edns = Edns::new();
        edns.set_max_payload(asked.max_payload().clamp(MIN_UDP_PAYLOAD, MAX_UDP_PAYLOAD));
        edns.set_rcode_high(self.code.high());
        if let Some((code, text)) = &self.error {
            let text = if text.len() > MAX_EXPLANATION {
                "refused by policy; operator: innkeeper log --denied"
            } else {
                text
            };
            let mut option = Vec::with_capacity(text.len() + 2);
            option.extend(code.to_be_bytes());
            option.extend(text.bytes());
            edns.options_mut().insert(EdnsOption::Unknown(EDE_OPTION, option));
        }
        Some(edns)
    }
}

fn authority(owner: &Name) -> Option<Record> {
    static START: OnceLock<Option<SOA>> = OnceLock::new();
    let soa = START.get_or_init(|| {
        let mname = Name::from_ascii("innkeeper.invalid.").ok()?;
        let rname = Name::from_ascii("operator.innkeeper.invalid.").ok()?;
        Some(SOA::new(mname, rname, 1, 3600, 600, 86_400, NEGATIVE_TTL_S))
    });
    let soa = soa.as_ref()?.clone();
    Some(Record::from_rdata(owner.clone(), NEGATIVE_TTL_S, RData::SOA(soa)))
}
