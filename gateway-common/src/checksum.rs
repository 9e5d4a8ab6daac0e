//! Internet checksum arithmetic (RFC 1071) and incremental updates (RFC 1624).
//!
//! Sums are kept in native `u16` of big-endian words: a word is read with `u16::from_be_bytes`.

/// Folds the carries of a 32-bit one's complement sum into 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The amount by which a field's sum changes from `old` to `new`, both folded or plain word sums.
///
/// Session-constant: a session keeps it and applies it to every packet with [`apply`].
#[inline(always)]
pub const fn delta(old: u32, new: u32) -> u16 {
    // ~m + m' of RFC 1624 equation 3, with m and m' folded first so that the complement is 16 bits wide.
    fold((!fold(old)) as u32 + fold(new) as u32)
}

/// Adds two deltas.
#[inline(always)]
pub const fn combine(a: u16, b: u16) -> u16 {
    fold(a as u32 + b as u32)
}

/// RFC 1624 equation 3: HC' = ~(~HC + ~m + m'), with `delta` = ~m + m'.
#[inline(always)]
pub const fn apply(checksum: u16, delta: u16) -> u16 {
    !fold((!checksum) as u32 + delta as u32)
}

/// [`apply`] for UDP: 0 means "no checksum" and stays; a computed 0 is sent as 0xffff (RFC 768).
#[inline(always)]
pub const fn apply_udp(checksum: u16, delta: u16) -> u16 {
    if checksum == 0 {
        return 0;
    }
    match apply(checksum, delta) {
        0 => 0xffff,
        updated => updated,
    }
}

/// One's complement sum of the big-endian words of `bytes`, an odd last byte padded with zero.
///
/// For host code and short slices; not folded.
pub fn sum(bytes: &[u8]) -> u32 {
    let mut total: u32 = 0;
    let mut words = bytes.chunks_exact(2);
    for word in words.by_ref() {
        total = u32::from(fold(total + u32::from(u16::from_be_bytes([word[0], word[1]]))));
    }
    if let [last] = words.remainder() {
        total += u32::from(*last) << 8;
    }
    u32::from(fold(total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_incremental_update_equals_a_recomputation(
            mut data in proptest::collection::vec(any::<u8>(), 20..60),
            at in 0usize..9,
            new in any::<[u8; 2]>(),
        ) {
            if data.len() % 2 == 1 { data.pop(); }
            let at = at * 2;
            // An all-zero datagram has both representations of zero; real headers are never all zero.
            data[18] |= 1;
            let before = !fold(sum(&data));
            let old = u32::from(u16::from_be_bytes([data[at], data[at + 1]]));
            data[at..at + 2].copy_from_slice(&new);
            data[18] |= 1;
            prop_assume!(at != 18);
            let after = !fold(sum(&data));
            let updated = apply(before, delta(old, u32::from(u16::from_be_bytes(new))));
            prop_assert_eq!(updated, after);
        }

        #[test]
        fn deltas_combine(a in any::<u16>(), b in any::<u16>(), c in any::<u16>(), d in any::<u16>(), sum in 1u16..) {
            let one = apply(apply(sum, delta(a.into(), b.into())), delta(c.into(), d.into()));
            let both = apply(sum, combine(delta(a.into(), b.into()), delta(c.into(), d.into())));
            // 0x0000 and 0xffff are the same number in one's complement.
            let normal = |x: u16| if x == 0xffff { 0 } else { x };
            prop_assert_eq!(normal(one), normal(both));
        }
    }

    #[test]
    fn an_absent_udp_checksum_stays_absent() {
        assert_eq!(apply_udp(0, delta(1, 2)), 0);
    }

    #[test]
    fn a_computed_udp_checksum_is_never_zero() {
        for old in [1u16, 0x1234, 0xfffe] {
            let delta = delta(0, u32::from(old));
            assert_ne!(apply_udp(old, delta), 0);
        }
    }
}
