//! Numbers for human readers. JSON has the numbers themselves.

use std::time::Duration;

/// `1536` as `1.5KiB`: three digits, binary units.
pub fn bytes(bytes: u64) -> String {
    const UNITS: &[&str] = &["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be shown as 1024 of a unit is shown as 1 of the next.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 { format!("{value:.1}{}", UNITS[unit]) } else { format!("{value:.0}{}", UNITS[unit]) }
}

/// Seconds as their two largest units: `3d4h`, `2h5m`, `41s`.
pub fn seconds(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    let pair = |large: u64, unit: char, small: u64, next: char| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{next}") }
    };
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole}s"),
        (0, 0, minutes) => pair(minutes, 'm', whole % 60, 's'),
        (0, hours, minutes) => pair(hours, 'h', minutes, 'm'),
        (days, hours, _) => pair(days, 'd', hours, 'h'),
    }
}

/// `part` of `whole` as a percentage, with a digit behind the point where it is small.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let percent = part as f64 * 100.0 / whole as f64;
    if part == 0 || percent >= 9.95 {
        format!("{percent:.0}%")
    } else if percent < 0.05 {
        "<0.1%".to_owned()
    } else {
        format!("{percent:.1}%")
    }
}

/// `1 route`, `2 routes`.
pub fn plural(count: u64, noun: &str) -> String {
    if count == 1 { format!("{count} {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_a_binary_unit() {
        for (number, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0KiB"),
            (1536, "1.5KiB"),
            (10_188, "9.9KiB"),
            (10_189, "10KiB"),
            (1_048_063, "1023KiB"),
            (1_048_064, "1.0MiB"),
            (u64::MAX, "16EiB"),
        ] {
            assert_eq!(bytes(number), text, "{number}");
        }
    }

    #[test]
    fn seconds_show_their_two_largest_units() {
        for (number, text) in [
            (0.0, "0s"),
            (59.9, "59s"),
            (60.0, "1m"),
            (61.0, "1m1s"),
            (7440.0, "2h4m"),
            (86_400.0, "1d"),
            (273_600.0, "3d4h"),
            (-1.0, "0s"),
        ] {
            assert_eq!(seconds(number), text, "{number}");
        }
    }

    #[test]
    fn percentages_have_a_digit_behind_the_point_while_they_are_small() {
        assert_eq!(percent(0, 10), "0%");
        assert_eq!(percent(1, 1000), "0.1%");
        assert_eq!(percent(1, 100_000), "<0.1%");
        assert_eq!(percent(1, 3), "33%");
        assert_eq!(percent(1, 0), "-");
    }
}
