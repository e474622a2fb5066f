//! GPU architectures, and which of them runs code for which.

use std::fmt;
use std::str::FromStr;

use crate::model::ImageKind;

/// An architecture as NVIDIA's tools name it: `sm_80`, or `sm_90a` for code that uses what only 9.0 has.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Arch {
    /// First number of the compute capability.
    pub major: u32,
    /// Second number of the compute capability, at most 9.
    pub minor: u32,
    /// Whether code may use features that later architectures lack (`a`).
    pub is_specific: bool,
}

impl Arch {
    /// The architecture of a GPU of compute capability `major.minor`.
    pub fn of_device(major: u32, minor: u32) -> Arch {
        Arch { major, minor, is_specific: false }
    }

    /// Whether a GPU of architecture `device` runs an image of `kind` that was compiled for this one.
    /// Machine code runs on the same major and at least the same minor number, PTX on anything later, and
    /// specific code of either kind on exactly its architecture.
    pub fn runs_on(self, device: Arch, kind: ImageKind) -> bool {
        let (own, found) = ((self.major, self.minor), (device.major, device.minor));
        match (self.is_specific, kind) {
            (true, _) => own == found,
            (false, ImageKind::Cubin) => self.major == device.major && self.minor <= device.minor,
            (false, ImageKind::Ptx) => own <= found,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.is_specific { "a" } else { "" };
        write!(f, "sm_{}{}{suffix}", self.major, self.minor)
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> Result<Arch, String> {
        let wrong = || format!("`{text}` is no architecture; expected one such as sm_80 or sm_90a");
        let number = text.strip_prefix("sm_").ok_or_else(wrong)?;
        let (digits, is_specific) = match number.strip_suffix('a') {
            Some(digits) => (digits, true),
            None => (number, false),
        };
        let is_number = (2..=4).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_digit())
            && !digits.starts_with('0');
        let number: u32 = digits.parse().ok().filter(|_| is_number).ok_or_else(wrong)?;
        Ok(Arch { major: number / 10, minor: number % 10, is_specific })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arch(text: &str) -> Arch {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ["sm_80", "sm_86", "sm_90a", "sm_120"] {
            assert_eq!(arch(name).to_string(), name);
        }
        for name in
            ["", "80", "sm_", "sm_8", "sm_90b", "sm_+80", "sm_080", "sm_99999", "compute_80"]
        {
            assert!(name.parse::<Arch>().is_err(), "{name}");
        }
    }

    #[test]
    fn code_runs_where_the_driver_loads_it() {
        let runs = |code: &str, kind, device: &str| arch(code).runs_on(arch(device), kind);
        let (cubin, ptx) = (ImageKind::Cubin, ImageKind::Ptx);
        assert!(runs("sm_80", cubin, "sm_86") && !runs("sm_86", cubin, "sm_80"));
        assert!(!runs("sm_80", cubin, "sm_90") && runs("sm_80", ptx, "sm_90"));
        assert!(runs("sm_90a", cubin, "sm_90") && !runs("sm_90a", cubin, "sm_100"));
        assert!(!runs("sm_90a", ptx, "sm_100") && !runs("sm_80", ptx, "sm_75"));
    }
}
