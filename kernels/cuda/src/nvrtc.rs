//! CUDA text to PTX and machine code, by NVIDIA's run-time compiler. It needs no GPU and no driver.
//!
//! The library and its headers are looked for in `KINO_CUDA_TOOLS`, then in the folder that
//! `kernels/cuda/install` fills, then where the system finds libraries.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::{result, sys};
use kernels::cuda::Gpu;

use crate::Source;
use crate::error::Error;

/// What compiles: another version may give other code for the same text.
pub const COMPILER: &str = "nvrtc 12.9";

/// Folder that the install script fills, below the workspace's `target`.
const FOLDER: &str = "cuda-tools";
/// The library, and the one it opens while it compiles.
const LIBRARIES: [&str; 2] = ["libnvrtc-builtins.so.12.9", "libnvrtc.so.12"];

/// What one compiled function needs of a multiprocessor.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's registers that were put into memory.
    pub spill_bytes: u32,
    /// Bytes of a thread's local memory.
    pub stack_bytes: u32,
    /// Bytes of static shared memory of a block.
    pub static_shared_bytes: u32,
}

/// A compiled function.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compiled {
    /// PTX, which a driver or the emulator takes.
    pub ptx: String,
    /// Machine code.
    pub cubin: Vec<u8>,
    /// What the code needs.
    pub resources: Resources,
}

/// The compiler, found and loaded.
#[derive(Clone, Debug)]
pub struct Nvrtc {
    includes: Vec<PathBuf>,
}

impl Nvrtc {
    /// Finds the compiler.
    ///
    /// # Errors
    /// [`Error::NoCompiler`] if the library or the headers are missing.
    pub fn find() -> Result<Nvrtc, Error> {
        let folders = folders();
        let searched = || {
            let names: Vec<String> =
                folders.iter().map(|path| path.display().to_string()).collect();
            format!("{} and the system's libraries", names.join(", "))
        };
        let missing =
            |missing: &str| Error::NoCompiler { missing: missing.to_owned(), searched: searched() };
        let found = folders.iter().find(|folder| folder.join("nvidia/cuda_nvrtc/lib").is_dir());
        if let Some(folder) = found {
            preload(&folder.join("nvidia/cuda_nvrtc/lib"));
        }
        // SAFETY: opens and closes libraries by name; their initializers are trusted as any
        // library's that is linked.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing(LIBRARIES[1]));
        }
        let folder = found.ok_or_else(|| missing("cuda_bf16.h"))?;
        let includes = ["cuda_runtime", "cuda_nvcc"]
            .map(|package| folder.join("nvidia").join(package).join("include"));
        for (include, header) in includes.iter().zip(["cuda_bf16.h", "crt/mma.h"]) {
            if !include.join(header).is_file() {
                return Err(missing(header));
            }
        }
        Ok(Nvrtc { includes: includes.to_vec() })
    }

    /// Compiles one function.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's log.
    pub fn compile(&self, source: &Source, gpu: Gpu) -> Result<Compiled, Error> {
        let target = gpu.code_name();
        let mut options = vec![
            format!("--gpu-architecture={target}"),
            "--std=c++17".to_owned(),
            "--ptxas-options=-v".to_owned(),
        ];
        options
            .extend(self.includes.iter().map(|path| format!("--include-path={}", path.display())));
        let refuse = |log: String| Error::Compile {
            entry: source.entry.clone(),
            target: target.clone(),
            log,
        };
        let text = CString::new(source.text.as_str())
            .map_err(|_| refuse("the text has a NUL".to_owned()))?;
        let program = Program::new(&text).map_err(|error| refuse(error.to_string()))?;
        let compiled = program.compile(&options);
        let log = program.log();
        compiled.map_err(|error| refuse(format!("{error}: {log}")))?;
        let output = program.output().map_err(|error| refuse(error.to_string()))?;
        Ok(Compiled { ptx: output.0, cubin: output.1, resources: Resources::of(&log) })
    }
}

/// Where the tools may be.
fn folders() -> Vec<PathBuf> {
    let named = std::env::var_os("KINO_CUDA_TOOLS").map(PathBuf::from);
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target").join(FOLDER);
    named.into_iter().chain([built]).collect()
}

/// Opens the libraries by path, so that opening them by name finds these.
fn preload(folder: &Path) {
    static LOADED: OnceLock<Vec<libloading::Library>> = OnceLock::new();
    LOADED.get_or_init(|| {
        let open = |name: &&str| {
            // SAFETY: as in `Nvrtc::find`.
            unsafe { libloading::Library::new(folder.join(name)) }.ok()
        };
        LIBRARIES.iter().filter_map(open).collect()
    });
}

impl Resources {
    /// Reads them from the assembler's log, as `Used 35 registers, used 1 barriers, 8 bytes cumulative stack size`.
    fn of(log: &str) -> Resources {
        let before = |what: &str| -> u32 {
            let Some(at) = log.find(what) else { return 0 };
            let number = log[..at].trim_end().rsplit([' ', '\n', '\t']).next();
            number.and_then(|digits| digits.parse().ok()).unwrap_or(0)
        };
        Resources {
            registers: before(" registers"),
            spill_bytes: before(" bytes spill stores"),
            stack_bytes: before(" bytes stack frame"),
            static_shared_bytes: before(" bytes smem"),
        }
    }
}

/// An NVRTC program, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(text: &CStr) -> Result<Program, result::NvrtcError> {
        result::create_program(text, None).map(Program)
    }

    fn compile(&self, options: &[String]) -> Result<(), result::NvrtcError> {
        // SAFETY: the program was created and is destroyed only when dropped.
        unsafe { result::compile_program(self.0, options) }
    }

    fn log(&self) -> String {
        // SAFETY: as in `compile`.
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        text(log.into_iter().map(std::os::raw::c_char::cast_unsigned).collect())
    }

    /// PTX and machine code.
    fn output(&self) -> Result<(String, Vec<u8>), result::NvrtcError> {
        // SAFETY: the program compiled; the buffer has the size that was asked for.
        unsafe {
            let ptx = result::get_ptx(self.0)?;
            let mut bytes = 0;
            sys::nvrtcGetCUBINSize(self.0, &raw mut bytes).result()?;
            let mut cubin = vec![0u8; bytes];
            sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()).result()?;
            Ok((text(ptx.into_iter().map(std::os::raw::c_char::cast_unsigned).collect()), cubin))
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once. Nothing can be done if it fails.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// The text before the terminating NUL.
fn text(mut bytes: Vec<u8>) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    String::from_utf8_lossy(&bytes).into_owned()
}
