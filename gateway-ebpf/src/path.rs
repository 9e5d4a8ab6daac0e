//! The packet path, as a checklist.
//!
//! ```text
//! fast:    parse -> session, confirmed -> translate -> send
//!                -> anything else      -> decide
//!                -> UDP that may be a tunnel -> out_of_tunnel -> as above, for the frame inside
//! decide:  parse -> the host's own business
//!                -> an ICMP error about a packet of a session -> related
//!                -> a later fragment -> what its first one has shown
//!                -> session, unconfirmed -> confirm or cut -> translate -> send
//!                -> none, from inside    -> source, route, target: open a session, forward, or eip
//!                -> none, from outside   -> a pool's address, an EIP, an inside host, or the host's business
//!                -> none, of a pool with endpoint-independent mappings -> mapping
//!                -> from inside to such a mapping, or to an EIP by a pool -> hairpin -> inward
//!                -> from inside to a pool's address, by an EIP -> eip -> inward
//!                -> of a session that a proxy host has, or to a proxy -> redirect
//! ```

use aya_ebpf::{btf_maps::ProgramArray, macros::btf_map, programs::XdpContext};
use gateway_common::{
    DropReason, V4, V6, Verdict,
    address::{BROADCAST, EIP, LOCAL, MAPPING, POOL},
    config::{Config, DECAPSULATE, DECIDE_V4, DECIDE_V6, PROGRAM_COUNT, Policy},
    family::NextHop,
    interface::{INSIDE, Interface, NO_SLOT, OUTSIDE, PROXIES},
    parse::{
        self, Bytes as _, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN,
        Flow, Fragment, PROTO_TCP, Packet,
    },
    route::{SYSTEM, Target},
    session::{DEAD, SIDE_INSIDE, SIDE_OUTSIDE, Session, Tuple},
    tunnel::host_of,
};

use crate::{
    address, border, config, count,
    family::Datapath,
    forward, fragment, hairpin, mapping, mss,
    neighbor::{self, Found},
    open,
    packet::{Frame, mac_words},
    pool, proxy, related, rewrite,
    route::{self, Query},
    session::{self, Subject, TO_EIP, TO_MAPPING, TO_POOL},
    source, tcp, tunnel,
};

/// What the program does with a packet that it does not drop.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    /// What becomes of it.
    pub(crate) verdict: Verdict,
    /// Egress slot; [`NO_SLOT`]: left to the host's own stack, unchanged.
    pub(crate) slot: u32,
}

impl Outcome {
    /// Left to the host's own stack.
    pub(crate) const HOST: Self = Self { verdict: Verdict::Host, slot: NO_SLOT };

    /// Not decided yet: for the program of EIPs.
    const TO_EIP: Self = Self { verdict: Verdict::Eip, slot: NO_SLOT };
    /// For another inside host, by a session: [`hairpin`] goes on.
    const TO_HAIRPIN: Self = Self { verdict: Verdict::Snat, slot: NO_SLOT };
    /// For a proxy host: [`crate::redirect`] goes on.
    const TO_PROXY: Self = Self { verdict: Verdict::Proxy, slot: NO_SLOT };
    /// An answer to an untranslated packet: the border table says where it goes.
    const TO_BORDER: Self = Self { verdict: Verdict::Reply, slot: NO_SLOT };
    /// Perhaps a frame in a tunnel: [`out_of_tunnel`] goes on.
    const TO_TUNNEL: Self = Self { verdict: Verdict::Direct, slot: NO_SLOT };

    /// Whether this is [`Outcome::TO_TUNNEL`].
    #[inline(always)]
    const fn is_to_tunnel(self) -> bool {
        self.slot == NO_SLOT && matches!(self.verdict, Verdict::Direct)
    }
}

/// The result of a stage that is a function of its own. The verifier wants every bit of a returned register to
/// be written, and a `Result` leaves some out.
///
/// A drop is its reason; [`Code::OPEN`] is 0; all else is `(slot + 1) << 8 | verdict`.
#[derive(Clone, Copy)]
pub(crate) struct Code(u64);

impl Code {
    /// Nothing to report.
    pub(crate) const OK: Self = Self::outcome(Outcome::HOST);

    /// As [`Code::OK`], from what packets have shown.
    pub(crate) const LEARNED: Self = Self::outcome(Outcome { verdict: Verdict::Reply, slot: NO_SLOT });

    /// Whether this is [`Code::LEARNED`].
    #[inline(always)]
    pub(crate) const fn is_learned(self) -> bool {
        self.0 == Self::LEARNED.0
    }

    /// Whether this is [`Outcome::TO_HAIRPIN`].
    #[inline(always)]
    pub(crate) const fn is_to_hairpin(self) -> bool {
        self.0 == Self::outcome(Outcome::TO_HAIRPIN).0
    }

    /// Whether this is [`Outcome::TO_EIP`].
    #[inline(always)]
    pub(crate) const fn is_to_eip(self) -> bool {
        self.0 == Self::outcome(Outcome::TO_EIP).0
    }

    /// Whether the source of the packet does not belong where it comes from.
    #[inline(always)]
    pub(crate) const fn is_spoofed(self) -> bool {
        self.0 == Self::drop(DropReason::SpoofedSource).0
    }

    /// Whether this is [`Outcome::TO_PROXY`].
    #[inline(always)]
    pub(crate) const fn is_to_proxy(self) -> bool {
        self.0 == Self::outcome(Outcome::TO_PROXY).0
    }

