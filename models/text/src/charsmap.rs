//! Checks sentencepiece's compiled character map before it is used.
//!
//! The map is a little-endian `u32` byte count, a double-array trie of that many bytes and a blob
//! of zero-terminated UTF-8 replacements. The reader in the `tokenizers` crate trusts it: it
//! allocates what the count says and indexes without checks. Every step that reader can take is
//! shown here to stay inside, in one pass over the trie and without walking it.

use crate::Error;

/// The most bytes a map may have; T5's has 237,000.
const MAX_BYTES: usize = 8 << 20;
/// Bit of a trie unit that says "a replacement ends here".
const HAS_LEAF: usize = 1 << 8;

/// Accepts `map` if no lookup in it can leave its bounds.
pub(crate) fn check(map: &[u8]) -> Result<(), Error> {
    let bad = |what: String| Err(Error::Charsmap(what));
    if map.len() > MAX_BYTES {
        return bad(format!("{} bytes, expected at most {MAX_BYTES}", map.len()));
    }
    let Some((count, rest)) = map.split_first_chunk::<4>() else {
        return bad(format!("{} bytes, expected at least 4", map.len()));
    };
    let trie_bytes = u32::from_le_bytes(*count) as usize;
    if !trie_bytes.is_multiple_of(4) || trie_bytes == 0 || trie_bytes > rest.len() {
        return bad(format!("a trie of {trie_bytes} bytes in a map of {}", map.len()));
    }
    let (trie, blob) = rest.split_at(trie_bytes);
    let Ok(blob) = std::str::from_utf8(blob) else {
        return bad("replacements that are not UTF-8".into());
    };
    let unit = |index: usize| {
        let bytes = [0, 1, 2, 3].map(|k| trie[4 * index + k]);
        u32::from_le_bytes(bytes) as usize
    };
    let units = trie_bytes / 4;
    for index in 0..units {
        let value = unit(index);
        if value >> 31 == 1 && index > 0 {
            // A replacement's position: never followed, because its label matches no byte. The root
            // is followed whatever its label is.
            continue;
        }
        let offset = (value >> 10) << ((value & (1 << 9)) >> 6);
        let next = index ^ offset;
        // The next byte of the text changes the low 8 bits of the position, nothing else.
        if next | 0xFF >= units {
            return bad(format!("trie unit {index} leads to {next} of {units} units"));
        }
        if value & HAS_LEAF != 0 {
            let at = unit(next) & 0x7FFF_FFFF;
            if at > blob.len() || !blob.is_char_boundary(at) {
                return bad(format!("trie unit {index} names replacement byte {at}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(units: &[u32], blob: &[u8]) -> Vec<u8> {
        let mut map = ((units.len() * 4) as u32).to_le_bytes().to_vec();
        map.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        map.extend(blob);
        map
    }

    #[test]
    fn accepts_an_empty_trie() {
        check(&map(&[0; 256], b"")).unwrap();
    }

    #[test]
    fn rejects_a_trie_longer_than_the_map() {
        let mut hostile = map(&[0; 256], b"");
        hostile[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(check(&hostile).unwrap_err().to_string().contains("trie of 4294967295 bytes"));
        assert!(check(&[1, 2]).is_err());
    }

    #[test]
    fn rejects_a_step_out_of_the_trie() {
        let mut units = [0u32; 256];
        units[7] = 0x400 << 10;
        assert!(check(&map(&units, b"")).unwrap_err().to_string().contains("unit 7 leads"));
    }

    #[test]
    fn rejects_a_root_that_leads_out_of_the_trie() {
        // With the bit of a replacement's position, which only the root is followed in spite of.
        let mut units = [0u32; 256];
        units[0] = 1 << 31 | 0x400 << 10;
        assert!(check(&map(&units, b"")).unwrap_err().to_string().contains("unit 0 leads"));
        units.swap(0, 7);
        check(&map(&units, b"")).unwrap();
    }

    #[test]
    fn rejects_a_replacement_inside_a_character() {
        let mut units = [0u32; 256];
        // The unit is its own leaf, so its value is the replacement's position: 256.
        units[7] = HAS_LEAF as u32;
        let mut blob = vec![b'a'; 255];
        blob.extend("é".as_bytes());
        assert!(check(&map(&units, &blob)).unwrap_err().to_string().contains("byte 256"));
        assert!(check(&map(&units, &blob[..200])).is_err());
        check(&map(&units, &[b'a'; 256])).unwrap();
    }
}
