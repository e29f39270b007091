//! Attacks on a living box, by the ids of the catalogue of threats. Each first shows that the same attempt gets through
//! where nothing stops it; whether something leaked is read in the world.

#[cfg(test)]
#[path = "support/rig.rs"]
mod rig;

#[cfg(test)]
#[path = "box_attacks/network.rs"]
mod network;
#[cfg(test)]
#[path = "box_attacks/planted.rs"]
mod planted;
#[cfg(test)]
#[path = "box_attacks/privileges.rs"]
mod privileges;
#[cfg(test)]
#[path = "box_attacks/session.rs"]
mod session;