    /// The packet needs a session.
    pub(crate) const OPEN: Self = Self(0);

    /// Whether this is [`Code::OPEN`].
    #[inline(always)]
    pub(crate) const fn is_open(self) -> bool {
        self.0 == 0
    }

    /// Whether this is a drop for that reason.
    #[inline(always)]
    pub(crate) const fn is_drop(self, reason: DropReason) -> bool {
        self.0 == reason as u64
    }

    /// A drop.
    #[inline(always)]
    pub(crate) const fn drop(reason: DropReason) -> Self {
        Self(reason as u64)
    }

    /// A packet that goes on.
    #[inline(always)]
    pub(crate) const fn outcome(outcome: Outcome) -> Self {
        Self(((outcome.slot as u64) + 1) << 8 | outcome.verdict as u64)
    }

    /// Encodes a result.
    #[inline(always)]
    pub(crate) fn from(result: Result<Outcome, DropReason>) -> Self {
        match result {
            Ok(outcome) => Self::outcome(outcome),
            Err(reason) => Self::drop(reason),
        }
    }

    /// Decodes it.
    #[inline(always)]
    pub(crate) fn result(self) -> Result<Outcome, DropReason> {
        let low = self.0 as u8;
        match (self.0 >> 8) as u32 {
            0 => Err(DropReason::from_number(low).unwrap_or(DropReason::Internal)),
            slot => Ok(Outcome {
                verdict: Verdict::from_number(low).ok_or(DropReason::Internal)?,
                slot: slot - 1,
            }),
        }
    }
}

/// What decides a packet, from its first program to its last.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct InForce {
    generation: u32,
    policy: Policy,
}

impl InForce {
    /// What is in force.
    #[inline(always)]
    pub(crate) fn now(config: &Config) -> Self {
        // SAFETY: the references are valid; user space may write the fields at any time. The generation comes first: it
        // moves last.
        unsafe {
            let generation = (&raw const config.generation).read_volatile();
            Self { generation, policy: (&raw const config.policy).read_volatile() }
        }
    }

    /// What `decide` has found in force, for the programs after it. A change in between is for the next packet: the
    /// route that was found is of the policy before, and its generation is what a session must be marked with.
    #[inline(always)]
    pub(crate) fn of_subject<F: Datapath>(config: &Config) -> Self {
        match F::subject() {
            // SAFETY: the element is this CPU's own and programs do not preempt each other.
            Some(subject) => unsafe { (*subject).in_force },
            None => Self::now(config),
        }
    }

    /// For a program that sends what was decided: the gateway was active, and must not be found inactive half-way.
    #[inline(always)]
    pub(crate) fn decided(config: &Config) -> Self {
        let InForce { generation, policy } = Self::now(config);
        Self { generation, policy: policy.with_active(true) }
    }

    /// Whether somebody wants to see packets.
    #[inline(always)]
    pub(crate) const fn is_watched(self) -> bool {
        self.policy.is_watched()
    }

    /// Whether the gateway decides packets.
    #[inline(always)]
    pub(crate) const fn is_active(self) -> bool {
        self.policy.is_active()
    }
}

/// Everything that stays the same along one packet's path.
pub(crate) struct Context<'a> {
    pub(crate) frame: &'a Frame<'a>,
    pub(crate) config: &'a Config,
    pub(crate) ingress: &'a Interface,
    /// [`Config::generation`] as it was before any map was read: what is decided now is marked with it.
    pub(crate) generation: u32,
    /// [`Config::policy`], read after the generation. All lookups of a packet are by the same word, through all the
    /// programs that it meets.
    pub(crate) policy: Policy,
    /// Length of the frame as it arrived.
    pub(crate) bytes: u64,
}

impl<'a> Context<'a> {
    #[inline(always)]
    pub(crate) fn new(
        frame: &'a Frame<'a>,
        config: &'a Config,
        ingress: &'a Interface,
        InForce { generation, policy }: InForce,
    ) -> Self {
        Self { frame, config, ingress, generation, policy, bytes: frame.bytes() }
    }

    /// What [`Context::new`] was told.
    #[inline(always)]
    const fn in_force(&self) -> InForce {
        InForce { generation: self.generation, policy: self.policy }
    }

    /// Whether the ingress interface faces both sides.
    #[inline(always)]
    pub(crate) fn is_one_armed(&self) -> bool {
        self.ingress.flags & (INSIDE | OUTSIDE) == INSIDE | OUTSIDE
    }

    /// Whether the frame is addressed to the ingress interface: what is for groups and for other stations is not
    /// for a router to forward (RFC 1812 5.3.4).
    #[inline(always)]
    pub(crate) fn is_addressed(&self) -> Result<bool, DropReason> {
        let [m0, m1, m2, m3, m4, m5] = self.ingress.mac;
        let first: u32 = self.frame.read(0).ok_or(DropReason::Truncated)?;
        let rest: u16 = self.frame.read(4).ok_or(DropReason::Truncated)?;
        Ok(first == u32::from_ne_bytes([m0, m1, m2, m3]) && rest == u16::from_ne_bytes([m4, m5]))
    }

    /// Whether the interface in `slot` faces clients, or the slot is the tunnel of a proxy host, which is one of them.
    #[inline(always)]
    pub(crate) fn is_inside(&self, slot: u32) -> bool {
        self.config.inside_slots & (1 << (slot & 31)) != 0 || host_of(slot).is_some()
    }
}

