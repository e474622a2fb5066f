//! Whether machine code is a whole ELF file.
//!
//! A driver is given a pointer to an image and no length: it trusts the offsets inside. They are checked here,
//! so that it never reads behind the end.

/// `e_machine` of CUDA.
const EM_CUDA: u16 = 190;
/// Bytes of the header of a 64-bit ELF file.
const HEADER: usize = 64;
/// Bytes of a row of the table of sections.
const SECTION_ROW: u64 = 64;
/// Bytes of a row of the table of segments.
const SEGMENT_ROW: u64 = 56;
/// A section without bytes in the file.
const SHT_NOBITS: u32 = 8;

fn number<const N: usize>(bytes: &[u8], at: u64) -> Option<[u8; N]> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// What is wrong with the bytes of a cubin, if anything.
pub(crate) fn problem(bytes: &[u8]) -> Option<String> {
    let header = bytes.len() >= HEADER && bytes.starts_with(b"\x7fELF\x02\x01");
    if !header {
        return Some("is no 64-bit little-endian ELF file".into());
    }
    tables(bytes).err()
}

fn tables(bytes: &[u8]) -> Result<(), String> {
    let u16_at = |at| number(bytes, at).map(u16::from_le_bytes);
    let u32_at = |at| number(bytes, at).map(u32::from_le_bytes);
    let u64_at = |at| number(bytes, at).map(u64::from_le_bytes);
    let cut_off = |what: &str| format!("has {what} behind its end");
    let header = "a header";
    let machine = u16_at(18).ok_or_else(|| cut_off(header))?;
    if machine != EM_CUDA {
        return Err(format!("is for machine {machine}, expected {EM_CUDA} (CUDA)"));
    }
    let (segments, sections) = (u64_at(32).zip(u16_at(56)), u64_at(40).zip(u16_at(60)));
    let row_sizes = (u16_at(54), u16_at(58));
    let (
        Some((segments, n_segments)),
        Some((sections, n_sections)),
        (Some(segment), Some(section)),
    ) = (segments, sections, row_sizes)
    else {
        return Err(cut_off(header));
    };
    let is_right_size = |n: u16, found: u16, expected: u64| n == 0 || u64::from(found) == expected;
    if !is_right_size(n_segments, segment, SEGMENT_ROW)
        || !is_right_size(n_sections, section, SECTION_ROW)
        || n_sections == 0
    {
        return Err("has a table of sections or segments that is not a 64-bit file's".into());
    }
    let is_inside =
        |offset: u64, n: u64| offset.checked_add(n).is_some_and(|end| end <= bytes.len() as u64);
    let row = |table: u64, index: u16, size: u64| table.checked_add(u64::from(index) * size);
    for index in 0..n_sections {
        let at = row(sections, index, SECTION_ROW).filter(|&at| is_inside(at, SECTION_ROW));
        let at = at.ok_or_else(|| cut_off("its table of sections"))?;
        let kind = u32_at(at + 4);
        let range = u64_at(at + 24).zip(u64_at(at + 32));
        let fits = range.is_some_and(|(offset, n)| is_inside(offset, n));
        if kind != Some(SHT_NOBITS) && !fits {
            return Err(cut_off(&format!("section {index}")));
        }
    }
    for index in 0..n_segments {
        let at = row(segments, index, SEGMENT_ROW).filter(|&at| is_inside(at, SEGMENT_ROW));
        let at = at.ok_or_else(|| cut_off("its table of segments"))?;
        let range = u64_at(at + 8).zip(u64_at(at + 32));
        if !range.is_some_and(|(offset, n)| is_inside(offset, n)) {
            return Err(cut_off(&format!("segment {index}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one section of 8 bytes behind the header, its table after that.
    fn elf() -> Vec<u8> {
        let mut bytes = vec![0; HEADER + 8 + 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&EM_CUDA.to_le_bytes());
        bytes[40..48].copy_from_slice(&72u64.to_le_bytes());
        bytes[58..60].copy_from_slice(&64u16.to_le_bytes());
        bytes[60..62].copy_from_slice(&1u16.to_le_bytes());
        bytes[72 + 24..72 + 32].copy_from_slice(&64u64.to_le_bytes());
        bytes[72 + 32..72 + 40].copy_from_slice(&8u64.to_le_bytes());
        bytes
    }

    #[test]
    fn a_file_that_ends_early_is_refused() {
        assert_eq!(problem(&elf()), None);
        for n in 0..elf().len() {
            assert!(problem(&elf()[..n]).is_some(), "{n}");
        }
    }

    #[test]
    fn offsets_behind_the_end_are_refused() {
        for (at, value) in [(40, u64::MAX), (40, 73), (72 + 24, u64::MAX), (72 + 32, 73)] {
            let mut bytes = elf();
            bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
            assert!(problem(&bytes).unwrap().contains("behind its end"), "{at}");
        }
        let mut bytes = elf();
        bytes[18] = 62;
        assert!(problem(&bytes).unwrap().contains("machine 62"));
    }
}
