//! Which instruction set the CPU kernels use.
//!
//! Every kernel exists once in generic source and is compiled for each [`Isa`]; the choice is made
//! at run time and handed down as a value, so that each path can be forced in a test. Nothing here
//! reads the environment: the program does, and passes the name to [`Isa::from_name`].
//!
//! Invariant: an [`Isa`] other than [`Isa::PORTABLE`] only comes from this module, which has asked
//! the CPU first. Unsafe code relies on it: holding the value is the proof that it may run.

use std::fmt;

use crate::Error;

/// An instruction set that kernels are compiled for.
///
/// The value can only be made for a CPU that has the instructions, see [`Isa::detect`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Isa(Kind);

/// The name of an [`Isa`], for matching.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Plain Rust, correct everywhere; the compiler vectorizes what it can.
    Portable,
    /// 128-bit ASIMD of every aarch64.
    Neon,
    /// 256-bit: AVX2, FMA, F16C.
    Avx2,
    /// 512-bit: AVX-512 F, BW, VL, DQ, besides all of [`Kind::Avx2`].
    Avx512,
    /// [`Kind::Avx512`] with products of pairs of bf16 (AVX-512 BF16) and of i16 (VNNI).
    Avx512Bf16,
    /// [`Kind::Avx512Bf16`] with tile registers and their products in bf16 and bytes (AMX-TILE, AMX-BF16, AMX-INT8), which the
    /// operating system lets this process use.
    Amx,
}

/// Every kind, slowest first.
const KINDS: [Kind; 6] =
    [Kind::Portable, Kind::Neon, Kind::Avx2, Kind::Avx512, Kind::Avx512Bf16, Kind::Amx];

/// Proof that the CPU multiplies pairs of bf16 and sums them in f32, and pairs of i16 in i32; see
/// [`Isa::bf16_dot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bf16Dot(());

/// Proof that the CPU multiplies whole tiles of bf16 pairs and of bytes, besides what [`Bf16Dot`] proves; see
/// [`Isa::tiles`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles(Bf16Dot);

impl Tiles {
    /// What it proves besides.
    pub const fn dot(self) -> Bf16Dot {
        self.0
    }
}

impl Isa {
    /// Runs on every CPU.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// The best instruction set of this CPU.
    pub fn detect() -> Self {
        *Self::available().last().expect("portable is always available")
    }

    /// Every instruction set this CPU can run, slowest first; starts with [`Isa::PORTABLE`].
    pub fn available() -> Vec<Self> {
        KINDS.into_iter().filter(|&kind| is_supported(kind)).map(Self).collect()
    }

    /// The instruction set called `name` (`portable`, `neon`, `avx2`, `avx512`,
    /// `avx512bf16`, `amx`).
    ///
    /// # Errors
    /// [`Error::UnknownIsa`] for another name, [`Error::UnsupportedIsa`] if this CPU lacks it.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        let kind = KINDS
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| Error::UnknownIsa { name: name.to_owned() })?;
        if is_supported(kind) { Ok(Self(kind)) } else { Err(Error::UnsupportedIsa { kind }) }
    }

    /// For matching.
    pub const fn kind(self) -> Kind {
        self.0
    }

    /// The name [`Isa::from_name`] takes.
    pub const fn name(self) -> &'static str {
        self.0.name()
    }

    /// f32 lanes of one vector register.
    pub const fn lanes(self) -> usize {
        match self.0 {
            Kind::Portable | Kind::Avx2 => 8,
            Kind::Neon => 4,
            Kind::Avx512 | Kind::Avx512Bf16 | Kind::Amx => 16,
        }
    }

    /// The proof, where this is an instruction set with products of bf16 pairs.
    pub const fn bf16_dot(self) -> Option<Bf16Dot> {
        match self.0 {
            Kind::Avx512Bf16 | Kind::Amx => Some(Bf16Dot(())),
            Kind::Portable | Kind::Neon | Kind::Avx2 | Kind::Avx512 => None,
        }
    }

    /// The proof, where this is an instruction set with products of tiles.
    pub const fn tiles(self) -> Option<Tiles> {
        match self.0 {
            Kind::Amx => Some(Tiles(Bf16Dot(()))),
            Kind::Portable | Kind::Neon | Kind::Avx2 | Kind::Avx512 | Kind::Avx512Bf16 => None,
        }
    }

    /// Vector registers the compiler can keep f32 values in.
    pub const fn registers(self) -> usize {
        match self.0 {
            // Sixteen of 128 bits, two for each value.
            Kind::Portable => 8,
            Kind::Avx2 => 16,
            Kind::Neon | Kind::Avx512 | Kind::Avx512Bf16 | Kind::Amx => 32,
        }
    }
}

impl Kind {
    /// Lower-case name, as the user types it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        }
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
fn is_supported(kind: Kind) -> bool {
    match kind {
        Kind::Portable => true,
        Kind::Neon => false,
        Kind::Avx2 => {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        }
        Kind::Avx512 => {
            is_supported(Kind::Avx2)
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
        }
        Kind::Avx512Bf16 => {
            is_supported(Kind::Avx512)
                && is_x86_feature_detected!("avx512bf16")
                && is_x86_feature_detected!("avx512vnni")
        }
        Kind::Amx => is_supported(Kind::Avx512Bf16) && crate::simd::amx::is_usable(),
    }
}

#[cfg(target_arch = "aarch64")]
fn is_supported(kind: Kind) -> bool {
    match kind {
        Kind::Portable | Kind::Neon => true,
        Kind::Avx2 | Kind::Avx512 | Kind::Avx512Bf16 | Kind::Amx => false,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn is_supported(kind: Kind) -> bool {
    kind == Kind::Portable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detects_the_fastest_available() {
        let available = Isa::available();
        assert_eq!(available[0], Isa::PORTABLE);
        assert_eq!(Isa::detect(), available[available.len() - 1]);
    }

    #[test]
    fn names_round_trip() {
        for isa in Isa::available() {
            assert_eq!(Isa::from_name(isa.name()).unwrap(), isa);
        }
    }

    #[test]
    fn refuses_unknown_and_foreign_names() {
        assert!(matches!(Isa::from_name("sse9"), Err(Error::UnknownIsa { .. })));
        let foreign = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
        assert!(matches!(Isa::from_name(foreign), Err(Error::UnsupportedIsa { .. })));
    }
}