/// The programs that `gateway` and those after it tail call.
#[btf_map]
static PROGRAMS: ProgramArray<{ PROGRAM_COUNT as usize }> = ProgramArray::new();

/// What all packets meet first: whoever has a confirmed session leaves from here, and whoever has not is
/// handed to [`decide`].
#[inline(always)]
pub(crate) fn fast(context: &Context<'_>, ctx: &XdpContext) -> Result<Outcome, DropReason> {
    let ethertype = context.frame.read::<u16>(12).ok_or(DropReason::Truncated)?;
    match u16::from_be(ethertype) {
        ETHERTYPE_IPV4 => match fast_of::<V4>(context)? {
            Some(outcome) if outcome.is_to_tunnel() => hand_over::<DECAPSULATE>(ctx),
            Some(outcome) => Ok(outcome),
            None => decide_instead::<DECIDE_V4>(ctx),
        },
        ETHERTYPE_IPV6 => match fast_of::<V6>(context)? {
            Some(outcome) if outcome.is_to_tunnel() => hand_over::<DECAPSULATE>(ctx),
            Some(outcome) => Ok(outcome),
            None => decide_instead::<DECIDE_V6>(ctx),
        },
        ETHERTYPE_ARP => decide_instead::<DECIDE_V4>(ctx),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => {
            let link = parse::link(context.frame).ok_or(DropReason::Truncated)?;
            match link.ethertype {
                // A tagged frame belongs to the VLAN device, which is an interface of its own.
                _ if link.vlan => Ok(Outcome::HOST),
                ETHERTYPE_IPV4 | ETHERTYPE_ARP => decide_instead::<DECIDE_V4>(ctx),
                ETHERTYPE_IPV6 => decide_instead::<DECIDE_V6>(ctx),
                // More tags than are looked through: the host's stack would take them all off and forward.
                ETHERTYPE_VLAN | ETHERTYPE_QINQ => Err(DropReason::Malformed),
                _ => Ok(Outcome::HOST),
            }
        }
        _ => Ok(Outcome::HOST),
    }
}

/// A frame that has come out of a tunnel, with the origin that [`tunnel::unwrap`] has found: it goes on as [`fast`] has
/// it. Where it has come out of none, `decide` knows what to do with it.
#[inline(always)]
pub(crate) fn out_of_tunnel(
    context: &Context<'_>,
    ctx: &XdpContext,
    origin: Result<u16, DropReason>,
) -> Result<Outcome, DropReason> {
    let origin = origin?;
    tunnel::came_from(origin);
    let is_v4 = context.frame.read::<u16>(12).ok_or(DropReason::Truncated)? == ETHERTYPE_IPV4.to_be();
    if origin != 0 {
        // It was addressed to the gateway's end of the tunnel; a frame on a link is to its device.
        context.frame.write(0, mac_words(context.ingress.mac))?;
        let found = if is_v4 {
            fast_ip::<V4, { From::Tunnel as u8 }>(context, origin)?
        } else {
            fast_ip::<V6, { From::Tunnel as u8 }>(context, origin)?
        };
        if let Some(outcome) = found {
            return Ok(outcome);
        }
    }
    if is_v4 { hand_over::<DECIDE_V4>(ctx) } else { hand_over::<DECIDE_V6>(ctx) }
}

/// Continues in the program `PROGRAM` of `decide` with a frame as it came.
#[inline(always)]
fn decide_instead<const PROGRAM: u32>(ctx: &XdpContext) -> Result<Outcome, DropReason> {
    tunnel::came_from(0);
    hand_over::<PROGRAM>(ctx)
}

/// Continues in another program.
#[inline(always)]
pub(crate) fn hand_over<const PROGRAM: u32>(ctx: &XdpContext) -> Result<Outcome, DropReason> {
    call::<PROGRAM>(ctx);
    Err(DropReason::Internal)
}

/// Continues in another program, and returns only where that is missing. The index is a constant, so that the JIT makes
/// a direct jump of it.
#[inline(always)]
pub(crate) fn call<const PROGRAM: u32>(ctx: &XdpContext) {
    // SAFETY: nothing of this program needs to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, PROGRAM) };
}

/// Decides a packet of family `F` (with IPv4: or ARP) that has no confirmed session. `RELATED` is the program for
/// ICMP errors, `EIP_STAGE` that for EIPs, `MAP` that for endpoint-independent mappings, `TURN` that
/// for packets to them from inside, `PROXY` that for what goes to proxy hosts.
///
/// The stages are functions of their own, so that each gives its stack back.
#[inline(always)]
pub(crate) fn decide<
    F: Datapath,
    const RELATED: u32,
    const EIP_STAGE: u32,
    const MAP: u32,
    const TURN: u32,
    const PROXY: u32,
