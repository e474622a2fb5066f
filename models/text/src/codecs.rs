//! Single-byte encodings that text is wrongly decoded with, in the order of trying them.
//!
//! Windows encodings are "sloppy": a byte that the code page leaves free is the control character
//! of the same number, and U+FFFD (a byte already lost) is byte 0x1A.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// One encoding, from characters to bytes.
pub(crate) struct Encoding {
    /// Whether U+FFFD stands for a lost byte.
    pub(crate) sloppy: bool,
    /// Whether 0xCA is a no-break space, so that a space after an en dash is no damage.
    pub(crate) mac: bool,
    bytes: BTreeMap<char, u8>,
}

impl Encoding {
    fn new(upper: &str, sloppy: bool) -> Encoding {
        let mut bytes: BTreeMap<char, u8> = upper.chars().zip(0x80..=0xFF).collect();
        bytes.insert(if sloppy { '\u{FFFD}' } else { '\u{1A}' }, 0x1A);
        Encoding { sloppy, mac: upper == MACROMAN, bytes }
    }

    /// The bytes that decode to `text`, or none if no bytes do.
    pub(crate) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars()
            .map(|c| match c {
                '\0'..='\u{19}' | '\u{1B}'..='\u{7F}' => Some(c as u8),
                _ => self.bytes.get(&c).copied(),
            })
            .collect()
    }
}

/// Latin-1 first, then by how often the mix-up happens.
pub(crate) static ENCODINGS: LazyLock<Vec<Encoding>> = LazyLock::new(|| {
    let latin_1: String = ('\u{80}'..='\u{FF}').collect();
    let mut list = vec![Encoding::new(&latin_1, false)];
    list.extend(SLOPPY.iter().map(|upper| Encoding::new(upper, true)));
    list.extend([ISO_8859_2, MACROMAN, CP437].iter().map(|upper| Encoding::new(upper, false)));
    list
});

/// Upper halves of the Windows code pages, in the order of trying them.
const SLOPPY: [&str; 6] =
    [WINDOWS_1252, WINDOWS_1251, WINDOWS_1250, WINDOWS_1253, WINDOWS_1254, WINDOWS_1257];

/// Characters that the bytes `range` are in Latin-1 or in one of the Windows code pages.
pub(crate) fn characters_of(range: std::ops::RangeInclusive<u8>) -> Vec<char> {
    let skip = usize::from(range.start() - 0x80);
    let count = range.len();
    let mut characters: Vec<char> = range.map(char::from).collect();
    for upper in SLOPPY {
        characters.extend(upper.chars().skip(skip).take(count));
    }
    characters.sort_unstable();
    characters.dedup();
    characters
}

pub(crate) const WINDOWS_1252: &str = concat!(
    "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ",
    "\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°±²³´µ¶·¸¹º»¼½¾¿",
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞß",
    "àáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿ",
);
const WINDOWS_1251: &str = concat!(
    "ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—\u{98}™љ›њќћџ",
    "\u{a0}ЎўЈ¤Ґ¦§Ё©Є«¬\u{ad}®Ї°±Ііґµ¶·ё№є»јЅѕї",
    "АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ",
    "абвгдежзийклмнопрстуфхцчшщъыьэюя",
);
const WINDOWS_1250: &str = concat!(
    "€\u{81}‚\u{83}„…†‡\u{88}‰Š‹ŚŤŽŹ\u{90}‘’“”•–—\u{98}™š›śťžź",
    "\u{a0}ˇ˘Ł¤Ą¦§¨©Ş«¬\u{ad}®Ż°±˛ł´µ¶·¸ąş»Ľ˝ľż",
    "ŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢß",
    "ŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙",
);
const WINDOWS_1253: &str = concat!(
    "€\u{81}‚ƒ„…†‡\u{88}‰\u{8a}‹\u{8c}\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}\u{9d}\u{9e}\u{9f}",
    "\u{a0}΅Ά£¤¥¦§¨©ª«¬\u{ad}®―°±²³΄µ¶·ΈΉΊ»Ό½ΎΏ",
    "ΐΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡÒΣΤΥΦΧΨΩΪΫάέήί",
    "ΰαβγδεζηθικλμνξοπρςστυφχψωϊϋόύώÿ",
);
const WINDOWS_1254: &str = concat!(
    "€\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}\u{9e}Ÿ",
    "\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°±²³´µ¶·¸¹º»¼½¾¿",
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏĞÑÒÓÔÕÖ×ØÙÚÛÜİŞß",
    "àáâãäåæçèéêëìíîïğñòóôõö÷øùúûüışÿ",
);
const WINDOWS_1257: &str = concat!(
    "€\u{81}‚\u{83}„…†‡\u{88}‰\u{8a}‹\u{8c}¨ˇ¸\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}¯˛\u{9f}",
    "\u{a0}¡¢£¤¥¦§Ø©Ŗ«¬\u{ad}®Æ°±²³´µ¶·ø¹ŗ»¼½¾æ",
    "ĄĮĀĆÄÅĘĒČÉŹĖĢĶĪĻŠŃŅÓŌÕÖ×ŲŁŚŪÜŻŽß",
    "ąįāćäåęēčéźėģķīļšńņóōõö÷ųłśūüżž˙",
);
const ISO_8859_2: &str = concat!(
    "\u{80}\u{81}\u{82}\u{83}\u{84}\u{85}\u{86}\u{87}\u{88}\u{89}\u{8a}\u{8b}\u{8c}\u{8d}\u{8e}\u{8f}\u{90}\u{91}\u{92}\u{93}\u{94}\u{95}\u{96}\u{97}\u{98}\u{99}\u{9a}\u{9b}\u{9c}\u{9d}\u{9e}\u{9f}",
    "\u{a0}Ą˘Ł¤ĽŚ§¨ŠŞŤŹ\u{ad}ŽŻ°ą˛ł´ľśˇ¸šşťź˝žż",
    "ŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢß",
    "ŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙",
);
const MACROMAN: &str = concat!(
    "ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü",
    "†°¢£§•¶ß®©™´¨≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæø",
    "¿¡¬√ƒ≈∆«»…\u{a0}ÀÃÕŒœ–—“”‘’÷◊ÿŸ⁄€‹›ﬁﬂ",
    "‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔ\u{f8ff}ÒÚÛÙıˆ˜¯˘˙˚¸˝˛ˇ",
);
const CP437: &str = concat!(
    "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒ",
    "áíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐",
    "└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀",
    "αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_one_character_per_byte() {
        for encoding in ENCODINGS.iter() {
            assert_eq!(encoding.bytes.len(), 129);
        }
    }

    #[test]
    fn sloppy_pages_hold_lost_bytes() {
        assert_eq!(ENCODINGS[1].encode("â€\u{FFFD}a"), Some(vec![0xE2, 0x80, 0x1A, b'a']));
        assert_eq!(ENCODINGS[0].encode("\u{FFFD}"), None);
        assert_eq!(ENCODINGS[1].encode("\u{1A}"), None);
    }
}
