//! What pictures have in common: text in them, and round numbers beside their axes.

/// Keeps letters legible over what is drawn below them.
pub(crate) const HALO: &str = "stroke=\"#fff\" stroke-width=\"3\" paint-order=\"stroke\"";

/// Round numbers of bytes up to `most`, with labels.
pub(crate) fn byte_ticks(most: f64) -> Vec<(f64, String)> {
    let mut unit = 1.0;
    let mut name = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if most < 1.5 * unit * 1024.0 {
            break;
        }
        (unit, name) = (unit * 1024.0, next);
    }
    let step = round_step(most / unit, 7.0);
    let n = (most / unit / step).floor() as usize;
    (0..=n).map(|i| (i as f64 * step * unit, format!("{} {name}", i as f64 * step))).collect()
}

/// Round numbers of steps up to `n_steps`.
pub(crate) fn step_ticks(n_steps: usize) -> Vec<usize> {
    let step = round_step(n_steps as f64, 12.0).max(1.0) as usize;
    (0..=n_steps).step_by(step).collect()
}

/// The smallest of 1, 2, 5, 10, 20, ... (or a tenth and so on) that divides `most` into at most
/// `count` parts.
pub(crate) fn round_step(most: f64, count: f64) -> f64 {
    let raw = most / count;
    let decade = 10f64.powf(raw.max(f64::MIN_POSITIVE).log10().floor());
    // A power of ten is rounded, and must not fall below what it stands for.
    let least = raw * (1.0 - 1e-12);
    [1.0, 2.0, 5.0, 10.0].map(|n| n * decade).into_iter().find(|step| *step >= least).unwrap_or(1.0)
}

/// Text as the content of an element or between the quotes of an attribute.
pub(crate) fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            // XML has no way to say other control characters.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let labels = |most: f64| -> Vec<String> {
            byte_ticks(most).into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(labels(5.0 * 1024.0), ["0 KiB", "1 KiB", "2 KiB", "3 KiB", "4 KiB", "5 KiB"]);
        assert_eq!(labels(334.0 * 1048576.0)[..3], ["0 MiB", "50 MiB", "100 MiB"]);
        assert!(labels(1e13).len() <= 8);
        assert_eq!(step_ticks(3), [0, 1, 2, 3]);
        assert_eq!(step_ticks(439)[1], 50);
        assert_eq!(step_ticks(0), [0]);
        assert_eq!(byte_ticks(0.0), [(0.0, "0 B".to_string())]);
        assert!((round_step(3e-5, 6.0) - 5e-6).abs() < 1e-12);
    }

    #[test]
    fn names_from_files_are_no_markup() {
        assert_eq!(xml("a<b>&\"\u{1}\n"), "a&lt;b&gt;&amp;&quot;\u{fffd}\n");
    }
}