>(
    context: &Context<'_>,
    ctx: &XdpContext,
) -> Result<Outcome, DropReason> {
    let link = parse::link(context.frame).ok_or(DropReason::Truncated)?;
    if F::IS_V4 && link.ethertype == ETHERTYPE_ARP {
        return address::answer_arp(context, link.network).result();
    }
    let subject = F::subject().ok_or(DropReason::Internal)?;
    // SAFETY: the element is this CPU's own and programs do not preempt each other.
    let subject = unsafe { &mut *subject };
    subject.in_force = context.in_force();
    read(context.frame, link.network, subject).result()?;
    let packet = &subject.packet;
    if !F::IS_V4
        && matches!(packet.transport_layer.flow, Flow::Icmp)
        && packet.transport_layer.detail == address::NEIGHBOR_SOLICITATION
    {
        return address::answer_solicitation(context, packet).result();
    }
    if !context.is_addressed()? || F::is_local_scope(packet) {
        return Ok(Outcome::HOST);
    }
    if F::is_martian(packet) {
        return martian(packet);
    }
    take_side(context, subject);
    subject.cut = 0;
    subject.redirected = 0;
    let packet = &subject.packet;
    if related::is_error(packet) {
        if !related::find(context, subject).is_open() {
            return hand_over::<RELATED>(ctx);
        }
        if subject.tuple.side == SIDE_INSIDE {
            return hand_over::<EIP_STAGE>(ctx);
        }
    }
    if matches!(subject.packet.fragment, Fragment::Later) {
        fragment::complete(subject).result()?;
    }
    take_side_of_origin(subject);
    if subject.shown != 0
        && let Some(session) = F::session(&subject.tuple)
    {
        // SAFETY: the pointer is to a map value; see `gateway_common::session` for its life time.
        let session = unsafe { &mut *session };
        if session.is_proxied() {
            subject.redirected = 1;
            return hand_over::<PROXY>(ctx);
        }
        if !hairpin::is_one(session, subject.tuple.side) {
            let confirmed = look(context, subject, session);
            if !confirmed.is_open() {
                confirmed.result()?;
                count::route(session.counter, context.bytes);
                return follow_known(context, subject, session);
            }
        } else if subject.tuple.side == SIDE_OUTSIDE {
            // From outside, nobody sends with an address of a pool.
            return Err(DropReason::NoSession);
        } else if session.generation != DEAD {
            return hand_over::<TURN>(ctx);
        }
        subject.cut = 1;
    }
    if subject.tuple.side == SIDE_OUTSIDE {
        let code = from_outside(context, subject);
        if code.is_to_eip() {
            return hand_over::<EIP_STAGE>(ctx);
        }
        if code.is_learned() {
            return border::pass(context, subject).result();
        }
        return if code.is_open() { hand_over::<MAP>(ctx) } else { code.result() };
    }
    if subject.tuple.origin != 0 {
        let code = from_proxy_host(context, subject);
        if !code.is_open() {
            return code.result();
        }
    }
    let code = from_inside(context, subject);
    if code.is_to_eip() {
        return hand_over::<EIP_STAGE>(ctx);
    }
    if code.is_to_hairpin() {
        return hand_over::<TURN>(ctx);
    }
    if code.is_to_proxy() && subject.cut == 0 {
        return hand_over::<PROXY>(ctx);
    }
    if !code.is_open() && !code.is_to_proxy() {
        return border::reconsider(context, subject, code).result();
    }
    // The elements of a session that was cut are in the way of another one until the sweep has removed them.
    if subject.cut != 0 {
        return Err(DropReason::NoSession);
    }
    if matches!(subject.packet.fragment, Fragment::First) {
        fragment::teach(context, subject).result()?;
    }
    if pool::is_endpoint_independent(subject.route.object) {
        return hand_over::<MAP>(ctx);
    }
    open(context, subject)
}

/// Opens a session for the packet in the subject, if its client may, and sends the packet on its way.
#[inline(always)]
fn open<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Result<Outcome, DropReason> {
    source::admit(context, subject).result()?;
    let code = open::open(context, subject);
    source::settle::<F>();
    if !code.is_open() {
        return code.result();
    }
    follow_other(context, subject).result()
}

/// A packet from or for an address that nobody forwards: neighbours speak to the host from such.
#[inline(always)]
fn martian<F: Datapath>(packet: &Packet<F>) -> Result<Outcome, DropReason> {
    let found = address::find(&F::mapped(&packet.destination));
    if found.is_some_and(|found| found.flags & LOCAL != 0) {
        Ok(Outcome::HOST)
    } else {
        Err(DropReason::Malformed)
    }
}

/// Reads the packet at `network`, and prepares the key of its session.
#[inline(never)]
pub(crate) fn read<F: Datapath>(frame: &Frame<'_>, network: usize, subject: &mut Subject<F>) -> Code {
    match F::parse(frame, network) {
        Ok(packet) => {
            subject.packet = packet;
            subject.tuple = tuple(&packet, SIDE_INSIDE);
            subject.shown = u8::from(packet.is_trackable());
            // Of a packet that is dropped before it has a route, nothing is recorded.
            subject.route.log = 0;
            Code::OK
        }
        Err(reason) => Code::drop(reason),
    }
}

/// Notes the side in the key. A function of its own, for its stack.
#[inline(never)]
fn take_side<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) {
    subject.tuple.origin = proxy::origin(context);
    subject.tuple.side = if subject.tuple.origin == 0 { side(context, &subject.packet) } else { SIDE_INSIDE };
}

/// As [`take_side`], for a packet of a proxy host, whose ports are known by now.
#[inline(never)]
fn take_side_of_origin<F: Datapath>(subject: &mut Subject<F>) -> u64 {
    let origin = subject.tuple.origin;
    if subject.shown != 0 && origin != 0 {
        proxy::take_side(&mut subject.tuple, origin);
    }
    0
}

/// Where frames come from.
#[repr(u8)]
enum From {
    /// A link without hosts of proxies: nobody looks for them.
    Link,
    /// A link with hosts of proxies.
    ProxyLink,
    /// The tunnel of such a host.
    Tunnel,
}

