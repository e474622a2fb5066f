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

/// `3725.0` as `1 h 02 min`, `0.0123` as `12.3 ms`.
pub(crate) fn seconds(time: f64) -> String {
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

    #[test]
    fn numbers_have_a_readable_unit() {
        assert_eq!(bytes(512.0), "512 B");
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(bytes(3e30), format!("{:.1} EiB", 3e30 / 1024f64.powi(6)));
        assert_eq!(flops(2_500_000_000), "2.5 GFLOP");
        assert_eq!(seconds(0.0123), "12.3 ms");
        assert_eq!(seconds(125.9), "2 min 05 s");
        assert_eq!(seconds(3725.0), "1 h 02 min");
        assert_eq!((plain(8.0), plain(23.976)), ("8".into(), "23.976".into()));
    }
}
