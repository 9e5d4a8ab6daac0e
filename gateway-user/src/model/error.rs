//! Why a value or a state is refused.

use std::fmt;

/// What is wrong with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not acceptable.
    Invalid,
    /// It has a meaning, and this version cannot do it.
    Unsupported,
    /// It would exceed a capacity.
    Full,
}

/// A value that is refused: which, why, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueError {
    /// What is wrong with it.
    pub fault: Fault,
    /// The field it was given for, by the name that configuration file, API and command line share.
    pub field: &'static str,
    /// One lower-case sentence that names the value.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl ValueError {
    /// A value of `field` that is not acceptable.
    pub fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self { fault: Fault::Invalid, field, message: message.into(), hint: None }
    }

    /// A value of `field` that this version cannot do.
    pub fn unsupported(field: &'static str, message: impl Into<String>) -> Self {
        Self { fault: Fault::Unsupported, ..Self::invalid(field, message) }
    }

    /// A value of `field` that exceeds a capacity.
    pub fn full(field: &'static str, message: impl Into<String>) -> Self {
        Self { fault: Fault::Full, ..Self::invalid(field, message) }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Changes the field: a prefix is `to` in a file and `prefix` on the command line.
    #[must_use]
    pub fn of(mut self, field: &'static str) -> Self {
        self.field = field;
        self
    }
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ValueError {}

/// The candidate that `word` was probably meant to be.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One slip in a short word, two in a long one: more would suggest words that have nothing in common.
    let slips = if word.chars().count() <= 4 { 1 } else { 2 };
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, _)| (1..=slips).contains(distance))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean ...?`, or else the choices there are.
pub fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(candidate) = closest(word, candidates.clone()) {
        return format!("did you mean `{candidate}`?");
    }
    let all: Vec<_> = candidates.into_iter().map(|candidate| format!("`{candidate}`")).collect();
    match all.as_slice() {
        [] => "there is none".to_owned(),
        [one] => format!("there is only {one}"),
        // A screenful of names helps nobody.
        [..] if all.len() > 12 => format!("there are {} others", all.len()),
        [.., last] => format!("one of {} or {last}", all[..all.len() - 1].join(", ")),
    }
}

/// Reads serde's complaint about an unknown field: the field, and what was probably meant.
pub fn unknown_field(message: &str) -> Option<(String, String)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (field, rest) = rest.split_once('`')?;
    // ", expected one of `a`, `b`": the words between back ticks are every second part.
    let known: Vec<_> = rest.split('`').skip(1).step_by(2).collect();
    Some((field.to_owned(), suggest(field, known.iter().copied())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_nonsense_is_not() {
        assert_eq!(closest("adresses", ["address", "addresses", "ports"]), Some("addresses"));
        assert_eq!(closest("nta", ["nat", "tan"]), Some("nat"));
        assert_eq!(closest("xyz", ["nat", "pool"]), None);
        assert_eq!(suggest("xyz", ["nat", "pool"]), "one of `nat` or `pool`");
    }

    #[test]
    fn an_unknown_field_is_told_from_other_complaints() {
        let message = "unknown field `adresses`, expected one of `addresses`, `ports`, `rate`";
        let expected = ("adresses".to_owned(), "did you mean `addresses`?".to_owned());
        assert_eq!(unknown_field(message), Some(expected));
        assert_eq!(unknown_field("missing field `x`"), None);
    }
}
