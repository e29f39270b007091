//! The bench's own ends of the wire: the internet that a resolver and an agent see, and the clients that count.
//!
//!     load world ADDRESS DELAY_MS PORT     DNS on ADDRESS:53, a server that says its own address on PORT and one that
//!                                          only reads on PORT + 1, at any address; each line on stdin brings a line
//!                                          of counters and begins them anew
//!     load echo ADDRESS                    sends every question back as its answer: the generator's own limit
//!     load flood SERVER KIND WINDOW SECONDS RATE SEED
//!                                          KIND is cached, fresh, own, none or denied, with :N no more than N questions;
//!                                          RATE 0: as fast as WINDOW allows
//!     load connect SERVER PORT COUNT       resolve, connect at once, read the token; as many denied ones between them
//!     load rotate SERVER PORT NAMES SECONDS
//!                                          the same under names whose addresses change with the time
//!     load reach PORT COUNT                connects to the addresses of denied names, which all have to answer
//!     load syn COUNT ROUNDS                nanoseconds a SYN through the OUTPUT hook, round COUNT destinations
//!     load established PORT COUNT          the same for packets of an established connection; changes the route
//!     load gate-server PORT                what `bench gate` has behind the gate; src/gate.rs says what it does
//!     load opens PORT CLIENTS SECONDS      connect, ClientHello, answer, end, by so many clients at a time
//!     load first PORT COUNT [stranger]     the same by one, microseconds to the answer's first octet; a stranger asks for a
//!                                          name that no gate knows
//!     load bulk PORT CONNECTIONS SECONDS   octets from the server
//!     load hold PORT COUNT                 connections that then say nothing, until standard input ends
//!     load slow PORT COUNT SECONDS         connections that send an octet every five seconds, and a good client
//!
//! Results are one JSON object on stdout.

mod connect;
mod flood;
mod gate;
mod hello;
mod message;
mod names;
mod syn;
mod world;

use std::error::Error;
use std::process::ExitCode;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["world", address, delay_ms, port] => world::run(address, delay_ms, port),
        ["echo", address] => world::echo(address),
        ["flood", server, kind, window, seconds, rate, seed] => {
            flood::run(server, kind, window, seconds, rate, seed)
        }
        ["connect", server, port, count] => connect::fresh(server, port, count),
        ["rotate", server, port, names, seconds] => connect::rotating(server, port, names, seconds),
        ["reach", port, count] => connect::reach(port, count),
        ["established", port, count] => syn::established(port, count),
        ["syn", count, rounds] => syn::run(count, rounds),
        ["gate-server", port] => gate::server(port),
        ["opens", port, clients, seconds] => gate::opens(port, clients, seconds),
        ["first", port, count] => gate::first(port, count, false),
        ["first", port, count, "stranger"] => gate::first(port, count, true),
        ["bulk", port, connections, seconds] => gate::bulk(port, connections, seconds),
        ["hold", port, count] => gate::hold(port, count),
        ["slow", port, count, seconds] => gate::slow(port, count, seconds),
        _ => Err("see the head of main.rs".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}
