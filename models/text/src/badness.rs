//! Whether text looks like UTF-8 that was decoded with a single-byte encoding.
//!
//! The rules and character classes are those of ftfy 6.3 (Robyn Speer, Apache-2.0), which upstream
//! calls: sequences of two or three of the about 400 characters that such damage consists of, which
//! intended text hardly ever has.

use std::sync::LazyLock;

use regex::Regex;

/// Character classes by the letter that [`RULES`] call them, as the inside of a bracket expression.
const CLASSES: [(char, &str); 15] = [
    // Common in intended text too.
    ('m', "\u{a0}\u{ad}·´–—―…’"),
    // C1 control characters.
    ('1', "\u{80}-\u{9f}"),
    // Almost never intended next to a letter.
    ('b', "¦¤¨¬¯¸ƒˆˇ˘˛˜†‡‰⌐◊\u{fffd}ªº"),
    ('§', "¶§"),
    ('$', "¢£¥₧€"),
    ('(', "¡«¿©΄΅‘‚“„•‹\u{f8ff}"),
    (')', "®»˝”›™"),
    ('9', "²³¹±¼½¾×µ÷⁄∂∆∏∑√∞∩∫≈≠≡≤≥№"),
    // Faces drawn in text.
    ('k', "Ò-ÖÙ-Üò-öø-üŐŌŪŲ°"),
    ('U', "À-ÑØÜÝĂĀĄĆČĎĐĘĚĒĖĞĢİĪĶĹĽŁĻŃŇŅŒŘŚŞŠŢŤŮŰŸŹŻŽҐ"),
    ('u', "ßà-ñăąāćčďđęěēėğģįīķĺľłļœŕśşšťüźżžґﬁﬂ"),
    ('L', "ÞΑ-ΩΆΈΉΊΌΎΏΪΫЁ-Я"),
    ('l', "α-ωάέήίΰа-џ"),
    ('x', "│┌┐┘├┤┬┼═-╬▀▄█▌▐░▒▓"),
    // Word characters of Python.
    ('w', r"\p{L}\p{N}_"),
];

/// One rule a line: `<…>` is any of the classes named, all else is an ordinary expression.
const RULES: &str = r"
<1>
<buUx()$9§><b>
[a-zA-Z]<lL><b>
<b><uUx()$9§>
<ulx)$9><U>
<x)$9><u>
<ux)><$>
[\s\x1c-\x1f]<U><$>
<Ux><9§>
<uUx$)><(><9>
<uU$9x§><)><(>
<$9x><(>
[a-z]<U><($>
<x><k>
<uU$9()§><x>
<x><)>
<uU><()><w>
[Œœ][^A-Za-z]
<U>°
[ÂÃÎÐ](?:<()>|[€œŠš¢£Ÿž\xa0\xad®©°·»–—´])
×[²³]
(?:[ØÙ](?:<m$b9(>|[ŸŠ®°µ»])){2}
à[²µ¹¼½¾]
√[±∂†≠®™´≤≥¥µø]
≈[°¢]
‚Ä[ìîïòôúùû†°¢π]
‚[âó][àäê°]
вЂ
[ВГРС](?:<1b()$>|[°µ])[ВГРС]
ГўВЂВ.[A-Za-z\x20]
Ã[\xa0¡]
[a-z][\s\x1c-\x1f]?[ÃÂ]\x20
^[ÃÂ]\x20
(?:[a-z.,?!]|<)>)Â(?:\x20|<()>)
β€[™\xa0Ά\xad®°]
[ΒΓΞΟ](?:<1b()$>|°)[ΒΓΞΟ]
ā€
";

static BAD: LazyLock<Regex> = LazyLock::new(|| {
    let rules: Vec<String> = RULES.lines().filter(|rule| !rule.is_empty()).map(expand).collect();
    Regex::new(&rules.join("|")).expect("rules are constants that the tests compile")
});

fn expand(rule: &str) -> String {
    let mut pattern = String::new();
    let mut open = false;
    for c in rule.chars() {
        match c {
            '<' => {
                open = true;
                pattern.push('[');
            }
            '>' if open => {
                open = false;
                pattern.push(']');
            }
            _ if open => {
                let class = CLASSES.iter().find(|class| class.0 == c);
                pattern.push_str(class.expect("rules name known classes").1);
            }
            _ => pattern.push(c),
        }
    }
    pattern
}

/// Whether some sequence of `text` looks wrongly decoded.
pub(crate) fn is_bad(text: &str) -> bool {
    !text.is_ascii() && BAD.is_match(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_damage_from_intended_text() {
        for damaged in ["Ã©tÃ©", "â€œquoted", "Ð¿Ñ€Ð¸", "\u{93}x", "naÃ¯ve"] {
            assert!(is_bad(damaged), "{damaged}");
        }
        for intended in ["été", "“quoted”", "при", "naïve façade", "10 °C", "½ µm", "x × y"]
        {
            assert!(!is_bad(intended), "{intended}");
        }
    }
}
