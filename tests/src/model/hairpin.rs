//! Packets from one inside host to another behind an address of the gateway: what goes out comes in.

use gateway_common::DropReason;

use super::{
    Action, Arrival, Model, Step,
    nat::{NextHop, Side},
    read,
    wire::{Fragment, Ip},
};

/// The way out of the first half.
pub(super) fn turn(arrival: &Arrival<'_>) -> NextHop {
    NextHop { device: arrival.ingress.name.to_owned(), mtu: u16::MAX, mac: [0; 6], learned: false }
}

impl Model {
    /// A packet of a session whose server is inside.
    pub(super) fn of_hairpin(&mut self, arrival: &Arrival<'_>, ip: &Ip, side: Side, id: u64) -> Step<Action> {
        // From a wire, nobody sends with an address of the gateway.
        if side == Side::Outside {
            return Err(DropReason::NoSession.into());
        }
        if self.nat.session(id).cut {
            return self.inside(arrival, ip, true);
        }
        let action = self.established(arrival, ip, side, id)?;
        self.inward(arrival, action)
    }

    /// The second half: what has come of the packet in the first comes in from outside.
    pub(super) fn inward(&mut self, arrival: &Arrival<'_>, first: Action) -> Step<Action> {
        let Action::Send { verdict, frame, .. } = first else { return Ok(first) };
        let ip = read(&frame).ok_or(DropReason::Internal)?;
        let Arrival { ingress, length, output, places, .. } = arrival;
        let second = Arrival {
            frame: &frame,
            ingress: ingress.clone(),
            length: *length,
            output: *output,
            places: *places,
        };
        let action = if self.is_eip(ip.destination) {
            self.let_in(&second, &ip)?
        } else if let Some(action) = self.related(&second, &ip, Side::Outside, true)? {
            action
        } else {
            self.answer_in(&second, ip)?
        };
        match action {
            Action::Send { egress, frame, .. } => Ok(Action::Send { verdict, egress, frame }),
            Action::Pass | Action::Answer(_) => Ok(action),
        }
    }

    fn answer_in(&mut self, arrival: &Arrival<'_>, ip: Ip) -> Step<Action> {
        let later = ip.fragment == Fragment::Later;
        let ip = self.datagrams.complete(ip, Side::Outside)?;
        match self.nat.find(&ip, Side::Outside) {
            Some(id) if self.nat.session(id).turns && !self.nat.session(id).cut => {
                self.established(arrival, &ip, Side::Outside, id)
            }
            None if later => Err(DropReason::FragmentUnmatched.into()),
            Some(_) | None => Err(DropReason::NoSession.into()),
        }
    }
}