/// [`fast`] for an IP packet; `None` where it takes a decision. `FROM` is a [`From`], `origin` that of a frame that
/// comes from a tunnel.
#[inline(always)]
fn fast_ip<F: Datapath, const FROM: u8>(
    context: &Context<'_>,
    origin: u16,
) -> Result<Option<Outcome>, DropReason> {
    let Some(packet) = F::parse_plain(context.frame)? else { return Ok(None) };
    if !context.is_addressed()? || !packet.is_trackable() {
        return Ok(None);
    }
    let mut key = tuple(&packet, side(context, &packet));
    let origin = if FROM == From::ProxyLink as u8 { proxy::origin_on_link(context) } else { origin };
    if FROM != From::Link as u8 && origin != 0 {
        proxy::take_side(&mut key, origin);
    }
    let side = key.side;
    let Some(session) = F::session_of(key) else {
        let tunnelled = FROM != From::Tunnel as u8 && tunnel::may_be_one(&packet);
        return Ok(tunnelled.then_some(Outcome::TO_TUNNEL));
    };
    // SAFETY: the pointer is to a map value; see `gateway_common::session` for its life time.
    let session = unsafe { &mut *session };
    if !is_confirmed(context, session, side)
        || !tcp::goes_on(&packet, session)
        || forward::check(&packet, &session.next_hop).is_err()
        || (session.is_proxied() && side == SIDE_INSIDE && !proxy::goes_on(context, origin, session))
    {
        return Ok(None);
    }
    count::route(session.counter, context.bytes);
    if side == SIDE_INSIDE && matches!(packet.transport_layer.flow, Flow::Tcp) {
        // For the check of resets, see `tcp`. Every segment behind the SYN acknowledges.
        session.mark =
            context.frame.read(packet.transport() + tcp::ACKNOWLEDGEMENT).ok_or(DropReason::Truncated)?;
    }
    established(context, &packet, session, side).map(Some)
}

/// [`fast_ip`] of the ingress interface.
#[inline(always)]
fn fast_of<F: Datapath>(context: &Context<'_>) -> Result<Option<Outcome>, DropReason> {
    if context.ingress.flags & PROXIES == 0 {
        fast_ip::<F, { From::Link as u8 }>(context, 0)
    } else {
        fast_ip::<F, { From::ProxyLink as u8 }>(context, 0)
    }
}

/// Whether `session` may be used as it is: decided under this policy, for a client behind this interface.
#[inline(always)]
fn is_confirmed<F: Datapath>(context: &Context<'_>, session: &Session<F>, side: u8) -> bool {
    session.generation == context.generation
        && (side == SIDE_OUTSIDE || session.slot() == context.ingress.slot)
}

/// The key of the packet's session.
#[inline(always)]
pub(crate) fn tuple<F: Datapath>(packet: &Packet<F>, side: u8) -> Tuple<F> {
    Tuple {
        source: packet.source,
        destination: packet.destination,
        source_port: packet.transport_layer.source_port,
        destination_port: packet.transport_layer.destination_port,
        proto: packet.proto,
        side,
        origin: 0,
    }
}

/// Which side a packet comes from. On a one-armed interface, what is for a pool's address is an answer, and what
/// is for an EIP is taken as one until `eip` has looked.
#[inline(always)]
fn side<F: Datapath>(context: &Context<'_>, packet: &Packet<F>) -> u8 {
    match context.ingress.flags & (INSIDE | OUTSIDE) {
        INSIDE => SIDE_INSIDE,
        OUTSIDE => SIDE_OUTSIDE,
        _ => match address::find(&F::mapped(&packet.destination)) {
            Some(found) if found.flags & (POOL | EIP) != 0 => SIDE_OUTSIDE,
            _ => SIDE_INSIDE,
        },
    }
}

/// A packet of a confirmed session: the path that has to be fast.
#[inline(always)]
pub(crate) fn established<F: Datapath>(
    context: &Context<'_>,
    packet: &Packet<F>,
    session: &mut Session<F>,
    side: u8,
) -> Result<Outcome, DropReason> {
    forward::check(packet, &session.next_hop)?;
    seen(context, packet, session, side);
    if session.is_proxied() {
        forward::age(context.frame, packet, session.network_delta)?;
    } else {
        rewrite::translate(context.frame, packet, session, side)?;
    }
    forward::readdress::<F>(context.frame, packet.network(), &session.next_hop)?;
    Ok(Outcome { verdict: verdict(session, side), slot: u32::from(session.next_hop.slot) })
}

/// Notes a packet in its session.
#[inline(always)]
pub(crate) fn seen<F: Datapath>(
    context: &Context<'_>,
    packet: &Packet<F>,
    session: &mut Session<F>,
    side: u8,
) {
    let now = config::now(context.config);
    if session.last_seen != now {
        session.last_seen = now;
    }
    if side == SIDE_OUTSIDE && session.packets == 0 && packet.proto != PROTO_TCP {
        count::pool(u32::from(session.pool_address), |pool| pool.established += 1);
    }
    session.packets += 1;
    session.bytes += u64::from(packet.length);
}

/// What becomes of a packet of a session.
#[inline(always)]
pub(crate) fn verdict<F: Datapath>(session: &Session<F>, side: u8) -> Verdict {
    match (side == SIDE_INSIDE, session.is_proxied()) {
        (true, false) => Verdict::Snat,
        (true, true) => Verdict::Proxy,
        (false, _) => Verdict::Reply,
    }
}

