//! Character references of HTML: Python's `html.unescape`, and the names for the HTML reader.

use html_escape::NAMED_ENTITIES;

/// Names that HTML also reads without `;`, for the sake of old pages (HTML standard, section 13.5).
const LEGACY: &str = "
AElig AMP Aacute Acirc Agrave Aring Atilde Auml COPY Ccedil ETH Eacute Ecirc Egrave Euml GT
Iacute Icirc Igrave Iuml LT Ntilde Oacute Ocirc Ograve Oslash Otilde Ouml QUOT REG THORN
Uacute Ucirc Ugrave Uuml Yacute aacute acirc acute aelig agrave amp aring atilde auml
brvbar ccedil cedil cent copy curren deg divide eacute ecirc egrave eth euml frac12 frac14
frac34 gt iacute icirc iexcl igrave iquest iuml laquo lt macr micro middot nbsp not ntilde
oacute ocirc ograve ordf ordm oslash otilde ouml para plusmn pound quot raquo reg sect shy
sup1 sup2 sup3 szlig thorn times uacute ucirc ugrave uml uuml yacute yen yuml
";

/// The characters that the named reference stands for; `name` is without `&` and `;`.
pub(crate) fn named(name: &str) -> Option<&'static str> {
    let at = NAMED_ENTITIES.binary_search_by_key(&name.as_bytes(), |entry| entry.0).ok()?;
    Some(NAMED_ENTITIES[at].1)
}

fn legacy(name: &str) -> Option<&'static str> {
    if LEGACY.split_ascii_whitespace().any(|known| known == name) { named(name) } else { None }
}

/// What Windows-1252 has at 0x80 to 0x9F; references to these numbers mean it.
pub(crate) fn windows_1252(number: u32) -> Option<char> {
    let at = (number as usize).checked_sub(0x80)?;
    crate::codecs::WINDOWS_1252.chars().take(32).nth(at)
}

/// `html.unescape`: every reference replaced, by the rules of HTML for valid and invalid ones.
pub(crate) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let used = match rest.strip_prefix('#') {
            Some(number) => unescape_number(number, &mut out).map(|used| used + 1),
            None => unescape_name(rest, &mut out),
        };
        match used {
            Some(used) => rest = &rest[used..],
            None => out.push('&'),
        }
    }
    out.push_str(rest);
    out
}

/// Appends the character of a reference after `&#`; returns the bytes read.
fn unescape_number(text: &str, out: &mut String) -> Option<usize> {
    let (prefix, radix) = match text.as_bytes().first() {
        Some(b'x' | b'X') => (1, 16),
        _ => (0, 10),
    };
    let digits = text[prefix..].bytes().take_while(|&b| char::from(b).is_digit(radix)).count();
    if digits == 0 {
        return None;
    }
    let number = text[prefix..prefix + digits].chars().fold(0u32, |number, digit| {
        number.saturating_mul(radix).saturating_add(digit.to_digit(radix).unwrap_or(0))
    });
    match number {
        0 => out.push('\u{FFFD}'),
        0x0D => out.push('\r'),
        0x80..=0x9F => out.extend(windows_1252(number)),
        0x01..=0x08 | 0x0B | 0x0E..=0x1F | 0x7F | 0xFDD0..=0xFDEF => {}
        // The last two of each plane are no characters.
        _ if number <= 0x10_FFFF && number & 0xFFFE == 0xFFFE => {}
        _ => out.push(char::from_u32(number).unwrap_or('\u{FFFD}')),
    }
    let used = prefix + digits;
    Some(used + usize::from(text[used..].starts_with(';')))
}

/// Appends the characters of a reference after `&`; returns the bytes read.
fn unescape_name(text: &str, out: &mut String) -> Option<usize> {
    let ends_name = |c: char| matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let length: usize =
        text.chars().take_while(|&c| !ends_name(c)).take(32).map(char::len_utf8).sum();
    let name = &text[..length];
    if text[length..].starts_with(';')
        && let Some(characters) = named(name)
    {
        out.push_str(characters);
        return Some(length + 1);
    }
    let known = name.char_indices().map(|(at, c)| at + c.len_utf8()).rev().find_map(|end| {
        // A reference of one letter does not exist.
        if end < 2 { None } else { Some((end, legacy(&name[..end])?)) }
    });
    let (end, characters) = known?;
    out.push_str(characters);
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unescapes_as_python_does() {
        for (text, expected) in [
            ("&lt;&GT;&amp;amp;", "<>&amp;"),
            ("&notit; &notin;", "¬it; ∉"),
            ("&#39;&#x27;&#X27", "'''"),
            (
                "&#0;&#x80;&#x81;&#1;&#xD800;&#x110000;&#99999999999;",
                "\u{FFFD}€\u{81}\u{FFFD}\u{FFFD}\u{FFFD}",
            ),
            ("&; & &# &#x; &nosuch;", "&; & &# &#x; &nosuch;"),
            ("&NotEqualTilde;", "\u{2242}\u{338}"),
        ] {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }
}
