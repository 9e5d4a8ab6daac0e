//! The one-line form of a route, of a binding and of a bare prefix, as in files and on the command line.
//!
//! ```text
//! PREFIX via TARGET [proto tcp|udp|icmp] [dport A[-B]] [log] [comment TEXT]
//! PREFIX [iif IF]
//! PREFIX
//! ```
//! Words are separated by white space; `"..."` makes one word, with `\"` and `\\` inside.
//! `#` at the beginning of a word begins a remark that ends with the line.

use std::borrow::Cow;

use ipnet::IpNet;

use super::{
    Binding, Route, RouteKey, RouteWords, Target,
    error::{ValueError, suggest},
    prefix::parse_prefix,
};

/// Keywords that may follow the prefix of a route.
const KEYWORDS: [&str; 6] = ["via", "proto", "dport", "domain", "log", "comment"];

/// Reads a line of a route file. `None`: the line says nothing.
pub fn parse_route_line(line: &str) -> Result<Option<(RouteKey, Route)>, ValueError> {
    let words = split(line)?;
    if words.is_empty() { Ok(None) } else { parse_route(&words).map(Some) }
}

/// Reads a route from words.
pub fn parse_route<W: AsRef<str>>(words: &[W]) -> Result<(RouteKey, Route), ValueError> {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    let Some((prefix, mut rest)) = words.split_first() else {
        return Err(ValueError::invalid("prefix", "the destination is missing").hint("PREFIX via TARGET"));
    };
    let mut route = RouteWords { prefix: Cow::from(*prefix), ..RouteWords::default() };
    while let Some((&keyword, after)) = rest.split_first() {
        let value = after.first().copied();
        let taken = match keyword {
            "via" if route.via.is_empty() => {
                let (target, taken) = Target::from_words(after)?;
                route.via = target.to_string().into();
                taken
            }
            "proto" if route.proto.is_none() => take(&mut route.proto, "proto", value)?,
            "dport" if route.dport.is_none() => take(&mut route.dport, "dport", value)?,
            "domain" if route.domain.is_none() => take(&mut route.domain, "domain", value)?,
            "comment" if route.comment.is_none() => take(&mut route.comment, "comment", value)?,
            "log" if !route.log => {
                route.log = true;
                0
            }
            _ if KEYWORDS.contains(&keyword) => {
                return Err(
                    ValueError::invalid("route", format!("`{keyword}` is given twice")).hint("give it once")
                );
            }
            _ => {
                return Err(ValueError::invalid("route", format!("`{keyword}` is not a keyword of a route"))
                    .hint(suggest(keyword, KEYWORDS)));
            }
        };
        rest = &after[taken..];
    }
    if route.via.is_empty() {
        return Err(ValueError::invalid("via", format!("route {prefix} has no target"))
            .hint(format!("write `{prefix} via TARGET`")));
    }
    route.parse()
}

/// Reads a binding: `PREFIX [iif IF]`.
pub fn parse_binding(text: &str) -> Result<Binding, ValueError> {
    let words: Vec<_> = text.split_whitespace().collect();
    let (source, iif) = match words.as_slice() {
        [source] => (source, None),
        [source, "iif", iif] => (source, Some((*iif).to_owned())),
        _ => {
            return Err(ValueError::invalid("bind", format!("`{text}` is not a binding"))
                .hint("write `PREFIX` or `PREFIX iif INTERFACE`"));
        }
    };
    Ok(Binding { source: parse_prefix("bind", source)?, iif })
}

/// Reads a line of a list of prefixes. `None`: the line says nothing.
pub fn parse_prefix_line(line: &str) -> Result<Option<IpNet>, ValueError> {
    let mut words = line.split_whitespace();
    let Some(prefix) = words.next().filter(|word| !word.starts_with('#')) else { return Ok(None) };
    match words.next() {
        Some(word) if !word.starts_with('#') => {
            Err(ValueError::invalid("prefix", format!("`{word}` is too much after prefix {prefix}"))
                .hint("one prefix a line; `#` begins a remark"))
        }
        _ => parse_prefix("prefix", prefix).map(Some),
    }
}

/// `text` as one word of a line.
pub fn quote(text: &str) -> Cow<'_, str> {
    if !text.is_empty() && !text.starts_with('#') && !text.contains(|c: char| c.is_whitespace() || c == '"') {
        return Cow::from(text);
    }
    Cow::from(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn take<'a>(
    field: &mut Option<Cow<'a, str>>,
    name: &'static str,
    value: Option<&'a str>,
) -> Result<usize, ValueError> {
    let Some(value) = value else {
        return Err(ValueError::invalid(name, format!("`{name}` needs a value"))
            .hint(format!("write it behind `{name}`, or leave both out")));
    };
    *field = Some(Cow::from(value));
    Ok(1)
}