/// As [`follow`], where a SYN may begin another connection on a closed session. Not in `follow`, whose stack others
/// need.
#[inline(always)]
fn follow_known<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    session: &mut Session<F>,
) -> Result<Outcome, DropReason> {
    tcp::read_stamp(context, subject);
    tcp::admit_anew(context, subject, session).result()?;
    tcp::renew(context, subject, session)?;
    let code = follow(context, subject, session);
    if code.result().is_ok() {
        tcp::note_stamp(context, subject, session);
    }
    code.result()
}

/// A packet of a session that another CPU has opened meanwhile, with an earlier packet of the flow.
#[inline(never)]
pub(crate) fn follow_other<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let Some(session) = F::session(&subject.tuple) else { return Code::drop(DropReason::Internal) };
    // SAFETY: the pointer is to a map value; see `gateway_common::session` for its life time.
    follow(context, subject, unsafe { &mut *session })
}

/// A packet of a confirmed session, whatever it does to it.
#[inline(never)]
pub(crate) fn follow<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    session: &mut Session<F>,
) -> Code {
    subject.mtu = session.next_hop.mtu;
    if matches!(subject.packet.fragment, Fragment::First) {
        let taught = fragment::teach(context, subject);
        if taught.result().is_err() {
            return taught;
        }
    }
    let tracked = tcp::track(context, subject, session);
    if tracked.result().is_err() {
        return tracked;
    }
    mss::clamp_of(context, subject, session);
    Code::from(established(context, &subject.packet, session, subject.tuple.side))
}

/// Whether a session may be used: it is confirmed, or is now. Results are those of [`confirm`].
#[inline(always)]
fn look<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>, session: &mut Session<F>) -> Code {
    if is_confirmed(context, session, subject.tuple.side) {
        return Code::OK;
    }
    let code = confirm(context, subject, session);
    if code.is_learned() { border::confirm(context, subject, session) } else { code }
}

/// Looks again at a session that was decided under another generation: cuts it where the policy does not
/// allow it any more, and refreshes its next hop. A session stays on the pool it has.
///
/// [`Code::OPEN`]: it was cut before, and its packets are as those without a session. [`Code::LEARNED`]: it is for
/// [`border::confirm`] to say where its packets go.
#[inline(never)]
fn confirm<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>, session: &mut Session<F>) -> Code {
    match try_confirm(context, subject, session) {
        Ok(code) => code,
        Err(reason) => Code::drop(reason),
    }
}

/// Whether the session's pool address is still in its pool, and its server where it was when the session began, outside
/// or behind an address of the gateway: 1, else 0.
#[inline(never)]
pub(crate) fn keeps_ends<F: Datapath>(tuple: &Tuple<F>, session: &Session<F>) -> u64 {
    let inside = tuple.side == SIDE_INSIDE;
    let (address, server) =
        if inside { (session.translated, tuple.destination) } else { (tuple.destination, tuple.source) };
    let found = address::find(&F::mapped(&server));
    let turns = found.is_some_and(|found| found.flags & (POOL | EIP) != 0);
    u64::from(
        pool::owns(session.pool_address, &F::mapped(&address))
            && turns == hairpin::is_one(session, tuple.side),
    )
}

#[inline(always)]
fn try_confirm<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    session: &mut Session<F>,
) -> Result<Code, DropReason> {
    let Subject { packet, tuple, .. } = &*subject;
    if !session::revive(tuple, session) {
        return Ok(Code::OPEN);
    }
    let inside = tuple.side == SIDE_INSIDE;
    if keeps_ends(tuple, session) == 0 {
        session::cut(tuple, session);
        return Err(DropReason::NoSession);
    }
    let client = if inside { packet.source } else { session.translated };
    let origin = if inside { tuple.origin } else { session.ingress };
    let way = if inside {
        if origin == 0 {
            neighbor::back(context, packet)?;
        }
        session::set_slot(session, context.ingress.slot);
        neighbor::towards::<F>(context, client, packet.destination)
    } else if origin != 0 {
        // To the proxy host that opened the session, whose address the client's need not be.
        proxy::towards(origin).map(|next_hop| Found { next_hop, learned: false })
    } else {
        neighbor::towards::<F>(context, packet.source, client)
    };
    let Found { next_hop, learned } = match way {
        // The session knows a MAC address, whatever has become of the host's knowledge.
        Err(DropReason::NeighborUnresolved) => Found { next_hop: session.next_hop, learned: true },
        way => way?,
    };
    let inside_slot = if inside { context.ingress.slot } else { u32::from(next_hop.slot) };
    let query = Query::<F> {
        source: client,
        destination: if inside { packet.destination } else { packet.source },
        // A later fragment shows no ports, but its session does.
        proto: tuple.proto,
        port: session::server_port(tuple),
    };
    match allow(context, inside_slot, origin, &query) {
        Ok(counter) => session.counter = counter,
        Err(reason) => {
            session::cut(tuple, session);
            return Err(reason);
        }
    }
    if !inside && origin == 0 && context.policy.border() != 0 {
        // Not written into the session: packets on other CPUs must not take a way that the table does not want.
        subject.forth = next_hop;
        subject.learned = u8::from(learned);
        return Ok(Code::LEARNED);
    }
    session.next_hop = next_hop;
    // What was only learned is asked for again with the next packet, until the kernel knows it.
    let generation = if learned { session::STALE } else { context.generation };
    Ok(if session::confirm(session, generation) { Code::OK } else { Code::OPEN })
}

