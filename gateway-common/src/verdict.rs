//! What became of a packet. Every packet has exactly one verdict.

/// What became of a packet.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Forwarded with its source unchanged.
    Direct = 0,
    /// Forwarded with its source translated to a pool address.
    Snat = 1,
    /// Translated 1:1 to or from an EIP.
    Eip = 2,
    /// Redirected to a proxy host.
    Proxy = 3,
    /// Forwarded to the router that the route names.
    Gateway = 4,
    /// Handed to the host's own stack, or not the gateway's business.
    Host = 5,
    /// Dropped, with a [`crate::DropReason`].
    Drop = 6,
    /// A reply, sent back to the inside.
    Reply = 7,
}

impl Verdict {
    /// How many verdicts there are.
    pub const COUNT: u32 = 8;

    /// Every verdict, in the order of their numbers.
    pub const ALL: &'static [Self] = &[
        Self::Direct,
        Self::Snat,
        Self::Eip,
        Self::Proxy,
        Self::Gateway,
        Self::Host,
        Self::Drop,
        Self::Reply,
    ];

    /// The verdict with this number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Direct),
            1 => Some(Self::Snat),
            2 => Some(Self::Eip),
            3 => Some(Self::Proxy),
            4 => Some(Self::Gateway),
            5 => Some(Self::Host),
            6 => Some(Self::Drop),
            7 => Some(Self::Reply),
            _ => None,
        }
    }

    /// The name used by metrics, JSON and filters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Snat => "snat",
            Self::Eip => "eip",
            Self::Proxy => "proxy",
            Self::Gateway => "gateway",
            Self::Host => "host",
            Self::Drop => "drop",
            Self::Reply => "reply",
        }
    }
}
