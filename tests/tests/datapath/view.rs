//! What is asked about sessions is answered as if all of them were read, however many there are.

use gateway_tests::packet::{ip, udp};
use gateway_user::dataplane::Order;

use crate::support::{Lab, POOL, POOL6, standard};

/// As many sessions as are more than what is kept of a table.
const SESSIONS: u16 = 9_000;

/// Opens session number `number`, with so many bytes of payload out, and back.
fn open(lab: &mut Lab, number: u16, (out, back): (usize, usize)) {
    let (client, server) = if number.is_multiple_of(10) {
        (format!("[2001:db8:4::{:x}]", number % 200 + 1), "[2001:db8:f::1]".to_owned())
    } else {
        (format!("10.0.2.{}", number % 200 + 1), "203.0.113.10".to_owned())
    };
    let server = format!("{server}:{}", if number.is_multiple_of(3) { 53 } else { 443 });
    let query = udp(&format!("{client}:{}", 2_000 + number), &server).payload(vec![0; out]);
    let (address, port) = lab.open("in0", &query);
    if back > 0 {
        let pool =
            if address.is_ipv4() { format!("{address}:{port}") } else { format!("[{address}]:{port}") };
        let answer = udp(&server, &pool).payload(vec![0; back]);
        lab.prepare("out0", &answer);
    }
}

fn opened(traffic: impl Fn(u16) -> (usize, usize)) -> Option<Lab> {
    let addresses = format!("{POOL} {POOL6}");
    let mut lab = standard(|policy| {
        policy
            .pool("nat", &addresses, "1024-65535")
            .routes("0.0.0.0/0 via pool nat\n::/0 via pool nat")
            .sessions(20_000)
    })?;
    (0..SESSIONS).for_each(|number| open(&mut lab, number, traffic(number)));
    Some(lab)
}

/// Compares what is found with what all sessions say.
#[track_caller]
fn check(lab: &Lab) {
    for (port, limit) in [(None, 1), (None, 50), (Some(53), 20), (None, usize::from(SESSIONS) + 1)] {
        for order in [Order::Bytes, Order::Packets, Order::Age] {
            let mut all = lab.sessions();
            all.retain(|row| port.is_none_or(|port| row.destination_port == port));
            let total = all.len() as u64;
            order.cut(&mut all, limit);
            let (found, counted) = lab.largest(port, order, limit);
            assert_eq!((found.len(), counted), (all.len(), total), "{order:?} {limit}");
            for (found, expected) in found.iter().zip(&all) {
                let [found, expected] = [found, expected].map(|row| order.weight(row));
                // All have become older since.
                let same = if order == Order::Age { found >= expected } else { found == expected };
                assert!(same, "{order:?} {limit}: {found} instead of {expected}");
            }
        }
    }
}

#[test]
fn the_largest_sessions_are_found_among_many_small_ones() {
    let traffic = |number: u16| match number % 300 {
        7 => (100 + usize::from(number / 10), 0),
        8 => (0, 100 + usize::from(number / 10)),
        9 => (300, 50),
        _ => (10, 0),
    };
    let Some(lab) = opened(traffic) else { return };
    assert_eq!(lab.sessions().len(), usize::from(SESSIONS));
    check(&lab);
    assert!(lab.sessions().iter().any(|row| row.translated == ip(POOL6)));
}

#[test]
fn the_largest_sessions_are_found_where_nobody_sends_both_ways() {
    // The largest halves of either side are no session's.
    let traffic = |number: u16| if number.is_multiple_of(2) { (500, 0) } else { (10, 300) };
    let Some(lab) = opened(traffic) else { return };
    check(&lab);
}