/// Whether a session may live on whose inside tuple has this origin. The counter of the route that says so; one that
/// denies is counted here.
#[inline(always)]
pub(crate) fn allow<F: Datapath>(
    context: &Context<'_>,
    inside_slot: u32,
    origin: u16,
    query: &Query<F>,
) -> Result<u16, DropReason> {
    let counter = ask(context, inside_slot, origin, query).result()?;
    Ok(counter.slot as u16)
}

/// [`allow`] as a function of its own, for its stack: the counter stands in the place of the slot.
#[inline(never)]
fn ask<F: Datapath>(context: &Context<'_>, inside_slot: u32, origin: u16, query: &Query<F>) -> Code {
    match try_ask(context, inside_slot, origin, query) {
        Ok(counter) => Code::outcome(Outcome { slot: u32::from(counter), ..Outcome::HOST }),
        Err(reason) => Code::drop(reason),
    }
}

#[inline(always)]
fn try_ask<F: Datapath>(
    context: &Context<'_>,
    inside_slot: u32,
    origin: u16,
    query: &Query<F>,
) -> Result<u16, DropReason> {
    let source = proxy::bound_address::<F>(query.source, origin).ok_or(DropReason::NoSession)?;
    let found = route::lookup_for(context.policy, inside_slot, &source, query)?;
    let reason = match Target::from_number(found.target).ok_or(DropReason::Internal)? {
        Target::None => return Err(DropReason::NoRoute),
        Target::Blackhole => DropReason::Blackhole,
        Target::Prohibit => DropReason::Prohibited,
        Target::Direct | Target::Pool | Target::Gateway | Target::Host | Target::Eip | Target::Proxy => {
            return Ok(found.counter);
        }
    };
    count::route(found.counter, context.bytes);
    Err(reason)
}

/// A packet from a proxy host without a session: to an inside host it goes straight on, whoever it says it comes
/// from, because an intercepting proxy answers in the server's name. [`Code::OPEN`]: it goes out.
#[inline(never)]
fn from_proxy_host<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let packet = &subject.packet;
    match neighbor::inside::<F>(context, packet.source, packet.destination) {
        Ok(Some(next_hop)) if proxy::turns_back(context, subject.tuple.origin, &next_hop) => {
            Code::drop(DropReason::NoRoute)
        }
        Ok(Some(next_hop)) => Code::from(untracked(context, subject, &next_hop, Verdict::Reply)),
        Ok(None) => match proxy::back(context, subject.tuple.origin) {
            Ok(next_hop) => {
                subject.back = next_hop;
                // The first answer asks again where the host is.
                subject.learned = 1;
                Code::OPEN
            }
            Err(reason) => Code::drop(reason),
        },
        Err(reason) => Code::drop(reason),
    }
}

/// A packet from the inside without a session.
#[inline(never)]
pub(crate) fn from_inside<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    match try_from_inside(context, subject) {
        Ok(Some(outcome)) => Code::outcome(outcome),
        Ok(None) => Code::OPEN,
        Err(reason) => Code::drop(reason),
    }
}

/// `None`: `subject` is ready for [`open::open`].
#[inline(always)]
fn try_from_inside<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
) -> Result<Option<Outcome>, DropReason> {
    let packet = &subject.packet;
    subject.hairpin = 0;
    if let Some(found) = address::find(&F::mapped(&packet.destination)) {
        if found.flags & (LOCAL | BROADCAST) != 0 {
            return Ok(Some(Outcome::HOST));
        }
        subject.hairpin = if found.flags & EIP != 0 {
            TO_EIP
        } else if found.flags & MAPPING != 0 {
            TO_MAPPING
        } else {
            TO_POOL
        };
    }
    if subject.tuple.origin == 0 {
        let Found { next_hop, learned } = neighbor::back(context, packet)?;
        subject.back = next_hop;
        // With a border table, the first reply asks it where to go.
        subject.learned = u8::from(learned || context.policy.border() != 0);
    }
    find_route(context, subject).result()?;
    count::route(subject.route.counter, context.bytes);
    if subject.route.target == Target::Proxy as u8 {
        proxy::resolve(context, subject).result()?;
    }
    let packet = &subject.packet;
    let found = subject.route;
    match Target::from_number(found.target).ok_or(DropReason::Internal)? {
        Target::None => Err(DropReason::NoRoute),
        Target::Blackhole => Err(DropReason::Blackhole),
        Target::Prohibit => Err(DropReason::Prohibited),
        Target::Host => Ok(Some(Outcome::HOST)),
        Target::Proxy if subject.hairpin == 0 => Ok(Some(Outcome::TO_PROXY)),
        Target::Pool if subject.hairpin == TO_EIP || subject.hairpin == TO_MAPPING => {
            open::may_open(packet)?;
            subject.forth = hairpin::WAY;
            Ok(Some(Outcome::TO_HAIRPIN))
        }
        Target::Eip => Ok(Some(Outcome::TO_EIP)),
        // The other host would answer from its own address.
        Target::Proxy => Err(DropReason::NoSession),
        Target::Direct | Target::Gateway | Target::Pool if subject.hairpin != 0 => Err(DropReason::NoSession),
        Target::Direct => {
            let Found { next_hop, .. } = neighbor::towards::<F>(context, packet.source, packet.destination)?;
            if found.flags & SYSTEM != 0 && !context.is_inside(next_hop.slot.into()) {
                return Err(DropReason::NoRoute);
            }
            leave(context, subject, &next_hop, Verdict::Direct)
        }
        Target::Gateway => {
            let router = route::router(found.object).ok_or(DropReason::Internal)?;
            let address = F::unmapped(&router.address);
            let Found { next_hop, .. } =
                neighbor::router::<F>(context, router.ifindex, packet.source, address)?;
            leave(context, subject, &next_hop, Verdict::Gateway)
        }
        Target::Pool => {
            open::may_open(packet)?;
            subject.forth = neighbor::towards::<F>(context, packet.source, packet.destination)?.next_hop;
            subject.mtu = subject.forth.mtu;
            let origin = subject.tuple.origin;
            if origin != 0 && proxy::turns_back(context, origin, &subject.forth) {
                return Err(DropReason::NoRoute);
            }
            Ok(None)
        }
    }
}

