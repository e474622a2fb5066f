//! Numbers for people: bytes, FLOPs, seconds.

/// `1536` as `1.5 KiB`.
pub(crate) fn bytes(count: f64) -> String {
    scaled(count, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// `12GiB` or `1500000` in bytes; `None` for what is neither.
pub(crate) fn parse_bytes(text: &str) -> Option<usize> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let unit = match text[digits.len()..].trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1u64 << 40,
        _ => return None,
    };
    let bytes = digits.parse::<f64>().ok()? * unit as f64;
    (1.0..1e18).contains(&bytes).then_some(bytes as usize)
}

/// `2.5e9` as `2.50 GFLOP`.
pub(crate) fn flops(count: u64) -> String {
    scaled(count as f64, 1000.0, &["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"])
}

/// `3725.0` as `1 h 02 min`, `0.0123` as `12.3 ms`, `1.2e-5` as `12.0 us`.
pub(crate) fn seconds(time: f64) -> String {
    if time < 1e-4 {
        return format!("{:.1} us", time * 1e6);
    }
    if time < 1.0 {
        return format!("{:.1} ms", time * 1e3);
    }
    if time < 100.0 {
        return format!("{time:.2} s");
    }
    let minutes = (time / 60.0) as u64;
    if minutes < 60 {
        return format!("{minutes} min {:02.0} s", (time % 60.0).floor());
    }
    format!("{} h {:02} min", minutes / 60, minutes % 60)
}

/// Time that is expected, to the second: `36.7` as `37 s`, `3725.0` as `1 h 02 min`.
#[cfg(feature = "train")]
pub(crate) fn time_left(time: f64) -> String {
    if time < 99.5 { format!("{:.0} s", time.max(0.0)) } else { seconds(time.round()) }
}

/// `16384000` as `16,384,000`.
#[cfg(feature = "train")]
pub(crate) fn grouped(count: u128) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds since 1970 as `2026-01-31 23:59:59 UTC`.
#[cfg(feature = "train")]
pub(crate) fn date(time: f64) -> String {
    // Up to the year 9999, after which the form would be another.
    let seconds = time.clamp(0.0, 253_402_300_799.0) as u64;
    let (mut days, mut year, mut month) = (seconds / 86400, 1970, 0);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while days >= months[month] {
        days -= months[month];
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (month, day) = (month + 1, days + 1);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// `1 thread`, `2 threads`.
pub(crate) fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// `8.0` as `8`, `23.976` as `23.976`.
pub(crate) fn plain(number: f64) -> String {
    format!("{number}")
}

fn scaled(count: f64, step: f64, units: &[&str]) -> String {
    let mut value = count;
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    if unit == 0 { format!("{value} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_and_without_a_unit() {
        assert_eq!(parse_bytes("1500000"), Some(1_500_000));
        assert_eq!(parse_bytes("12GiB"), Some(12 << 30));
        assert_eq!(parse_bytes("1.5 mib"), Some(3 << 19));
        for bad in ["", "GiB", "12 parsecs", "-1", "0", "1e30", "NaN", "inf"] {
            assert_eq!(parse_bytes(bad), None, "{bad:?}");
        }
    }

    #[cfg(feature = "train")]
    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0.0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(951_827_696.9), "2000-02-29 12:34:56 UTC");
        assert_eq!(date(1_767_225_599.0), "2025-12-31 23:59:59 UTC");
        assert_eq!(date(4_107_542_400.0), "2100-03-01 00:00:00 UTC");
        assert_eq!(date(1e300), "9999-12-31 23:59:59 UTC");
        assert_eq!(date(f64::NAN), date(0.0));
    }

    #[cfg(feature = "train")]
    #[test]
    fn expected_times_and_large_counts_are_read_at_a_glance() {
        assert_eq!([0.0, 36.7, 99.4].map(time_left), ["0 s", "37 s", "99 s"]);
        assert_eq!([99.5, 3725.0].map(time_left), ["1 min 40 s", "1 h 02 min"]);
        assert_eq!([0, 999, 1000, 16_384_000].map(grouped), ["0", "999", "1,000", "16,384,000"]);
    }

    #[test]
    fn numbers_have_a_readable_unit() {
        assert_eq!((counted(1, "step"), counted(0, "step")), ("1 step".into(), "0 steps".into()));
        assert_eq!(bytes(512.0), "512 B");
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(bytes(3e30), format!("{:.1} EiB", 3e30 / 1024f64.powi(6)));
        assert_eq!(flops(2_500_000_000), "2.5 GFLOP");
        assert_eq!(seconds(0.0123), "12.3 ms");
        assert_eq!(seconds(1.2e-5), "12.0 us");
        assert_eq!(seconds(125.9), "2 min 05 s");
        assert_eq!(seconds(3725.0), "1 h 02 min");
        assert_eq!((plain(8.0), plain(23.976)), ("8".into(), "23.976".into()));
    }
}
