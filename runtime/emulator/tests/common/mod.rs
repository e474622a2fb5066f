//! A device with its module, for the tests beside: arrays up, a kernel, arrays down.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::path::PathBuf;

use emulator::{Device, Error, Fault, FaultKind, Launch, Module, Options, Program, Stats};

pub(crate) struct Session {
    pub(crate) device: Device,
    pub(crate) program: Program,
}

/// One kernel parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg {
    Pointer(u64),
    U32(u32),
    F32(f32),
}

impl Arg {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Pointer(address) => address.to_le_bytes().to_vec(),
            Self::U32(value) => value.to_le_bytes().to_vec(),
            Self::F32(value) => value.to_le_bytes().to_vec(),
        }
    }
}

/// The text of a compiled kernel beside the tests.
pub(crate) fn ptx(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/ptx").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

impl Session {
    pub(crate) fn new(text: &str) -> Self {
        Self::of(&Module::parse(text).unwrap_or_else(|e| panic!("{e}")))
    }

    pub(crate) fn of(module: &Module) -> Self {
        let mut device = Device::new();
        let program = device.load(module).unwrap_or_else(|e| panic!("{e}"));
        Self { device, program }
    }

    pub(crate) fn upload(&mut self, bytes: &[u8]) -> Arg {
        let address = self.device.alloc(bytes.len() as u64).expect("the device has room");
        self.device.upload(address, bytes).expect("it was allocated for this");
        Arg::Pointer(address)
    }

    pub(crate) fn upload_f32(&mut self, values: &[f32]) -> Arg {
        self.upload(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    }

    pub(crate) fn upload_u32(&mut self, values: &[u32]) -> Arg {
        self.upload(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    }

    pub(crate) fn upload_u16(&mut self, values: &[u16]) -> Arg {
        self.upload(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// Memory that nothing has written.
    pub(crate) fn alloc(&mut self, bytes: u64) -> Arg {
        Arg::Pointer(self.device.alloc(bytes).expect("the device has room"))
    }

    pub(crate) fn bytes(&self, arg: Arg, n: usize) -> Vec<u8> {
        let Arg::Pointer(address) = arg else { panic!("{arg:?} is no pointer") };
        assert_eq!(self.device.first_unwritten(address, n as u64), None, "not all is written");
        let mut bytes = vec![0; n];
        self.device.download(address, &mut bytes).expect("it is allocated");
        bytes
    }

    pub(crate) fn u32s(&self, arg: Arg, n: usize) -> Vec<u32> {
        let bytes = self.bytes(arg, 4 * n);
        bytes
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes(b.try_into().expect("chunks have that length")))
            .collect()
    }

    pub(crate) fn u16s(&self, arg: Arg, n: usize) -> Vec<u16> {
        let bytes = self.bytes(arg, 2 * n);
        bytes
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes(b.try_into().expect("chunks have that length")))
            .collect()
    }

    pub(crate) fn f32s(&self, arg: Arg, n: usize) -> Vec<f32> {
        self.u32s(arg, n).into_iter().map(f32::from_bits).collect()
    }

    pub(crate) fn launch(
        &self,
        kernel: &str,
        (grid, block, shared_bytes): ([u32; 3], u32, u32),
        args: &[Arg],
        options: &Options,
    ) -> Result<Stats, Error> {
        let args: Vec<Vec<u8>> = args.iter().map(|arg| arg.bytes()).collect();
        let params: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let launch = Launch { grid, block: [block, 1, 1], shared_bytes, params: &params };
        self.device.launch(&self.program, kernel, &launch, options)
    }
}

/// The fault that a launch ended with.
pub(crate) fn fault(outcome: Result<Stats, Error>) -> Fault {
    match outcome {
        Err(Error::Fault(fault)) => *fault,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the launch found nothing wrong"),
    }
}

pub(crate) fn kind(outcome: Result<Stats, Error>) -> FaultKind {
    fault(outcome).kind
}

/// Numbers in [-1, 1) that look random.
pub(crate) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Exact for numbers of 11 significant bits within the range of f16.
pub(crate) fn to_f16(x: f32) -> u16 {
    if x == 0.0 {
        return 0;
    }
    let bits = x.to_bits();
    let exponent = (bits >> 23 & 0xff) as i32 - 127 + 15;
    assert!((1..31).contains(&exponent) && bits & 0x1fff == 0, "{x} is no f16");
    (bits >> 16 & 0x8000) as u16 | (exponent as u16) << 10 | (bits >> 13 & 0x3ff) as u16
}

pub(crate) fn from_f16(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3ff));
    let magnitude = if exponent == 0 {
        fraction * 2.0_f32.powi(-24)
    } else {
        (1.0 + fraction / 1024.0) * 2.0_f32.powi(exponent - 15)
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// a [m, k] * b [k, n] in f64.
pub(crate) fn product(a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] =
                (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>();
        }
    }
    c
}

/// The largest difference.
pub(crate) fn difference(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected);
    pairs
        .map(|(f, e)| (f64::from(*f) - e).abs())
        .fold(0.0, |most, d| if d.is_nan() { f64::INFINITY } else { d.max(most) })
}
