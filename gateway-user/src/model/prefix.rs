//! Prefixes and addresses as operators write them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::error::ValueError;

/// Reads a prefix: `203.0.113.0/24`, an address (a prefix of full length), or `default` (`0.0.0.0/0`).
pub fn parse_prefix(field: &'static str, text: &str) -> Result<IpNet, ValueError> {
    if text == "default" {
        return Ok(IpNet::V4(Ipv4Net::default()));
    }
    let prefix = match text.split_once('/') {
        None => IpNet::from(parse_address(field, text)?),
        Some((address, length)) => {
            let address = parse_address(field, address)?;
            let (bits, usual) = if address.is_ipv4() { (32, 24) } else { (128, 64) };
            length.parse().ok().and_then(|length| IpNet::new(address, length).ok()).ok_or_else(|| {
                ValueError::invalid(field, format!("`{text}` has no prefix length between 0 and {bits}"))
                    .hint(format!(
                        "write {address} for the one address, or a network as in {address}/{usual}"
                    ))
            })?
        }
    };
    if prefix.trunc() != prefix {
        return Err(ValueError::invalid(field, format!("prefix `{text}` has host bits set")).hint(format!(
            "write {} for the network, or {} for the one address",
            prefix.trunc(),
            IpNet::from(prefix.addr())
        )));
    }
    if let IpNet::V6(v6) = prefix
        && v6.prefix_len() >= 96
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return Err(mapped(field, text));
    }
    Ok(prefix)
}

/// Reads an address.
pub fn parse_address(field: &'static str, text: &str) -> Result<IpAddr, ValueError> {
    text.parse().map_err(|_| {
        let error = ValueError::invalid(field, format!("`{text}` is not an IP address or prefix"));
        if text.contains(':') {
            error.hint("an IPv6 address looks like 2001:db8::1")
        } else {
            error.hint("an IPv4 address has four numbers from 0 to 255, as in 203.0.113.7")
        }
    })
}

/// Refuses what cannot be the address of one host.
pub fn check_unicast(field: &'static str, address: IpAddr) -> Result<(), ValueError> {
    let kind = match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => return Err(mapped(field, &address.to_string())),
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast address",
        // 0/8 and 240/4: RFC 1122 3.2.1.3, RFC 1112 4.
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240 => "a reserved address",
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(()),
    };
    Err(ValueError::invalid(field, format!("`{address}` is {kind}")).hint("give the address of a host"))
}

/// Whether `prefix` is one of IPv6.
pub fn is_ipv6(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}

/// `IPv4` or `IPv6`.
pub fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn mapped(field: &'static str, text: &str) -> ValueError {
    let v4 = text
        .split('/')
        .next()
        .and_then(|address| address.parse::<Ipv6Addr>().ok())
        .and_then(|address| address.to_ipv4_mapped());
    let error = ValueError::invalid(field, format!("`{text}` is an IPv4 address in IPv6 clothes"));
    match v4 {
        Some(v4) => error.hint(format!("write it as IPv4: {v4}")),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("203.0.113.0/24", "203.0.113.0/24")]
    #[case("203.0.113.7", "203.0.113.7/32")]
    #[case("2001:db8::1", "2001:db8::1/128")]
    #[case("2001:db8::/32", "2001:db8::/32")]
    #[case("default", "0.0.0.0/0")]
    #[case("::/0", "::/0")]
    fn a_prefix_is_read(#[case] text: &str, #[case] prefix: &str) {
        assert_eq!(parse_prefix("prefix", text).expect("a prefix").to_string(), prefix);
    }

    #[rstest]
    #[case("10.0.0.1/24", "prefix `10.0.0.1/24` has host bits set", "write 10.0.0.0/24 for the network")]
    #[case(
        "10.0.0.0/33",
        "`10.0.0.0/33` has no prefix length between 0 and 32",
        "write 10.0.0.0 for the one address"
    )]
    #[case("10.0.0.0/", "`10.0.0.0/` has no prefix length", "as in 10.0.0.0/24")]
    #[case("2001:db8::/129", "between 0 and 128", "as in 2001:db8::/64")]
    #[case("10.0.0.256", "`10.0.0.256` is not an IP address", "four numbers")]
    #[case("::ffff:10.0.0.1", "is an IPv4 address in IPv6 clothes", "write it as IPv4: 10.0.0.1")]
    fn a_bad_prefix_is_named(#[case] text: &str, #[case] message: &str, #[case] hint: &str) {
        let error = parse_prefix("prefix", text).expect_err("refused");
        assert!(error.message.contains(message), "{error:?}");
        assert!(error.hint.unwrap_or_default().contains(hint));
    }
}