/// The words of a line.
fn split(line: &str) -> Result<Vec<Cow<'_, str>>, ValueError> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let (word, after) = if let Some(quoted) = rest.strip_prefix('"') {
            unquote(quoted)?
        } else {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            (Cow::from(&rest[..end]), &rest[end..])
        };
        words.push(word);
        rest = after.trim_start();
    }
    Ok(words)
}

/// The word up to the closing quote, and what follows that.
fn unquote(text: &str) -> Result<(Cow<'_, str>, &str), ValueError> {
    let mut word = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Cow::from(word), &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, escaped @ ('"' | '\\'))) => word.push(escaped),
                Some((_, other)) => {
                    return Err(ValueError::invalid("route", format!("`\\{other}` means nothing in quotes"))
                        .hint("`\\\"` and `\\\\` do"));
                }
                None => break,
            },
            c => word.push(c),
        }
    }
    Err(ValueError::invalid("route", "a quoted word does not end").hint("close it with `\"`"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::{PortRange, Proto};

    #[test]
    fn a_full_line_is_read() {
        let line =
            r#"  192.0.2.53 via gateway 10.0.1.2 dev eth1 proto udp dport 53 comment "DNS \"ours\"" # x"#;
        let (key, route) = parse_route_line(line).expect("a route").expect("not empty");
        assert_eq!(key.to_string(), "192.0.2.53/32 proto udp dport 53");
        assert_eq!(key.selector.proto, Some(Proto::Udp));
        assert_eq!(key.selector.dport, Some(PortRange { low: 53, high: 53 }));
        assert_eq!(route.target.to_string(), "gateway 10.0.1.2 dev eth1");
        assert_eq!(route.comment.as_deref(), Some("DNS \"ours\""));
    }

    #[test]
    fn a_route_without_sessions_cannot_be_logged() {
        let error = parse_route_line("192.0.2.0/24 via direct log").expect_err("refused");
        assert_eq!(error.message, "route 192.0.2.0/24 cannot be logged: `direct` keeps no sessions");
        assert!(error.hint.is_some());
        let (_, route) = parse_route_line("192.0.2.0/24 via pool nat log").expect("a route").expect("one");
        assert!(route.log);
    }

    #[test]
    fn remarks_and_empty_lines_say_nothing() {
        for line in ["", "   ", "# 10.0.0.0/8 via direct", "\t#"] {
            assert_eq!(parse_route_line(line), Ok(None));
        }
    }

    #[rstest]
    #[case("203.0.113.0/24", Some("203.0.113.0/24"))]
    #[case("  2001:db8::1\t# the resolver", Some("2001:db8::1/128"))]
    #[case("default", Some("0.0.0.0/0"))]
    #[case("# 10.0.0.0/8", None)]
    #[case("   ", None)]
    fn a_line_of_a_list_has_one_prefix(#[case] line: &str, #[case] prefix: Option<&str>) {
        let read = parse_prefix_line(line).expect("a line").map(|prefix| prefix.to_string());
        assert_eq!(read.as_deref(), prefix);
    }

    #[rstest]
    #[case("203.0.113.0/24 via direct", "`via` is too much after prefix 203.0.113.0/24")]
    #[case("203.0.113.1/24", "prefix `203.0.113.1/24` has host bits set")]
    #[case("example.com", "`example.com` is not an IP address or prefix")]
    fn a_bad_line_of_a_list_is_explained(#[case] line: &str, #[case] message: &str) {
        assert_eq!(parse_prefix_line(line).expect_err("refused").message, message);
    }

    #[rstest]
    #[case("10.0.0.0/8", "route 10.0.0.0/8 has no target")]
    #[case("10.0.0.0/8 via", "the target is missing")]
    #[case("10.0.0.0/8 via direct via host", "`via` is given twice")]
    #[case("10.0.0.0/8 via direct prto tcp", "`prto` is not a keyword of a route")]
    #[case("10.0.0.0/8 via direct proto", "`proto` needs a value")]
    #[case("10.0.0.0/8 via direct comment \"x", "a quoted word does not end")]
    #[case("10.0.0.0/8 via direct domain *.example.com", "routes for a domain (`*.example.com`)")]
    fn a_bad_line_is_explained(#[case] line: &str, #[case] message: &str) {
        let error = parse_route_line(line).expect_err("refused");
        assert!(error.message.contains(message), "{error:?}");
    }

    #[test]
    fn a_quoted_word_reads_back() {
        for text in ["plain", "", "two words", "#hash", "a\"b\\c"] {
            assert_eq!(split(&quote(text)).expect("words"), [Cow::from(text)]);
        }
    }
}