/// Sends a packet from the inside on untracked; but no proxy host gets what it has sent itself.
#[inline(always)]
fn leave<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    next_hop: &NextHop,
    verdict: Verdict,
) -> Result<Option<Outcome>, DropReason> {
    let origin = subject.tuple.origin;
    if origin != 0 && proxy::turns_back(context, origin, next_hop) {
        return Err(DropReason::NoRoute);
    }
    untracked(context, subject, next_hop, verdict).map(Some)
}

/// Leaves the route of a packet from the inside in the subject. A function of its own, for its stack.
#[inline(never)]
pub(crate) fn find_route<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let packet = &subject.packet;
    let query = Query::<F> {
        source: packet.source,
        destination: packet.destination,
        proto: packet.proto,
        port: packet.server_port(true),
    };
    let Some(source) = proxy::bound_address::<F>(packet.source, subject.tuple.origin) else {
        return Code::drop(DropReason::NoRoute);
    };
    match route::lookup_for(context.policy, context.ingress.slot, &source, &query) {
        Ok(found) => {
            subject.route = found;
            Code::OK
        }
        Err(reason) => Code::drop(reason),
    }
}

/// Leaves the route of an inside host that the subject asks about in it, for packets that go to the host through
/// [`Subject::forth`]. A function of its own, for its stack.
#[inline(never)]
pub(crate) fn find_route_back<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    match route::lookup(context.policy, u32::from(subject.forth.slot), &subject.query) {
        Ok(found) => {
            subject.route = found;
            Code::OK
        }
        Err(reason) => Code::drop(reason),
    }
}

/// A packet from the outside without a session.
///
/// An inside host's own address may be answered where its table sends packets to the answering host
/// untranslated; the host's IP input would let in everything, so what is for an inside host stops here.
///
/// [`Code::OPEN`]: it is for a pool with endpoint-independent mappings, and may open a session.
#[inline(never)]
fn from_outside<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Code {
    let packet = &subject.packet;
    let Some(found) = address::find(&F::mapped(&packet.destination)) else {
        return Code::from(to_inside(context, subject));
    };
    if found.flags & MAPPING != 0 && mapping::may_open(packet) {
        return Code::OPEN;
    }
    if found.flags & (LOCAL | BROADCAST) != 0 {
        return Code::OK;
    }
    if found.flags & EIP != 0 {
        return Code::outcome(Outcome::TO_EIP);
    }
    Code::drop(match packet.fragment {
        Fragment::Whole | Fragment::First => DropReason::NoSession,
        Fragment::Later => DropReason::FragmentUnmatched,
    })
}

/// A packet from the outside for an address that is neither the gateway's nor the host's.
#[inline(always)]
fn to_inside<F: Datapath>(context: &Context<'_>, subject: &mut Subject<F>) -> Result<Outcome, DropReason> {
    let packet = &subject.packet;
    let Found { next_hop, .. } =
        match neighbor::towards_inside::<F>(context, packet.source, packet.destination) {
            Err(DropReason::NoRoute) => return Ok(Outcome::HOST),
            result => result?,
        };
    let slot = u32::from(next_hop.slot);
    if !context.is_inside(slot) {
        return Ok(Outcome::HOST);
    }
    neighbor::outside(context, packet)?;
    subject.query.source = packet.destination;
    subject.query.destination = packet.source;
    subject.query.proto = packet.proto;
    subject.query.port = packet.server_port(false);
    subject.forth = next_hop;
    find_route_back(context, subject).result()?;
    proxy::beyond(context, subject).result()?;
    let found = subject.route;
    match Target::from_number(found.target).ok_or(DropReason::Internal)? {
        Target::Direct | Target::Gateway => {
            count::route(found.counter, context.bytes);
            if context.policy.border() != 0 {
                return Ok(Outcome::TO_BORDER);
            }
            untracked(context, subject, &next_hop, Verdict::Reply)
        }
        Target::None | Target::Blackhole | Target::Prohibit => Err(DropReason::NoRoute),
        // Answers would come to the pool's address, or to the EIP. One proxy may be on the way, and not two.
        Target::Pool | Target::Eip | Target::Proxy => Err(DropReason::NoSession),
        Target::Host => Ok(Outcome::HOST),
    }
}

/// Forwards a packet that is neither translated nor tracked.
#[inline(always)]
pub(crate) fn untracked<F: Datapath>(
    context: &Context<'_>,
    subject: &mut Subject<F>,
    next_hop: &NextHop,
    verdict: Verdict,
) -> Result<Outcome, DropReason> {
    subject.mtu = next_hop.mtu;
    let packet = &subject.packet;
    forward::check(packet, next_hop)?;
    forward::age(context.frame, packet, forward::TTL_DELTA)?;
    forward::readdress::<F>(context.frame, packet.network(), next_hop)?;
    Ok(Outcome { verdict, slot: u32::from(next_hop.slot) })
}
