//! The egress gate in the real image: the name that a connection shows decides, whatever address it was dialled at. Judged
//! by what arrived in the world and by whose octets came back; that a connect succeeds means nothing here.

#[cfg(test)]
#[path = "support/rig.rs"]
mod rig;

#[cfg(test)]
#[path = "box_gate/clients.rs"]
mod clients;
#[cfg(test)]
#[path = "box_gate/common.rs"]
mod common;
#[cfg(test)]
#[path = "box_gate/explicit.rs"]
mod explicit;
#[cfg(test)]
#[path = "box_gate/http.rs"]
mod http;
#[cfg(test)]
#[path = "box_gate/life.rs"]
mod life;
#[cfg(test)]
#[path = "box_gate/names.rs"]
mod names;
#[cfg(test)]
#[path = "box_gate/slow.rs"]
mod slow;
#[cfg(test)]
#[path = "box_gate/upstream.rs"]
mod upstream;
#[cfg(test)]
#[path = "box_gate/wires.rs"]
mod wires;
