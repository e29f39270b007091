//! Machines of a platform: its own SSH server beside the box, where connection tracking may not work.

use std::io::{Read, Write};

use innkeeper::firewall::backend::Edit;
use innkeeper::firewall::ruleset::{FirewallPlan, skeleton};

use crate::place::{AGENT, BOX6, Kind, OUTSIDE6, ROOT, World};
use crate::plan;

on_every_backend! {
    ssh_of_the_platform_keeps_working_without_connection_tracking,
}

/// A Fly Machine has seen connection tracking fail for IPv6: the session goes on, also one that is older than the box.
fn ssh_of_the_platform_keeps_working_without_connection_tracking(kind: Kind) {
    let Some(world) = World::on(kind) else { return };
    for hook in ["output", "prerouting"] {
        world.inside.nft("add table inet blind");
        world
            .inside
            .nft(&format!("add chain inet blind {hook} {{ type filter hook {hook} priority raw ; }}"));
        world.inside.nft(&format!("add rule inet blind {hook} meta nfproto ipv6 notrack"));
    }
    let address = format!("[{BOX6}]:22");
    let server = world.inside.listen(&address);
    let mut older = world.outside.connect(ROOT, &address).unwrap();
    let mut its_shell = server.accept().unwrap().0;

    let operators = vec![format!("{OUTSIDE6}/64").parse().unwrap()];
    let mut kernel = world.kernel();
    kernel.load(&skeleton(&FirewallPlan { ssh_from: operators, ..plan() }), &Edit::default()).unwrap();
    let mut newer = world.outside.connect(ROOT, &address).unwrap();
    let mut shell = server.accept().unwrap().0;
    for (operator, shell) in [(&mut older, &mut its_shell), (&mut newer, &mut shell)] {
        let mut bytes = [0; 2];
        operator.write_all(b"ls").unwrap();
        shell.read_exact(&mut bytes).unwrap();
        shell.write_all(b"ok").unwrap();
        operator.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ok");
    }
    drop(server);

    // It is root's server alone: what the agent makes of the port brings nobody an answer.
    std::thread::scope(|scope| {
        let agents = world.inside.run(ROOT, || {
            std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").unwrap();
            world.inside.run(AGENT, || std::net::UdpSocket::bind(&address)).unwrap()
        });
        scope.spawn(move || {
            agents.send_to(b"must not arrive", (OUTSIDE6, 22)).unwrap_err();
        });
    });
    let listener = world.inside.run(AGENT, || {
        let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        let address: std::net::SocketAddr = address.parse().unwrap();
        socket.bind(&address.into()).unwrap();
        socket
    });
    let far = world.outside.listen(&format!("[{OUTSIDE6}]:22"));
    let out: std::net::SocketAddr = format!("[{OUTSIDE6}]:22").parse().unwrap();
    listener.connect_timeout(&out.into(), std::time::Duration::from_secs(5)).unwrap_err();
    far.set_nonblocking(true).unwrap();
    assert!(far.accept().is_err(), "nothing came out");
    // From elsewhere the port is closed; without its rule nobody would be let in at all.
    assert!(!world.leaked(&mut kernel, b"must not arrive"));
}
